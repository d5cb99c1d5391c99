"""kohya: ``lora_unet_down_blocks_0_….lora_down.weight``, ``.lora_up.weight``, ``.alpha``.

The format every tool reads (https://github.com/kohya-ss/sd-scripts, networks/lora.py). SDXL files use the original
model's block names. LoHa, LoKr, DoRA and LoCon files (https://github.com/KohakuBlueleaf/LyCORIS) differ only in the
keys' suffixes. A1111 bundles a token's embedding as tensors ``bundle_emb.NAME.…``; we keep tokens in the header.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping

import torch

from lora_service.lora import key_mapping
from lora_service.lora.base_detection import SD2, SDXL, detect_lora_base, has_sdxl_modules
from lora_service.lora.formats import adapter_config, comfyui
from lora_service.lora.formats.named_modules import BUNDLE_PREFIX, read_named
from lora_service.lora.formats.stored_tokens import tokens_to_header
from lora_service.lora.header_facts import TOKENS_KEY
from lora_service.lora.layer_builder import tensors_of
from lora_service.lora.safetensors_file import TensorFile
from lora_service.lora.weights import BIAS, LoraWeights

_KEY = re.compile(r"(lora_unet|lora_transformer|lora_te\d?|lycoris)_")


def detects(keys: Collection[str], metadata: Mapping[str, str]) -> bool:
    """Return True if any key begins as kohya's do; a file of tokens alone has no keys, but our header string."""
    if not keys:
        return TOKENS_KEY in metadata
    return any(map(_KEY.match, keys)) or all(key.startswith(BUNDLE_PREFIX) for key in keys)


def read(file: TensorFile) -> LoraWeights:
    """Return weights from kohya keys; tokens from the header and from bundled embeddings.

    Raises:
        LoraFileError: as of :func:`~lora_service.lora.formats.named_modules.read_named`.
    """
    return read_named(file, "kohya", adapter_config.header_alpha(file.metadata))


def write(weights: LoraWeights) -> TensorFile:
    """Return tensors under kohya's keys, with alpha; tokens in the header, as diffusers refuses extra tensors.

    Files for transformers are written under ComfyUI's keys, which are what their users load.
    """
    is_flow = "transformer" in weights.layers
    tensors, strings = comfyui.transformer_tensors(weights) if is_flow else ({}, _base_strings(weights))
    sdxl = has_sdxl_modules(weights)
    for component, path, layer in weights:
        if component == "transformer":
            continue
        module = _flat_name(component, path.removesuffix(BIAS), sdxl or is_flow)
        for suffix, tensor in tensors_of(path, layer).items():
            tensors[f"{module}.{suffix}"] = tensor
        if layer.rank:
            tensors[f"{module}.alpha"] = torch.tensor(layer.alpha)
    return TensorFile(tensors, strings | tokens_to_header(weights.embeddings))


def _base_strings(weights: LoraWeights) -> dict[str, str]:
    """Return the strings by which A1111 sorts LoRAs by base, where the header lacks them: without, all are 1.x's.

    https://github.com/AUTOMATIC1111/stable-diffusion-webui, extensions-builtin/Lora/network.py
    """
    base = detect_lora_base(weights)
    strings = {
        SDXL: {"ss_base_model_version": "sdxl_base_v1-0"},
        SD2: {"ss_base_model_version": "sd_v2", "ss_v2": "True"},
    }.get(base or "", {})
    return {key: text for key, text in strings.items() if key not in weights.metadata}


def _flat_name(component: str, path: str, sdxl: bool) -> str:
    if component == "unet":
        return "lora_unet_" + ((sdxl and key_mapping.flatten_to_original(path)) or key_mapping.flatten(path))
    prefix = "lora_te2_" if component == "text_encoder_2" else "lora_te1_" if sdxl else "lora_te_"
    text_model = "" if path.startswith("text_projection") else "text_model_"
    return prefix + text_model + key_mapping.flatten(path)
