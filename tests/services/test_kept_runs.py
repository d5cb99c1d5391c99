"""A training that is sent again after its server was lost goes on, or is begun anew where it cannot."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lora_service.errors import InputError
from lora_service.lora.files import read_lora
from lora_service.services.kept_runs import train_or_resume
from lora_service.services.training_service import TrainingService, TrainingUpload
from lora_service.settings import Settings
from lora_service.training.callbacks import training_progress
from tests.errors import raises
from tests.small_base import picture_zip, small_base

STEPS = {
    "task": "style",
    "seed": 1,
    "max_train_steps_ti": 1,
    "max_train_steps_tuning": 4,
    "resolution": 32,
    "samples": 0,
}
RUN = "abcdefgh"


class Killed(BaseException):
    """Stands for what ends a process without asking."""


@pytest.fixture
def service(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[TrainingService]:
    monkeypatch.setattr("lora_service.models.loading.load_base", lambda settings, for_training=False: small_base())
    with TrainingService(Settings(run_folders=tmp_path / "runs")) as service:
        yield service


def train(service: TrainingService, folder: Path, log: Any = lambda line: None, run: str = RUN, **inputs: Any) -> bytes:
    upload = TrainingUpload(picture_zip(folder / "pictures.zip"), "")
    return train_or_resume(service, upload, STEPS | inputs, run, log=log).read_bytes()


def kill_in_stage_2(line: str) -> None:
    if "stage 2" in line:
        raise Killed


def test_a_killed_training_goes_on_to_the_same_file(service: TrainingService, tmp_path: Path) -> None:
    whole = train(service, tmp_path, run="anotherrun")
    with pytest.raises(Killed):
        train(service, tmp_path, kill_in_stage_2)
    assert any((tmp_path / "runs" / RUN / "checkpoints").iterdir())
    lines: list[str] = []
    assert train(service, tmp_path, lines.append) == whole
    assert lines[0].startswith("going on")
    assert not any("stage 1" in line and "step 1" in line for line in lines)


def test_a_finished_one_is_not_trained_again(service: TrainingService, tmp_path: Path) -> None:
    whole = train(service, tmp_path)
    lines: list[str] = []
    assert train(service, tmp_path, lines.append) == whole
    assert len(lines) == 1


def test_what_cannot_go_on_is_begun_anew(service: TrainingService, tmp_path: Path) -> None:
    whole = train(service, tmp_path, run="anotherrun")
    with pytest.raises(Killed):
        train(service, tmp_path, kill_in_stage_2)
    (tmp_path / "runs" / RUN / "run.json").write_text("{")
    lines: list[str] = []
    assert train(service, tmp_path, lines.append) == whole
    assert any(line.startswith("warning: the training is begun anew") for line in lines)


def asking(service: TrainingService, line: str, *names: str) -> Any:
    """Return a log that makes files in the run folder when a line comes."""

    def log(text: str) -> None:
        if text.startswith(line):
            for name in names:
                (service.settings.run_folders / RUN / name).touch()  # type: ignore[operator]

    return log


@pytest.fixture
def every_step_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training_progress, "_REPORT_SECONDS", 0.0)


@pytest.mark.usefixtures("every_step_is_told")
def test_a_training_that_is_asked_to_stop_keeps_what_it_has_learned(service: TrainingService, tmp_path: Path) -> None:
    whole = report_of(train(service, tmp_path, run="anotherrun"))
    stopped = report_of(train(service, tmp_path, asking(service, "stage 2 (LoRA): step 2", "stop")))
    assert "stopped" not in whole
    assert stopped["stopped"] == {"stage 2": "step 2: stopped by request"}
    assert stopped["losses"]["stage 2"] == whole["losses"]["stage 2"][:2]
    lines: list[str] = []
    assert report_of(train(service, tmp_path, lines.append)) == stopped  # its server was lost after the end
    assert len(lines) == 1


@pytest.mark.usefixtures("every_step_is_told")
def test_a_file_is_saved_on_the_way_and_changes_nothing(service: TrainingService, tmp_path: Path) -> None:
    whole = train(service, tmp_path, run="anotherrun")
    assert train(service, tmp_path, asking(service, "stage 2 (LoRA): step 3", "save")) == whole
    (saved,) = (tmp_path / "runs" / RUN / "saved").iterdir()
    assert saved.name.endswith("-stage-2-step-000003.safetensors")
    assert report_of(saved.read_bytes())["losses"]["stage 2"] == report_of(whole)["losses"]["stage 2"][:3]
    weights = read_lora(saved)
    assert weights.layers["unet"]
    assert weights.tokens == ("<s1>", "<s2>")


def test_in_stage_1_both_files_hold_the_tokens(service: TrainingService, tmp_path: Path) -> None:
    kept = tmp_path / "kept.safetensors"
    kept.write_bytes(train(service, tmp_path, asking(service, "stage 1", "save", "stop")))
    (saved,) = (tmp_path / "runs" / RUN / "saved").iterdir()
    for path in (kept, saved):
        weights = read_lora(path)
        assert weights.tokens == ("<s1>", "<s2>")
        assert not any(weights.layers.values())


def test_the_wish_to_stop_outlives_a_run_that_is_begun_anew(service: TrainingService, tmp_path: Path) -> None:
    folder = tmp_path / "runs" / RUN
    folder.mkdir(parents=True)
    for name in ("run.json", "stop"):
        (folder / name).write_text("{")
    assert "stopped" in report_of(train(service, tmp_path, max_train_steps_ti=0))


def report_of(data: bytes) -> dict[str, Any]:
    """The report in a LoRA file's header."""
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    return dict(json.loads(header["__metadata__"]["lora_service.report"]))


@pytest.mark.parametrize("name", ["../../etc", "short", "Upper" * 3, "a" * 65])
def test_a_name_that_is_no_folders_is_refused(service: TrainingService, tmp_path: Path, name: str) -> None:
    with raises(InputError, field="context.run"):
        train(service, tmp_path, run=name)


def test_without_a_name_nothing_is_kept(service: TrainingService, tmp_path: Path) -> None:
    train(service, tmp_path, run="")
    assert not (tmp_path / "runs").exists()
