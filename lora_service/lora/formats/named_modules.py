"""Keys that name a module, in every spelling: what the kohya and the diffusers format share when they are read.

    kohya, LyCORIS   lora_unet_down_blocks_0_….lora_down.weight, lora_te_…, lora_te1_…, lora_te2_…, lycoris_…
    diffusers, PEFT  unet.down_blocks.0.….lora_A.weight, text_encoder.…, text_encoder_2.…, base_model.model.…
    processors       down_blocks.0.….attn1.processor.to_q_lora.down.weight
    ComfyUI          diffusion_model.input_blocks.4.1.….lora_A.weight, text_encoders.clip_l.transformer.…

Any of them may stand in one file with any other, and with any suffix of the others; those of transformers are in
:mod:`~lora_service.lora.formats.flow_keys`. A1111 and OneTrainer bundle a token's embedding as tensors
``bundle_emb.NAME.…``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache

from torch import Tensor

from lora_service.errors import LoraFileError
from lora_service.lora import key_mapping
from lora_service.lora.flow.detection import COMPONENT
from lora_service.lora.flow.families import TITLES
from lora_service.lora.formats import flow_keys
from lora_service.lora.formats.stored_tokens import tokens_from_bundle, tokens_from_header
from lora_service.lora.layer_builder import HeaderAlpha, TensorsByModule
from lora_service.lora.safetensors_file import TensorFile
from lora_service.lora.safetensors_header import shortened
from lora_service.lora.weights import LoraWeights, WeightChange

BUNDLE_PREFIX = "bundle_emb."
_AUXILIARY = re.compile(r"(.+[._])?_aux\..+")
_FLAT_KEY = re.compile(
    r"(?P<module>(?P<prefix>lora_unet|lora_transformer|lora_te[12]?|lycoris)_(?P<name>[^.]+))\.(?P<suffix>.+)"
)
_COMPONENT_BY_PREFIX = {
    "lora_unet": "unet",
    "lora_te": "text_encoder",
    "lora_te1": "text_encoder",
    "lora_te2": "text_encoder_2",
    "unet": "unet",
    "text_encoder": "text_encoder",
    "text_encoder_2": "text_encoder_2",
    "diffusion_model": "unet",
    "model.diffusion_model": "unet",
    "text_encoders.clip_l.transformer": "text_encoder",
    "text_encoders.clip_h.transformer": "text_encoder",
    "text_encoders.clip_g.transformer": "text_encoder_2",
}
_WRAPPER = "base_model.model."
_PROCESSOR = re.compile(
    r"(?P<attention>.+?)\.(?:processor\.)?to_(?P<projection>q|k|v|out)_lora\.(?P<factor>down|up)\.weight"
)
_TEXT_PROJECTIONS = {"q": "q_proj", "k": "k_proj", "v": "v_proj", "out": "out_proj"}
_UNET_PROJECTIONS = {"q": "to_q", "k": "to_k", "v": "to_v", "out": "to_out.0"}

_NAME = r"(?:\.(?!weight$|bias$)[\w-]+)?"
"""The name of PEFT's adapter, ``default`` unless the trainer chose one."""
_VECTOR = "lora_magnitude_vector"
_SUFFIXES = {
    rf"lora_A{_NAME}(?:\.weight)?": "lora_down.weight",
    rf"lora_B{_NAME}(?:\.weight)?": "lora_up.weight",
    rf"lora_A{_NAME}\.bias": "lora_down.bias",
    rf"lora_B{_NAME}\.bias": "lora_up.bias",
    r"(?:lora|lora_linear_layer)\.down\.weight": "lora_down.weight",
    r"(?:lora|lora_linear_layer)\.up\.weight": "lora_up.weight",
    r"lora_down(?:\.weight)?": "lora_down.weight",
    r"lora_up(?:\.weight)?": "lora_up.weight",
    r"lora_mid(?:\.weight)?": "lora_mid.weight",
    rf"{_VECTOR}{_NAME}(?:\.weight)?": _VECTOR,
    r"dora_scale|magnitude": "dora_scale",
    r"(?:lora\.)?alpha": "alpha",
    r"diff": "diff",
    r"diff_b": "diff_b",
    r"w_norm": "w_norm",
    r"b_norm": "b_norm",
}
"""Suffix, as a regular expression -> suffix of the kohya format; LyCORIS' factors have one spelling."""
_SUFFIX_PATTERNS = [(re.compile(pattern), suffix) for pattern, suffix in _SUFFIXES.items()]
_LYCORIS = re.compile(r"((?:hada|lokr)_\w+?)(?:\.(?:default|weight))?")
_SUFFIX_START = re.compile(
    r"\.(?=(?:lora|lora_linear_layer|lora_[A-Za-z]\w*|hada_\w+|lokr_\w+|alpha|dora_scale|magnitude|diff|diff_b|w_norm|b_norm)"
    r"(?:\.|$))"
)
_OTHER_MODELS = {
    r"double_blocks|single_blocks|joint_blocks|single_transformer_blocks": "a transformer",
    r"^(?:lora_unet_|transformer\.|diffusion_model\.)?(?:blocks|layers|transformer_blocks)[._]\d": "a transformer",
    r"text_encoders?_3|lora_te3|t5xxl": "a model with a T5 encoder",
}
_READ = f"Stable Diffusion 1.x, 2.x and XL, {', '.join(TITLES[:-1])} and {TITLES[-1]}"


