"""Pictures as the VAE sees them, encoded once; noise, mirror and caption are still drawn at each step."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image, ImageEnhance, ImageOps

from lora_service.models.bundle import BaseModel
from lora_service.pictures import TrainingPicture

JITTERED = 4
"""Versions of each picture in slightly different colours, with ``color_jitter``."""


@dataclass(frozen=True)
class CachedLatents:
    """The VAE's posterior of pictures of one size, in ``v`` versions each (mirrored, recoloured).

    ``mean`` and ``std`` are ``(v, n, c, h, w)``, already scaled; ``mask`` is
    ``(v, n, 1, h, w)`` in [0, 1] or None; ``pictures`` tells which ``n`` of the
    training's pictures they are.
    """

    mean: torch.Tensor
    std: torch.Tensor
    mask: torch.Tensor | None
    pictures: tuple[int, ...]

    def draw(self, version: torch.Tensor, picture: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        """A fresh sample of the posterior ``(b, c, h, w)`` for versions and pictures ``(b,)``."""
        mean = self.mean[version, picture]
        return mean + self.std[version, picture] * torch.randn(mean.shape, generator=generator, device=mean.device)

    def masks(self, version: torch.Tensor, picture: torch.Tensor) -> torch.Tensor | None:
        return None if self.mask is None else self.mask[version, picture]


def encode(
    pictures: Sequence[TrainingPicture], base: BaseModel, *, flip: bool, color_jitter: bool, seed: int
) -> list[CachedLatents]:
    """Encode ``pictures`` with the base's VAE, one :class:`CachedLatents` per picture size.

    The posterior is kept in fp32: the latents of one picture at 512² are 64 kB.
    """
    by_size: dict[tuple[int, int], list[int]] = defaultdict(list)
    for i, picture in enumerate(pictures):
        by_size[picture.image.size].append(i)
    versions = [
        (jitter, mirror) for jitter in range(JITTERED if color_jitter else 1) for mirror in range(2 if flip else 1)
    ]
    return [
        _encode_group([pictures[i] for i in members], tuple(members), base, versions, seed)
        for _, members in sorted(by_size.items())
    ]


def _encode_group(
    group: list[TrainingPicture], members: tuple[int, ...], base: BaseModel, versions: list[tuple[int, int]], seed: int
) -> CachedLatents:
    means, stds, masks = [], [], []
    width, height = (side // base.pixels_per_latent for side in group[0].image.size)
    masked = any(p.mask is not None for p in group)
    for jitter, mirror in versions:
        images = [_version(p.image, jitter, mirror, seed) for p in group]
        mean, std = _posterior(images, base)
        means.append(mean)
        stds.append(std)
        if masked:
            masks.append(torch.stack([_mask(p.mask, bool(mirror), (width, height)) for p in group]))
    mask = torch.stack(masks).to(base.device) if masked else None
    return CachedLatents(torch.stack(means), torch.stack(stds), mask, members)


def _posterior(images: list[Image.Image], base: BaseModel) -> tuple[torch.Tensor, torch.Tensor]:
    """Scaled mean and std ``(n, c, h, w)``, one picture at a time: memory is what runs out first at 1024²."""
    means, stds = [], []
    with torch.inference_mode():
        for image in images:
            pixels = torch.from_numpy(np.asarray(image, np.float32) / 127.5 - 1).permute(2, 0, 1).unsqueeze(0)
            posterior = base.vae.encode(pixels.to(base.device, base.vae.dtype)).latent_dist
            means.append(posterior.mean.float())
            stds.append(posterior.std.float())
    shift = base.vae.config.get("shift_factor") or 0.0
    scale = base.vae.config.scaling_factor
    # Clones leave inference mode, so that autograd may save them for its backward.
    return (torch.cat(means) - shift).mul(scale).clone(), torch.cat(stds).mul(scale).clone()


def _version(image: Image.Image, jitter: int, mirror: int, seed: int) -> Image.Image:
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
