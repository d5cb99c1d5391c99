"""ComfyUI: ``diffusion_model.`` and the original model's path, ``….lora_A.weight``, ``.lora_B.weight``.

What ComfyUI, ai-toolkit and OneTrainer write for transformers, and most programs read. Z-Image's files name modules as
diffusers' class does, as those of its trainers; FLUX.1's, Chroma's and Stable Diffusion 3's have kohya's factors with
alpha (``lora_down``, ``lora_up``), as diffusers reads no others behind this prefix. Stable Diffusion 1.x, 2.x and XL
have kohya's layout in ComfyUI too.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping

import torch
from torch import Tensor

from lora_service.errors import LoraFileError
from lora_service.lora.flow.conversion import NamedChange, to_originals
from lora_service.lora.flow.detection import COMPONENT, lora_candidates
from lora_service.lora.flow.names import TransformerFamily
from lora_service.lora.flow.rows import RowsOf
from lora_service.lora.formats import adapter_config
from lora_service.lora.formats.named_modules import is_flow_key, read_named, split_key
from lora_service.lora.layer_builder import tensors_of
from lora_service.lora.lycoris import FullDifference
from lora_service.lora.safetensors_file import TensorFile
from lora_service.lora.weights import BIAS, LoraLayer, LoraWeights

_PREFIX = "diffusion_model."
_PEFT_SUFFIXES = {"lora_down.weight": "lora_A.weight", "lora_up.weight": "lora_B.weight"}


def detects(keys: Collection[str], metadata: Mapping[str, str]) -> bool:
    """Return True if any key is of a LoRA and has ComfyUI's prefix."""
    prefixes = (_PREFIX, f"model.{_PREFIX}")
    return any(key.startswith(prefixes) and (is_flow_key(key) or split_key(key) is not None) for key in keys)


def read(file: TensorFile) -> LoraWeights:
    """Return weights from ComfyUI's keys; alpha from tensors, else from PEFT's strings in the header.

    Raises:
        LoraFileError: as of :func:`~lora_service.lora.formats.named_modules.read_named`.
    """
    return read_named(file, "comfyui", adapter_config.header_alpha(file.metadata))


def transformer_tensors(weights: LoraWeights) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return the tensors of a LoRA's transformer under ComfyUI's keys, and the strings that name its base.

    Raises:
        LoraFileError: its modules are of no known family (``unsupported_by_format``).
    """
    found = lora_candidates(weights)
    if not found:
        raise LoraFileError(
            "The LoRA's modules are of no transformer that ComfyUI's names are known for; "
            "convert it to the diffusers format.",
            code="unsupported_by_format",
        )
    family = found[0].family
    changes = weights.layers[COMPONENT]
    if family.writes_paths:
        named = [NamedChange(path, change, is_path=False) for path, change in changes.items()]
    else:
        named = to_originals(family, changes)
    tensors = {key: tensor for each in named for key, tensor in _tensors(family, each)}
    is_known = {"ss_base_model_version", "modelspec.architecture"} & weights.metadata.keys()
    # Attention and feed-forward layers of FLUX.1 and Chroma, say, are alike: then the header must not choose for them.
    is_named = not is_known and len(found) == 1
    return tensors, {"ss_base_model_version": family.header_names[0]} if is_named else {}


def _tensors(family: TransformerFamily, named: NamedChange) -> Iterator[tuple[str, Tensor]]:
    prefix = f"{COMPONENT}." if named.is_path else _PREFIX
    module = prefix + named.name.removesuffix(BIAS)
    change = named.change
    if isinstance(change, RowsOf):  # rows of a product that is not there as a whole
        change = FullDifference(change.delta(torch.empty(change.shape)))
    if isinstance(change, LoraLayer) and change.mid is None and not family.writes_alpha:
        down, up = change.scaled_pair()
        yield f"{module}.lora_A.weight", down
        yield f"{module}.lora_B.weight", up
        return
    for suffix, tensor in tensors_of(named.name, change).items():
        yield f"{module}.{_PEFT_SUFFIXES.get(suffix, suffix) if family.writes_paths else suffix}", tensor
    if change.rank:
        yield f"{module}.alpha", torch.tensor(change.alpha)
