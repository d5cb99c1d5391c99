"""Masks from files, from transparency and from faces."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from lora_service.dataset.load import load_dataset
from lora_service.dataset.options import DatasetOptions
from lora_service.dataset.training_images import TrainingImage
from tests.dataset.picture_makers import draw_face, encoded, half_mask, picture, zipped


def load_one(members: dict[str, bytes], folder: Path, **options: Any) -> tuple[TrainingImage, tuple[str, ...]]:
    """Return the first image of a zip of ``members``, and its warnings."""
    upload = folder / "upload.zip"
    upload.write_bytes(zipped(members))
    dataset = load_dataset(upload, DatasetOptions(**({"resolution": 64, "task": "object"} | options)), folder / "job")
    return dataset.images[0], dataset.report.used[0].warnings


def portrait(*places: tuple[int, int, int]) -> bytes:
    image = Image.new("RGB", (900, 512), (120, 140, 160))
    for place in places:
        draw_face(image, *place)
    return encoded(image)


def test_the_crop_goes_around_the_mask(tmp_path: Path) -> None:
    loaded, _ = load_one({"a.png": encoded(picture(1)), "a_mask.png": encoded(half_mask())}, tmp_path)
    assert loaded.crop == (24, 0, 96, 72)  # 96 × 72, the right half masked
    assert loaded.mask is not None
    assert loaded.mask.size == loaded.image.size == (64, 64)
    values = np.asarray(loaded.mask)
    assert values[:, :18].max() == 0  # the mask begins a third into the crop
    assert values[:, 25:].min() == 255


def test_masks_may_be_smaller_than_their_picture(tmp_path: Path) -> None:
    members = {"a.png": encoded(picture(1, (960, 720))), "a_mask.png": encoded(half_mask())}
    loaded, warnings = load_one(members, tmp_path)
    assert loaded.crop == (240, 0, 960, 720)
    assert not warnings


def test_a_mask_outside_the_crop_is_dropped_with_a_warning(tmp_path: Path) -> None:
    mask = Image.new("L", (300, 30), 0)
    mask.paste(255, (0, 0, 5, 30))
    mask.paste(255, (295, 0, 300, 30))
    loaded, warnings = load_one({"a.png": encoded(picture(1, (300, 30))), "a_mask.png": encoded(mask)}, tmp_path)
    assert loaded.mask is None
    assert any("nothing masked is left in its crop" in warning for warning in warnings)


def test_faces_are_masked_with_their_hair_and_put_in_the_middle(tmp_path: Path) -> None:
    loaded, warnings = load_one({"a.png": portrait((200, 256, 110))}, tmp_path, task="face")
    assert not warnings
    assert loaded.mask is not None
    assert loaded.crop == pytest.approx((0, 0, 512, 512), abs=16)
    values = np.asarray(loaded.mask.resize((512, 512)))
    left = 200 - loaded.crop[0]
    for y, x in ((270, left), (180, left), (250, left - 70), (340, left + 20)):
        assert values[y, x] > 200
    assert values[:, 450:].max() == 0


def test_the_largest_face_is_the_mask(tmp_path: Path) -> None:
    loaded, warnings = load_one({"a.png": portrait((150, 256, 110), (600, 256, 150))}, tmp_path, task="face")
    assert warnings == ("2 faces were found, the largest is used",)
    assert loaded.crop[0] == pytest.approx(600 - 256, abs=16)


def test_a_mask_file_wins_over_a_face_and_transparency(tmp_path: Path) -> None:
    cut_out = picture(1).convert("RGBA")
    cut_out.putalpha(half_mask().transpose(Image.Transpose.FLIP_LEFT_RIGHT))
    members = {"a.png": encoded(cut_out), "a_mask.png": encoded(half_mask())}
    loaded, _ = load_one(members, tmp_path, task="face")
    assert loaded.crop == (24, 0, 96, 72)


def test_a_face_wins_over_transparency(tmp_path: Path) -> None:
    image = Image.new("RGBA", (900, 512), (120, 140, 160, 255))
    draw_face(image, 200, 256, 110)
    image.putalpha(half_mask((900, 512)).point(lambda value: max(value, 128)))
    for task, left in (("face", 0), ("object", 194)):
        (tmp_path / task).mkdir()
        loaded, _ = load_one({"a.png": encoded(image)}, tmp_path / task, task=task, background=(120, 140, 160))
        assert loaded.crop[0] == left, task


@pytest.mark.parametrize(
    ("options", "masked"),
    [
        ({"task": "object"}, True),
        ({"task": "style", "mask_mode": "files"}, True),
        ({"task": "face"}, True),
        ({"task": "object", "mask_mode": "none"}, False),
        ({"task": "object", "mask_mode": "face"}, False),
    ],
)
def test_transparency_is_a_mask_by_mode(options: dict[str, str], masked: bool, tmp_path: Path) -> None:
    cut_out = picture(1).convert("RGBA")
    cut_out.putalpha(half_mask())
    loaded, _ = load_one({"a.png": encoded(cut_out)}, tmp_path, **options)
    assert (loaded.mask is not None) == masked


def test_mode_files_warns_of_a_missing_mask(tmp_path: Path) -> None:
    _, warnings = load_one({"a.png": encoded(picture(1))}, tmp_path, mask_mode="files")
    assert warnings == ("it has no mask file, so all of it counts",)
