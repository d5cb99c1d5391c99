"""The command line as a person types it."""

import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from lora_service.cli import main
from lora_service.cli.train_and_generate import split_scale
from lora_service.generation.image_files import read_settings
from lora_service.lora.files import read_lora
from tests.small_base import picture_zip

QUICK = ["--task", "object", "--max_train_steps_ti", "2", "--max-train-steps-tuning", "2", "--seed", "1"]


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    """Its exit status."""
    monkeypatch.setattr(sys, "argv", ["lora-service", *arguments])
    try:
        main.main()
    except SystemExit as stopped:
        return int(stopped.code or 0)
    return 0


def test_a_zip_becomes_a_lora_and_the_lora_pictures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    archive, lora, pictures = picture_zip(tmp_path / "p.zip"), tmp_path / "new" / "dog.safetensors", tmp_path / "out"
    assert run(monkeypatch, "train", str(archive), "-o", str(lora), *QUICK) == 0
    output = capsys.readouterr().out
    assert "stage 1 (tokens): step 2 of 2" in output
    assert f"lora-service generate 'a photo of <1>' --lora {lora}" in output
    assert read_lora(lora).tokens == ("<s1>", "<s2>")
    assert sorted(path.name for path in lora.parent.iterdir()) == ["dog-run", "dog.safetensors"]
    draw = [
        "generate",
        "a photo of <1>",
        "--lora",
        f"{lora}@0.7/0.5",
        "-o",
        str(pictures),
        "--num_inference_steps",
        "2",
    ]
    assert run(monkeypatch, *draw) == 0
    assert run(monkeypatch, *draw) == 0
    assert sorted(path.name for path in pictures.iterdir()) == ["picture-1.png", "picture-2.png"]
    with Image.open(pictures / "picture-1.png") as picture:
        assert picture.size == (64, 64)
    assert read_settings(pictures / "picture-1.png")["lora_scales"] == "0.7/0.5"


def test_a_masked_part_is_drawn_anew_and_previews_go_when_the_picture_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    image, mask = tmp_path / "image.png", tmp_path / "mask.png"
    Image.new("RGB", (64, 64), "green").save(image)
    with Image.new("L", (64, 64)) as white:
        white.paste(255, (16, 16, 48, 48))
        white.save(mask)
    draw = ["generate", "a red ball", "--image", str(image), "--mask", str(mask), "--num_inference_steps", "3"]
    more = ["--prompt_strength", "1", "--preview_every", "1", "--seed", "1", "-o"]
    assert run(monkeypatch, *draw, *more, str(tmp_path / "out.png")) == 0
    assert f"preview of step 2 of 3: {tmp_path / 'preview.png'}" in capsys.readouterr().out
    assert sorted(path.name for path in tmp_path.iterdir()) == ["image.png", "mask.png", "out.png"]
    with Image.open(tmp_path / "out.png") as drawn:
        assert drawn.getpixel((8, 8)) == (0, 128, 0)
        assert drawn.getpixel((32, 32)) != (0, 128, 0)
    assert run(monkeypatch, *draw, *more, str(mask), "--force") == 2
    assert "another file than the input" in capsys.readouterr().err


