"""The header of a safetensors file, read within bounds and without torch.

A file is eight bytes of header length (little-endian), the header as JSON, then the tensors' bytes
(https://github.com/huggingface/safetensors#format). Whatever an untrusted file holds, reading its
header takes at most ``MAX_HEADER_BYTES`` of the file into memory and ends in a :class:`SafetensorsHeader` or in one
:class:`~lora_service.errors.LoraFileError`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from lora_service.errors import LoraFileError, shorten

MAX_HEADER_BYTES = 16 * 1024**2
"""The largest header that is read; a full SDXL LoHa has 2 MiB, the rest is room for a thumbnail and statistics."""
MAX_TENSORS = 25_000
"""The most tensors that are read; a full SDXL LoRA has 7,500, a LoKr with every factor split 18,000."""
MAX_DIMENSIONS = 8
MAX_NAME_LENGTH = 512
"""The longest name of a tensor; those of SDXL have up to 120 characters."""

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
    """A tensor's dtype, shape and position: bytes ``begin`` to ``end`` of the data that follows the header."""

    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


@dataclass(frozen=True)
class SafetensorsHeader:
    """A checked header: every tensor lies inside the file, none over another, each as long as its shape requires."""

    tensors: Mapping[str, TensorEntry]
    metadata: Mapping[str, str]
    data_start: int


class _MalformedHeader(ValueError):
    """A contradiction in a header; its message completes the sentence "FILE is a damaged safetensors file: …"."""

    def __init__(self, problem: str, code: str) -> None:
        super().__init__(problem)
        self.code = code


def read_header(path: Path, name: str = "") -> SafetensorsHeader:
    """Return the checked header of a safetensors file.

    Args:
        path: the file.
        name: its name in messages; '': that of ``path``.

    Raises:
        LoraFileError: the file is of another kind (code ``web_page``, ``git_lfs_pointer``, ``zip``, ``pickle``,
            ``picture``, ``json``, ``not_safetensors``), ``unreadable``, ``truncated``, or its header contradicts
            itself (``too_many_tensors``, ``not_json``, ``duplicate_key``, ``bad_metadata``, ``bad_tensor_entry``,
            ``bad_offsets``).
    """
    name = name or path.name
    try:
        with path.open("rb") as file:
            start = file.read(512)
            file_size = path.stat().st_size
            _refuse_other_types(name, start)
            length = int.from_bytes(start[:_LENGTH_BYTES], "little")
            _check_length(name, length, file_size)
            file.seek(_LENGTH_BYTES)
            raw = file.read(length)
    except OSError as error:
        raise LoraFileError(
            f"{name} cannot be read: {error.strerror}; give a .safetensors file.", code="unreadable"
        ) from error
    try:
        return _parse(raw, _LENGTH_BYTES + length, file_size)
    except _MalformedHeader as error:
        raise LoraFileError(
            f"{name} is a damaged safetensors file: {error}; download or save it again.", code=error.code
        ) from error


_DESCRIPTIONS = {
    "web_page": "a web page and not a LoRA; copy the link of the download button instead of the page's address",
    "git_lfs_pointer": "a Git LFS pointer and not the LoRA itself; fetch the content with `git lfs pull` or a download "
    "link",
    "pickle": "a PyTorch pickle (.pt, .ckpt, .bin), which can run any program when it is opened and is therefore "
    "refused; give the LoRA as .safetensors",
    "zip": "a zip and not a LoRA; unpack it and give the .safetensors file inside",
    "picture": "a picture and not a LoRA; give a .safetensors file",
    "json": "JSON text and not a LoRA; give a .safetensors file",
}


def _refuse_other_types(name: str, start: bytes) -> None:
    if file_type := _other_type(start):
        raise LoraFileError(f"{name} is {_DESCRIPTIONS[file_type]}.", code=file_type)


