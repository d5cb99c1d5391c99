"""diffusers and PEFT: keys are module paths with suffixes of three generations.

    PEFT                   unet.….to_q.lora_A.weight (= down), .lora_B.weight (= up), .lora_magnitude_vector
    training scripts       unet.….to_q.lora.down.weight, text_encoder.….q_proj.lora_linear_layer.up.weight
    attention processors   unet.….attn1.processor.to_q_lora.up.weight, also without the ``unet.``

Rank and alpha of PEFT files may stand in the header's ``lora_adapter_metadata`` (JSON, per component, with patterns
per module); without it alpha = rank. Text-encoder paths come with and without ``text_model.``; written is the form
with it, which transformers 4 and 5 both load.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from lora_service.errors import LoraFileError
from lora_service.lora import key_mapping
from lora_service.lora.formats.stored_tokens import tokens_from_header, tokens_to_header
from lora_service.lora.layer_builder import TENSOR_ALIASES, HeaderAlpha, TensorsByModule
from lora_service.lora.lycoris import DoraLayer
from lora_service.lora.safetensors_file import TensorFile
from lora_service.lora.safetensors_header import shortened
from lora_service.lora.weights import LoraLayer, LoraWeights

_ADAPTER_METADATA = "lora_adapter_metadata"
_SUFFIXES = sorted(TENSOR_ALIASES, key=len, reverse=True)
_PROCESSOR = re.compile(
    r"(?P<attention>.+?)\.(?:processor\.)?to_(?P<projection>q|k|v|out)_lora\.(?P<factor>down|up)\.weight"
)
_TEXT_PROJECTIONS = {"q": "q_proj", "k": "k_proj", "v": "v_proj", "out": "out_proj"}
_UNET_PROJECTIONS = {"q": "to_q", "k": "to_k", "v": "to_v", "out": "to_out.0"}
_LYCORIS = re.compile(r"(?P<path>.+)\.(?P<suffix>(?:hada|lokr)_\w+?)(?:\.default)?")


def detects(file: TensorFile) -> bool:
    """Return True if any key ends as those of diffusers or PEFT do."""
    return any(_split(key) is not None and not key.endswith("alpha") for key in file.tensors)


def read(file: TensorFile) -> LoraWeights:
    """Return weights from module paths, alpha from the header if it names one.

    Raises:
        LoraFileError: a key is none of this format or of another model (``unknown_key``), the header's configuration
            cannot be read (``bad_metadata``), or the tensors of a module cannot be used.
    """
    modules = TensorsByModule()
    for key, tensor in file.tensors.items():
        split = _split(key)
        if split is None:
            raise LoraFileError(
                f"The LoRA's key {shortened(key)!r} is none that diffusers or PEFT write.", code="unknown_key"
            )
        prefixed_path, suffix = split
        if suffix == "dora_scale":
            tensor = tensor.flatten()  # PEFT's is (1, out, 1, 1) for convolutions, one per output always
        modules.add(*_component_and_path(key, prefixed_path), suffix, tensor)
    layers = modules.layers(_header_alpha(file.metadata))
    return LoraWeights(layers, tokens_from_header(file.metadata), file.metadata, "diffusers")


def _split(key: str) -> tuple[str, str] | None:
    """Return a key's module path, with its component, and its suffix as kohya has it; None if it is no such key."""
    if match := _PROCESSOR.fullmatch(key):
        projections = _TEXT_PROJECTIONS if match["attention"].endswith("self_attn") else _UNET_PROJECTIONS
        return f"{match['attention']}.{projections[match['projection']]}", f"lora_{match['factor']}.weight"
    for suffix in _SUFFIXES:
        if key.endswith("." + suffix):
            return key.removesuffix("." + suffix), TENSOR_ALIASES[suffix]
    if match := _LYCORIS.fullmatch(key):
        return match["path"], match["suffix"]
    return None