@dataclass(frozen=True)
class NamedTensor:
    """The parts of a key.

    Attributes:
        suffix: as the kohya format has it, but for PEFT's ``lora_magnitude_vector``, whose shape differs.
        is_flat: True for a module's name that is joined by underscores, as kohya's are.
    """

    component: str
    path: str
    suffix: str
    is_flat: bool


@lru_cache(maxsize=1024)
def split_key(key: str) -> NamedTensor | None:
    """Return the parts of a key; None if it names no module of Stable Diffusion, or nothing of a LoRA."""
    if other_model(key):
        return None
    if (match := _FLAT_KEY.fullmatch(key)) and match["prefix"] != "lora_transformer":
        component, path = _flat_module(match["prefix"], match["name"])
        suffix = _suffix(match["suffix"]) or match["suffix"]  # an unknown one is named when the module is built
        return NamedTensor(component, path, suffix, is_flat=True)
    if match := _PROCESSOR.fullmatch(key):
        projections = _TEXT_PROJECTIONS if match["attention"].endswith("self_attn") else _UNET_PROJECTIONS
        module, suffix = f"{match['attention']}.{projections[match['projection']]}", f"lora_{match['factor']}.weight"
    elif parts := _split_suffix(key):
        module, suffix = parts
    else:
        return None
    named = _dotted_module(module)
    return named and NamedTensor(*named, suffix, is_flat=False)


@lru_cache(maxsize=1024)
def split_flow_key(key: str) -> NamedTensor | None:
    """Return the parts of a key of a file for a transformer, with the module's name as it is behind the prefix.

    None: the key names nothing of a LoRA.
    """
    if flow_keys.is_text_encoder(key):
        return split_key(key)
    key = flow_keys.renamed(key)
    if parts := _split_suffix(key):
        return NamedTensor(COMPONENT, flow_keys.module_name(parts[0]), parts[1], is_flat="." not in parts[0])
    if match := _FLAT_KEY.fullmatch(key):
        return NamedTensor(COMPONENT, flow_keys.module_name(match["module"]), match["suffix"], is_flat=True)
    return None


@lru_cache(maxsize=1024)
def is_flow_key(key: str) -> bool:
    """Return True if a key is that of a LoRA for a transformer's module."""
    if flow_keys.is_text_encoder(key):
        return False
    key = flow_keys.renamed(key)
    parts = _split_suffix(key)
    return parts is not None and flow_keys.is_flow_module(parts[0])


def _split_suffix(key: str) -> tuple[str, str] | None:
    """Return a module's name with its prefix, and the suffix as the kohya format has it."""
    start = _SUFFIX_START.search(key)
    known = start and _suffix(key[start.end() :])
    return None if start is None or known is None else (key[: start.start()], known)


