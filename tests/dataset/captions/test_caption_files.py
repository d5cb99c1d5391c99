"""Captions in tables and text files."""

from __future__ import annotations

from pathlib import Path

import pytest

from lora_service.dataset.captions.caption_files import read_captions, read_table
from lora_service.dataset.upload.source_files import SourceFile
from lora_service.errors import PicturesError
from tests.errors import raises


def table(name: str, text: str | bytes, folder: Path) -> dict[str, tuple[str, ...]]:
    path = folder / "table"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return read_table(SourceFile(name, path))


@pytest.mark.parametrize(
    "text",
    [
        "file_name,text\na.png,one\nb.png,\"two, and more\"\n",
        "text,file_name\none,a.png\n\"two, and more\",b.png\n",
        "image_file;caption\na.png;one\nb.png;two, and more\n",
        "File_Name\tText\na.png\tone\nb.png\ttwo, and more\n",
        "a.png,one\nb.png,\"two, and more\"\n",
        "\ufefffile_name,text\r\na.png,one\r\n\r\nb.png,\"two, and more\"\r\n",
    ],
)  # fmt: skip
def test_tables_of_every_dialect(text: str, tmp_path: Path) -> None:
    assert table("captions.csv", text, tmp_path) == {"a.png": ("one",), "b.png": ("two, and more",)}


def test_names_are_relative_to_the_table(tmp_path: Path) -> None:
    captions = table("x/metadata.jsonl", '{"file_name": "train/a.png", "text": "one", "score": 1}', tmp_path)
    assert captions == {"x/train/a.png": ("one",)}


def test_several_rows_of_a_picture_are_several_captions(tmp_path: Path) -> None:
    assert table("captions.csv", "a.png,one\na.png,two", tmp_path) == {"a.png": ("one", "two")}


def test_an_empty_table_has_no_captions(tmp_path: Path) -> None:
    assert table("captions.csv", "", tmp_path) == {}
    assert table("metadata.jsonl", "\n", tmp_path) == {}


@pytest.mark.parametrize(
    ("name", "text", "place"),
    [
        ("captions.csv", "file_name,text\na.png\n", "Row 1 of 'captions.csv'"),
        ("captions.csv", "just a line\n", "'captions.csv'"),
        ("metadata.jsonl", '["a.png"]', "Line 1 of 'metadata.jsonl'"),
        ("metadata.jsonl", '\n{"file_name": "a.png"}', "Line 2 of 'metadata.jsonl'"),
        ("metadata.jsonl", "[" * 100_000, "Line 1 of 'metadata.jsonl'"),
    ],
)
def test_invalid_tables_are_refused_with_the_line(name: str, text: str, place: str, tmp_path: Path) -> None:
    with raises(PicturesError, code="invalid_table") as refused:
        table(name, text, tmp_path)
    assert str(refused.value).startswith(place)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "cp1252"])
def test_caption_files_in_any_encoding(encoding: str, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes("  a café\r\n\r\nthe  sea \r\n".encode(encoding))
    assert read_captions(tmp_path / "a.txt") == ("a café", "the sea")
