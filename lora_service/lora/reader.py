"""A LoRA file -> ``LoraWeights``, whatever its layout."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from lora_service.errors import LoraFileError
from lora_service.lora.content import FileContent
from lora_service.lora.formats import FORMATS
from lora_service.lora.safetensors_header import SafetensorsHeader, TensorEntry, read_header, shortened
from lora_service.lora.weights import LoraWeights

_DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8,
}  # fmt: skip


def read_lora(path: Path) -> LoraWeights:
    """What a LoRA file says; its layout is told by keys and shapes.

    Raises:
        LoraFileError: the file is no LoRA, is damaged, or holds something that is not read.
    """
    header = read_header(path)
    try:
        return from_content(FileContent(_read_tensors(path, header), header.metadata, path.stem))
    except LoraFileError as error:
        raise LoraFileError(f"{path.name}: {error}") from error


def from_content(content: FileContent) -> LoraWeights:
    """What named tensors and header strings say.

    Raises:
        LoraFileError: no layout fits, or the one that fits finds something that is not read.
    """
    _check_finite(content.tensors)
    layout = next((layout for layout in FORMATS if layout.detects(content)), None)
    if layout is None:
        known = ", ".join(layout.name for layout in FORMATS)
        keys = ", ".join(repr(shortened(key)) for key in list(content.tensors)[:3])
        raise LoraFileError(f"Its keys ({keys or 'none'}) are of no LoRA layout that is known ({known}).")
    return layout.read(content)


def _read_tensors(path: Path, header: SafetensorsHeader) -> dict[str, Tensor]:
    # Read and not mapped: a mapped file that is cut short later would end the process with a bus error.
    with path.open("rb") as file:
        file.seek(header.data_start)
        data = bytearray(file.read())
    if len(data) < max((entry.end for entry in header.tensors.values()), default=0):
        raise LoraFileError("It was cut short while it was read.")
    return {key: _tensor(key, data, entry) for key, entry in header.tensors.items()}


def _tensor(key: str, data: bytearray, entry: TensorEntry) -> Tensor:
    if entry.dtype not in _DTYPES:
        raise LoraFileError(f"The tensor {shortened(key)!r} has the dtype {entry.dtype}, in which no LoRA is kept.")
    dtype, count = _DTYPES[entry.dtype], math.prod(entry.shape)
    if count == 0:
        return torch.empty(entry.shape, dtype=dtype)
    if entry.begin % dtype.itemsize:  # the format allows it, arithmetic does not
        data, begin = data[entry.begin : entry.end], 0
    else:
        begin = entry.begin
    tensor = torch.frombuffer(data, dtype=dtype, count=count, offset=begin).reshape(entry.shape)
    return tensor.float() if entry.dtype.startswith("F8") else tensor


def _check_finite(tensors: Mapping[str, Tensor]) -> None:
    for key, tensor in tensors.items():
        # A sum is not finite if any item is not; the other way round it may overflow, hence the second look.
        if tensor.is_floating_point() and not tensor.sum().isfinite() and not tensor.isfinite().all():
            raise LoraFileError(f"The tensor {shortened(key)!r} holds NaN or infinite values; the training went wrong.")
