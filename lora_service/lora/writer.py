"""``LoraWeights`` -> a LoRA file: reproducible byte for byte, and there whole or not at all."""

from __future__ import annotations

import hashlib
import json
import secrets
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from lora_service.errors import InputError, LoraFileError
from lora_service.lora.formats import FORMATS
from lora_service.lora.formats.stored_tokens import TOKENS_KEY
from lora_service.lora.weights import LoraWeights

FORMAT_NAMES = tuple(layout.name for layout in FORMATS)

_DTYPE_NAMES = {torch.float16: "F16", torch.bfloat16: "BF16", torch.float32: "F32"}
_MODELSPEC, _MODELSPEC_HASH = "modelspec.sai_model_spec", "modelspec.hash_sha256"
# What another layout's file says about itself, and what would be wrong or refused beside a new layout's own.
_LAYOUTS_OWN_STRINGS = ("lora_adapter_metadata", TOKENS_KEY)


def write_lora(path: Path, weights: LoraWeights, *, layout: str = "kohya", dtype: torch.dtype = torch.float16) -> None:
    """Writes a LoRA file; the same weights give the same bytes.

    Args:
        layout: one of ``FORMAT_NAMES``.
        dtype: of the tensors; float16, bfloat16 or float32. Learned tokens in the header are fp16 always.

    Raises:
        InputError: there is no such layout.
        LoraFileError: the layout cannot hold these weights.
    """
    write = next((known.write for known in FORMATS if known.name == layout), None)
    if write is None:
        raise InputError("layout", layout, f"one of {', '.join(FORMAT_NAMES)}")
    content = write(weights)
    kept = {key: text for key, text in weights.metadata.items() if key not in _LAYOUTS_OWN_STRINGS}
    _write_atomically(path, serialized(content.tensors, {**kept, **content.metadata}, dtype))


def serialized(tensors: Mapping[str, Tensor], metadata: Mapping[str, str], dtype: torch.dtype) -> bytes:
    """A safetensors file's bytes, keys and header strings sorted.

    The safetensors package writes header strings in a random order, so that equal files would differ.
    """
    header: dict[str, object] = {}
    data = bytearray()
    for key, tensor in sorted(tensors.items()):
        own = torch.float32 if tensor.dim() == 0 else dtype  # alpha: 0.1 is no fp16 number
        raw = _raw(key, tensor, own)
        header[key] = {
            "dtype": _DTYPE_NAMES[own],
            "shape": list(tensor.shape),
            "data_offsets": [len(data), len(data) + len(raw)],
        }
        data += raw
    if _MODELSPEC in metadata:
        metadata = {**metadata, _MODELSPEC_HASH: f"0x{hashlib.sha256(data).hexdigest()}"}
    if metadata:
        header = {"__metadata__": dict(sorted(metadata.items())), **header}
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)  # tensors begin at a multiple of 8, as the format recommends
    return len(text).to_bytes(8, "little") + text + data


def _raw(key: str, tensor: Tensor, dtype: torch.dtype) -> bytes:
    values = tensor.detach().to("cpu", dtype).contiguous().reshape(-1)
    if not values.isfinite().all():
        raise LoraFileError(
            f"The LoRA's tensor {key!r} is not finite as {dtype}; write it as float32, or train it anew."
        )
    return values.view(torch.uint8).numpy().tobytes()


def _write_atomically(path: Path, content: bytes) -> None:
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        temporary.write_bytes(content)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
