"""diffusers and PEFT: keys are module paths; three generations of part names.

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
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

from lora_service.errors import LoraFileError
from lora_service.lora import key_mapping
from lora_service.lora.content import FileContent
from lora_service.lora.formats.stored_tokens import header_tokens, read_header_tokens
from lora_service.lora.layer_builder import TENSOR_ALIASES, TensorsByModule
from lora_service.lora.lycoris import DoraLayer
from lora_service.lora.safetensors_header import shortened
from lora_service.lora.weights import LoraLayer, LoraWeights

_ADAPTER_METADATA = "lora_adapter_metadata"
_PARTS = sorted(TENSOR_ALIASES, key=len, reverse=True)
_PROCESSOR = re.compile(r"(?P<attention>.+?)\.(?:processor\.)?to_(?P<which>q|k|v|out)_lora\.(?P<part>down|up)\.weight")
_TEXT_PROJECTIONS = {"q": "q_proj", "k": "k_proj", "v": "v_proj", "out": "out_proj"}
_LYCORIS = re.compile(r"(?P<path>.+)\.(?P<part>(?:hada|lokr)_\w+?)(?:\.default)?")


def detects(content: FileContent) -> bool:
    """Whether any key ends as those of diffusers or PEFT do."""
    return any(_path_and_part(key) is not None and not key.endswith("alpha") for key in content.tensors)


def read(content: FileContent) -> LoraWeights:
    """Weights from module paths, alpha from the header if it names one."""
    modules = TensorsByModule()
    for key, tensor in content.tensors.items():
        found = _path_and_part(key)
        if found is None:
            raise LoraFileError(f"The LoRA's key {shortened(key)!r} is none that diffusers or PEFT write.")
        component, path = _component_and_path(key, found[0])
        if found[1] == "dora_scale":
            tensor = tensor.flatten()  # PEFT's is (1, out, 1, 1) for convolutions, one per output always
        modules.add(component, path, found[1], tensor)
    layers = modules.layers(_alphas(content.metadata))
    return LoraWeights(layers, read_header_tokens(content.metadata), content.metadata, "diffusers")


def _path_and_part(key: str) -> tuple[str, str] | None:
    """Key -> path with its component, and kohya's name of the part."""
    if match := _PROCESSOR.fullmatch(key):
        which = match["which"]
        if match["attention"].endswith("self_attn"):
            projection = _TEXT_PROJECTIONS[which]
        else:
            projection = "to_out.0" if which == "out" else f"to_{which}"
        return f"{match['attention']}.{projection}", f"lora_{match['part']}.weight"
    for part in _PARTS:
        if key.endswith("." + part):
            return key.removesuffix("." + part), TENSOR_ALIASES[part]
    if match := _LYCORIS.fullmatch(key):
        return match["path"], match["part"]
    return None


def _component_and_path(key: str, path: str) -> tuple[str, str]:
    path = path.removeprefix("base_model.model.")
    first, _, rest = path.partition(".")
    if first in ("unet", "text_encoder", "text_encoder_2"):
        component, path = first, rest.removeprefix("base_model.model.")
    else:
        found = key_mapping.component_of(path)
        if found is None:
            raise LoraFileError(
                f"The LoRA's key {shortened(key)!r} is none of Stable Diffusion 1.x, 2.x or XL "
                "(unet.…, text_encoder.…, text_encoder_2.…); LoRAs for other models are not read."
            )
        component = found
    return component, path if component == "unet" else key_mapping.canonical(path)


def _alphas(metadata: Mapping[str, str]) -> Callable[[str, str, int], float | None]:
    """(component, path, rank) -> alpha as the header has it; None where it says nothing."""
    config = _adapter_config(metadata)

    def alpha_of(component: str, path: str, rank: int) -> float | None:
        alpha = config.get(f"{component}.lora_alpha")
        for pattern, value in (config.get(f"{component}.alpha_pattern") or {}).items():
            if f".{path}".endswith("." + _plain_pattern(pattern)):
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
                {_plain_pattern(pattern): float(alpha) for pattern, alpha in (value or {}).items()}
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        raise LoraFileError(
            f"The LoRA's header string {_ADAPTER_METADATA!r} ({shortened(text)!r}) does not hold rank and alpha "
            "as PEFT writes them; remove it or write the file again."
        ) from error
    return dict(config)


def _plain_pattern(pattern: str) -> str:
    """A pattern of PEFT as the end of a path. Real expressions are refused: a stranger's could run for ever."""
    plain = pattern.removeprefix("^").removesuffix("$").replace("\\.", ".")
    if not re.fullmatch(r"[\w.]+", plain):
        raise ValueError(f"the pattern {pattern!r} is more than a module's name")
    return key_mapping.canonical(plain)


def write(weights: LoraWeights) -> FileContent:
    """Tensors in PEFT's names. Alpha is multiplied into ``lora_B``: old loaders take alpha = rank for granted.

    Raises:
        LoraFileError: a change is of a kind that diffusers does not load.
    """
    tensors: dict[str, Tensor] = {}
    for component, path, layer in weights:
        inner = layer.inner if isinstance(layer, DoraLayer) else layer
        if not isinstance(inner, LoraLayer):
            raise LoraFileError(
                f"The LoRA's module {component}.{path} is of the kind {layer.kind}, which diffusers does not load; "
                "convert it to the kohya layout."
            )
        name = f"{component}.{path if component == 'unet' else _with_text_model(path)}"
        tensors[f"{name}.lora_A.weight"], tensors[f"{name}.lora_B.weight"] = plain_pair(inner)
        if isinstance(layer, DoraLayer):
            tensors[f"{name}.lora_magnitude_vector"] = _magnitude(layer, f"{component}.{path}")
    return FileContent(tensors, header_tokens(weights.embeddings))


def _magnitude(layer: DoraLayer, name: str) -> Tensor:
    if not layer.by_row:
        raise LoraFileError(
            f"The LoRA's module {name} has magnitudes per input, which diffusers does not load; "
            "convert it to the kohya layout."
        )
    return layer.magnitude.flatten() if len(layer.shape) == 2 else layer.magnitude.reshape(1, -1, 1, 1)


def plain_pair(layer: LoraLayer) -> tuple[Tensor, Tensor]:
    """``down`` and ``up`` with ``alpha / rank`` and a kernel in between multiplied in, if there is any."""
    scale = layer.alpha / layer.rank
    up = layer.up if scale == 1 else layer.up.float() * scale
    if layer.mid is None:
        return layer.down, up
    _, down = layer.factors(layer.down.device)
    return down.reshape(layer.rank, *layer.shape[1:]), up


def _with_text_model(path: str) -> str:
    return path if path.startswith("text_projection") else f"text_model.{path}"
