"""Loads a base whose transformer is one file, as ComfyUI has them; its other parts are those of ``BASE_COMPONENTS``."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import nn

from lora_service.models.components import Components, unusable
from lora_service.models.diffusers_folder import load_folder
from lora_service.models.families.family import Family
from lora_service.models.hub_download import ensure_local
from lora_service.models.registry import family_in, transformer_name
from lora_service.settings import Settings

_SCALES = re.compile(
    r"(scale_weight|weight_scale(_2)?|scale_input|input_scale|scaled_fp8|comfy_quant|absmax|quant_map)$"
)
"""Tensors that weights in 8 or 4 bit are multiplied by, or described by; without them these are wrong."""
_OTHER_PARTS = ("vae.", "text_encoders.", "first_stage_model.", "cond_stage_model.")


def load_transformer_file(
    path: Path, family: Family, name: str, dtype: torch.dtype, settings: Settings, device: torch.device | None
) -> Components:
    """Load the transformer in the file ``path``, in the original layout or diffusers', and the rest.

    Raises:
        BaseModelError: it holds more than a transformer, is quantized, or does not fit its other parts.
        OSError, ValueError, KeyError, SafetensorError: it cannot be read.
    """
    import diffusers

    chosen = settings.base_components or next(iter(family.bases))
    folder, _ = ensure_local(settings.model_copy(update={"base_model": chosen}))
    if not folder.is_dir() or family_in(folder) is not family:
        raise unusable(name, f"is a {family.title}, and BASE_COMPONENTS {chosen!r} is none")
    tensors = {transformer_name(key): tensor for key, tensor in load_file(path).items()}
    _check_tensors(name, tensors)
    config = diffusers.DiffusionPipeline.load_config(folder)
    transformer_class = getattr(diffusers, config[family.backbone][1])
    options = {"config": str(folder), "subfolder": family.backbone, "local_files_only": True}
    try:
        transformer = transformer_class.from_single_file(tensors, **options)
    except (ValueError, NotImplementedError) as error:  # NotImplementedError: what it lacks cannot be moved
        first = "it lacks weights" if isinstance(error, NotImplementedError) else str(error).splitlines()[0]
        reason = f"does not fit the other parts, which are those of {chosen} ({first}); BASE_COMPONENTS names others"
        raise unusable(name, reason, code="incomplete_model") from error
    # Its tensors are those of the mapped file until here, and are copied one at a time.
    return load_folder(folder, name, dtype, device, backbone=nn.Module.to(transformer, device=device, dtype=dtype))


def _check_tensors(name: str, tensors: Mapping[str, torch.Tensor]) -> None:
    for key, tensor in tensors.items():
        if _SCALES.search(key) or not tensor.is_floating_point():
            raise unusable(name, f"is quantized (it has {key}); the file in bf16, fp16 or plain fp8 can be loaded")
        if key.startswith(_OTHER_PARTS):
            raise unusable(name, f"holds more than a transformer, like {key}; a file of the transformer can be loaded")
