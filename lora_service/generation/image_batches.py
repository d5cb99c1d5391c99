"""Draws the images of a request in batches that fit the memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext

import torch
from diffusers.image_processor import VaeImageProcessor
from PIL import Image
from torch import Tensor

from lora_service.generation.denoising import DenoisingPlan, Picture, denoise
from lora_service.generation.image_memory import (
    decoded_at_once,
    denoising_bytes,
    free_bytes,
    images_at_once,
    tiled_decoding,
    too_large,
)
from lora_service.generation.sizes import Size
from lora_service.models.diffusion_base import DiffusionBase

_IMAGE_PROCESSOR = VaeImageProcessor()
Log = Callable[[str], None]


def draw_in_batches(
    base: DiffusionBase, plan: DenoisingPlan, pictures: Sequence[Picture], size: Size, log: Log
) -> Iterator[list[Image.Image]]:
    """Yield the images of ``pictures``, a batch at a time.

    A batch for which the device's memory is not enough is halved.

    Raises:
        InputError: it is not enough for a single image (``too_large_for_memory``).
    """
    batch_size = images_at_once(base, size, len(pictures), plan.lora_bytes)
    done = 0
    while done < len(pictures):
        batch = pictures[done : done + batch_size]
        try:
            with torch.inference_mode():
                images = decode(base, denoise(plan, batch), size, log)
        except torch.OutOfMemoryError as error:
            if len(batch) == 1:
                raise too_large(base, size, denoising_bytes(base, size), free_bytes(base.device) or 0) from error
            batch_size = len(batch) // 2
            log(f"The memory is not enough for {len(batch)} pictures at once, so {batch_size} are drawn at once.")
        else:
            yield images
            done += len(batch)
            continue
        # Behind the exception, whose traceback holds the tensors.
        torch.cuda.empty_cache()


def decode(base: DiffusionBase, latents: Tensor, size: Size, log: Log) -> list[Image.Image]:
    """Return the pictures of latents ``(b, c, h, w)``, as many at once as fit the memory, or else in tiles."""
    at_once = min(len(latents), decoded_at_once(base, size))
    while True:
        if not at_once:
            log(f"The memory is short, so pictures of {size[0]} × {size[1]} pixels are decoded in tiles.")
        try:
            return _decode(base, latents, at_once)
        except torch.OutOfMemoryError:
            if not at_once:
                raise
            at_once = 0 if at_once == 1 else 1
        torch.cuda.empty_cache()


def _decode(base: DiffusionBase, latents: Tensor, at_once: int) -> list[Image.Image]:
    images: list[Image.Image] = []
    with nullcontext() if at_once else tiled_decoding(base):
        for part in latents.split(max(1, at_once)):
            images += _IMAGE_PROCESSOR.postprocess(base.decode(part))
    return images
