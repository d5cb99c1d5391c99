"""Loads a base from a folder in diffusers' layout."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from lora_service.models.components import Components, refusal
from lora_service.models.hub_files import INDEX
from lora_service.models.text_encoders import TextEncoder

_CLASSES = ("StableDiffusionPipeline", "StableDiffusionXLPipeline")
_OTHER_KINDS = {
    "Inpaint": "is an inpainting model",
    "InstructPix2Pix": "is a model that edits by instructions",
    "StableDiffusionXLImg2Img": "is Stable Diffusion XL's refiner",
    "Upscale": "is an upscaler",
    "Depth2Img": "is a model that draws by depth",
}
"""By what their pipelines' names hold."""

_OUTER = "text_model."
"""What keys of text encoders begin with, but for those that newer transformers saved."""


def load_folder(folder: Path, name: str, dtype: torch.dtype) -> Components:
    """The parts that ``folder`` holds, on the CPU.

    Raises:
        BaseModelError: it is no Stable Diffusion 1.x, 2.x or XL base.
        OSError, ValueError: it cannot be read.
    """
    import diffusers

    index = diffusers.DiffusionPipeline.load_config(folder)
    if not isinstance(index, dict):
        raise refusal(name, f"has a {INDEX} that is no JSON object of its parts")
    kind = str(index.get("_class_name"))
    if kind not in _CLASSES:
        known = (reason for part, reason in _OTHER_KINDS.items() if part in kind)
        raise refusal(name, next(known, f"is for diffusers' {kind}"))
    options: dict[str, Any] = {"dtype": dtype, "variant": _variant(folder)}
    if kind == "StableDiffusionPipeline":
        options |= {"safety_checker": None, "requires_safety_checker": False}
    components = Components.of(getattr(diffusers, kind).from_pretrained(folder, **options))
    for encoder, model in components.text_encoders.items():
        if lacking := _not_in(folder / encoder, model):
            raise refusal(name, f"lacks weights, like {encoder}.{lacking}")
    return components


def _not_in(folder: Path, encoder: TextEncoder) -> str | None:
    """A parameter that is in no safetensors of ``folder``, if there are any: transformers leaves it random."""
    names = set()
    for path in folder.glob("*.safetensors"):
        with safe_open(path, framework="pt") as file:
            names |= {key.removeprefix(_OUTER) for key in file.keys()}  # noqa: SIM118
    wanted = (key for key, _ in encoder.named_parameters() if key.removeprefix(_OUTER) not in names)
    return next(wanted, None) if names else None


def _variant(folder: Path) -> str | None:
    """``fp16`` for a folder that holds no other weights."""
    weights = [path.name for path in (folder / "unet").glob("diffusion_pytorch_model*")]
    return "fp16" if weights and all(".fp16" in name for name in weights) else None
