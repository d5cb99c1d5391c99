"""The report, the contact sheet and the command that shows both."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner
from PIL import Image

from lora_service.cli.check import check_command
from lora_service.dataset import DatasetOptions, TrainingDataset, load_dataset
from lora_service.dataset.contact_sheet import contact_sheet
from lora_service.errors import PicturesError
from tests.dataset.picture_makers import encoded, half_mask, picture, png, zipped

CLEAN = {"a.png": png(1), "b.png": png(2, (100, 80)), "b.txt": b"TOK at sea"}
MIXED = {
    "10_red dog/a.png": png(1),
    "10_red dog/copy.png": png(1),
    "10_red dog/a_mask.png": encoded(half_mask()),
    "b.jpg": encoded(picture(1), "JPEG"),
    "small.png": png(3, (32, 40)),
    "broken.jpg": b"?",
    "10_red dog/a.txt": b"TOK " + b"long " * 80,
}


def write(members: dict[str, bytes], folder: Path) -> str:
    (folder / "upload.zip").write_bytes(zipped(members))
    return str(folder / "upload.zip")


def read(members: dict[str, bytes], folder: Path) -> TrainingDataset:
    return load_dataset(Path(write(members, folder)), DatasetOptions(resolution=64, task="object"), folder / "job")


def test_a_set_without_warnings_is_one_line(tmp_path: Path) -> None:
    assert read(CLEAN, tmp_path).report.lines() == [
        "pictures: 2 at 64 × 64; captions: file 1, template 1; masks: none 2; smallest original 96 × 72"
    ]


def test_everything_else_is_a_row_or_a_line(tmp_path: Path) -> None:
    lines = read(MIXED, tmp_path).report.lines()
    assert lines[1] == "folder '10_red dog': each picture counts 10 times, called 'red dog'"
    assert [line.split("|")[0].strip() for line in lines[2:5]] == [
        "10_red dog/a.png                 96 × 72 → 64 × 64",
        "b.jpg                            96 × 72 → 64 × 64",
        "small.png                        32 × 40 → 64 × 64",
    ]
    assert lines[5:] == [
        "left out: broken.jpg: it is not a picture that can be read "
        "(jpg, png, webp, bmp, tiff, gif, avif and heic are read)",
        "left out: 10_red dog/copy.png: the same file as 10_red dog/a.png",
        "warning: b.jpg is nearly the same picture as 10_red dog/a.png",
    ]  # fmt: skip


def test_counts_hold_no_names(tmp_path: Path) -> None:
    counts = read(MIXED, tmp_path).report.counts()
    assert counts == {
        "used": 3,
        "left_out": 1,
        "duplicates": 1,
        "near_duplicates": 1,
        "warnings": 3,
        "smallest": [32, 40],
        "masks": {"file": 1, "none": 2},
        "captions": {"file": 1, "template": 2},
    }


def test_the_sheet_shows_crops_and_masks(tmp_path: Path) -> None:
    pictures = read(MIXED, tmp_path)
    sheet = contact_sheet(pictures)
    assert sheet.width == 2 * 252 + 12  # three pictures in two columns
    shown = sheet.crop((252 + 12, 12, 252 + 252, 252)).resize((64, 64), Image.Resampling.BOX)
    assert shown.tobytes() != pictures.pictures[1].image.tobytes()
    pairs = zip(shown.get_flattened_data(), pictures.pictures[1].image.get_flattened_data(), strict=True)
    assert all(abs(a - b) < 24 for one, other in pairs for a, b in zip(one, other, strict=True))
    outside, kept = sheet.getpixel((14, 130)), pictures.pictures[0].image.getpixel((0, 31))
    assert all(abs(a - b * 90 / 255) < 12 for a, b in zip(outside, kept, strict=True))


def test_sheets_of_one_and_of_many(tmp_path: Path) -> None:
    one = contact_sheet(read({"a" * 300 + ".png": png(1)}, tmp_path))
    assert one.width == 252 + 12
    many = contact_sheet(read({f"{n}.png": png(n) for n in range(70)}, tmp_path))
    assert many.width == 8 * 252 + 12


def test_check_prints_the_report_and_writes_the_sheet(tmp_path: Path) -> None:
    sheet = tmp_path / "sheet.png"
    arguments = [write(CLEAN, tmp_path), "--task", "object", "--resolution", "64", "-o", str(sheet)]
    result = CliRunner().invoke(check_command, arguments)
    assert result.exit_code == 0
    assert result.output.startswith("pictures: 2 at 64 × 64;")
    with Image.open(sheet) as image:
        assert image.format == "PNG"


def test_check_prints_one_json_object(tmp_path: Path) -> None:
    arguments = [write(MIXED, tmp_path), "--task", "object", "--resolution", "64", "--json"]
    report = json.loads(CliRunner().invoke(check_command, arguments).stdout)
    assert report["used"][0] == {
        "name": "10_red dog/a.png",
        "size": [64, 64],
        "original": [96, 72],
        "crop": [24, 0, 96, 72],
        "caption": "{} " + "long " * 79 + "long",
        "captions": ["{} " + "long " * 79 + "long"],
        "caption_source": "file",
        "mask": "file",
        "repeats": 10,
        "warnings": ["its caption has 81 words, of which the model reads about the first 60"],
    }
    assert [file["name"] for file in report["left_out"]] == ["broken.jpg"]
    assert report["duplicates"][0] == {"name": "10_red dog/copy.png", "same_as": "10_red dog/a.png", "exact": True}


def test_check_takes_the_trigger_and_prompts(tmp_path: Path) -> None:
    upload = write({"a.png": png(1), "a.txt": b"zwx at sea", "b.png": png(2)}, tmp_path)
    arguments = [upload, "--resolution", "64", "--trigger", "zwx", "--custom-prompts", '["{} in bronze"]', "--json"]
    report = json.loads(CliRunner().invoke(check_command, arguments).stdout)
    assert [used["captions"] for used in report["used"]] == [["{} at sea"], ["{} in bronze"]]


def test_check_leaves_mistakes_to_the_command_line(tmp_path: Path) -> None:
    result = CliRunner().invoke(check_command, [write({"a.txt": b"x"}, tmp_path)])
    assert isinstance(result.exception, PicturesError)


@pytest.mark.parametrize(("name", "count"), [("dog6", 5), ("teapot", 5), ("red_cartoon", 4)])
def test_real_sets_are_used_whole_without_a_warning(name: str, count: int, tmp_path: Path) -> None:
    upload = Path(__file__).resolve().parents[2] / f"../shared/data/pictures/{name}.zip"
    if not upload.is_file():
        pytest.skip("the sample pictures are not beside the project")
    report = load_dataset(upload, DatasetOptions(resolution=512, task="object"), tmp_path / "job").report
    assert len(report.used) == count
    assert len(report.lines()) == 1
