"""Which part of a picture is used, and at which size."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

from PIL import Image

Point = tuple[float, float]
Size = tuple[int, int]


@dataclass(frozen=True)
class Crop:
    """The part (left, top, right, bottom) of an upright original that is used, and its size in training."""

    crop: tuple[int, int, int, int]
    original: Size
    size: Size

    @property
    def enlargement(self) -> float:
        """How many training pixels one pixel of the original becomes, along a side."""
        return self.size[0] / (self.crop[2] - self.crop[0])

    def apply(self, image: Image.Image) -> Image.Image:
        """The framed part of ``image``, which shows the original at any scale."""
        x, y = image.width / self.original[0], image.height / self.original[1]
        left, top, right, bottom = self.crop
        box = (left * x, top * y, min(right * x, image.width), min(bottom * y, image.height))
        return image.resize(self.size, Image.Resampling.LANCZOS, box=box)


def crop_for(original: Size, size: Size, center: Point | None) -> Crop:
    """The largest part of ``original`` with the shape of ``size``, as near around ``center`` as fits.

    Args:
        center: the subject's, as shares (0 to 1) of width and height; none: the middle.
    """
    scale = min(original[0] / size[0], original[1] / size[1])
    width, height = (max(1, min(round(side * scale), limit)) for side, limit in zip(size, original, strict=True))
    x, y = center or (0.5, 0.5)
    left = _placed(x * original[0] - width / 2, original[0] - width)
    top = _placed(y * original[1] - height / 2, original[1] - height)
    return Crop((left, top, left + width, top + height), original, size)


def nearest_bucket(original: Size, resolution: int, step: int) -> Size:
    """The training size for ``original``: nearest in shape, within resolution² pixels, never larger than it is.

    Sides are multiples of ``step``. This is the rule of kohya's trainer with ``bucket_no_upscale``: a picture
    with fewer pixels than its bucket has gets a smaller one of its own.
    """
    wanted = math.log(original[0] / original[1])
    width, height = min(list_buckets(resolution, step), key=lambda size: abs(math.log(size[0] / size[1]) - wanted))
    return min(width, _down_to(original[0], step)), min(height, _down_to(original[1], step))


@lru_cache
def list_buckets(resolution: int, step: int) -> tuple[Size, ...]:
    """All full-size shapes: each width from half to twice the resolution, with the height its area leaves."""
    shapes = set()
    for width in range(_down_to(resolution // 2, step), 2 * resolution + 1, step):
        height = _down_to(min(2 * resolution, resolution**2 // width), step)
        shapes |= {(width, height), (height, width)} if width * height <= resolution**2 else set()
    return tuple(sorted(shapes))


def _down_to(side: int, step: int) -> int:
    return max(step, side // step * step)


def _placed(start: float, room: int) -> int:
    return max(0, min(round(start), room))
