"""Captions by mode."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from lora_service.dataset.captions.select import caption_from_name
from lora_service.dataset.captions.templates import TEMPLATES
from lora_service.dataset.captions.token_window import TokenWindow
from lora_service.dataset.load import load_dataset
from lora_service.dataset.options import DatasetOptions
from lora_service.dataset.report import DatasetReport
from lora_service.errors import InputError, PicturesError
from tests.dataset.picture_makers import png, zipped
from tests.errors import raises

UPLOAD = {"red_dog-on grass (2).png": png(1), "IMG_0042.png": png(2), "c.png": png(3), "c.txt": b"TOK at sea\nTOK"}
NAMED, NUMBERED, CAPTIONED = "red_dog-on grass (2).png", "IMG_0042.png", "c.png"


def load_report(folder: Path, members: dict[str, bytes] | None = None, **options: Any) -> DatasetReport:
    upload = folder / "upload.zip"
    upload.write_bytes(zipped(members or UPLOAD))
    return load_dataset(upload, DatasetOptions(resolution=64, **({"task": "object"} | options)), folder / "job").report


def captions(report: DatasetReport) -> dict[str, tuple[str, ...]]:
    return {image.name: image.captions for image in report.used}


def test_auto_takes_files_else_templates(tmp_path: Path) -> None:
    by_name = captions(load_report(tmp_path))
    assert by_name[CAPTIONED] == ("{} at sea", "{}")
    assert by_name[NAMED] == by_name[NUMBERED] == TEMPLATES["object"]


@pytest.mark.parametrize("task", ["face", "object", "style", "location"])
def test_templates_go_by_task(task: str, tmp_path: Path) -> None:
    assert captions(load_report(tmp_path, task=task, mask_mode="none"))[NUMBERED] == TEMPLATES[task]  # type: ignore[index]


def test_custom_prompts_take_the_templates_place(tmp_path: Path) -> None:
    by_name = captions(load_report(tmp_path, custom_prompts=("{} in bronze",)))
    assert by_name[NUMBERED] == ("{} in bronze",)
    assert by_name[CAPTIONED] == ("{} at sea", "{}")


def test_file_names_as_captions(tmp_path: Path) -> None:
    report = load_report(tmp_path, caption_mode="filename")
    assert captions(report)[NAMED] == ("{}, red dog on grass",)
    assert captions(report)[CAPTIONED] == ("{} at sea", "{}")
    (numbered,) = (image for image in report.used if image.name == NUMBERED)
    assert numbered.captions == TEMPLATES["object"]
    assert numbered.warnings == ("its name says nothing of the picture",)


def test_mode_template_warns_of_unused_caption_files(tmp_path: Path) -> None:
    report = load_report(tmp_path, caption_mode="template")
    assert set(captions(report).values()) == {TEMPLATES["object"]}
    assert [image.name for image in report.used if "not used" in "".join(image.warnings)] == [CAPTIONED]


@pytest.mark.parametrize("mode", ["auto", "files", "filename", "template"])
def test_captions_of_the_input_come_before_all_others(mode: str, tmp_path: Path) -> None:
    given = {name: (f"TOK {name[0]}", "") for name in UPLOAD if name.endswith(".png")}
    report = load_report(tmp_path, caption_mode=mode, captions=given)
    assert captions(report) == {name: (f"{{}} {name[0]}", "{}") for name in given}
    assert {image.caption_source for image in report.used} == {"input"}
    assert not any(image.warnings for image in report.used)


def test_other_pictures_keep_their_captions(tmp_path: Path) -> None:
    by_name = captions(load_report(tmp_path, captions={NUMBERED: ("on a sofa",)}))
    assert by_name == {CAPTIONED: ("{} at sea", "{}"), NAMED: TEMPLATES["object"], NUMBERED: ("{}, on a sofa",)}


def test_captions_of_pictures_that_are_not_used_are_refused(tmp_path: Path) -> None:
    with raises(PicturesError, code="unmatched_captions", field="captions"):
        load_report(tmp_path, captions={"d.png": ("TOK",)})


def test_mode_files_needs_a_file_for_each_image(tmp_path: Path) -> None:
    with raises(PicturesError, code="missing_captions", field="caption_mode") as refused:
        load_report(tmp_path, caption_mode="files")
    assert f"{NUMBERED}, {NAMED};" in str(refused.value)


WINDOW = TokenWindow(lambda text: len(re.findall(r"\w+|[^\w\s]", text)), size=20, subject_tokens=2)
"""A window of 20 words and commas."""


def test_long_captions_are_warned_of_by_their_tokens(tmp_path: Path) -> None:
    members = {"a.png": png(1), "a.txt": b"word " * 100, "b.png": png(2), "b.txt": b"TOK"}
    report = load_report(tmp_path, members, token_window=WINDOW)
    assert report.used[0].warnings == ("its caption has 103 tokens, of which the base reads the first 20",)
    assert report.used[1].warnings == ()


def test_a_subject_beyond_the_window_is_put_in_front(tmp_path: Path) -> None:
    tags = ", ".join(f"tag{n}" for n in range(12))
    members = {"a.png": png(1), "a.txt": f"{tags}, TOK, end".encode()}
    members |= {"b.png": png(2), "b.txt": f"TOK, {tags}".encode()}
    report = load_report(tmp_path, members, token_window=WINDOW)
    assert report.used[0].captions == (f"{{}}, {tags}, end",)
    assert "so the subject at its end was put in front" in report.used[0].warnings[0]
    assert report.used[1].captions == (f"{{}}, {tags}",)
    assert "put in front" not in report.used[1].warnings[0]


def test_a_subject_that_a_chunks_end_would_cut_is_put_in_front(tmp_path: Path) -> None:
    """The window reads 20 words twice: the subject's two may be the words 19 and 20 or 21 and 22, not 20 and 21."""
    members = {"a.png": png(1), "b.png": png(2), "c.png": png(3), "d.png": png(4)}
    for name, before in (("a", 18), ("b", 19), ("c", 20), ("d", 39)):
        members[f"{name}.txt"] = b"word " * before + b"TOK end"
    report = load_report(tmp_path, members, token_window=replace(WINDOW, chunks=2))
    moved = [used.captions[0].startswith("{}, ") for used in report.used]
    assert moved == [False, True, False, True]
    assert "where 20 tokens end" in report.used[1].warnings[0]
    assert "of which the base reads the first 40" in report.used[3].warnings[0]
    assert report.used[0].warnings == report.used[2].warnings == ()


