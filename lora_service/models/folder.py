"""Loads a base from a folder in diffusers' layout."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from lora_service.models.parts import Parts, refusal

_CLASSES = ("StableDiffusionPipeline", "StableDiffusionXLPipeline")
_OTHER_KINDS = {
    "Inpaint": "is an inpainting model",
    "InstructPix2Pix": "is a model that edits by instructions",
    "StableDiffusionXLImg2Img": "is Stable Diffusion XL's refiner",
    "Upscale": "is an upscaler",
    "Depth2Img": "is a model that draws by depth",
}
"""By what their pipelines' names hold."""


def load_folder(folder: Path, name: str, dtype: torch.dtype) -> Parts:
    """The parts that ``folder`` holds, on the CPU.

    Raises:
        BaseModelError: it is no Stable Diffusion 1.x, 2.x or XL base.
        OSError, ValueError: it cannot be read.
    """
    import diffusers

    kind = str(diffusers.DiffusionPipeline.load_config(folder).get("_class_name"))
    if kind not in _CLASSES:
        known = (reason for part, reason in _OTHER_KINDS.items() if part in kind)
        raise refusal(name, next(known, f"is for diffusers' {kind}"))
    options: dict[str, Any] = {"dtype": dtype, "variant": _variant(folder)}
    if kind == "StableDiffusionPipeline":
        options |= {"safety_checker": None, "requires_safety_checker": False}
    return Parts.of(getattr(diffusers, kind).from_pretrained(folder, **options))


def _variant(folder: Path) -> str | None:
    """``fp16`` for a folder that holds no other weights."""
    weights = [path.name for path in (folder / "unet").glob("diffusion_pytorch_model*")]
    return "fp16" if weights and all(".fp16" in name for name in weights) else None
