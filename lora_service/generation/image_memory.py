"""Estimates the memory that pictures take: how many are drawn at once, and how their latents are decoded.

The figures are estimates that err on the safe side; where a GPU's memory is still not enough, fewer are drawn at once.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from lora_service.errors import InputError
from lora_service.generation.sizes import Size, size_step
from lora_service.models.diffusion_base import DiffusionBase

_DECODER_WIDTHS = 3
"""Tensors of the decoder's last but one width that live at once at the picture's size: before, after, and normed."""
_SAFETY = 3.0
"""Peaks, with the libraries' workspaces, in sizes of these tensors. On a CPU in fp32, 2.6 were seen for SD 1.5's UNet
at 256 × 256 pixels, and 2.2 for its VAE at 320 × 320."""
_USABLE = 0.8
"""Share of the free memory that a batch may take."""


def free_bytes(device: torch.device) -> int | None:
    """Return the memory that ``device`` has left, with what torch keeps in reserve; None where it cannot be told."""
    if device.type == "cuda":
        reserve = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(torch.cuda.mem_get_info(device)[0]) + reserve
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    values = dict(line.split(":", 1) for line in lines)
    return int(values["MemAvailable"].split()[0]) * 1024 if "MemAvailable" in values else None


def denoising_bytes(base: DiffusionBase, size: Size) -> float:
    """Estimate what denoising one picture takes beside the weights, with guidance and memory-efficient attention."""
    width, height = (side // base.vae_scale_factor for side in size)
    return _SAFETY * 2 * base.family.drawing_bytes(base.backbone, height, width)


def decoding_bytes(base: DiffusionBase, size: Size) -> float:
    """Estimate what decoding one picture whole takes beside the weights."""
    widths = base.family.vae_widths(base.vae)
    width = widths[min(1, len(widths) - 1)]
    return _SAFETY * size[0] * size[1] * _DECODER_WIDTHS * width * base.vae.dtype.itemsize


def check_memory(base: DiffusionBase, size: Size) -> None:
    """Refuse pictures of which not even one can be denoised.

    Raises:
        InputError: on ``width`` (``too_large_for_memory``).
    """
    free, need = free_bytes(base.device), denoising_bytes(base, size)
    if free is not None and need > free:
        raise too_large(base, size, need, free)


def too_large(base: DiffusionBase, size: Size, need: float, free: float) -> InputError:
    """Make the error for pictures of ``size`` that need more memory than there is, with a size that would do."""
    factor = min(0.9, (_USABLE * free / need) ** 0.5)
    step = size_step(base)
    fitting = " × ".join(str(max(step, int(side * factor) // step * step)) for side in size)
    expected = (
        f"smaller: a picture of {size[0]} × {size[1]} pixels takes about {need / 2**30:.1f} GiB of memory, of which "
        f"{free / 2**30:.1f} are free; {fitting} would do"
    )
    return InputError("width", size[0], expected, code="too_large_for_memory")


def images_at_once(base: DiffusionBase, size: Size, count: int, more: float = 0.0) -> int:
    """Return how many of ``count`` pictures are denoised at once: evenly many in as few batches as memory allows.

    Args:
        more: the bytes that each takes beside what it does on ``base`` alone.
    """
    free = free_bytes(base.device)
    if free is None:
        return 1
    fitting = max(1, min(count, int(_USABLE * free / (denoising_bytes(base, size) + more))))
    batches = -(-count // fitting)
    return -(-count // batches)


def loras_at_once(base: DiffusionBase, size: Size, bytes_each: float, count: int) -> int:
    """Return how many of ``count`` LoRAs are beside the weights at once: evenly many in as few turns as memory allows.

    Each takes ``bytes_each`` by itself, and twice as much in a batch of one picture of each.
    """
    return images_at_once(base, size, count, 3 * bytes_each)


def decoded_at_once(base: DiffusionBase, size: Size) -> int:
    """Return how many pictures are decoded at once; 0: not even one whole, but in tiles.

    On a CPU it is one at most, which is as fast there.
    """
    free = free_bytes(base.device)
    fitting = 1 if free is None else int(_USABLE * free / decoding_bytes(base, size))
    return fitting if base.device.type == "cuda" else min(1, fitting)


@contextmanager
def tiled_decoding(base: DiffusionBase) -> Iterator[None]:
    """Have the VAE decode in tiles, which overlap and are blended."""
    base.vae.enable_tiling()
    try:
        yield
    finally:
        base.vae.disable_tiling()
