"""diffusers and PEFT: keys are module paths with suffixes of three generations.

    PEFT                   unet.….to_q.lora_A.weight (= down), .lora_B.weight (= up), .lora_magnitude_vector
    training scripts       unet.….to_q.lora.down.weight, text_encoder.….q_proj.lora_linear_layer.up.weight
    attention processors   unet.….attn1.processor.to_q_lora.up.weight, also without the ``unet.``

Rank and alpha of PEFT files may stand in the header's ``lora_adapter_metadata`` (JSON, per component, with patterns
per module) or, in a folder of PEFT's own, in ``adapter_config.json``; without them alpha = rank. Text-encoder paths
come with and without ``text_model.``; written is the form with it, which transformers 4 and 5 both load.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import replace

from torch import Tensor

from lora_service.errors import LoraFileError
from lora_service.lora.formats import adapter_config
from lora_service.lora.formats.named_modules import is_flow_key, read_named, split_key
from lora_service.lora.formats.stored_tokens import tokens_to_header
from lora_service.lora.lycoris import DoraLayer
from lora_service.lora.safetensors_file import TensorFile
from lora_service.lora.weights import BACKBONES, LoraLayer, LoraWeights

_ADAPTER_FILE = "adapter_model"
_FACTOR = re.compile(r"\.lora_(A|down)\.")
_SINGLE_MODEL = "base_model.model."
"""The start of keys in the folders that PEFT itself saves."""


def detects(keys: Collection[str], metadata: Mapping[str, str]) -> bool:
    """Return True if any key ends as those of diffusers or PEFT do."""
    return any(_is_lora_key(key) for key in keys)


def _is_lora_key(key: str) -> bool:
    named = split_key(key)
    return (named is not None and named.suffix != "alpha") or is_flow_key(key) or _FACTOR.search(key) is not None


def read(file: TensorFile) -> LoraWeights:
    """Return weights from module paths, alpha from the header, or from ``adapter_config.json``, if it is there.

    Raises:
        LoraFileError: as of :func:`~lora_service.lora.formats.named_modules.read_named`, or the configuration cannot
            be read (``bad_metadata``).
    """
    is_folder = file.stem == _ADAPTER_FILE or any(key.startswith(_SINGLE_MODEL) for key in file.tensors)
    beside = file.adapter_config if is_folder else None
    weights = read_named(file, "diffusers", adapter_config.header_alpha(file.metadata, beside))
    has_alpha = adapter_config.HEADER_KEY in file.metadata or any(key.endswith(".alpha") for key in file.tensors)
    if not is_folder or beside is not None or has_alpha:
        return weights
    warning = f"PEFT keeps alpha in {adapter_config.FILE_NAME}, which is not beside the file: alpha = rank was taken"
    return replace(weights, warnings=(*weights.warnings, warning))


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
        module = f"{component}.{path if component in BACKBONES else _with_text_model(path)}"
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
