"""The safetensors container: its header, read with bounds and without torch.

A file is eight bytes of header length (little-endian), the header as JSON, then the tensors' bytes
(https://github.com/huggingface/safetensors#format). Whatever a stranger's file holds, reading its header
takes at most ``MAX_HEADER_BYTES`` of the file into memory and ends in a :class:`SafetensorsHeader` or in one
:class:`~lora_service.errors.LoraFileError`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from lora_service.errors import LoraFileError

MAX_HEADER_BYTES = 16 * 1024**2
"""A full SDXL LoHa has a header of 2 MiB; the rest is room for a thumbnail and other tools' statistics."""
MAX_TENSORS = 25_000
"""A full SDXL LoRA has 7,500 tensors, a LoKr with every factor split 18,000."""
MAX_DIMENSIONS = 8

ITEM_BITS: Mapping[str, int] = {
    "BOOL": 8, "U8": 8, "I8": 8, "F8_E4M3": 8, "F8_E5M2": 8,
    "I16": 16, "U16": 16, "F16": 16, "BF16": 16,
    "I32": 32, "U32": 32, "F32": 32,
    "I64": 64, "U64": 64, "F64": 64,
}  # fmt: skip

_LENGTH_BYTES = 8
_METADATA_KEY = "__metadata__"


@dataclass(frozen=True)
class TensorEntry:
    """Where a tensor lies: its bytes are ``begin`` to ``end`` of the part of the file after the header."""

    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


@dataclass(frozen=True)
class SafetensorsHeader:
    """A checked header: every tensor lies inside the file, none over another, each as long as its shape says."""

    tensors: Mapping[str, TensorEntry]
    metadata: Mapping[str, str]
    data_start: int


def read_header(path: Path) -> SafetensorsHeader:
    """The checked header of a safetensors file.

    Raises:
        LoraFileError: the file is of another kind, cut off, or its header contradicts itself.
    """
    try:
        with path.open("rb") as file:
            start = file.read(512)
            file_size = path.stat().st_size
            problem = _other_kind(start)
            if problem:
                raise LoraFileError(f"{path.name} is {problem}")
            length = int.from_bytes(start[:_LENGTH_BYTES], "little")
            _check_length(path, length, file_size)
            file.seek(_LENGTH_BYTES)
            raw = file.read(length)
    except OSError as error:
        raise LoraFileError(f"{path.name} cannot be read: {error.strerror}; give a .safetensors file.") from error
    try:
        return _parse(raw, _LENGTH_BYTES + length, file_size)
    except _Malformed as error:
        raise LoraFileError(
            f"{path.name} is a damaged safetensors file: {error}; download or save it again."
        ) from error


class _Malformed(ValueError):
    """What is wrong with a header, as the middle of a sentence."""


