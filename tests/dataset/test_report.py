"""The report of a dataset and its contact sheet."""

from __future__ import annotations

from pathlib import Path

from PIL import Image

from lora_service.dataset.captions.token_window import TokenWindow
from lora_service.dataset.contact_sheet import contact_sheet
from lora_service.dataset.load import TrainingDataset, load_dataset
from lora_service.dataset.options import DatasetOptions
from tests.dataset.picture_makers import CLEAN, MIXED, png, zipped

WINDOW = TokenWindow(lambda text: len(text.split()), size=75)
OPTIONS = DatasetOptions(resolution=64, task="object", token_window=WINDOW)


def load(members: dict[str, bytes], folder: Path) -> TrainingDataset:
    (folder / "upload.zip").write_bytes(zipped(members))
    return load_dataset(folder / "upload.zip", OPTIONS, folder / "job")


def test_a_dataset_without_problems_is_one_line(tmp_path: Path) -> None:
    assert load(CLEAN, tmp_path).report.lines() == [
        "pictures: 2 at 64 × 64; captions: file 1, template 1; masks: none 2; smallest original 96 × 72"
    ]


def test_problems_add_a_row_per_image_and_a_line_each(tmp_path: Path) -> None:
    lines = load(MIXED, tmp_path).report.lines()
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


def test_counts_have_no_names(tmp_path: Path) -> None:
    counts = load(MIXED, tmp_path).report.counts()
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


def test_the_contact_sheet_shows_crops_and_masks(tmp_path: Path) -> None:
    dataset = load(MIXED, tmp_path)
    sheet = contact_sheet(dataset)
    assert sheet.width == 2 * 252 + 12  # three pictures in two columns
    shown = sheet.crop((252 + 12, 12, 252 + 252, 252)).resize((64, 64), Image.Resampling.BOX)
    assert shown.tobytes() != dataset.images[1].image.tobytes()
    pairs = zip(shown.get_flattened_data(), dataset.images[1].image.get_flattened_data(), strict=True)
    assert all(abs(a - b) < 24 for one, other in pairs for a, b in zip(one, other, strict=True))
    outside, kept = sheet.getpixel((14, 130)), dataset.images[0].image.getpixel((0, 31))
    assert all(abs(a - b * 90 / 255) < 12 for a, b in zip(outside, kept, strict=True))


def test_contact_sheets_of_one_and_of_many(tmp_path: Path) -> None:
    one = contact_sheet(load({"a" * 300 + ".png": png(1)}, tmp_path))
    assert one.width == 252 + 12
    many = contact_sheet(load({f"{n}.png": png(n) for n in range(70)}, tmp_path))
    assert many.width == 8 * 252 + 12