def _other_type(start: bytes) -> str | None:
    """Return a file's type, a key of ``_DESCRIPTIONS``, by its first bytes; None if it may be safetensors."""
    text = start.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if text.startswith((b"<!doctype", b"<html", b"<head", b"<?xml", b"<svg")):
        return "web_page"
    if text.startswith(b"version https://git-lfs"):
        return "git_lfs_pointer"
    if start.startswith(b"PK\x03\x04"):
        return "pickle" if b"data.pkl" in start or b"/version" in start else "zip"
    if start[:1] == b"\x80" and start[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05") and start[2:8] != bytes(6):
        return "pickle"
    if start.startswith((b"\x89PNG", b"\xff\xd8\xff", b"RIFF", b"GIF8")):
        return "picture"
    if text.startswith((b"{", b"[")) and b"\0" not in start[:_LENGTH_BYTES]:
        return "json"
    return None


def _check_length(name: str, length: int, file_size: int) -> None:
    if file_size <= _LENGTH_BYTES or length < 2:
        raise LoraFileError(
            f"{name} holds {file_size} bytes and no safetensors header; give a .safetensors file.",
            code="not_safetensors",
        )
    if length > MAX_HEADER_BYTES:
        raise LoraFileError(
            f"{name} is no safetensors file: it announces a header of {length} bytes, "
            f"but at most {MAX_HEADER_BYTES} are read.",
            code="not_safetensors",
        )
    if _LENGTH_BYTES + length > file_size:
        raise LoraFileError(
            f"{name} is cut off: its header needs {_LENGTH_BYTES + length} bytes and the file has {file_size}; "
            "download it again.",
            code="truncated",
        )


def _parse(raw: bytes, data_start: int, file_size: int) -> SafetensorsHeader:
    # Counted before parsing: a million small entries would become a gigabyte of Python objects.
    if raw.count(b"data_offsets") > MAX_TENSORS or max(map(raw.count, (b":", b"{", b"["))) > 16 * MAX_TENSORS:
        raise _MalformedHeader(f"it lists more than {MAX_TENSORS} tensors", "too_many_tensors")
    try:
        header = json.loads(raw, object_pairs_hook=_without_duplicates)
    except _MalformedHeader:
        raise
    except RecursionError as error:
        raise _MalformedHeader("its header is nested too deeply", "not_json") from error
    except ValueError as error:
        raise _MalformedHeader("its header is not JSON", "not_json") from error
    if not isinstance(header, dict):
        raise _MalformedHeader("its header is not a JSON object", "not_json")
    metadata = _metadata(header.pop(_METADATA_KEY, None))
    tensors = {name: _entry(name, value) for name, value in header.items()}
    _check_offsets(tensors, file_size - data_start)
    return SafetensorsHeader(tensors, metadata, data_start)


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        raise _MalformedHeader("its header holds a key twice", "duplicate_key")
    return result


def _metadata(value: Any) -> dict[str, str]:
    if value is None:
        return {}
    if not isinstance(value, dict) or not all(isinstance(text, str) for text in value.values()):
        raise _MalformedHeader("its header strings are not strings", "bad_metadata")
    return value


def _entry(name: str, value: Any) -> TensorEntry:
    problem = _entry_problem(value) if len(name) <= MAX_NAME_LENGTH else f"has a name of {len(name)} characters"
    if problem:
        raise _MalformedHeader(f"tensor {shortened(name)!r} {problem}", "bad_tensor_entry")
    begin, end = value["data_offsets"]
    bits = ITEM_BITS[value["dtype"]]
    for size in value["shape"]:
        bits *= size
    if bits != 8 * (end - begin):
        shape = shortened(str(value["shape"]))
        raise _MalformedHeader(
            f"tensor {shortened(name)!r} of the shape {shape} does not fit its {end - begin} bytes", "bad_offsets"
        )
    return TensorEntry(value["dtype"], tuple(value["shape"]), begin, end)


def _entry_problem(value: Any) -> str | None:
    if not isinstance(value, dict) or set(value) != {"dtype", "shape", "data_offsets"}:
        return "is not described by dtype, shape and data_offsets"
    dtype, shape, offsets = value["dtype"], value["shape"], value["data_offsets"]
    if not isinstance(dtype, str) or dtype not in ITEM_BITS:
        return f"has the unknown dtype {shortened(str(dtype))!r}"
    if not _is_list_of_sizes(shape) or len(shape) > MAX_DIMENSIONS:
        return f"has a shape that is not a list of at most {MAX_DIMENSIONS} sizes"
    if not _is_list_of_sizes(offsets) or len(offsets) != 2:
        return "has no pair of offsets"
    return None


def _is_list_of_sizes(value: Any) -> bool:
    """Return True for a list of non-negative integers of 63 bits, whose products stay cheap to compute."""
    return isinstance(value, list) and all(type(item) is int and 0 <= item < 2**63 for item in value)


def _check_offsets(tensors: Mapping[str, TensorEntry], data_size: int) -> None:
    """Refuse tensors that do not tile the data: no gap, no overlap, nothing after the last."""
    spans = sorted(((entry.begin, entry.end, name) for name, entry in tensors.items()), key=lambda span: span[:2])
    end = spans[-1][1] if spans else 0
    if end > data_size:
        raise _MalformedHeader(
            f"tensor {shortened(spans[-1][2])!r} ends at byte {end} of {data_size}, so it is cut off", "truncated"
        )
    if end < data_size:
        raise _MalformedHeader(f"{data_size - end} bytes after its tensors belong to none", "bad_offsets")
    if spans and spans[0][0] != 0:
        raise _MalformedHeader("its first tensor does not begin where the header ends", "bad_offsets")
    for (_, previous_end, previous), (begin, _, name) in pairwise(spans):
        if begin != previous_end:
            raise _MalformedHeader(
                f"tensors {shortened(previous)!r} and {shortened(name)!r} overlap or leave a gap", "bad_offsets"
            )


def shortened(text: str, limit: int = 80) -> str:
    """Return a name out of a file as it may be shown, in ``limit`` characters: shorter than what a user typed."""
    return shorten(text, limit)
