"""How near pictures are to a subject, and how far a LoRA moved what it should leave alone.

Fixed measures on pixels, for the embedded model's small drawn pictures; they need no model.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image
from torch.nn import functional as F

SIDE = 64
PATCH = 8
SCALES = (0.75, 1.0, 1.35)


def subject_similarity(picture: Image.Image, subject: Sequence[Image.Image], masks: Sequence[Image.Image]) -> float:
    """How much of a subject is found in ``picture``, from 0 to 1, wherever and at whatever size it stands there.

    Each 8 × 8 patch of a training picture that lies within its mask ("L", 255 = the
    subject) is looked up in ``picture``, at three sizes and mirrored; a patch scores
    ``exp(−8 · d)`` for the root mean square difference ``d`` in [0, 1] to its best match.
    The result is the mean over patches, and the best over training pictures.
    """
    searched = torch.cat([_patches(version) for version in _versions(picture)])  # (m, 3 · 64)
    return max(_found(_inside(image, mask), searched) for image, mask in zip(subject, masks, strict=True))


def drift(before: Image.Image, after: Image.Image) -> float:
    """Mean absolute change of a pixel, 0 to 1, between the same prompt and seed without and with a LoRA."""
    return float((_tensor(before, SIDE) - _tensor(after, SIDE)).abs().mean())


def _found(patches: torch.Tensor, searched: torch.Tensor) -> float:
    distances = torch.cdist(patches, searched).div(patches.shape[1] ** 0.5).min(dim=1).values
    return float(torch.exp(-8 * distances).mean())


def _inside(image: Image.Image, mask: Image.Image) -> torch.Tensor:
    """The patches of ``image``, every second pixel apart, that lie within ``mask`` for at least 80 %."""
    cover = _patches(mask.convert("RGB").resize((SIDE, SIDE)), step=2).mean(dim=1)
    return _patches(image.convert("RGB").resize((SIDE, SIDE)), step=2)[cover >= min(0.8, float(cover.max()))]


def _versions(picture: Image.Image) -> list[Image.Image]:
    sized = [picture.resize((round(SIDE * s), round(SIDE * s)), Image.Resampling.BICUBIC) for s in SCALES]
    return sized + [image.transpose(Image.Transpose.FLIP_LEFT_RIGHT) for image in sized]


def _patches(image: Image.Image, step: int = 1) -> torch.Tensor:
    """All 8 × 8 patches as rows ``(m, 192)`` in [0, 1]."""
    return F.unfold(_tensor(image).unsqueeze(0), PATCH, stride=step)[0].T.contiguous()


def _tensor(image: Image.Image, side: int | None = None) -> torch.Tensor:
    image = image.convert("RGB")
    if side is not None:
        image = image.resize((side, side))
    return torch.from_numpy(np.asarray(image, np.float32) / 255).permute(2, 0, 1)