def other_model(key: str) -> str | None:
    """Return the name of the model that a key belongs to; None if it may be Stable Diffusion 1.x, 2.x or XL."""
    return next((name for pattern, name in _OTHER_MODELS.items() if re.search(pattern, key)), None)


def _suffix(text: str) -> str | None:
    """Return a suffix as the kohya format has it."""
    if match := _LYCORIS.fullmatch(text):
        return match[1]
    return next((suffix for pattern, suffix in _SUFFIX_PATTERNS if pattern.fullmatch(text)), None)


def _flat_module(prefix: str, name: str) -> tuple[str, str]:
    path = key_mapping.unflatten_unet(name) if prefix in ("lora_unet", "lycoris") else key_mapping.unflatten(name)
    component = _COMPONENT_BY_PREFIX.get(prefix) or key_mapping.component_by_path(path) or "unet"
    return component, path if component == "unet" else key_mapping.strip_text_model(path)


def _dotted_module(module: str) -> tuple[str, str] | None:
    """Return component and path of a module's name with dots; None if it does not say which component it is of."""
    module = module.removeprefix(_WRAPPER)
    prefix = next((known for known in _COMPONENT_BY_PREFIX if module.startswith(known + ".")), None)
    path = module if prefix is None else module[len(prefix) + 1 :].removeprefix(_WRAPPER)
    path = key_mapping.original_to_path(path)
    component = key_mapping.component_by_path(path) if prefix is None else _COMPONENT_BY_PREFIX[prefix]
    if component is None:
        return None
    return component, path if component == "unet" else key_mapping.strip_text_model(path)


def read_named(file: TensorFile, format_name: str, header_alpha: HeaderAlpha) -> LoraWeights:
    """Return weights from keys that name modules; tokens from the header and from bundled embeddings.

    Raises:
        LoraFileError: a key names no module (``unknown_key``), or the tensors of a module or token of the header
            cannot be used. A bundled embedding that cannot be used is left out with a warning.
    """
    is_flow = any(map(is_flow_key, file.tensors))
    split = split_flow_key if is_flow else split_key
    modules = TensorsByModule()
    bundled: dict[str, Tensor] = {}
    auxiliary = other_encoders = 0
    for key, tensor in file.tensors.items():
        if key.startswith(BUNDLE_PREFIX):
            bundled[key.removeprefix(BUNDLE_PREFIX)] = tensor
        elif _AUXILIARY.fullmatch(key):
            auxiliary += 1
        elif is_flow and flow_keys.is_other_text_encoder(key):
            other_encoders += 1
        elif (named := split(key)) is None:
            raise _unknown(key)
        elif named.suffix == _VECTOR:  # (1, out, 1, 1) for convolutions, one per output always
            modules.add(named.component, named.path, "dora_scale", tensor.flatten())
        else:
            modules.add(named.component, named.path, named.suffix, tensor)
    embeddings, warnings = tokens_from_bundle(bundled)
    if auxiliary:
        warnings.append(f"{auxiliary} auxiliary tensors (_aux.…), which change no weight, were left out")
    if other_encoders:
        warnings.append(
            f"{other_encoders} tensors of a text encoder that no LoRA changes here (T5, Qwen) were left out"
        )
    embeddings |= tokens_from_header(file.metadata)
    layers: Mapping[str, Mapping[str, WeightChange]] = modules.layers(header_alpha)
    if is_flow:
        layers, notes = flow_keys.with_paths(layers, file.metadata)
        warnings += notes
    return LoraWeights(layers, embeddings, file.metadata, format_name, tuple(warnings))


def _unknown(key: str) -> LoraFileError:
    if model := other_model(key):
        return LoraFileError(
            f"The LoRA's key {shortened(key)!r} is of {model} that is not known; only LoRAs for {_READ} are read.",
            code="unknown_key",
        )
    return LoraFileError(
        f"The LoRA's key {shortened(key)!r} names no module of {_READ} in a way that is read "
        "(lora_unet_…, lora_te_…, unet.…, transformer.…, diffusion_model.…, text_encoder.…).",
        code="unknown_key",
    )
