"""The VAE's posteriors of the pictures, computed once; noise, mirroring and captions are still sampled at each step."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image, ImageEnhance, ImageOps

from lora_service.dataset.training_images import TrainingImage
from lora_service.models.diffusion_base import DiffusionBase

JITTERED = 4
"""Variants of each picture in slightly different colours, with ``color_jitter``."""
CROPPED = 8
"""Variants of each picture that are cropped differently, with ``random_crop``; the first is the crop without it."""


@dataclass(frozen=True)
class CachedLatents:
    """The posteriors of the pictures of one size (a bucket), in ``v`` variants each: mirrored, recoloured,
    cropped.

    Attributes:
        mean, std: ``(v, n, c, h, w)``, already scaled.
        mask: ``(v, n, 1, h, w)`` in [0, 1], or None.
        images: indices of the ``n`` pictures in the dataset.
        sizes: :func:`size_conditioning` of each, ``(v, n, 6)``; None where the base takes none.
    """

    mean: torch.Tensor
    std: torch.Tensor
    mask: torch.Tensor | None
    images: tuple[int, ...]
    sizes: torch.Tensor | None = None

    def sample(self, variants: torch.Tensor, images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        """Sample latents ``(b, c, h, w)`` from the posteriors of ``variants`` of ``images``, both ``(b,)``."""
        mean = self.mean[variants, images]
        return mean + self.std[variants, images] * torch.randn(mean.shape, generator=generator, device=mean.device)

    def masks(self, variants: torch.Tensor, images: torch.Tensor) -> torch.Tensor | None:
        """Return the masks ``(b, 1, h, w)``, None where no picture of the bucket has one."""
        return None if self.mask is None else self.mask[variants, images]

    def time_ids(self, variants: torch.Tensor, images: torch.Tensor) -> torch.Tensor | None:
        """Return the size conditioning of Stable Diffusion XL, ``(b, 6)``; None for other bases."""
        return None if self.sizes is None else self.sizes[variants, images]


def cache_latents(
    images: Sequence[TrainingImage],
    base: DiffusionBase,
    *,
    flip: bool,
    color_jitter: bool,
    seed: int,
    random_crop: bool = False,
) -> list[CachedLatents]:
    """Encode ``images`` with the base's VAE, one :class:`CachedLatents` per picture size.

    The posterior is kept in fp32: the latents of one picture at 512² are 64 kB.
    """
    by_size: dict[tuple[int, int], list[int]] = defaultdict(list)
    for i, picture in enumerate(images):
        by_size[picture.image.size].append(i)
    versions = CROPPED if random_crop else JITTERED if color_jitter else 1
    variants = [
        _Variant(version, version % JITTERED if color_jitter else 0, mirror, seed)
        for version in range(versions)
        for mirror in ((False, True) if flip else (False,))
    ]
    return [
        _encode_bucket([images[i] for i in members], tuple(members), base, variants)
        for _, members in sorted(by_size.items())
    ]


@dataclass(frozen=True)
class _Variant:
    """One way to show every picture: the number of its crop, that of its colours, and whether it is mirrored."""

    crop: int
    jitter: int
    is_mirrored: bool
    seed: int

    def cropped(self, picture: TrainingImage) -> TrainingImage:
        """Return ``picture`` in this variant's crop; 0 is its own."""
        if not self.crop:
            return picture
        return picture.random_crop(random.Random(f"{self.seed} {picture.name} {picture.image.size} {self.crop}"))

    def pixels(self, image: Image.Image) -> Image.Image:
        """Return a cropped image in this variant's colours and direction."""
        if self.jitter:
            rng = random.Random(f"{self.seed} {self.jitter}")
            for enhancer in (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color):
                image = enhancer(image).enhance(rng.uniform(0.85, 1.15))
        return ImageOps.mirror(image) if self.is_mirrored else image


def _encode_bucket(
    bucket: list[TrainingImage], members: tuple[int, ...], base: DiffusionBase, variants: list[_Variant]
) -> CachedLatents:
    means, stds, masks, sizes = [], [], [], []
    latents_size = bucket[0].image.width // base.vae_scale_factor, bucket[0].image.height // base.vae_scale_factor
    for variant in variants:
        pictures = [variant.cropped(picture) for picture in bucket]
        mean, std = _posterior([variant.pixels(picture.image) for picture in pictures], base)
        means.append(mean)
        stds.append(std)
        masks.append(torch.stack([_mask(p.mask, variant.is_mirrored, latents_size) for p in pictures]))
        sizes.append([size_conditioning(picture, mirror=variant.is_mirrored) for picture in pictures])
    has_masks = any(picture.mask is not None for picture in bucket)
    return CachedLatents(
        torch.stack(means),
        torch.stack(stds),
        torch.stack(masks).to(base.device) if has_masks else None,
        members,
        torch.tensor(sizes, dtype=torch.float32, device=base.device) if base.family.takes_sizes else None,
    )


def size_conditioning(picture: TrainingImage, *, mirror: bool = False) -> tuple[int, ...]:
    """Return Stable Diffusion XL's conditioning on sizes (https://arxiv.org/abs/2307.01952, section 2.2).

    Height and width of the original, top and left of the crop in the original once that is scaled to the training
    size, height and width of the training picture.
    """
    (original_width, original_height), (left, top, right, _) = picture.original, picture.crop
    if mirror:
        left = original_width - right
    scale = picture.image.width / (picture.crop[2] - picture.crop[0])
    return original_height, original_width, round(top * scale), round(left * scale), *reversed(picture.image.size)


def _posterior(images: list[Image.Image], base: DiffusionBase) -> tuple[torch.Tensor, torch.Tensor]:
    """Scaled mean and std ``(n, c, h, w)``, one picture at a time: memory is what runs out first at 1024²."""
    means, stds = [], []
    with torch.inference_mode():
        for image in images:
            pixels = torch.from_numpy(np.asarray(image, np.float32) / 127.5 - 1).permute(2, 0, 1).unsqueeze(0)
            posterior = base.posterior(pixels)
            means.append(posterior.mean.float())
            stds.append(posterior.std.float())
    # Clones leave inference mode, so that autograd may save them for its backward.
    return base.scale_latents(torch.cat(means)).clone(), base.scale_deviation(torch.cat(stds)).clone()


def _mask(mask: Image.Image | None, mirror: bool, size: tuple[int, int]) -> torch.Tensor:
    """``(1, h, w)`` in [0, 1] at the latents' size; all ones where a picture has none."""
    if mask is None:
        return torch.ones(1, size[1], size[0])
    small = (ImageOps.mirror(mask) if mirror else mask).resize(size, Image.Resampling.BOX)
    return torch.from_numpy(np.asarray(small, np.float32) / 255).unsqueeze(0)