def test_class_pictures_are_an_option(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    archive, of_class = picture_zip(tmp_path / "p.zip"), picture_zip(tmp_path / "c.zip", ("black", "white"))
    output = tmp_path / "dog.safetensors"
    train = ["train", str(archive), "-o", str(output), *QUICK, "--class-word", "dog", "--class-data", str(of_class)]
    assert run(monkeypatch, *train) == 2
    assert "class_data is 'c.zip', but it must be left out when preservation is 'none'" in capsys.readouterr().err
    assert run(monkeypatch, *train, "--preservation", "prior") == 0
    assert "class pictures: 2 at 64 × 64" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "PLAIN"], "error: "),
        (["train", "ZIP", "--lora_rank", "0"], "error: lora_rank is '0', but it must be at least 1."),
        (["train"], "error: Missing argument 'ZIP'"),
        (["train", "ZIP", "--lora_rnk", "3"], "error: No such option '--lora_rnk'"),
        (["train", "ZIP", "--flip", "maybe"], "error: "),
        (["train", "ZIP", "--flip=maybe"], "error: flip is 'maybe', but it must be true or false."),
        (["train", "ZIP", "--mixed-precision", "fp8"], "error: mixed_precision is 'fp8'"),
        (["trian", "ZIP"], "error: No such command 'trian'"),
        (["generate"], "error: Missing argument 'PROMPT'"),
        (["train", "gone.zip"], "does not exist"),
        (["train", "ZIP", "--run-folder", "."], "error: run_folder is '.', but it must be a new or empty folder"),
        (["train", "--resume", "gone-run"], "error: resume is 'gone-run', but it must be a run folder"),
        (["train", "--resume", "gone-run", "--lora_rank", "3"], "error: lora_rank is 3, but it must be left out with"),
        (["train", "ZIP", "--start_from", "PLAIN", "--run-folder", "new"], "error: "),
        (["generate", "a cat", "--lora", "PLAIN"], "error: "),
        (["generate", "a cat", "--width", "65"], "error: width is 65, but it must be a multiple of 8"),
        (["generate", "<2>", "--lora", "PLAIN@9"], "error: --lora is 'plain.txt@9', but it must be a number from -2"),
        (["generate", "a", *["--lora", "PLAIN"] * 9], "error: --lora is 'plain.txt|plain.txt"),
        (["generate", "a", "-o", "PLAIN"], "error: --output is 'plain.txt'"),
        (["train", "ZIP", "-o", "ZIP"], "error: --output is "),
        (["convert", "PLAIN", "--to", "kohya", "-o", "PLAIN"], "error: --output is 'plain.txt'"),
        (["inspect", "PLAIN"], "error: "),
        (["download-base", "sd3000"], "error: the base model is 'sd3000', but it must be sd15, "),
        (["download-base", "sd15@a", "--revision", "b"], "error: --revision is 'b', but it must be left out beside 's"),
        (["download-base", "sd15", "--to", "~nobody-here/x"], "error: --to is '~nobody-here/x', but it must be a fol"),
    ],
)
def test_a_mistake_is_one_sentence_and_status_2(
    arguments: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "plain.txt").write_text("no lora, no zip")
    names = {"PLAIN": "plain.txt", "ZIP": str(picture_zip(tmp_path / "p.zip"))}
    resolved = [names.get(a.split("@")[0], a.split("@")[0]) + a[len(a.split("@")[0]) :] for a in arguments]
    assert run(monkeypatch, *resolved) == 2
    output = capsys.readouterr().err
    assert message in output
    assert output.count("\n") == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["p.zip", "plain.txt"]


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (PermissionError(13, "Permission denied", "/a/b"), "error: Permission denied: /a/b\n"),
        (OSError(28, "No space left on device"), "error: No space left on device\n"),
        (TimeoutError("too late"), "error: too late\n"),
    ],
)
def test_an_error_of_the_system_is_one_sentence(
    error: OSError, message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(self: object) -> None:
        raise error

    monkeypatch.setattr(main.LazyCommand, "load", fail)
    assert run(monkeypatch, "inspect", "x") == 2
    assert capsys.readouterr().err == message


def test_a_reader_that_has_gone_is_no_traceback() -> None:
    command = f"{sys.executable} -m lora_service.cli.main --help | true"
    ended = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False)
    assert ended.stderr == ""


def test_a_server_is_told_where_outputs_are_uploaded_to(monkeypatch: pytest.MonkeyPatch) -> None:
    options: list[dict[str, object]] = []
    monkeypatch.setattr("lora_service.serving.foreground.serve", lambda mode, **more: options.append(more) or 0)
    assert run(monkeypatch, "serve", "predict", "--upload-url", "https://files.example.com/lora/") == 0
    assert run(monkeypatch, "serve", "predict") == 0
    assert [each["upload_url"] for each in options] == ["https://files.example.com/lora/", None]


