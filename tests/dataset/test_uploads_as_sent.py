"""Uploads as people send them are used whole and without a warning: drawn sets, and photographs where they are."""

from __future__ import annotations

import io
import zipfile
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lora_service.dataset.images.duplicates import fingerprint
from lora_service.dataset.load import load_dataset
from lora_service.dataset.options import DatasetOptions
from lora_service.dataset.report import DatasetReport
from tests.dataset.drawn_sets import SIDES, drawn_set, telephone_set

PHOTOGRAPHS = Path(__file__).resolve().parents[2] / "../shared/data/pictures"


def load_report(upload: bytes, folder: Path, **options: object) -> DatasetReport:
    path = folder / "upload.zip"
    path.write_bytes(upload)
    options = {"resolution": 512, "task": "object"} | options
    return load_dataset(path, DatasetOptions(**options), folder / "job").report  # type: ignore[arg-type]


@pytest.mark.parametrize("subject", SIDES)
def test_drawn_sets_are_used_whole_without_a_warning(subject: str, tmp_path: Path) -> None:
    report = load_report(drawn_set(subject), tmp_path)
    count, smallest = len(SIDES[subject]), min(SIDES[subject])
    assert report.lines() == [
        f"pictures: {count} at 512 × 512; captions: template {count}; masks: none {count}; "
        f"smallest original {smallest} × {smallest}"
    ]


def test_a_telephones_folder_is_used_upright_in_its_shapes(tmp_path: Path) -> None:
    report = load_report(telephone_set(), tmp_path, aspect_ratio_buckets=True)
    assert [(image.name, image.original, image.size) for image in report.used] == [
        ("my dog/IMG_0041.HEIC", (1200, 900), (576, 448)),
        ("my dog/IMG_0042.jpeg", (900, 1200), (448, 576)),
        ("my dog/IMG_0043.JPG", (900, 1200), (448, 576)),
    ]
    assert len(report.lines()) == 1


def test_sets_without_a_face_warn_of_each_image_when_faces_are_taught(tmp_path: Path) -> None:
    report = load_report(drawn_set("cartoon"), tmp_path, task="face")
    assert {image.warnings for image in report.used} == {("no face was found, so all of it counts",)}
    assert report.counts()["masks"] == {"none": len(SIDES["cartoon"])}


def test_the_drawn_cartoon_is_as_alike_in_colour_as_a_real_one() -> None:
    """A real one differs by 5 to 10 of 255 from image to image, so that only the hash keeps its images apart."""
    with zipfile.ZipFile(io.BytesIO(drawn_set("cartoon"))) as archive:
        images = [Image.open(io.BytesIO(archive.read(name))).convert("RGB") for name in archive.namelist()]
    colors = [fingerprint(image)[1] for image in images]
    differences = [float(np.abs(one - other).mean()) for one, other in combinations(colors, 2)]
    assert max(differences) < 20


@pytest.mark.parametrize(("name", "count"), [("dog6", 5), ("teapot", 5), ("red_cartoon", 4)])
def test_photographs_are_used_whole_without_a_warning(name: str, count: int, tmp_path: Path) -> None:
    upload = PHOTOGRAPHS / f"{name}.zip"
    if not upload.is_file():
        pytest.skip("the DreamBooth photographs are not beside the project")
    report = load_report(upload.read_bytes(), tmp_path)
    assert len(report.used) == count
    assert len(report.lines()) == 1
