"""kohya: ``lora_unet_down_blocks_0_….lora_down.weight``, ``.lora_up.weight``, ``.alpha``.

The layout every tool reads (https://github.com/kohya-ss/sd-scripts, networks/lora.py). SDXL files use the original
model's block names. LoHa, LoKr, DoRA and LoCon files (https://github.com/KohakuBlueleaf/LyCORIS) differ only in the
parts' names. A1111 bundles a token's embedding as tensors ``bundle_emb.NAME.…``; we keep tokens in the header.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lora_service.errors import LoraFileError
from lora_service.lora import key_mapping
from lora_service.lora.content import FileContent
from lora_service.lora.formats.stored_tokens import TOKENS_KEY, header_tokens, read_bundled, read_header_tokens
from lora_service.lora.layer_builder import TensorsByModule
from lora_service.lora.safetensors_header import shortened
from lora_service.lora.weights import LoraWeights

_COMPONENT_BY_PREFIX = {
    "lora_unet_": "unet",
    "lora_te_": "text_encoder",
    "lora_te1_": "text_encoder",
    "lora_te2_": "text_encoder_2",
}
_BUNDLE = "bundle_emb."


def detects(content: FileContent) -> bool:
    """Whether any key begins as kohya's do; a file of tokens alone has no key at all, and its tokens in the header."""
    if not content.tensors:
        return TOKENS_KEY in content.metadata
    return any(key.startswith(("lora_unet_", "lora_te", _BUNDLE)) for key in content.tensors)


def read(content: FileContent) -> LoraWeights:
    """Weights from kohya keys; tokens from the header and from bundled embeddings."""
    modules = TensorsByModule()
    bundled: dict[str, Tensor] = {}
    for key, tensor in content.tensors.items():
        if key.startswith(_BUNDLE):
            bundled[key.removeprefix(_BUNDLE)] = tensor
        else:
            modules.add(*_split(key), tensor)
    embeddings = {**read_bundled(bundled), **read_header_tokens(content.metadata)}
    return LoraWeights(modules.layers(), embeddings, content.metadata, "kohya")


def _split(key: str) -> tuple[str, str, str]:
    """Key -> component, module path, part."""
    name, _, part = key.partition(".")
    for prefix, component in _COMPONENT_BY_PREFIX.items():
        if part and name.startswith(prefix):
            flat = name.removeprefix(prefix)
            return (
                component,
                key_mapping.unet_path(flat) if component == "unet" else _text_path(flat),
                part,
            )
    raise LoraFileError(
        f"The LoRA's key {shortened(key)!r} is none of Stable Diffusion 1.x, 2.x or XL "
        "(lora_unet_…, lora_te_…, lora_te1_…, lora_te2_…); LoRAs for other models are not read."
    )


def _text_path(flat: str) -> str:
    return key_mapping.canonical(key_mapping.unflatten(flat))


def write(weights: LoraWeights) -> FileContent:
    """Tensors in kohya's names, with alpha; tokens in the header, as diffusers refuses extra tensors."""
    sdxl = "text_encoder_2" in weights.layers or any(len(rows) > 1 for rows in weights.embeddings.values())
    tensors: dict[str, Tensor] = {}
    for component, path, layer in weights:
        name = _name(component, path, sdxl)
        for part, tensor in layer.tensors.items():
            tensors[f"{name}.{part}"] = tensor
        if layer.rank:
            tensors[f"{name}.alpha"] = torch.tensor(layer.alpha)
    return FileContent(tensors, header_tokens(weights.embeddings))


def _name(component: str, path: str, sdxl: bool) -> str:
    if component == "unet":
        return "lora_unet_" + ((sdxl and key_mapping.original_name(path)) or key_mapping.flatten(path))
    prefix = "lora_te2_" if component == "text_encoder_2" else "lora_te1_" if sdxl else "lora_te_"
    text_model = "" if path.startswith("text_projection") else "text_model_"
    return prefix + text_model + key_mapping.flatten(path)