def test_custom_prompts_are_checked_for_their_tokens_once(tmp_path: Path) -> None:
    long = "word " * 30 + "{}"
    report = load_report(tmp_path, {"a.png": png(1), "b.png": png(2)}, custom_prompts=(long,), token_window=WINDOW)
    (warning,) = report.warnings
    assert "custom_prompts has 32 tokens" in warning
    assert captions(report)["a.png"] == ("{}, " + ("word " * 30).strip(),)
    assert report.used[0].warnings == ()


def test_a_subject_that_is_longer_than_the_window_is_refused() -> None:
    with raises(InputError, field="trigger", code="too_many_tokens"):
        WINDOW.for_subject("trigger", "word " * 21)


def test_the_trigger_of_the_training_counts_as_the_subject(tmp_path: Path) -> None:
    report = load_report(tmp_path, {"a.png": png(1), "a.txt": b"zwx dog, grass"}, trigger_words=("zwx dog",))
    assert report.used[0].captions == ("{}, grass",)


def test_mode_model_needs_a_model() -> None:
    with raises(InputError, field="caption_mode"):
        DatasetOptions(resolution=64, caption_mode="model")


@pytest.mark.parametrize(
    ("name", "caption"),
    [
        ("my_dog.jpg", "my dog"),
        ("x/y/a cat - asleep 12.png", "a cat asleep"),
        ("собака на траве.png", "собака на траве"),
        *((name, "") for name in ("00.jpg", "IMG_1234.JPG", "DSC0001.jpg", "PXL_2024.jpg", "photo-3.jpg", "ab.png",
                                  "3f2a9c4e11d0.png", "image (4).png", "Screenshot 2024-01-01.png", "12_34.webp")),
    ],
)  # fmt: skip
def test_captions_from_names(name: str, caption: str) -> None:
    assert caption_from_name(name) == caption
