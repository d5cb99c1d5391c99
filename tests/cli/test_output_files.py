"""Files that commands write: nothing is overwritten in silence."""

from __future__ import annotations

import io
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from click.testing import CliRunner, Result
from PIL import Image

from lora_service.cli.check import check_command
from lora_service.cli.output_files import check_folder, check_output, free_path
from lora_service.cli.train_and_generate import generate_command, train_command
from lora_service.errors import InputError
from lora_service.services.inference_service import InferenceService
from lora_service.services.training_service import TrainingService
from lora_service.training.inputs.config import TrainConfig
from lora_service.training.inputs.resolved_config import resolve_config
from lora_service.whole_files import whole_file
from tests.errors import raises
from tests.small_base import DEFAULTS, picture_zip


def run(command: object, *arguments: object) -> Result:
    return CliRunner().invoke(command, [str(argument) for argument in arguments], catch_exceptions=False)


@pytest.fixture(autouse=True)
def _services_without_a_model(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Services that write files of the text "new" at once."""
    (tmp_path / "job").mkdir()

    def train(self: TrainingService, upload: object, inputs: dict[str, Any], **_: object) -> SimpleNamespace:
        config = TrainConfig.of({name: value for name, value in inputs.items() if value is not None})
        resolved = resolve_config(config, DEFAULTS, f"zumvek {config.class_word}".strip(), 1)
        (path := tmp_path / "job" / "lora.safetensors").write_text("new")
        return SimpleNamespace(path=path, resolved=resolved, prompt=resolved.prompt, interrupted=False)

    def generate(self: InferenceService, inputs: dict[str, Any], **_: object) -> list[Path]:
        suffix = {None: "png", "jpeg": "jpg"}.get(inputs["output_format"], inputs["output_format"])
        loras = len(inputs["lora_urls"].split("|")) if inputs["lora_mode"] == "each" else 1
        paths = [tmp_path / "job" / f"out-{i}.{suffix}" for i in range((inputs["num_outputs"] or 1) * loras)]
        for path in paths:
            path.write_text("new")
        return paths

    monkeypatch.setattr(TrainingService, "train", train)
    monkeypatch.setattr(InferenceService, "run", generate)
    (work := tmp_path / "work").mkdir()
    monkeypatch.chdir(work)


def test_a_training_gets_a_new_name_of_the_pictures_and_the_trigger() -> None:
    picture_zip(Path("dog.zip"))
    assert "wrote dog-zumvek.safetensors" in run(train_command, "dog.zip", "--class_word", "dog").output
    assert "wrote dog-zumvek-2.safetensors" in run(train_command, "dog.zip").output
    run(train_command, "dog.zip", "--trigger", "../../a b/<c>")
    run(train_command, "--instance_data_urls", "https://example.org/a.zip", "--task", "style")
    assert sorted(path.name for path in Path().iterdir()) == [
        "dog-..-..-a-b-c.safetensors", "dog-zumvek-2.safetensors", "dog-zumvek.safetensors", "dog.zip",
        "style-zumvek.safetensors",
    ]  # fmt: skip


@pytest.mark.parametrize("force", [[], ["--force"]])
def test_the_pictures_are_never_replaced_by_the_lora(force: list[str]) -> None:
    before = picture_zip(Path("own.zip")).read_bytes()
    Path("link.zip").symlink_to("own.zip")
    for output in ("own.zip", "./own.zip", "../work/own.zip", "link.zip"):
        with raises(InputError, field="--output", code="is_input"):
            run(train_command, "own.zip", "-o", output, *force)
    assert Path("own.zip").read_bytes() == before


def test_a_file_that_exists_is_replaced_only_when_forced() -> None:
    picture_zip(Path("dog.zip"))
    Path("a.safetensors").write_text("old")
    with raises(InputError, field="--output", code="exists"):
        run(train_command, "dog.zip", "-o", "a.safetensors")
    assert Path("a.safetensors").read_text() == "old"
    run(train_command, "dog.zip", "-o", "a.safetensors", "--force")
    assert Path("a.safetensors").read_text() == "new"


def test_a_file_that_appears_during_the_training_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    picture_zip(Path("dog.zip"))
    train = TrainingService.train

    def slow(self: TrainingService, *inputs: Any, **more: Any) -> object:
        Path("a.safetensors").write_text("other")
        return train(self, *inputs, **more)

    monkeypatch.setattr(TrainingService, "train", slow)
    assert "wrote a-2.safetensors" in run(train_command, "dog.zip", "-o", "a.safetensors").output
    assert Path("a.safetensors").read_text() == "other"


def test_the_next_command_can_be_pasted_as_it_is() -> None:
    picture_zip(Path("my dog.zip"))
    output = run(train_command, "my dog.zip", "-o", "it's mine; $HOME.safetensors").output
    assert """--lora 'it'"'"'s mine; $HOME.safetensors'""" in output


def test_a_picture_may_be_named_as_a_file() -> None:
    run(generate_command, "a dog", "-o", "out.png")
    run(generate_command, "a dog", "-o", "many.JPG", "--num_outputs", "2")
    assert sorted(path.name for path in Path().iterdir()) == ["many-1.JPG", "many-2.JPG", "out.png"]
    with raises(InputError, field="--output", code="exists"):
        run(generate_command, "a dog", "-o", "out.png")
    with raises(InputError, field="--output", code="exists"):
        run(generate_command, "a dog", "-o", "many.JPG", "--num_outputs", "3")
    with raises(InputError, field="--output"):
        run(generate_command, "a dog", "-o", "new.png", "--output_format", "webp")
    run(generate_command, "a dog", "-o", "out.png", "--force")


def test_pictures_of_each_lora_are_numbered_on() -> None:
    loras = ("--lora", "a.safetensors", "--lora", "b.safetensors@0.5", "--lora_mode", "each")
    run(generate_command, "a dog", "-o", "each.png", *loras, "--num_outputs", "2")
    assert sorted(path.name for path in Path().iterdir()) == [f"each-{i}.png" for i in (1, 2, 3, 4)]


def test_what_is_drawn_from_is_never_replaced() -> None:
    for name in ("start.png", "lora.png"):
        Path(name).write_text("old")
        with raises(InputError, field="--output", code="is_input"):
            run(generate_command, "a", "--image", "start.png", "--lora", "lora.png@0.5", "-o", name, "--force")


def test_pictures_in_a_folder_keep_those_that_are_there() -> None:
    for _ in range(2):
        run(generate_command, "a dog", "-o", "new/pictures", "--num_outputs", "2")
    assert sorted(path.name for path in Path("new/pictures").iterdir()) == [f"picture-{i}.png" for i in range(1, 5)]
    Path("file").write_text("old")
    with raises(InputError, field="--output", code="not_writable"):
        run(generate_command, "a dog", "-o", "file")


def test_a_sheet_replaces_neither_pictures_nor_other_files() -> None:
    picture_zip(Path("p.zip"))
    Path("dogs").mkdir()
    Image.new("RGB", (64, 64), "red").save(buffer := io.BytesIO(), "PNG")
    Path("dogs/a.png").write_bytes(buffer.getvalue())
    with raises(InputError, field="--output", code="is_input"):
        run(check_command, "dogs", "-o", "dogs/a.png", "--force")
    with raises(InputError, field="--output", code="exists"):
        run(check_command, "p.zip", "-o", "dogs/a.png")
    with raises(InputError, field="--output"):
        run(check_command, "p.zip", "-o", "sheet.zip")
    run(check_command, "dogs", "--task", "object", "-o", "nodir/s.png")
    assert Path("nodir/s.png").exists()


def test_what_breaks_off_leaves_nothing() -> None:
    with pytest.raises(ZeroDivisionError), whole_file(Path("new/a")) as path:
        path.write_text(f"half {1 / 0}")
    assert list(Path("new").iterdir()) == []


def test_a_free_name_counts_up() -> None:
    for name in ("a.png", "a-2.png", "b-7.png", "c"):
        Path(name).touch()
    assert [free_path(Path(name)).name for name in ("a.png", "b-7.png", "c", "d-1.png")] == [
        "a-3.png", "b-8.png", "c-2", "d-1.png",
    ]  # fmt: skip


def test_an_output_that_cannot_be_written_is_told_before_the_work() -> None:
    Path("file").touch()
    Path("folder").mkdir()
    with raises(InputError, code="not_writable"):
        check_output(Path("file/below/a.png"), force=False)
    with raises(InputError, code="is_folder"):
        check_output(Path("folder"), force=True)
    with raises(InputError, code="not_writable"):
        check_folder(Path("file"))
    check_output(Path("folder/new/a.png"), force=False, inputs=[Path("x" * 5000)])
    assert list(Path("folder").iterdir()) == []
