"""Loads a base from a folder in diffusers' layout."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from lora_service.models.components import Components, unusable
from lora_service.models.registry import INDEX, family_in

_OTHER_PIPELINES = {
    "InstructPix2Pix": "is an instruction editing model",
    "StableDiffusionXLImg2Img": "is Stable Diffusion XL's refiner",
    "Upscale": "is an upscaler",
    "Depth2Img": "is a depth-to-image model",
}
"""Models that are no base, by a part of their pipeline's name."""

_PREFIX = re.compile(r"(?:(?:text_model|model|language_model)\.)+")
"""Prefixes of the keys of text encoders, which versions of transformers save with and without."""


def load_folder(
    folder: Path, name: str, dtype: torch.dtype, device: torch.device | None = None, backbone: Any = None
) -> Components:
    """Load the models in ``folder``.

    Onto a device they come a tensor at a time from the mapped files: the host holds no copy of them beside the system's
    cache of the files, whatever their dtype is.

    Args:
        folder: in diffusers' layout.
        name: of the base, for messages.
        dtype: of the weights.
        device: where they come to lie; None: on the host.
        backbone: takes the place of the folder's own, where it is.

    Raises:
        BaseModelError: it is no base of any family.
        OSError, ValueError: it cannot be read.
    """
    import diffusers

    index = diffusers.DiffusionPipeline.load_config(folder)
    if not isinstance(index, dict):
        raise unusable(name, f"has a {INDEX} that is no JSON object of its components", code="unreadable_model")
    pipeline_class = str(index.get("_class_name"))
    other = next((reason for part, reason in _OTHER_PIPELINES.items() if part in pipeline_class), None)
    family = None if other else family_in(folder)
    if family is None:
        raise unusable(name, other or f"is for diffusers' {pipeline_class}")
    left_out = {part: None for part, value in index.items() if value == [None, None]}
    options = {"dtype": dtype, "variant": _variant(folder / family.backbone), **left_out, **family.loading_options()}
    if device is not None:
        options["device_map"] = device.type  # of several cards, the current one: diffusers takes no number
    if backbone is not None:
        options[family.backbone] = backbone
    try:
        pipeline = getattr(diffusers, pipeline_class).from_pretrained(folder, **options)
    except NotImplementedError as error:  # what is missing has no values that could be moved
        raise unusable(name, "lacks weights", code="incomplete_model") from error
    components = Components.from_pipeline(pipeline, family)
    for encoder_name, encoder in components.text_encoders.items():
        if missing := _missing_parameter(folder / encoder_name, encoder):
            raise unusable(name, f"lacks weights, like {encoder_name}.{missing}", code="incomplete_model")
    return components


def _missing_parameter(folder: Path, encoder: Any) -> str | None:
    """Return a parameter that the safetensors files of ``folder``, if any, lack: transformers leaves it random."""
    keys = set()
    for path in folder.glob("*.safetensors"):
        with safe_open(path, framework="pt") as file:
            keys |= {_without_prefix(key) for key in file.keys()}  # noqa: SIM118
    missing = (key for key, _ in encoder.named_parameters() if _without_prefix(key) not in keys)
    return next(missing, None) if keys else None


def _without_prefix(key: str) -> str:
    match = _PREFIX.match(key)
    return key[match.end() :] if match else key


def _variant(folder: Path) -> str | None:
    """Return ``fp16`` for a folder that has no other weights."""
    weights = [path.name for path in folder.glob("diffusion_pytorch_model*")]
    return "fp16" if weights and all(".fp16" in name for name in weights) else None
