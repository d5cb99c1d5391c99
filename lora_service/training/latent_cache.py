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


@dataclass(frozen=True)
class CachedLatents:
    """The posteriors of the pictures of one size (a bucket), in ``v`` variants each: mirrored, recoloured.

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
    images: Sequence[TrainingImage], base: DiffusionBase, *, flip: bool, color_jitter: bool, seed: int
) -> list[CachedLatents]:
    """Encode ``images`` with the base's VAE, one :class:`CachedLatents` per picture size.

    The posterior is kept in fp32: the latents of one picture at 512² are 64 kB.
    """
    by_size: dict[tuple[int, int], list[int]] = defaultdict(list)
    for i, picture in enumerate(images):
        by_size[picture.image.size].append(i)
    variants = [
        (jitter, mirror) for jitter in range(JITTERED if color_jitter else 1) for mirror in range(2 if flip else 1)
    ]
    return [
        _encode_bucket([images[i] for i in members], tuple(members), base, variants, seed)
        for _, members in sorted(by_size.items())
    ]


def _encode_bucket(
    bucket: list[TrainingImage],
    members: tuple[int, ...],
    base: DiffusionBase,
    variants: list[tuple[int, int]],
    seed: int,
) -> CachedLatents:
    means, stds = [], []
    for jitter, mirror in variants:
        mean, std = _posterior([_variant(p.image, jitter, mirror, seed) for p in bucket], base)
        means.append(mean)
        stds.append(std)
    mirrors = [bool(mirror) for _, mirror in variants]
    return CachedLatents(
        torch.stack(means), torch.stack(stds), _masks(bucket, base, mirrors), members, _sizes(bucket, base, mirrors)
    )


def _masks(bucket: list[TrainingImage], base: DiffusionBase, mirrors: list[bool]) -> torch.Tensor | None:
    if all(p.mask is None for p in bucket):
        return None
    width, height = (side // base.vae_scale_factor for side in bucket[0].image.size)
    masks = [torch.stack([_mask(p.mask, mirror, (width, height)) for p in bucket]) for mirror in mirrors]
    return torch.stack(masks).to(base.device)


def _sizes(bucket: list[TrainingImage], base: DiffusionBase, mirrors: list[bool]) -> torch.Tensor | None:
    if not base.is_xl:
        return None
    sizes = [[size_conditioning(p, mirror=mirror) for p in bucket] for mirror in mirrors]
    return torch.tensor(sizes, dtype=torch.float32, device=base.device)


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
    return base.scale_latents(torch.cat(means)).clone(), torch.cat(stds).mul(base.vae.config.scaling_factor).clone()


def _variant(image: Image.Image, jitter: int, mirror: int, seed: int) -> Image.Image:
    if jitter:
        rng = random.Random(f"{seed} {jitter}")
        for enhancer in (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color):
            image = enhancer(image).enhance(rng.uniform(0.85, 1.15))
    return ImageOps.mirror(image) if mirror else image


def _mask(mask: Image.Image | None, mirror: bool, size: tuple[int, int]) -> torch.Tensor:
    """``(1, h, w)`` in [0, 1] at the latents' size; all ones where a picture has none."""
    if mask is None:
        return torch.ones(1, size[1], size[0])
    small = (ImageOps.mirror(mask) if mirror else mask).resize(size, Image.Resampling.BOX)
    return torch.from_numpy(np.asarray(small, np.float32) / 255).unsqueeze(0)