def _component_and_path(key: str, prefixed_path: str) -> tuple[str, str]:
    prefixed_path = prefixed_path.removeprefix("base_model.model.")
    prefix, _, path = prefixed_path.partition(".")
    if prefix in ("unet", "text_encoder", "text_encoder_2"):
        component, path = prefix, path.removeprefix("base_model.model.")
    else:
        guess = key_mapping.component_by_path(prefixed_path)
        if guess is None:
            raise LoraFileError(
                f"The LoRA's key {shortened(key)!r} is none of Stable Diffusion 1.x, 2.x or XL "
                "(unet.…, text_encoder.…, text_encoder_2.…); LoRAs for other models are not read.",
                code="unknown_key",
            )
        component, path = guess, prefixed_path
    return component, path if component == "unet" else key_mapping.strip_text_model(path)


def _header_alpha(metadata: Mapping[str, str]) -> HeaderAlpha:
    """Return the lookup of a module's alpha in PEFT's configuration."""
    config = _adapter_config(metadata)

    def alpha_of(component: str, path: str, rank: int) -> float | None:
        alpha = config.get(f"{component}.lora_alpha")
        for pattern, value in (config.get(f"{component}.alpha_pattern") or {}).items():
            if f".{path}".endswith("." + _module_suffix(pattern)):
                alpha = value
                break
        if alpha is None:
            return None
        # Rank-stabilised LoRA (https://arxiv.org/abs/2312.03732) scales by alpha / √rank.
        return float(alpha) * (rank**0.5 if config.get(f"{component}.use_rslora") else 1)

    return alpha_of


def _adapter_config(metadata: Mapping[str, str]) -> Mapping[str, Any]:
    text = metadata.get(_ADAPTER_METADATA)
    if text is None:
        return {}
    try:
        config = json.loads(text)
        for key, value in config.items():
            if key.endswith(".lora_alpha"):
                float(value)
            elif key.endswith(".alpha_pattern"):
                {_module_suffix(pattern): float(alpha) for pattern, alpha in (value or {}).items()}
    except (ValueError, TypeError, AttributeError, RecursionError, OverflowError) as error:
        raise LoraFileError(
            f"The LoRA's header string {_ADAPTER_METADATA!r} ({shortened(text)!r}) does not hold rank and alpha "
            "as PEFT writes them; remove it or write the file again.",
            code="bad_metadata",
        ) from error
    return dict(config)


def _module_suffix(pattern: str) -> str:
    """Return a pattern of PEFT as the end of a module path.

    Raises:
        ValueError: it is a real regular expression; an untrusted one could take for ever to match.
    """
    suffix = pattern.removeprefix("^").removesuffix("$").replace("\\.", ".")
    if not re.fullmatch(r"[\w.]+", suffix):
        raise ValueError(f"the pattern {pattern!r} is more than a module's name")
    return key_mapping.strip_text_model(suffix)


def write(weights: LoraWeights) -> TensorFile:
    """Return tensors under PEFT's keys. Alpha is multiplied into ``lora_B``: old loaders assume alpha = rank.

    Raises:
        LoraFileError: a change is of a kind that diffusers does not load (``unsupported_by_format``).
    """
    tensors: dict[str, Tensor] = {}
    for component, path, layer in weights:
        inner = layer.inner if isinstance(layer, DoraLayer) else layer
        if not isinstance(inner, LoraLayer):
            raise LoraFileError(
                f"The LoRA's module {component}.{path} is of the kind {layer.kind}, which diffusers does not load; "
                "convert it to the kohya format.",
                code="unsupported_by_format",
            )
        module = f"{component}.{path if component == 'unet' else _with_text_model(path)}"
        tensors[f"{module}.lora_A.weight"], tensors[f"{module}.lora_B.weight"] = inner.scaled_pair()
        if isinstance(layer, DoraLayer):
            tensors[f"{module}.lora_magnitude_vector"] = _magnitude(layer, f"{component}.{path}")
    return TensorFile(tensors, tokens_to_header(weights.embeddings))


def _magnitude(layer: DoraLayer, module: str) -> Tensor:
    if not layer.by_row:
        raise LoraFileError(
            f"The LoRA's module {module} has magnitudes per input, which diffusers does not load; "
            "convert it to the kohya format.",
            code="unsupported_by_format",
        )
    return layer.magnitude.flatten() if len(layer.shape) == 2 else layer.magnitude.reshape(1, -1, 1, 1)


def _with_text_model(path: str) -> str:
    return path if path.startswith("text_projection") else f"text_model.{path}"