def _other_kind(start: bytes) -> str | None:
    """What a file that begins so is, when it is a known kind of something else; ends the sentence "FILE is …"."""
    text = start.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if text.startswith((b"<!doctype", b"<html", b"<head", b"<?xml", b"<svg")):
        return "a web page and not a LoRA; copy the link of the download button instead of the page's address."
    if text.startswith(b"version https://git-lfs"):
        return "a Git LFS pointer and not the LoRA itself; fetch the content with `git lfs pull` or a download link."
    if start.startswith(b"PK\x03\x04"):
        if b"data.pkl" in start or b"/version" in start:
            return _PICKLE
        return "a zip and not a LoRA; unpack it and give the .safetensors file inside."
    if start[:1] == b"\x80" and start[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05") and start[2:8] != bytes(6):
        return _PICKLE
    if start.startswith((b"\x89PNG", b"\xff\xd8\xff", b"RIFF", b"GIF8")):
        return "a picture and not a LoRA; give a .safetensors file."
    if text.startswith((b"{", b"[")) and b"\0" not in start[:_LENGTH_BYTES]:
        return "JSON text and not a LoRA; give a .safetensors file."
    return None


_PICKLE = (
    "a PyTorch pickle (.pt, .ckpt, .bin), which can run any program when it is opened and is therefore refused; "
    "give the LoRA as .safetensors."
)


def _check_length(path: Path, length: int, file_size: int) -> None:
    if file_size <= _LENGTH_BYTES or length < 2:
        raise LoraFileError(f"{path.name} holds {file_size} bytes and no safetensors header; give a .safetensors file.")
    if length > MAX_HEADER_BYTES:
        raise LoraFileError(
            f"{path.name} is no safetensors file: it announces a header of {length} bytes, "
            f"but at most {MAX_HEADER_BYTES} are read."
        )
    if _LENGTH_BYTES + length > file_size:
        raise LoraFileError(
            f"{path.name} is cut off: its header needs {_LENGTH_BYTES + length} bytes and the file has {file_size}; "
            "download it again."
        )


def _parse(raw: bytes, data_start: int, file_size: int) -> SafetensorsHeader:
    # Counted before parsing: a million small entries would become a gigabyte of Python objects.
    if raw.count(b"data_offsets") > MAX_TENSORS or max(map(raw.count, (b":", b"{", b"["))) > 16 * MAX_TENSORS:
        raise _Malformed(f"it lists more than {MAX_TENSORS} tensors")
    try:
        header = json.loads(raw, object_pairs_hook=_without_duplicates)
    except RecursionError as error:
        raise _Malformed("its header is nested too deeply") from error
    except ValueError as error:
        reason = str(error) if isinstance(error, _Malformed) else "its header is not JSON"
        raise _Malformed(reason) from error
    if not isinstance(header, dict):
        raise _Malformed("its header is not a JSON object")
    metadata = _metadata(header.pop(_METADATA_KEY, {}))
    tensors = {name: _entry(name, value) for name, value in header.items()}
    _check_layout(tensors, file_size - data_start)
    return SafetensorsHeader(tensors, metadata, data_start)


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        raise _Malformed("its header names one thing twice")
    return result


def _metadata(value: Any) -> dict[str, str]:
    if not isinstance(value, dict) or not all(isinstance(text, str) for text in value.values()):
        raise _Malformed("its header strings are not strings")
    return value


def _entry(name: str, value: Any) -> TensorEntry:
    where = f"tensor {shortened(name)!r}"
    if not isinstance(value, dict) or set(value) != {"dtype", "shape", "data_offsets"}:
        raise _Malformed(f"{where} is not described by dtype, shape and data_offsets")
    dtype, shape, offsets = value["dtype"], value["shape"], value["data_offsets"]
    if not isinstance(dtype, str) or dtype not in ITEM_BITS:
        raise _Malformed(f"{where} has the unknown dtype {shortened(str(dtype))!r}")
    if not _counts(shape) or len(shape) > MAX_DIMENSIONS:
        raise _Malformed(f"{where} has a shape that is not a short list of counts")
    if not _counts(offsets) or len(offsets) != 2:
        raise _Malformed(f"{where} has no pair of offsets")
    begin, end = offsets
    bits = ITEM_BITS[dtype]
    for size in shape:
        bits *= size
    if bits != 8 * (end - begin):
        raise _Malformed(f"{where} of the shape {shortened(str(shape))} does not fit its {end - begin} bytes")
    return TensorEntry(dtype, tuple(shape), begin, end)


def _counts(value: Any) -> bool:
    """Whether a value is a list of counts that fit 63 bits (so that their products stay cheap to compute)."""
    return isinstance(value, list) and all(type(item) is int and 0 <= item < 2**63 for item in value)


def _check_layout(tensors: Mapping[str, TensorEntry], data_size: int) -> None:
    """The tensors must tile the data: no gap, no overlap, nothing after the last."""
    spans = sorted(((entry.begin, entry.end, name) for name, entry in tensors.items()), key=lambda span: span[:2])
    end = spans[-1][1] if spans else 0
    if end > data_size:
        raise _Malformed(f"tensor {shortened(spans[-1][2])!r} ends at byte {end} of {data_size}, so it is cut off")
    if end < data_size:
        raise _Malformed(f"{data_size - end} bytes after its tensors belong to none")
    if spans and spans[0][0] != 0:
        raise _Malformed("its first tensor does not begin where the header ends")
    for (_, before_end, before), (begin, _, name) in pairwise(spans):
        if begin != before_end:
            raise _Malformed(f"tensors {shortened(before)!r} and {shortened(name)!r} overlap or leave a gap")


def shortened(text: str, limit: int = 80) -> str:
    """A stranger's text, short enough for a message and without what would steer a terminal."""
    text = text if len(text) <= limit else text[: limit - 1] + "…"
    return text if text.isprintable() else "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)
