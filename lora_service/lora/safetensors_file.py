"""Named tensors and header strings <-> the bytes of a safetensors file."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from lora_service.errors import LoraFileError
from lora_service.lora.safetensors_header import SafetensorsHeader, TensorEntry, shortened

_READABLE_DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8,
}  # fmt: skip
_WRITABLE_DTYPES = {torch.float16: "F16", torch.bfloat16: "BF16", torch.float32: "F32"}
_MODELSPEC, _MODELSPEC_HASH = "modelspec.sai_model_spec", "modelspec.hash_sha256"


@dataclass(frozen=True, eq=False)
class TensorFile:
    """The content of a file, before its format is known or after it was chosen.

    Attributes:
        stem: the file's name without its suffix, by which other tools call an embedding.
    """

    tensors: Mapping[str, Tensor]
    metadata: Mapping[str, str] = field(default_factory=dict)
    stem: str = "lora"


def read_tensor_file(path: Path, header: SafetensorsHeader, stem: str = "") -> TensorFile:
    """Read all tensors of a safetensors file whose header was read before; float8 becomes fp32.

    Args:
        path: the file.
        header: its header.
        stem: its name without suffix; '': that of ``path``.

    Raises:
        LoraFileError: the file was cut short since (``truncated``), or a dtype is none of a LoRA
            (``unsupported_dtype``).
    """
    # Read and not mapped: a mapped file that is cut short later would end the process with a bus error.
    with path.open("rb") as file:
        file.seek(header.data_start)
        data = bytearray(file.read())
    if len(data) < max((entry.end for entry in header.tensors.values()), default=0):
        raise LoraFileError("It was cut short while it was read.", code="truncated")
    tensors = {key: _tensor(key, data, entry) for key, entry in header.tensors.items()}
    return TensorFile(tensors, header.metadata, stem or path.stem)


def _tensor(key: str, data: bytearray, entry: TensorEntry) -> Tensor:
    if entry.dtype not in _READABLE_DTYPES:
        raise LoraFileError(
            f"The tensor {shortened(key)!r} has the dtype {entry.dtype}; "
            f"a LoRA's is one of {', '.join(_READABLE_DTYPES)}.",
            code="unsupported_dtype",
        )
    dtype, count = _READABLE_DTYPES[entry.dtype], math.prod(entry.shape)
    if count == 0:
        return torch.empty(entry.shape, dtype=dtype)
    if entry.begin % dtype.itemsize:  # safetensors allows unaligned tensors, torch does not
        data, begin = data[entry.begin : entry.end], 0
    else:
        begin = entry.begin
    tensor = torch.frombuffer(data, dtype=dtype, count=count, offset=begin).reshape(entry.shape)
    return tensor.float() if entry.dtype.startswith("F8") else tensor


def serialize(tensors: Mapping[str, Tensor], metadata: Mapping[str, str], dtype: torch.dtype) -> bytes:
    """Return a safetensors file's bytes, keys and header strings sorted.

    The safetensors package writes header strings in a random order, so that equal files would differ.

    Raises:
        LoraFileError: a value is not finite in ``dtype`` (``not_finite``).
    """
    header: dict[str, object] = {}
    data = bytearray()
    for key, tensor in sorted(tensors.items()):
        tensor_dtype = torch.float32 if tensor.dim() == 0 else dtype  # alpha: 0.1 is no fp16 number
        raw = _raw(key, tensor, tensor_dtype)
        header[key] = {
            "dtype": _WRITABLE_DTYPES[tensor_dtype],
            "shape": list(tensor.shape),
            "data_offsets": [len(data), len(data) + len(raw)],
        }
        data += raw
    if _MODELSPEC in metadata:
        metadata = {**metadata, _MODELSPEC_HASH: f"0x{hashlib.sha256(data).hexdigest()}"}
    if metadata:
        header = {"__metadata__": dict(sorted(metadata.items())), **header}
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)  # tensors begin at a multiple of 8, as safetensors recommends
    return len(text).to_bytes(8, "little") + text + data


def _raw(key: str, tensor: Tensor, dtype: torch.dtype) -> bytes:
    values = tensor.detach().to("cpu", dtype).contiguous().reshape(-1)
    if not values.isfinite().all():
        raise LoraFileError(
            f"The LoRA's tensor {key!r} is not finite as {dtype}; write it as float32, or train it anew.",
            code="not_finite",
        )
    return values.view(torch.uint8).numpy().tobytes()
