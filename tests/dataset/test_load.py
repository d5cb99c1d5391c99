"""Loading a dataset from archives, folders and files, in the order of their names."""

from __future__ import annotations

import os
import struct
import subprocess
import sys
import zipfile
import zlib
from pathlib import Path
from random import Random

from lora_service.dataset.contact_sheet import contact_sheet
from lora_service.dataset.load import load_dataset
from lora_service.dataset.options import DatasetOptions, UploadLimits
from lora_service.errors import PicturesError
from tests.dataset.picture_makers import png, tarred, zipped
from tests.errors import raises

OPTIONS = DatasetOptions(resolution=64, task="object")


def names(source: Path | list[Path], folder: Path) -> list[str]:
    return [image.name for image in load_dataset(source, OPTIONS, folder / "job").images]


def test_a_folder_is_read_in_place(tmp_path: Path) -> None:
    source = tmp_path / "pictures"
    (source / "10_dog").mkdir(parents=True)
    (source / "10_dog" / "b.png").write_bytes(png(1))
    (source / "10_dog" / "b.txt").write_text("TOK at sea")
    (source / "a.png").write_bytes(png(2))
    (source / ".DS_Store").write_bytes(b"x")
    (source / "out").symlink_to("/etc")
    (source / "passwd").symlink_to("/etc/passwd")
    before = sorted(source.rglob("*"))
    dataset = load_dataset(source, OPTIONS, tmp_path / "job")
    assert [(each.name, each.repeats) for each in dataset.images] == [("10_dog/b.png", 10), ("a.png", 1)]
    assert dataset.images[0].captions == ("{} at sea",)
    assert {file.name: file.code for file in dataset.report.skipped} == {"out": "link", "passwd": "link"}
    assert sorted(source.rglob("*")) == before


def test_a_named_pipe_in_a_folder_is_passed_over(tmp_path: Path) -> None:
    source = tmp_path / "pictures"
    source.mkdir()
    os.mkfifo(source / "pipe.png")
    (source / "a.png").write_bytes(png(1))
    assert names(source, tmp_path) == ["a.png"]


def test_several_sources_are_one_dataset(tmp_path: Path) -> None:
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
    images = load_dataset(sources, OPTIONS, tmp_path / "job").images
    assert {each.name: each.captions[-1] for each in images if len(each.captions) == 1} == {
        "set.zip/a.png": "{} at sea",
        "set (2).zip/a.png": "{} on grass",
    }
    assert {each.name for each in images if len(each.captions) > 1} == {"1.png", "1 (2).png"}


def test_limits_hold_for_all_sources_together(tmp_path: Path) -> None:
    for name in ("one.zip", "two.zip"):
        (tmp_path / name).write_bytes(zipped({f"{n}.png": png(n) for n in range(3)}))
    options = DatasetOptions(resolution=64, task="object", limits=UploadLimits(max_members=5))
    with raises(PicturesError, code="too_many_files"):
        load_dataset([tmp_path / "one.zip", tmp_path / "two.zip"], options, tmp_path / "job")


def test_a_missing_source_is_refused_by_name(tmp_path: Path) -> None:
    with raises(PicturesError, code="not_found") as refused:
        load_dataset(tmp_path / "missing.zip", OPTIONS, tmp_path / "job")
    assert "'missing.zip'" in str(refused.value)
    with raises(PicturesError, code="no_pictures"):
        load_dataset([], OPTIONS, tmp_path / "job")


def test_files_that_are_unusable_for_different_reasons_are_no_pictures(tmp_path: Path) -> None:
    (tmp_path / "upload.zip").write_bytes(zipped({"a.png": b"?", "../b.png": png(1)}))
    with raises(PicturesError, code="no_pictures") as refused:
        load_dataset(tmp_path / "upload.zip", OPTIONS, tmp_path / "job")
    assert "a.png" in str(refused.value)
    assert "../b.png" in str(refused.value)


def test_a_copy_leaves_its_captions_and_repeats_to_the_first(tmp_path: Path) -> None:
    members = {"1_a/x.png": png(1), "1_a/x.txt": b"TOK at sea", "5_b/x.png": png(1), "5_b/x.txt": b"TOK on grass"}
    (tmp_path / "upload.zip").write_bytes(zipped(members))
    (image,) = load_dataset(tmp_path / "upload.zip", OPTIONS, tmp_path / "job").images
    assert image.captions == ("{} at sea", "{} on grass")
    assert image.repeats == 5


