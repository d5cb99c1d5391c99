"""The size of a request's images, and the most work that it may ask for."""

from __future__ import annotations

from PIL import Image

from lora_service.errors import InputError
from lora_service.generation.request import LARGEST_SIDE, GenerateRequest
from lora_service.models.diffusion_base import DiffusionBase

Size = tuple[int, int]
"""Width and height in pixels."""


def choose_size(request: GenerateRequest, base: DiffusionBase, image: Image.Image | None) -> Size:
    """Return width and height: the request's, else the initial image's, else the base's.

    Raises:
        InputError: a side does not suit the base.
    """
    native = base.defaults.resolution
    if image is not None and request.width is None and request.height is None:
        scale = native / min(image.size)
        width, height = (min(LARGEST_SIDE, base.nearest_side(side * scale)) for side in image.size)
        return width, height
    size = request.width or native, request.height or native
    for name, value in zip(("width", "height"), size, strict=True):
        base.check_side(name, value)
    return size


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
