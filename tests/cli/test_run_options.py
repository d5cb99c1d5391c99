"""Run folders as a person at a terminal meets them: kill, resume, Ctrl-C."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from safetensors import safe_open

from lora_service.cli.run_options import check_resume, recorded_output, stop_on_interrupt, training_settings
from lora_service.cli.train_and_generate import train_command
from lora_service.errors import InputError
from lora_service.training.runs.run_folder import RunFolder, StopSignal
from tests.errors import raises
from tests.small_base import picture_zip
from tests.training_processes import training_processes

TRAIN = [sys.executable, "-u", "-m", "lora_service", "train"]
DEADLINE = 240.0  # seconds, on a machine that is busy


def wait_for(happened: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    until = time.monotonic() + DEADLINE
    while not happened():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < until
        time.sleep(0.02)


def start(*arguments: str) -> "subprocess.Popen[str]":
    environment = os.environ | {"BASE_MODEL": "embedded", "TORCH_THREADS": "1"}
    return subprocess.Popen(
        [*TRAIN, *arguments], env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def test_a_killed_training_is_resumed_and_ended_by_ctrl_c_with_a_file(tmp_path: Path) -> None:
    lora, run = tmp_path / "dog.safetensors", RunFolder(tmp_path / "dog-run")
    steps = ["--max_train_steps_ti", "2", "--max_train_steps_tuning", "5000", "--save-every", "2"]
    killed = start(str(picture_zip(tmp_path / "p.zip")), "-o", str(lora), "--task", "object", *steps)
    wait_for(lambda: any(run.checkpoints.glob("stage-2-LoRA-000[0-9]*[2468].safetensors")), killed)
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    assert not lora.exists()
    before = max(path.name for path in run.checkpoints.glob("*.safetensors"))

    resumed = start("--resume", str(run.path))
    wait_for(lambda: max(path.name for path in run.checkpoints.glob("*.safetensors")) > before, resumed)
    resumed.send_signal(signal.SIGINT)
    output, errors = resumed.communicate(timeout=DEADLINE)
    assert resumed.returncode == 0, errors
    assert "stopping after this step" in errors
    assert "going on with stage 2" in output
    assert f"wrote {lora}\nto go on: lora-service train --resume {run.path}" in output
    with safe_open(lora, "pt") as file:
        assert "stopped by request" in json.loads(file.metadata()["lora_service.report"])["stopped"]["stage 2"]
    assert any(run.checkpoints.iterdir())


def test_the_first_ctrl_c_asks_and_the_second_ends(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    run = RunFolder(tmp_path)
    run.checkpoints.mkdir()
    (run.checkpoints / "x.safetensors").touch()
    before = signal.getsignal(signal.SIGINT)
    ended = False
    try:
        with stop_on_interrupt(run) as stop:
            stop.can_stop = True
            signal.raise_signal(signal.SIGINT)
            assert stop.requested
            assert "stopping after this step" in capfd.readouterr().err
            signal.raise_signal(signal.SIGINT)
    except KeyboardInterrupt:
        ended = True
    assert ended
    assert f"train --resume {tmp_path}" in capfd.readouterr().err
    assert signal.getsignal(signal.SIGINT) == before


def test_ctrl_c_before_anything_is_learned_ends_at_once(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), stop_on_interrupt(RunFolder(tmp_path)):
        signal.raise_signal(signal.SIGINT)


def test_what_a_run_has_is_not_given_again(tmp_path: Path) -> None:
    check_resume(tmp_path, "", None, None, {"lora_rank": None})
    for field, arguments in (
        ("instance_data_urls", ("https://example.org/a.zip", None, None, {})),
        ("run_folder", ("", tmp_path, None, {})),
        ("save_every", ("", None, 0, {})),
        ("flip", ("", None, None, {"flip": False})),
    ):
        with raises(InputError, field=field, code="fixed_by_run"):
            check_resume(tmp_path, *arguments)  # type: ignore[arg-type]


@pytest.mark.parametrize(("text", "expected"), [("{", None), ("[]", None), ('{"output": "/a/b"}', Path("/a/b"))])
def test_the_output_of_a_run_is_recorded(tmp_path: Path, text: str, expected: Path | None) -> None:
    assert recorded_output(tmp_path) is None
    (tmp_path / "run.json").write_text(text)
    assert recorded_output(tmp_path) == expected


def test_several_processes_write_one_file_and_one_run_folder(tmp_path: Path) -> None:
    lora = tmp_path / "dog.safetensors"
    steps = ["--max_train_steps_ti", "0", "--max_train_steps_tuning", "2", "--samples", "0", "--trackers", "none"]
    pictures = str(picture_zip(tmp_path / "p.zip"))
    output, errors = start(pictures, "-o", str(lora), "--num-processes", "2", *steps).communicate(timeout=DEADLINE)
    assert output.count("done in") == output.count("wrote") == 1, errors
    assert sorted(path.name for path in tmp_path.iterdir()) == ["dog-run", "dog.safetensors", "p.zip"]
    assert sorted(path.name for path in (tmp_path / "dog-run").iterdir() if path.name != ".lock") == [
        "lora.safetensors",
        "run.json",
    ]


def begin_together(folder: Path) -> "tuple[subprocess.Popen[str], list[psutil.Process]]":
    """Start a long training in two processes; returns it with them once something is learned."""
    steps = ["--max_train_steps_ti", "0", "--max_train_steps_tuning", "20000", "--samples", "0"]
    process = start(str(picture_zip(folder / "p.zip")), "-o", "dog.safetensors", "--num-processes", "2", *steps)
    assert process.stdout is not None
    while not process.stdout.readline().startswith("stage 2"):
        assert process.poll() is None, process.communicate()
    return process, training_processes(process.pid)


@pytest.mark.slow
def test_ctrl_c_has_several_processes_write_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    process, _ = begin_together(tmp_path)
    process.send_signal(signal.SIGINT)
    output, errors = process.communicate(timeout=DEADLINE)
    assert process.returncode == 0, errors
    assert "wrote dog.safetensors" in output
    assert "to go on" not in output  # there are no checkpoints


@pytest.mark.slow
def test_processes_end_with_a_command_that_is_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    process, found = begin_together(tmp_path)
    assert len(found) == 2
    process.kill()
    process.communicate()
    _, left = psutil.wait_procs(found, timeout=20)
    assert not left


def test_trackers_are_named_or_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRACKERS", raising=False)
    assert training_settings(None).trackers == ("tensorboard",)
    assert training_settings(()).trackers == ()
    monkeypatch.setenv("TRACKERS", "wandb, comet")
    assert training_settings(None).trackers == ("wandb", "comet")
    assert training_settings(("tensorboard",)).trackers == ("tensorboard",)
    with raises(InputError, field="--trackers"):
        train_command.make_context("train", [__file__, "--trackers", "tensorbord"])
    assert train_command.make_context("train", [__file__, "--trackers", "none"]).params["trackers"] == ()


def test_ctrl_c_asks_all_runs_to_stop_once_one_has_learned_something(tmp_path: Path) -> None:
    stops = [StopSignal(), StopSignal(can_stop=True), StopSignal(requested=True)]  # the last by its own file
    with stop_on_interrupt(*(RunFolder(tmp_path / str(i)) for i in range(3)), stops=stops):
        signal.raise_signal(signal.SIGINT)
        assert [stop.requested for stop in stops] == [True, True, True]
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
