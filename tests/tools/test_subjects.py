"""Held-out creatures, faces and styles: seeded, alike in all their pictures, and unlike the synthetic dataset."""

import io
import random
import zipfile
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw

from lora_service.demo.show import SUBJECT
from tools.synthetic import creatures, faces, looks, portraits, styles, subjects
from tools.synthetic.canvas import PALETTE, Brush
from tools.synthetic.creatures import HELD_OUT_SUBJECTS
from tools.synthetic.subjects import KINDS


def test_the_demonstrations_subject_is_seed_12(tmp_path: Path) -> None:
    subjects.write_zip(tmp_path / "subject.zip", seed=12, count=9, size=256)
    assert (tmp_path / "subject.zip").read_bytes() == SUBJECT.read_bytes()


@pytest.mark.parametrize("kind", KINDS)
def test_a_zip_is_reproducible_and_holds_pictures_captions_and_masks(tmp_path: Path, kind: str) -> None:
    for name in ("a.zip", "b.zip"):
        subjects.write_zip(tmp_path / name, seed=4, count=3, size=64, kind=kind)
    assert (tmp_path / "a.zip").read_bytes() == (tmp_path / "b.zip").read_bytes()
    endings = (".png", ".txt") if kind == "style" else (".mask.png", ".png", ".txt")
    with zipfile.ZipFile(tmp_path / "a.zip") as archive:
        assert sorted(archive.namelist()) == [f"{i:02}{end}" for i in (1, 2, 3) for end in endings]
        assert all(archive.read(f"0{i}.txt").decode().count("{}") == 1 for i in (1, 2, 3))
        assert Image.open(io.BytesIO(archive.read("01.png"))).size == (64, 64)


def test_names_in_a_large_zip_sort_in_order(tmp_path: Path) -> None:
    subjects.write_zip(tmp_path / "a.zip", seed=4, count=101, size=16, kind="face")
    names = zipfile.ZipFile(tmp_path / "a.zip").namelist()
    assert sorted(n for n in names if n.endswith(".txt")) == [n for n in names if n.endswith(".txt")]


@pytest.mark.parametrize("kind", ["object", "face"])
def test_the_mask_covers_the_subject(kind: str) -> None:
    for picture in islice(subjects.pictures(1, 64, kind=kind), 6):
        assert picture.image.size == picture.mask.size == (64, 64)
        covered = np.asarray(picture.mask).mean() / 255
        assert 0.1 < covered < 0.6
        edges = np.asarray(picture.mask)[[0, -1]]
        assert edges.max() == 0, "the subject is whole"


def test_the_mask_of_a_style_covers_the_picture() -> None:
    assert next(subjects.pictures(1, 64, kind="style")).mask.getextrema() == (255, 255)


@pytest.mark.parametrize("kind", KINDS)
def test_evaluation_pictures_differ_from_training_pictures(kind: str) -> None:
    training, evaluation = ([p.image.tobytes() for p in islice(subjects.pictures(3, 64, variant, kind), 24)]
                            for variant in ("teach", "judge"))  # fmt: skip
    assert len({*training, *evaluation}) == 48


def drawn(person: portraits.Portrait, expression: str) -> np.ndarray:
    picture = Image.new("RGB", (256, 256), (200, 190, 180))
    person.draw(Brush(ImageDraw.Draw(picture), 128, 128, 100, person.skin), expression)
    return np.asarray(picture)


def test_a_face_is_drawn_alike_but_for_the_mouth() -> None:
    person = portraits.portrait(5)
    faces_drawn = [drawn(person, expression) for expression in faces.EXPRESSIONS]
    for other in faces_drawn[1:]:
        rows = np.nonzero((faces_drawn[0] != other).any(axis=(1, 2)))[0]
        assert len(rows) > 0
        assert rows.min() > 160
    assert (drawn(portraits.portrait(6), "smile") != drawn(person, "smile")).any(axis=2).mean() > 0.1


def test_pictures_in_one_look_share_its_inks_and_those_of_another_do_not() -> None:
    def means(seed: int, variant: str) -> np.ndarray:
        series = islice(subjects.pictures(seed, 64, variant, "style"), 24)
        return np.mean([np.asarray(p.image, np.float32).mean(axis=(0, 1)) for p in series], axis=0)

    seeds = [s for s in range(60) if looks.look(s).kind == "toned"][:4]
    training, evaluation = ([means(seed, variant) for seed in seeds] for variant in ("teach", "judge"))
    for i, one in enumerate(evaluation):
        distances = [np.abs(one - other).sum() for other in training]
        assert int(np.argmin(distances)) == i


@pytest.mark.parametrize("kind", looks.LOOKS)
def test_a_look_changes_the_picture_and_depends_on_its_parameters(kind: str) -> None:
    canvas = Image.new("RGB", (256, 256), PALETTE["cyan"])
    ImageDraw.Draw(canvas).ellipse((60, 60, 200, 200), fill=PALETTE["red"])
    same_kind = [look for look in map(looks.look, range(100)) if look.kind == kind][:2]
    one, other = (np.asarray(look.apply(canvas, random.Random(1)), np.float32) for look in same_kind)
    assert one.shape == (256, 256, 3)
    assert np.abs(one - np.asarray(canvas)).mean() > 10
    assert np.abs(one - other).mean() > 10


def test_subjects_differ_by_seed() -> None:
    for make in (creatures.subject, portraits.portrait, looks.look):
        made = [make(start + i) for start in (0, HELD_OUT_SUBJECTS) for i in range(100)]
        assert len(set(made)) == 200


def test_subjects_are_not_in_the_synthetic_dataset() -> None:
    creatures_ = [creatures.subject(seed) for seed in range(100)]
    assert all(c.color != c.second and c.pattern != "plain" for c in creatures_)
    people = [portraits.portrait(seed) for seed in range(100)]
    assert not {p.hair for p in people} & set(faces.HAIRS.values())
    assert not {p.skin for p in people} & set(faces.SKINS.values())
    assert not {*portraits.CUTS} & {*faces.HAIRSTYLES}
    assert not {*looks.LOOKS} & {*styles.STYLES}


@pytest.mark.parametrize("kind", KINDS)
def test_captions_name_everything_but_the_subject(kind: str) -> None:
    for picture in islice(subjects.pictures(7, 32, kind=kind), 12):
        if kind == "style":
            assert picture.caption.endswith(" in the style of {}")
        else:
            assert picture.caption.startswith("a picture of {} ")
            assert any(word in picture.caption for word in (" on ", " in ", " at "))


def test_the_command_writes_any_kind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "style.zip"
    arguments = ["subjects", str(path), "--kind", "style", "--seed", "1000001", "--count", "2", "--size", "32"]
    monkeypatch.setattr("sys.argv", arguments)
    subjects.main()
    assert len(zipfile.ZipFile(path).namelist()) == 4