def test_crops_that_keep_little_are_warned_of(tmp_path: Path) -> None:
    (tmp_path / "upload.zip").write_bytes(zipped({"a.png": png(1, (1200, 60)), "b.png": png(2, (90, 160))}))
    report = load_dataset(tmp_path / "upload.zip", OPTIONS, tmp_path / "job").report
    assert report.used[0].warnings == (
        "it is too small and was enlarged 1.1 times",
        "its crop keeps 5 % of it; aspect_ratio_buckets keeps more",
    )
    assert report.used[1].warnings == ()


def test_names_in_unicode_extra_fields_are_used(tmp_path: Path) -> None:
    """As Info-ZIP packs on Windows: a name in the old code page, and the same in UTF-8 beside it."""
    name = "собака.png".encode()
    info = zipfile.ZipInfo("??????.png")
    info.extra = struct.pack("<HHBI", 0x7075, 5 + len(name), 1, zlib.crc32(b"??????.png")) + name
    with zipfile.ZipFile(tmp_path / "upload.zip", "w") as archive:
        archive.writestr(info, png(1))
    assert names(tmp_path / "upload.zip", tmp_path) == ["собака.png"]


def test_loading_imports_no_torch() -> None:
    script = "import sys, lora_service.dataset.load; sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0


def test_every_image_is_taught_at_each_resolution_that_it_is_large_enough_for(tmp_path: Path) -> None:
    members = {"a.png": png(1, (200, 100)), "b.png": png(2, (50, 50))}
    upload = tmp_path / "set.zip"
    upload.write_bytes(zipped(members))
    dataset = load_dataset(upload, DatasetOptions(32, task="object", more_resolutions=(48, 64)), tmp_path / "job")
    assert [(image.name, image.image.size) for image in dataset.images] == [
        ("a.png", (32, 32)), ("b.png", (32, 32)), ("a.png", (48, 48)), ("b.png", (48, 48)), ("a.png", (64, 64)),
    ]  # fmt: skip
    first, second = dataset.report.used
    assert (first.size, first.more_sizes, first.warnings) == ((32, 32), ((48, 48), (64, 64)), ())
    assert second.more_sizes == ((48, 48),)
    assert "too small for 64 × 64" in second.warnings[0]
    assert "2 at 32 × 32, 2 at 48 × 48, 1 at 64 × 64" in dataset.report.lines()[0]
    assert contact_sheet(dataset).size[0] < 600


def test_buckets_that_are_the_same_at_two_resolutions_count_once(tmp_path: Path) -> None:
    upload = tmp_path / "set.zip"
    upload.write_bytes(zipped({"a.png": png(1, (48, 48))}))
    options = DatasetOptions(64, task="object", more_resolutions=(72,), aspect_ratio_buckets=True, bucket_step=8)
    dataset = load_dataset(upload, options, tmp_path / "job")
    assert [image.image.size for image in dataset.images] == [(48, 48)]


def test_random_crops_keep_the_whole_image_as_large_as_they_need_it(tmp_path: Path) -> None:
    upload = tmp_path / "set.zip"
    upload.write_bytes(zipped({"a.png": png(1, (400, 200)), "b.png": png(2, (32, 32))}))
    wide, small = load_dataset(upload, DatasetOptions(32, task="object", random_crop=True), tmp_path / "a").images
    assert wide.uncropped is not None
    assert wide.uncropped.image.size == (80, 40)  # 40 is 32 / 0.8
    plain = load_dataset(upload, DatasetOptions(32, task="object"), tmp_path / "b")
    assert all(image.uncropped is None for image in plain.images)
    crop = wide.random_crop(Random(1))
    assert crop.image.size == (32, 32)
    assert crop.crop != wide.crop
    assert small.random_crop(Random(1)).crop == (0, 0, 32, 32)
    used = load_dataset(upload, DatasetOptions(32, task="object", random_crop=True), tmp_path / "c").report.used
    assert "no room" in used[1].warnings[0]
