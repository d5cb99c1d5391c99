"""Captions in tables and text files."""

from __future__ import annotations

from pathlib import Path

import pytest

from lora_service.dataset.captions.caption_files import captions_in, is_table, read_table
from lora_service.dataset.captions.text_decoding import DecodedText, TextDecoder
from lora_service.dataset.upload.source_files import SourceFile
from lora_service.errors import PicturesError
from tests.errors import raises


def table(name: str, text: str | bytes, folder: Path) -> dict[str, tuple[str, ...]]:
    path = folder / "table"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return read_table(SourceFile(name, path), decode(path)[0])


def decode(*paths: Path, max_bytes: int = 1 << 20) -> list[DecodedText]:
    """Decode files of one upload."""
    files = [SourceFile(path.name, path) for path in paths]
    decoder = TextDecoder(files)
    return [decoder.decode(file, max_bytes) for file in files]


def captions_of(path: Path) -> tuple[str, ...]:
    return captions_in(SourceFile(path.name, path), decode(path)[0].text)


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
    assert captions_of(tmp_path / "a.txt") == ("a café", "the sea")


@pytest.mark.parametrize(
    ("encoding", "text"),
    [
        ("gb18030", "一只狗在草地上"),
        ("shift_jis", "犬が芝生の上にいる"),
        ("euc_kr", "잔디 위의 개"),
        ("big5", "一隻狗在草地上"),
        ("cp1251", "фотография девушки у моря в красном платье"),
        ("cp1252", "Grüße aus München, ein Foto von TOK"),
        ("utf-16-le", "a photo of TOK on grass"),
        ("utf-16-be", "собака на траве"),
        ("utf-16-le", "一只狗在草地上"),
    ],
)
def test_encodings_that_a_file_does_not_say_are_recognised_and_warned_of(
    encoding: str, text: str, tmp_path: Path
) -> None:
    (tmp_path / "a.txt").write_bytes(text.encode(encoding))
    (decoded,) = decode(tmp_path / "a.txt")
    assert decoded.text == text
    assert "save it as UTF-8" in decoded.warning


def test_the_texts_of_an_upload_are_in_one_encoding(tmp_path: Path) -> None:
    """Alone, the shorter one might be in any of several code pages."""
    texts = ["кот на траве", "фотография девушки у моря в красном платье"]
    paths = [tmp_path / "a.txt", tmp_path / "b.txt"]
    for path, text in zip(paths, texts, strict=True):
        path.write_bytes(text.encode("cp1251"))
    assert [decoded.text for decoded in decode(*paths)] == texts
    with raises(PicturesError, code="unknown_encoding") as refused:
        decode(paths[0])
    assert "a.txt" in str(refused.value)


def test_large_texts_are_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"x" * 2000)
    with raises(PicturesError, code="caption_too_large") as refused:
        decode(tmp_path / "a.txt", max_bytes=1000)
    assert "'a.txt'" in str(refused.value)


@pytest.mark.parametrize("name", ["meta_cap.json", "meta_lat.json", "metadata.json", "x/meta_clean.json"])
def test_kohyas_tables_hold_captions_or_tags_by_path(name: str, tmp_path: Path) -> None:
    assert is_table(name)
    text = '{"/content/img/a": {"caption": "one"}, "b.png": {"tags": "two, three"}, "c": {"train_resolution": [1, 2]}}'
    captions = table(name, text, tmp_path)
    assert [(key.rpartition("/")[2], lines) for key, lines in captions.items()] == [
        ("a", ("one",)),
        ("b.png", ("two, three",)),
    ]


@pytest.mark.parametrize(
    ("text", "captions"),
    [
        ('{"caption": "a dog"}', ("a dog",)),
        ('{"tags": ["dog", "grass"], "score": 3}', ("dog, grass",)),
        ('"a dog"', ("a dog",)),
        ('{"width": 3}', ()),
        ("{", ()),
        ('{"caption": "a \\ud800 dog"}', ("a ? dog",)),
    ],
)
def test_captions_in_the_json_of_one_picture(text: str, captions: tuple[str, ...], tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(text)
    assert captions_of(tmp_path / "a.json") == captions
