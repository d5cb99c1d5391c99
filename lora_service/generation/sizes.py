"""The size of a request's images, and the most work that it may ask for."""

from __future__ import annotations

import math

from PIL import Image

from lora_service.errors import InputError
from lora_service.generation.request import LARGEST_SIDE, GenerateRequest
from lora_service.models.diffusion_base import DiffusionBase

Size = tuple[int, int]
"""Width and height in pixels."""

SIZE_STEP = 8
"""Sides are multiples of it: a latent of the published bases, whose UNets pad what does not halve evenly."""
_LONGEST = 4
"""The longest side that an initial image's shape leads to, in sides of the base's own square."""


def choose_size(request: GenerateRequest, base: DiffusionBase, image: Image.Image | None) -> Size:
    """Return width and height: the request's, else those of its aspect ratio or initial image, else the base's.

    Raises:
        InputError: a side is no multiple of :data:`SIZE_STEP`, or there is nothing left for ``aspect_ratio`` to say.
    """
    native = base.defaults.resolution
    given = {"width": request.width, "height": request.height}
    for name, value in given.items():
        if value is not None and value % SIZE_STEP:
            raise InputError(name, value, f"a multiple of {SIZE_STEP}, like {_nearest(value)}")
    if request.aspect_ratio != "auto":
        return _by_ratio(request, native)
    if image is not None and request.width is None and request.height is None:
        scale = native / min(image.size)
        width, height = (min(_LONGEST * native, _nearest(side * scale)) for side in image.size)
        return width, height
    return request.width or native, request.height or native


def _by_ratio(request: GenerateRequest, native: int) -> Size:
    """Return the side that is given and the one that follows; where none is, the base's own number of pixels."""
    across, down = map(int, request.aspect_ratio.split(":"))
    if request.width and request.height:
        expected = "auto where both width and height are given"
        raise InputError("aspect_ratio", request.aspect_ratio, expected, code="size_given_twice")
    if request.width:
        width, height = request.width, _nearest(request.width * down / across)
    elif request.height:
        width, height = _nearest(request.height * across / down), request.height
    else:
        width, height = _nearest(native * math.sqrt(across / down)), _nearest(native * math.sqrt(down / across))
    if max(width, height) > LARGEST_SIDE:
        expected = f"one whose longer side has at most {LARGEST_SIDE} pixels, not {max(width, height)}"
        raise InputError("aspect_ratio", request.aspect_ratio, expected)
    return width, height


def _nearest(pixels: float) -> int:
    return max(SIZE_STEP, round(pixels / SIZE_STEP) * SIZE_STEP)


def check_work(request: GenerateRequest, base: DiffusionBase, size: Size, max_pixel_steps: int | None) -> None:
    """Refuse a request that would take hours.

    Args:
        max_pixel_steps: most width × height × steps × images; None: any.

    Raises:
        InputError: it exceeds the limit (``too_much_work``).
    """
    steps = request.num_inference_steps or base.defaults.num_inference_steps
    pixel_steps = size[0] * size[1] * steps * request.num_outputs
    if max_pixel_steps is not None and pixel_steps > max_pixel_steps:
        limit = max_pixel_steps // (size[0] * size[1] * request.num_outputs)
        expected = (
            f"at most {limit} for {request.num_outputs} pictures of {size[0]} × {size[1]} pixels, as "
            f"MAX_PIXEL_STEPS is {max_pixel_steps}; take fewer or smaller pictures"
        )
        raise InputError("num_inference_steps", steps, expected, code="too_much_work")
