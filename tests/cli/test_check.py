"""The command ``lora-service check``."""

from __future__ import annotations

import json
from pathlib import Path

from click.testing import CliRunner
from PIL import Image

from lora_service.cli.check import check_command
from lora_service.cli.train_and_generate import train_command
from lora_service.errors import InputError, PicturesError
from tests.dataset.picture_makers import CLEAN, MIXED, png, zipped


def write(members: dict[str, bytes], folder: Path) -> str:
    (folder / "upload.zip").write_bytes(zipped(members))
    return str(folder / "upload.zip")


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
        "warnings": [],
    }
    assert [file["name"] for file in report["left_out"]] == ["broken.jpg"]
    assert set(report["left_out"][0]) == {"name", "reason"}
    assert report["duplicates"][0] == {"name": "10_red dog/copy.png", "same_as": "10_red dog/a.png", "exact": True}


def test_check_takes_the_trigger_and_prompts(tmp_path: Path) -> None:
    upload = write({"a.png": png(1), "a.txt": b"zwx at sea", "b.png": png(2)}, tmp_path)
    arguments = [upload, "--resolution", "64", "--trigger", "zwx", "--custom-prompts", '["{} in bronze"]', "--json"]
    report = json.loads(CliRunner().invoke(check_command, arguments).stdout)
    assert [used["captions"] for used in report["used"]] == [["{} at sea"], ["{} in bronze"]]


def test_check_takes_a_trainings_options_and_its_captions(tmp_path: Path) -> None:
    upload = write({"a.png": png(1), "a.txt": b"an <x><y> at sea"}, tmp_path)
    train = ["--task", "object", "--lora_rank", "4", "--placeholder_tokens", "<x>|<y>", "--custom_prompts", '["{} b"]']
    result = CliRunner().invoke(check_command, [upload, "--resolution", "64", *train, "--json"])
    assert json.loads(result.stdout)["used"][0]["captions"] == ["an {} at sea"]
    text = CliRunner().invoke(check_command, [upload, "--resolution", "64", *train]).output
    assert "warning: custom_prompts are not used for 1 of 1 pictures" in text
    assert {option.name for option in train_command.params} - {option.name for option in check_command.params} == {
        "pictures", "instance_data_urls", "output", "run_folder", "save_every", "keep_checkpoints", "resume",
        "trackers", "num_processes",
    }  # fmt: skip


def test_check_leaves_mistakes_to_the_command_line(tmp_path: Path) -> None:
    result = CliRunner().invoke(check_command, [write({"a.txt": b"x"}, tmp_path)])
    assert isinstance(result.exception, PicturesError)


def test_check_counts_with_the_tokenizer_of_the_base(tmp_path: Path) -> None:
    """The embedded base reads 46 tokens three times; Chinese has no spaces, and a byte or more is a token."""
    members = {"a.png": png(1), "a.txt": ("草地上的狗" * 24 + " TOK").encode()}
    members |= {"b.png": png(2), "b.txt": b"TOK, " + b"x, " * 5}
    arguments = [write(members, tmp_path), "--task", "object", "--resolution", "64", "--json"]
    used = json.loads(CliRunner().invoke(check_command, arguments).stdout)["used"]
    assert "of which the base reads the first 138" in used[0]["warnings"][0]
    assert used[0]["caption"].startswith("{}, ")
    assert used[1]["warnings"] == []


def test_check_takes_the_folders_word_as_the_trigger(tmp_path: Path) -> None:
    members = {"10_ohwx dog/a.png": png(1), "10_ohwx dog/a.txt": b"an ohwx dog at sea"}
    arguments = [write(members, tmp_path), "--task", "object", "--resolution", "64", "--json"]
    assert json.loads(CliRunner().invoke(check_command, arguments).stdout)["used"][0]["caption"] == "an {} at sea"


def test_check_shows_the_class_pictures_where_they_are_wanted(tmp_path: Path) -> None:
    upload = write({"10_dog/a.png": png(1), "reg/1_dog/b.png": png(2)}, tmp_path)
    class_data = tmp_path / "class.zip"
    class_data.write_bytes(zipped({"c.png": png(3), "d.png": png(4)}))
    arguments = [upload, "--task", "object", "--resolution", "64", "--class-word", "dog", "--trigger", "zwx"]
    prior = [*arguments, "--preservation", "prior"]

    def output(*arguments: str) -> str:
        result = CliRunner().invoke(check_command, arguments)
        assert result.exit_code == 0
        return result.output

    assert "left out: reg/1_dog/b.png" in output(*arguments)
    assert "class pictures: 1 at 64 × 64" in output(*prior)
    assert "left out" not in output(*prior)
    assert "class pictures: 2 at 64 × 64" in output(*prior, "--class-data", str(class_data))
    report = json.loads(output(*prior, "--json"))
    assert [image["caption"] for image in report["class_pictures"]["used"]] == ["{}, a photo of a dog"]
    refused = CliRunner().invoke(check_command, [*arguments, "--class_data", str(class_data)])
    assert isinstance(refused.exception, InputError)
    assert refused.exception.field == "class_data"
