"""Arbitrary bytes give a dataset or a PicturesError; no file is left behind, none is written elsewhere."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lora_service.dataset.load import load_dataset
from lora_service.dataset.options import DatasetOptions, UploadLimits
from lora_service.dataset.upload.pairing import pair_files
from lora_service.dataset.upload.source_files import SourceFile
from lora_service.errors import PicturesError
from tests.dataset.hostile import Mangler, read_bytes
from tests.dataset.picture_makers import png, zipped
from tests.errors import raises

OPTIONS_64 = DatasetOptions(resolution=64, task="object")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("hostile")


@settings(max_examples=300, deadline=None)
@given(data=st.binary(max_size=2000))
@pytest.mark.attack("mangled archives and pictures", count=300)
def test_any_bytes(data: bytes, folder: Path) -> None:
    assert read_bytes(data, folder) in ("used", "refused")


@settings(max_examples=100, deadline=None)
@given(members=st.dictionaries(st.text(max_size=30), st.sampled_from([png(1, (8, 8)), b"TOK", b"", b"\0"]), max_size=6))
@pytest.mark.attack("mangled archives and pictures", count=100)
def test_any_names(members: dict[str, bytes], folder: Path) -> None:
    read_bytes(zipped({name: data for name, data in members.items() if name.split("\0")[0]}), folder)


@pytest.mark.attack("mangled archives and pictures", count=2500)
def test_mangled_uploads(folder: Path) -> None:
    mangler = Mangler()
    assert {read_bytes(mangler.upload(seed), folder) for seed in range(2500)} == {"used", "refused"}


@pytest.mark.campaign
@pytest.mark.attack("mangled archives and pictures", count=12500)
def test_many_mangled_uploads(folder: Path) -> None:
    mangler = Mangler()
    assert {read_bytes(mangler.upload(seed), folder) for seed in range(2500, 15_000)} == {"used", "refused"}


def _no_files(names: list[str], folder: Path) -> list[SourceFile]:
    empty = folder / "empty"
    empty.touch()
    return [SourceFile(name, empty) for name in names]


@pytest.mark.attack("texts, names and counts (G5)")
def test_thousands_of_masks_are_paired_at_once(folder: Path) -> None:
    """In seconds, where comparing each with each took an hour."""
    count = 3000
    names = [f"images/{n}.png" for n in range(count)] + [f"masks/{n}.png" for n in range(count)]
    paired = pair_files(_no_files(names, folder), UploadLimits())
    assert len(paired.samples) == count
    assert all(sample.mask for sample in paired.samples)
    same = [f"{n}/a.png" for n in range(count)] + [f"masks/a.{n}" for n in range(count)]
    paired = pair_files(_no_files(same, folder), UploadLimits())
    assert (len(paired.samples), len(paired.skipped)) == (count, count - 1)


@pytest.mark.attack("texts, names and counts (G5)")
def test_one_text_beside_thousands_of_pictures_and_thousands_of_rows_are_read_at_once(folder: Path) -> None:
    files = _no_files([f"a.{n}" for n in range(2000)], folder)
    text = folder / "text"
    text.write_bytes(b"one\n" * 10_000)
    paired = pair_files([*files, SourceFile("a.txt", text)], UploadLimits())
    assert all(sample.captions and len(sample.captions) == 10_000 for sample in paired.samples)
    rows = b"file_name,text\n" + b"".join(b"a.%d,one\n" % (n % 2000) for n in range(80_000))
    table = folder / "table"
    table.write_bytes(rows)
    paired = pair_files([*files, SourceFile("captions.csv", table)], UploadLimits())
    assert {len(sample.captions or ()) for sample in paired.samples} == {40}


@pytest.mark.attack("texts, names and counts (G5)")
def test_texts_names_and_repeats_are_bounded(tmp_path: Path) -> None:
    picture = png(1)
    uploads: list[tuple[dict[str, bytes], str]] = [
        ({"a.png": picture, "a.txt": b"word " * 20_000}, "caption_too_large"),
        ({"a.png": picture, **{f"{n}.txt": b"w " * 30_000 for n in range(300)}}, "caption_too_large"),
        ({"a.png": picture, "captions.csv": b"a.png,x\n" * 3_000_000}, "caption_too_large"),
        ({"a.png": picture, "metadata.jsonl": b'{"file_name": "%s", "text": "x"}' % (b"x" * 9_000_000)},
         "unmatched_captions"),
        ({"9" * 5000 + "_dog/a.png": picture}, "name_too_long"),
        ({"9" * 500 + "_dog/a.png": picture}, "too_many_repeats"),
    ]  # fmt: skip
    for number, (members, code) in enumerate(uploads):
        (tmp_path / "upload.zip").write_bytes(zipped(members))
        with raises(PicturesError, code=code) as refused:
            load_dataset(tmp_path / "upload.zip", OPTIONS_64, tmp_path / str(number))
        assert len(str(refused.value)) < 1000