@pytest.mark.parametrize("kind", ["predict", "train"])
def test_a_server_is_not_started_on_what_can_be_no_base(
    kind: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    started: list[str] = []
    monkeypatch.setattr("lora_service.serving.foreground.serve", lambda kind, **_: started.append(kind) or 0)
    monkeypatch.setenv("BASE_MODEL", "sd3000")
    assert run(monkeypatch, "serve", kind) == 2
    assert "error: BASE_MODEL is 'sd3000', but there is no such folder or file" in capsys.readouterr().err
    assert started == []
    monkeypatch.setenv("BASE_MODEL", "someone/on-the-hub")  # is fetched once it is needed
    assert run(monkeypatch, "serve", kind) == 0
    assert started == [kind]


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("a.safetensors@0.5", ("a.safetensors", "0.5")),
        ("a.safetensors@-1/0.5", ("a.safetensors", "-1/0.5")),
        ("a.safetensors", ("a.safetensors", "0.8")),
        ("https://host/@someone/a.safetensors", ("https://host/@someone/a.safetensors", "0.8")),
        ("a@1e-1", ("a", "1e-1")),
        ("a@+0.5", ("a", "+0.5")),
        ("a@.5/-1.", ("a", ".5/-1.")),
        ("a@9", ("a", "9")),
        ("civitai:123", ("civitai:123", "0.8")),
        ("civitai:123@456", ("civitai:123@456", "0.8")),
        ("civitai:123@0.5", ("civitai:123", "0.5")),
        ("civitai:123@456@0.5", ("civitai:123@456", "0.5")),
        ("civitai:123@456@1", ("civitai:123@456", "1")),
        ("urn:air:sd1:lora:civitai:123@456", ("urn:air:sd1:lora:civitai:123@456", "0.8")),
        ("urn:air:sd1:lora:civitai:123@456@-1/2", ("urn:air:sd1:lora:civitai:123@456", "-1/2")),
        ("https://civitai.com/models/123@456", ("https://civitai.com/models/123@456", "0.8")),
        ("https://civitai.com/en/models/123@456@0.5", ("https://civitai.com/en/models/123@456", "0.5")),
        ("o/r@1.0.0", ("o/r@1.0.0", "0.8")),
        ("o/r@main", ("o/r@main", "0.8")),
        ("@0.5", ("@0.5", "0.8")),
        ("a@--1", ("a@--1", "0.8")),
        ("a@0.8,unet.down:0.5,steps:0-0.6", ("a", "0.8,unet.down:0.5,steps:0-0.6")),
        ("o/r@main@unet.mid:1", ("o/r@main", "unet.mid:1")),
        ("https://me@host:8000/a", ("https://me@host:8000/a", "0.8")),
    ],
)
def test_a_scale_is_split_off_at_the_last_at_sign(text: str, parts: tuple[str, str]) -> None:
    assert split_scale(text) == parts


@pytest.mark.parametrize("name", main.COMMANDS)
def test_the_list_of_commands_has_the_first_sentence_of_each(name: str) -> None:
    command = main.COMMANDS[name].load()
    assert command.name == name
    assert main.COMMANDS[name].help == (command.help or "").split("\n\n")[0].replace("\n", " ")


def test_the_commands_are_listed_without_importing_any(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(main.LazyCommand, "load", lambda self: pytest.fail(f"{self.module} is imported"))
    assert run(monkeypatch, "--help") == 0
    shown = [line.split()[0] for line in capsys.readouterr().out.partition("Commands:")[2].splitlines() if line]
    assert set(main.COMMANDS) <= set(shown)


def test_no_command_is_a_mistake_that_shows_them_all(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch) == 2
    assert "Commands:" in capsys.readouterr().err
