"""Hostile and mistaken files end in one clear error, at once and in bounded memory."""

from __future__ import annotations

import io
import pickle
import struct
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from lora_service.errors import LoraFileError
from lora_service.lora.safetensors_header import read_header, shortened
from tests.errors import raises
from tests.lora.lora_fakes import raw_file, save


def entry(dtype: object = "F32", shape: object = (2,), offsets: object = (0, 8)) -> dict[str, object]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


def write(content: bytes) -> Callable[[Path], object]:
    return lambda path: path.write_bytes(content)


def header(content: object, data: bytes = bytes(8)) -> Callable[[Path], object]:
    return lambda path: raw_file(path, content, data)


def zipped(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("lora.safetensors", b"x")


MANY = b",".join(b'"%d":{"dtype":"F32","shape":[0],"data_offsets":[0,0]}' % number for number in range(1_000_000))
OTHER_TYPES = {
    "a web page": (write(b"<!DOCTYPE html><html><body>Sign in</body></html>" + b" " * 600), "web_page"),
    "a Git LFS pointer": (
        write(b"version https://git-lfs.github.com/spec/v1\noid sha256:1\nsize 9\n"),
        "git_lfs_pointer",
    ),
    "a zip": (zipped, "zip"),
    "a PyTorch checkpoint": (lambda path: torch.save({"unet:0:up": torch.zeros(1)}, path), "pickle"),
    "an old pickle": (lambda path: path.write_bytes(pickle.dumps({"a": [1] * 99}, protocol=2)), "pickle"),
    "a picture": (write(b"\x89PNG\r\n\x1a\n" + bytes(100)), "picture"),
    "an answer in JSON": (write(b'{"error": "not found", "status": 404}'), "json"),
    "nothing": (write(b""), "not_safetensors"),
    "seven bytes": (write(bytes(7)), "not_safetensors"),
}
HOSTILE = {
    "a header of 10^18 bytes": (write(struct.pack("<Q", 10**18) + b"{}"), "not_safetensors"),
    "a header longer than the file": (write(struct.pack("<Q", 5000) + b"{}"), "truncated"),
    "a header that is no JSON": (header(b"{'a': 1}"), "not_json"),
    "a header that is no text": (header(b"\xff\xfe\xfd"), "not_json"),
    "a header that is a list": (header([1, 2]), "not_json"),
    "endless nesting": (header(b"[" * 100_000), "not_json"),
    "a key twice": (header(b'{"a":1,"a":2}'), "duplicate_key"),
    "too many keys": (header(b"{" + MANY[: 3 * 10**6] + b"}"), "too_many_tensors"),
    "a million keys": (header(b"{" + MANY + b"}"), "not_safetensors"),
    "header strings that are numbers": (header({"__metadata__": {"a": 1}}), "bad_metadata"),
    "an entry that is a number": (header({"a": 1}), "bad_tensor_entry"),
    "an unknown dtype": (header({"a": entry(dtype="F31")}), "bad_tensor_entry"),
    "a shape of text": (header({"a": entry(shape=["2"])}), "bad_tensor_entry"),
    "a shape of truth": (header({"a": entry(shape=[True, 2])}), "bad_tensor_entry"),
    "a negative shape": (header({"a": entry(shape=[-1, -2])}), "bad_tensor_entry"),
    "a shape of exabytes": (header({"a": entry(shape=[10**6, 10**6, 10**6])}), "bad_offsets"),
    "a shape beyond all bounds": (header({"a": entry(shape=[10**4000])}), "bad_tensor_entry"),
    "a hundred dimensions": (header({"a": entry(shape=[1] * 100)}), "bad_tensor_entry"),
    "offsets past the end": (header({"a": entry(shape=[250], offsets=[0, 1000])}), "truncated"),
    "offsets the wrong way round": (header({"a": entry(offsets=[8, 0])}), "bad_offsets"),
    "one offset": (header({"a": entry(offsets=[0])}), "bad_tensor_entry"),
    "overlapping tensors": (header({"a": entry(), "b": entry(offsets=[4, 12])}, bytes(12)), "bad_offsets"),
    "a gap between tensors": (header({"a": entry(), "b": entry(offsets=[12, 20])}, bytes(20)), "bad_offsets"),
    "a gap at the start": (header({"a": entry(offsets=[4, 12])}, bytes(12)), "bad_offsets"),
    "bytes after the end": (header({"a": entry()}, bytes(9)), "bad_offsets"),
}


@pytest.mark.parametrize("name", [*OTHER_TYPES, *HOSTILE])
@pytest.mark.attack("hostile LoRA files")
def test_what_is_no_lora_is_refused_with_one_sentence_within_a_second(name: str, tmp_path: Path) -> None:
    make, code = {**OTHER_TYPES, **HOSTILE}[name]
    path = tmp_path / "lora.safetensors"
    make(path)
    start = time.process_time()
    with raises(LoraFileError, code=code) as caught:
        read_header(path)
    assert time.process_time() - start < 1
    message = str(caught.value)
    assert message.startswith("lora.safetensors")
    assert len(message) < 400


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with raises(LoraFileError, code="unreadable") as caught:
        read_header(tmp_path / "gone.safetensors")
    assert "gone.safetensors" in str(caught.value)


@pytest.mark.attack("hostile LoRA files")
def test_a_file_that_is_cut_off_anywhere_is_refused(tmp_path: Path) -> None:
    whole = save(tmp_path / "whole.safetensors", {"a": torch.ones(4), "b": torch.ones(2, 3)}).read_bytes()
    cut = tmp_path / "cut.safetensors"
    for size in range(len(whole)):
        cut.write_bytes(whole[:size])
        with raises(LoraFileError, code="truncated" if size > 8 else "not_safetensors"):
            read_header(cut)


@pytest.mark.attack("hostile LoRA files")
def test_the_largest_header_that_is_read_stays_within_bounds(tmp_path: Path) -> None:
    """Measured in a process of its own: empty objects are what JSON can cost most memory with."""
    path = raw_file(tmp_path / "lora.safetensors", b'{"__metadata__":[' + b"0," * 8_000_000 + b"0]}")
    code = f"""
import resource, pathlib, sys
from lora_service.errors import LoraFileError
from lora_service.lora.safetensors_header import read_header
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
try:
    read_header(pathlib.Path({str(path)!r}))
except LoraFileError:
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before, "torch" in sys.modules)
"""
    kibibytes, has_torch = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout.split()
    assert int(kibibytes) < 256 * 1024
    assert has_torch == "False"


def test_a_header_is_read_as_the_safetensors_package_wrote_it(tmp_path: Path) -> None:
    tensors = {"a": torch.ones(4, dtype=torch.float16), "b": torch.ones(2, 3), "c": torch.tensor(1, dtype=torch.int64)}
    parsed = read_header(save(tmp_path / "lora.safetensors", tensors, {"key": "text"}))
    assert {name: entry.shape for name, entry in parsed.tensors.items()} == {"a": (4,), "b": (2, 3), "c": ()}
    assert {name: entry.dtype for name, entry in parsed.tensors.items()} == {"a": "F16", "b": "F32", "c": "I64"}
    assert parsed.metadata == {"key": "text"}


@pytest.mark.attack("hostile LoRA files")
def test_a_tensor_with_a_name_of_megabytes_is_refused(tmp_path: Path) -> None:
    name = "lora_unet_" + "a_" * 2**20
    with raises(LoraFileError, code="bad_tensor_entry") as caught:
        read_header(
            raw_file(tmp_path / "a.safetensors", {name: {"dtype": "F16", "shape": [0], "data_offsets": [0, 0]}})
        )
    assert len(str(caught.value)) < 300


@pytest.mark.attack("hostile LoRA files")
def test_a_shortened_text_cannot_steer_a_terminal() -> None:
    assert shortened("a\x1b[2Jb") == "a?[2Jb"
    assert len(shortened("x" * 1000)) == 80


def test_an_empty_zip_is_no_lora(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    zipfile.ZipFile(buffer, "w").close()
    path = tmp_path / "lora.safetensors"
    path.write_bytes(buffer.getvalue())
    with raises(LoraFileError, code="not_safetensors"):
        read_header(path)
