"""Where pictures may come from, and in which order they are used."""

from __future__ import annotations

import os
import struct
import subprocess
import sys
import zipfile
import zlib
from pathlib import Path

import pytest

from lora_service.dataset import DatasetOptions, UploadLimits, load_dataset
from lora_service.errors import InputError, PicturesError
from lora_service.settings import Settings
from tests.dataset.picture_makers import png, tarred, zipped

OPTIONS = DatasetOptions(resolution=64, task="object")


def names(source: Path | list[Path], folder: Path) -> list[str]:
    return [picture.name for picture in load_dataset(source, OPTIONS, folder / "job").pictures]


def test_a_folder_is_read_where_it_lies(tmp_path: Path) -> None:
    source = tmp_path / "pictures"
    (source / "10_dog").mkdir(parents=True)
    (source / "10_dog" / "b.png").write_bytes(png(1))
    (source / "10_dog" / "b.txt").write_text("TOK at sea")
    (source / "a.png").write_bytes(png(2))
    (source / ".DS_Store").write_bytes(b"x")
    (source / "out").symlink_to("/etc")
    (source / "passwd").symlink_to("/etc/passwd")
    before = sorted(source.rglob("*"))
    pictures = load_dataset(source, OPTIONS, tmp_path / "job")
    assert [(each.name, each.repeats) for each in pictures.pictures] == [("10_dog/b.png", 10), ("a.png", 1)]
    assert pictures.pictures[0].captions == ("{} at sea",)
    assert {file.name: file.reason for file in pictures.report.skipped} == dict.fromkeys(
        ("out", "passwd"), "it is a link, not a file"
    )
    assert sorted(source.rglob("*")) == before


def test_a_folder_of_pipes_does_not_wait(tmp_path: Path) -> None:
    source = tmp_path / "pictures"
    source.mkdir()
    os.mkfifo(source / "pipe.png")
    (source / "a.png").write_bytes(png(1))
    assert names(source, tmp_path) == ["a.png"]


def test_several_sources_are_one_set(tmp_path: Path) -> None:
    (tmp_path / "one.zip").write_bytes(zipped({"a.png": png(1), "a.txt": b"TOK"}))
    (tmp_path / "two.tar").write_bytes(tarred({"a.png": png(2)}))
    (tmp_path / "c.png").write_bytes(png(3))
    sources = [tmp_path / name for name in ("two.tar", "c.png", "one.zip")]
    assert names(sources, tmp_path) == ["c.png", "one.zip/a.png", "two.tar/a.png"]


def test_sources_of_the_same_name_stay_apart(tmp_path: Path) -> None:
    sources = []
    for number, caption in enumerate((b"TOK at sea", b"TOK on grass")):
        folder = tmp_path / str(number)
        folder.mkdir()
        (folder / "set.zip").write_bytes(zipped({"a.png": png(number), "a.txt": caption}))
        (folder / "1.png").write_bytes(png(10 + number))
        sources += [folder / "set.zip", folder / "1.png"]
    pictures = load_dataset(sources, OPTIONS, tmp_path / "job").pictures
    assert {each.name: each.captions[-1] for each in pictures if len(each.captions) == 1} == {
        "set.zip/a.png": "{} at sea",
        "set (2).zip/a.png": "{} on grass",
    }
    assert {each.name for each in pictures if len(each.captions) > 1} == {"1.png", "1 (2).png"}


def test_limits_hold_for_all_sources_together(tmp_path: Path) -> None:
    for name in ("one.zip", "two.zip"):
        (tmp_path / name).write_bytes(zipped({f"{n}.png": png(n) for n in range(3)}))
    options = DatasetOptions(resolution=64, task="object", limits=UploadLimits(max_members=5))
    with pytest.raises(PicturesError, match="more than the 5 files"):
        load_dataset([tmp_path / "one.zip", tmp_path / "two.zip"], options, tmp_path / "job")


def test_what_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(PicturesError, match=r"'missing.zip' is no file or folder"):
        load_dataset(tmp_path / "missing.zip", OPTIONS, tmp_path / "job")
    with pytest.raises(PicturesError, match="No pictures were given"):
        load_dataset([], OPTIONS, tmp_path / "job")


def test_names_in_unicode_extra_fields_are_used(tmp_path: Path) -> None:
    """As Info-ZIP packs on Windows: a name in the old alphabet, and the true one beside it."""
    name = "собака.png".encode()
    info = zipfile.ZipInfo("??????.png")
    info.extra = struct.pack("<HHBI", 0x7075, 5 + len(name), 1, zlib.crc32(b"??????.png")) + name
    with zipfile.ZipFile(tmp_path / "upload.zip", "w") as archive:
        archive.writestr(info, png(1))
    assert names(tmp_path / "upload.zip", tmp_path) == ["собака.png"]


def test_reading_needs_no_torch() -> None:
    script = "import sys, lora_service.dataset; sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0


def test_limits_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MAX_ZIP_BYTES", "5000")
    monkeypatch.setenv("MAX_PICTURES", "7")
    limits = UploadLimits.from_settings(Settings.from_environment())
    assert (limits.max_zip_bytes, limits.max_pictures) == (5000, 7)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"resolution": 100}, "resolution is 100, but it must be a multiple of 8"),
        ({"resolution": 8}, "resolution is 8,"),
        ({"resolution": 64, "bucket_step": 12}, "bucket_step is 12,"),
        ({"resolution": 32, "aspect_ratio_buckets": True}, "bucket_step is 64, but it must be at most the resolution"),
        ({"resolution": 64, "task": "dog"}, "task is 'dog', but it must be one of face, object, style, location"),
        ({"resolution": 64, "mask_mode": "x"}, "mask_mode is 'x'"),
        ({"resolution": 64, "caption_mode": "x"}, "caption_mode is 'x'"),
        ({"resolution": 64, "custom_prompts": ("a dog",)}, "custom_prompts is 'a dog'"),
    ],
)
def test_options_that_cannot_be(options: dict[str, object], sentence: str) -> None:
    with pytest.raises(InputError) as raised:
        DatasetOptions(**options)  # type: ignore[arg-type]
    assert str(raised.value).startswith(sentence)
