"""Crops and sizes: the part of an image that is used, in a square or in an aspect ratio bucket."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from random import Random

from PIL import Image

Point = tuple[float, float]
"""x and y as shares (0 to 1) of width and height."""
Size = tuple[int, int]
"""width, height in pixels."""
Box = tuple[int, int, int, int]
"""left, top, right, bottom in pixels."""


@dataclass(frozen=True)
class Crop:
    """The part ``box`` of an upright original of size ``original``, resized to ``size`` for training."""

    box: Box
    original: Size
    size: Size

    @property
    def scale(self) -> float:
        """Training pixels per pixel of the original, along a side; above 1 the crop is enlarged."""
        return self.size[0] / (self.box[2] - self.box[0])

    @property
    def kept(self) -> float:
        """The share of the original that the crop shows, 0 to 1."""
        left, top, right, bottom = self.box
        return (right - left) * (bottom - top) / (self.original[0] * self.original[1])

    def apply(self, image: Image.Image) -> Image.Image:
        """Return the crop of ``image``, which is the original at any scale."""
        x, y = image.width / self.original[0], image.height / self.original[1]
        left, top, right, bottom = self.box
        box = (left * x, top * y, min(right * x, image.width), min(bottom * y, image.height))
        return image.resize(self.size, Image.Resampling.LANCZOS, box=box)


def crop_for(original: Size, size: Size, center: Point | None) -> Crop:
    """Return the largest crop of ``original`` with the aspect ratio of ``size``, as near around ``center`` as fits.

    Args:
        center: the subject's; none: the middle of the image.
    """
    scale = min(original[0] / size[0], original[1] / size[1])
    width, height = (max(1, min(round(side * scale), limit)) for side, limit in zip(size, original, strict=True))
    x, y = center or (0.5, 0.5)
    left = _clamp(x * original[0] - width / 2, original[0] - width)
    top = _clamp(y * original[1] - height / 2, original[1] - height)
    return Crop((left, top, left + width, top + height), original, size)


SMALLEST_CROP = 0.8
"""Side of the smallest random crop as a share of the largest crop's."""


def random_crop(original: Size, size: Size, subject: Box | None, rng: Random) -> Crop:
    """Return a random crop of ``original`` with the aspect ratio of ``size``, of 80 to 100 % of the largest one's side.

    It is never smaller than ``size``, which would enlarge it.

    Args:
        subject: a part of the original that stays within the crop as far as it fits; none: any part may be cut off.
    """
    largest = crop_for(original, size, None)
    share = rng.uniform(min(1.0, max(SMALLEST_CROP, largest.scale)), 1.0)
    left, top, right, bottom = largest.box
    width, height = max(1, round((right - left) * share)), max(1, round((bottom - top) * share))
    x = _random_start(original[0], width, subject and (subject[0], subject[2]), rng)
    y = _random_start(original[1], height, subject and (subject[1], subject[3]), rng)
    return Crop((x, y, x + width, y + height), original, size)


def _random_start(length: int, part: int, subject: tuple[int, int] | None, rng: Random) -> int:
    """Return where ``part`` of ``length`` begins, around as much as fits of the subject, start and end."""
    first, last = 0, length - part
    if subject is not None:
        bounds = sorted((subject[1] - part, subject[0]))  # a subject larger than the part fills it wherever it begins
        first, last = (_clamp(bound, length - part) for bound in bounds)
    return rng.randint(first, last)


def nearest_bucket(original: Size, resolution: int, step: int) -> Size:
    """Return the bucket nearest to ``original`` in aspect ratio, within resolution² pixels and never enlarging.

    Sides are multiples of ``step``. This is the rule of kohya's trainer with ``bucket_no_upscale``: an image
    with fewer pixels than its bucket gets a smaller bucket.
    """
    log_ratio = math.log(original[0] / original[1])
    width, height = min(list_buckets(resolution, step), key=lambda size: abs(math.log(size[0] / size[1]) - log_ratio))
    return min(width, _round_down(original[0], step)), min(height, _round_down(original[1], step))


@lru_cache
def list_buckets(resolution: int, step: int) -> tuple[Size, ...]:
    """Return all full-size buckets: each width from half to twice the resolution, as high as the area allows."""
    sizes = set()
    for width in range(_round_down(resolution // 2, step), 2 * resolution + 1, step):
        height = _round_down(min(2 * resolution, resolution**2 // width), step)
        sizes |= {(width, height), (height, width)} if width * height <= resolution**2 else set()
    return tuple(sorted(sizes))


def _round_down(side: int, step: int) -> int:
    return max(step, side // step * step)


def _clamp(start: float, largest: int) -> int:
    return max(0, min(round(start), largest))
