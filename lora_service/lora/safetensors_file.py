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
KOHYA_HASHES = ("sshs_model_hash", "sshs_legacy_hash")
_LEGACY_START, _LEGACY_LENGTH = 2**20, 2**16


@dataclass(frozen=True, eq=False)
class TensorFile:
    """The content of a file, before its format is known or after it was chosen.

    Attributes:
        stem: the file's name without its suffix, by which other tools call an embedding.
        adapter_config: the text of PEFT's ``adapter_config.json`` beside the file, if there is one.
    """

    tensors: Mapping[str, Tensor]
    metadata: Mapping[str, str] = field(default_factory=dict)
    stem: str = "lora"
    adapter_config: str | None = None


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
    data = bytearray(max((entry.end for entry in header.tensors.values()), default=0))
    with path.open("rb") as file:
        file.seek(header.data_start)
        if file.readinto(data) < len(data):
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

    The safetensors package writes header strings in a random order, so that equal files would differ. The tensors'
    bytes lie in its order: the widest dtype first, then by key. A header of ModelSpec gets that standard's hash, one
    with kohya's strings kohya's hashes.

    Raises:
        LoraFileError: a value is not finite in ``dtype`` (``not_finite``).
    """
    entries: dict[str, object] = {}
    data = bytearray()
    # An alpha of 0.1 is no fp16 number.
    dtypes = {key: torch.float32 if tensor.dim() == 0 else dtype for key, tensor in tensors.items()}
    for key in sorted(tensors, key=lambda key: (-dtypes[key].itemsize, key)):
        raw = _raw(key, tensors[key], dtypes[key])
        entries[key] = {
            "dtype": _WRITABLE_DTYPES[dtypes[key]],
            "shape": list(tensors[key].shape),
            "data_offsets": [len(data), len(data) + len(raw)],
        }
        data += raw
    return _header_bytes(entries, _with_hashes(metadata, entries, data)) + data


def _header_bytes(entries: Mapping[str, object], metadata: Mapping[str, str]) -> bytes:
    header = {"__metadata__": dict(sorted(metadata.items()))} if metadata else {}
    text = json.dumps(header | dict(sorted(entries.items())), separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)  # tensors begin at a multiple of 8, as safetensors recommends
    return len(text).to_bytes(8, "little") + text


def _with_hashes(metadata: Mapping[str, str], entries: Mapping[str, object], data: bytearray) -> dict[str, str]:
    """Return header strings with the hashes of ModelSpec and kohya where their strings are, in place of others'."""
    strings = {key: text for key, text in metadata.items() if key not in (_MODELSPEC_HASH, *KOHYA_HASHES)}
    kohya_strings = {key: text for key, text in strings.items() if key.startswith("ss_")}
    sha256 = hashlib.sha256(data).hexdigest()
    if _MODELSPEC in strings:
        strings[_MODELSPEC_HASH] = f"0x{sha256}"
    if kohya_strings:
        legacy = _legacy_hash(_header_bytes(entries, kohya_strings), data)
        strings |= dict(zip(KOHYA_HASHES, (sha256, legacy), strict=True))
    return strings


def _legacy_hash(header: bytes, data: bytearray) -> str:
    """Return the eight digits by which older tools know a file: of the 64 KiB behind its first MiB.

    kohya takes them of the file as it is before the hashes, and any strings but its own, are in the header
    (https://github.com/kohya-ss/sd-scripts, library/train_util.py: precalculate_safetensors_hashes).
    """
    end = _LEGACY_START + _LEGACY_LENGTH
    start = max(_LEGACY_START - len(header), 0)
    part = header[_LEGACY_START:end] + data[start : max(end - len(header), 0)]
    return hashlib.sha256(part).hexdigest()[:8]


def _raw(key: str, tensor: Tensor, dtype: torch.dtype) -> bytes:
    values = tensor.detach().to("cpu", dtype).contiguous().reshape(-1)
    if not values.isfinite().all():
        raise LoraFileError(
            f"The LoRA's tensor {key!r} is not finite as {dtype}; write it as float32, or train it anew.",
            code="not_finite",
        )
    return values.view(torch.uint8).numpy().tobytes()
