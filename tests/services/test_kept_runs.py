"""A training that is sent again after its server was lost goes on, or is begun anew where it cannot."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lora_service.errors import InputError
from lora_service.services.kept_runs import train_or_resume
from lora_service.services.training_service import TrainingService, TrainingUpload
from lora_service.settings import Settings
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


@pytest.mark.parametrize("name", ["../../etc", "short", "Upper" * 3, "a" * 65])
def test_a_name_that_is_no_folders_is_refused(service: TrainingService, tmp_path: Path, name: str) -> None:
    with raises(InputError, field="context.run"):
        train(service, tmp_path, run=name)


def test_without_a_name_nothing_is_kept(service: TrainingService, tmp_path: Path) -> None:
    train(service, tmp_path, run="")
    assert not (tmp_path / "runs").exists()
