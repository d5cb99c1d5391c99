"""kohya: ``lora_unet_down_blocks_0_….lora_down.weight``, ``.lora_up.weight``, ``.alpha``.

The format every tool reads (https://github.com/kohya-ss/sd-scripts, networks/lora.py). SDXL files use the original
model's block names. LoHa, LoKr, DoRA and LoCon files (https://github.com/KohakuBlueleaf/LyCORIS) differ only in the
keys' suffixes. A1111 bundles a token's embedding as tensors ``bundle_emb.NAME.…``; we keep tokens in the header.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lora_service.errors import LoraFileError
from lora_service.lora import key_mapping
from lora_service.lora.base_detection import SD2, SDXL, detect_lora_base, has_sdxl_modules
from lora_service.lora.formats.stored_tokens import TOKENS_KEY, tokens_from_bundle, tokens_from_header, tokens_to_header
from lora_service.lora.layer_builder import TensorsByModule
from lora_service.lora.safetensors_file import TensorFile
from lora_service.lora.safetensors_header import shortened
from lora_service.lora.weights import LoraWeights

_COMPONENT_BY_PREFIX = {
    "lora_unet_": "unet",
    "lora_te_": "text_encoder",
    "lora_te1_": "text_encoder",
    "lora_te2_": "text_encoder_2",
}
_BUNDLE_PREFIX = "bundle_emb."


def detects(file: TensorFile) -> bool:
    """Return True if any key begins as kohya's do; a file of tokens alone has no keys, but our header string."""
    if not file.tensors:
        return TOKENS_KEY in file.metadata
    return any(key.startswith(("lora_unet_", "lora_te", _BUNDLE_PREFIX)) for key in file.tensors)


def read(file: TensorFile) -> LoraWeights:
    """Return weights from kohya keys; tokens from the header and from bundled embeddings.

    Raises:
        LoraFileError: a key is none of this format (``unknown_key``), or the tensors of a module or token cannot be
            used.
    """
    modules = TensorsByModule()
    bundled: dict[str, Tensor] = {}
    for key, tensor in file.tensors.items():
        if key.startswith(_BUNDLE_PREFIX):
            bundled[key.removeprefix(_BUNDLE_PREFIX)] = tensor
        else:
            modules.add(*_split(key), tensor)
    embeddings = {**tokens_from_bundle(bundled), **tokens_from_header(file.metadata)}
    return LoraWeights(modules.layers(), embeddings, file.metadata, "kohya")


def _split(key: str) -> tuple[str, str, str]:
    """Return the component, module path and suffix of a key."""
    module, _, suffix = key.partition(".")
    for prefix, component in _COMPONENT_BY_PREFIX.items():
        if suffix and module.startswith(prefix):
            name = module.removeprefix(prefix)
            if component == "unet":
                return component, key_mapping.unflatten_unet(name), suffix
            return component, key_mapping.strip_text_model(key_mapping.unflatten(name)), suffix
    raise LoraFileError(
        f"The LoRA's key {shortened(key)!r} is none of Stable Diffusion 1.x, 2.x or XL "
        "(lora_unet_…, lora_te_…, lora_te1_…, lora_te2_…); LoRAs for other models are not read.",
        code="unknown_key",
    )


def write(weights: LoraWeights) -> TensorFile:
    """Return tensors under kohya's keys, with alpha; tokens in the header, as diffusers refuses extra tensors."""
    sdxl = has_sdxl_modules(weights)
    tensors: dict[str, Tensor] = {}
    for component, path, layer in weights:
        module = _flat_name(component, path, sdxl)
        for suffix, tensor in layer.tensors.items():
            tensors[f"{module}.{suffix}"] = tensor
        if layer.rank:
            tensors[f"{module}.alpha"] = torch.tensor(layer.alpha)
    return TensorFile(tensors, _base_strings(weights) | tokens_to_header(weights.embeddings))


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
