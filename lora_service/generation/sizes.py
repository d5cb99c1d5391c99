"""The size of a request's images, and the most work that it may ask for."""

from __future__ import annotations

import math

from PIL import Image

from lora_service.errors import InputError
from lora_service.generation.request import LARGEST_SIDE, GenerateRequest
from lora_service.models.diffusion_base import DiffusionBase

Size = tuple[int, int]
"""Width and height in pixels."""

_LONGEST = 4
"""The longest side that an initial image's shape leads to, in sides of the base's own square."""


def choose_size(request: GenerateRequest, base: DiffusionBase, image: Image.Image | None) -> Size:
    """Return width and height: the request's, else those of its aspect ratio or initial image, else the base's.

    Raises:
        InputError: a side is no multiple of :func:`size_step` or longer than the base takes, or there is nothing left
            for ``aspect_ratio`` to say.
    """
    size = _choose(request, base, image)
    for name, side in zip(("width", "height"), size, strict=True):
        base.check_longest(name, side)
    return size


def _choose(request: GenerateRequest, base: DiffusionBase, image: Image.Image | None) -> Size:
    native, step = base.defaults.resolution, size_step(base)
    sides = {"width": request.width, "height": request.height}
    for name, value in sides.items():
        if value is not None and value % step:
            raise InputError(name, value, f"a multiple of {step}, like {_nearest(value, step)}")
    if request.aspect_ratio != "auto":
        return _by_ratio(request, native, step)
    if image is not None and request.width is None and request.height is None:
        scale = native / min(image.size)
        width, height = (min(_LONGEST * native, _nearest(side * scale, step)) for side in image.size)
        return width, height
    return request.width or native, request.height or native


def _by_ratio(request: GenerateRequest, native: int, step: int) -> Size:
    """Return the side that is given and the one that follows; where none is, the base's own number of pixels."""
    across, down = map(int, request.aspect_ratio.split(":"))
    if request.width and request.height:
        expected = "auto where both width and height are given"
        raise InputError("aspect_ratio", request.aspect_ratio, expected, code="size_given_twice")
    if request.width:
        width, height = request.width, _nearest(request.width * down / across, step)
    elif request.height:
        width, height = _nearest(request.height * across / down, step), request.height
    else:
        width, height = (_nearest(native * math.sqrt(ratio), step) for ratio in (across / down, down / across))
    if max(width, height) > LARGEST_SIDE:
        expected = f"one whose longer side has at most {LARGEST_SIDE} pixels, not {max(width, height)}"
        raise InputError("aspect_ratio", request.aspect_ratio, expected)
    return width, height


def size_step(base: DiffusionBase) -> int:
    """Return the factor of the sides of what ``base`` draws."""
    return base.family.drawing_step or base.size_step


def _nearest(pixels: float, step: int) -> int:
    return max(step, round(pixels / step) * step)


def check_work(
    request: GenerateRequest, base: DiffusionBase, size: Size, max_pixel_steps: int | None, images: int
) -> None:
    """Refuse a request that would take hours.

    Args:
        images: the number of its images.
        max_pixel_steps: most width × height × steps × images; None: any.

    Raises:
        InputError: it exceeds the limit (``too_much_work``).
    """
    steps = request.steps(base.defaults)
    pixel_steps = size[0] * size[1] * steps * images
    if max_pixel_steps is not None and pixel_steps > max_pixel_steps:
        limit = max_pixel_steps // (size[0] * size[1] * images)
        expected = (
            f"at most {limit} for {images} pictures of {size[0]} × {size[1]} pixels, as "
            f"MAX_PIXEL_STEPS is {max_pixel_steps}; take fewer or smaller pictures"
        )
        raise InputError("num_inference_steps", steps, expected, code="too_much_work")
