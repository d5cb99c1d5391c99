"""Keys of LoRAs for transformers, in every spelling.

    diffusers, PEFT          transformer.transformer_blocks.0.….lora_A.weight, base_model.model.…, without a prefix
    ComfyUI, ai-toolkit      diffusion_model.double_blocks.0.….lora_A.weight, model.diffusion_model.…
    kohya, OneTrainer        lora_unet_double_blocks_0_….lora_down.weight, lora_transformer_…
    LyCORIS                  lycoris_transformer_blocks_0_….lokr_w1
    XLabs                    double_blocks.0.processor.qkv_lora1.down.weight

Names may be those of the original model or of diffusers' class behind any prefix, with any suffix; see
:mod:`lora_service.lora.flow`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import lru_cache

from lora_service.errors import LoraFileError
from lora_service.lora.flow.conversion import to_paths
from lora_service.lora.flow.detection import COMPONENT, candidates
from lora_service.lora.flow.families import FAMILIES, TITLES
from lora_service.lora.safetensors_header import shortened
from lora_service.lora.weights import WeightChange

_PREFIX = re.compile(
    r"(?:base_model\.model\.|(?:model\.)?diffusion_model\.|transformer\.|unet\.)*"
    r"(?:(?:lora_unet|lora_transformer|lycoris)[_.])?"
)
_TEXT_ENCODER = re.compile(
    r"(?:base_model\.model\.)?(?:lora_te\d?|text_encoders?(?:_\d)?|t5xxl|clip_[lgh]|qwen\w*)[_.]"
)
_OTHER_TEXT_ENCODER = re.compile(r"encoder[._]block[._]\d|t5xxl|lora_te3|text_encoder_3|qwen")
_XLABS = re.compile(
    r"(?P<block>.*(?:double|single)_blocks\.\d+)\.processor\.(?P<layer>qkv|proj)_lora(?P<stream>[12]?)\."
    r"(?P<factor>down|up)\.weight"
)
_XLABS_MODULES = {
    ("qkv", "1"): "img_attn.qkv", ("proj", "1"): "img_attn.proj", ("qkv", "2"): "txt_attn.qkv",
    ("proj", "2"): "txt_attn.proj", ("qkv", ""): "linear1_qkv", ("proj", ""): "linear2",
}  # fmt: skip


def renamed(key: str) -> str:
    """Return a key as kohya and ComfyUI have it, if it is one of XLabs'."""
    match = _XLABS.fullmatch(key)
    if match is None:
        return key
    module = _XLABS_MODULES[match["layer"], match["stream"]]
    return f"{match['block']}.{module}.lora_{match['factor']}.weight"


def module_name(name: str) -> str:
    """Return a module's name without the prefixes of files."""
    return name[_PREFIX.match(name).end() :]  # type: ignore[union-attr]


@lru_cache(maxsize=8192)
def is_flow_module(name: str) -> bool:
    """Return True if a key's module, with its prefix, is one of a transformer's; text encoders' are not."""
    if _TEXT_ENCODER.match(name):
        return False
    return any(family.find(module_name(name)) is not None for family in FAMILIES)


def is_text_encoder(key: str) -> bool:
    """Return True for a key of a text encoder."""
    return _TEXT_ENCODER.match(key) is not None


def is_other_text_encoder(key: str) -> bool:
    """Return True for a key of a text encoder that no family lets a LoRA change: T5, Qwen."""
    return is_text_encoder(key) and _OTHER_TEXT_ENCODER.search(key) is not None


def with_paths(
    layers: Mapping[str, Mapping[str, WeightChange]], metadata: Mapping[str, str]
) -> tuple[dict[str, Mapping[str, WeightChange]], list[str]]:
    """Return layers with the transformer's under the paths of diffusers' class, and warnings.

    Raises:
        LoraFileError: the names are of no transformer that is known (``unknown_key``), or as of
            :func:`~lora_service.lora.flow.conversion.to_paths`.
    """
    changes = layers.get(COMPONENT)
    if not changes:
        return dict(layers), []
    found = candidates({name: change.shape for name, change in changes.items()}, metadata)
    if not found:
        raise LoraFileError(
            f"The LoRA changes {shortened(next(iter(changes)))!r} and others, which together are the modules of no "
            f"transformer that is known: {', '.join(TITLES)}.",
            code="unknown_key",
        )
    paths, doubles = to_paths(found[0].family, changes)
    warnings = []
    if doubles:
        warnings.append(
            f"{len(doubles)} modules are there twice, under the original's names too; those were left out: "
            + ", ".join(doubles[:3])
        )
    return {**layers, COMPONENT: paths}, warnings
