"""Trainings of a service in two processes: as if it had trained by itself, and nothing is left of them."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from lora_service.errors import PicturesError, ProcessesError
from lora_service.services.training_service import TrainingService, TrainingUpload
from lora_service.settings import Settings
from lora_service.training.runs.run_folder import RunFolder, RunOptions, StopSignal
from tests.errors import raises
from tests.small_base import picture_zip
from tests.training.same_lora import assert_same_lora
from tests.training_processes import training_processes

INPUTS = {
    "task": "object", "seed": 1, "trigger": "zwx", "resolution": 32, "max_train_steps_ti": 2,
    "max_train_steps_tuning": 3, "samples": 0,
}  # fmt: skip
ENDLESS = {**INPUTS, "max_train_steps_ti": 0, "max_train_steps_tuning": 20000}


class Cancelled(BaseException):
    """Stands for what Cog raises in a job."""


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "tmp"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


@pytest.fixture
def service(temporary: Path) -> Iterator[TrainingService]:
    with TrainingService(Settings(train_processes=2)) as service:
        yield service
    assert not list(temporary.iterdir())
    assert not training_processes()


def upload(folder: Path) -> TrainingUpload:
    return TrainingUpload(picture_zip(folder / "pictures.zip"), "")


def at_step(act: Callable[[], None]) -> Callable[[str], None]:
    """A log that acts at the first line of progress."""

    def log(line: str) -> None:
        if line.startswith("stage 2"):
            act()

    return log


def test_two_processes_of_a_service_train_as_one_with_twice_the_batch(service: TrainingService, tmp_path: Path) -> None:
    metrics: dict[str, Any] = {}
    lines: list[str] = []
    together = service.train(
        upload(tmp_path), INPUTS, record_metric=metrics.__setitem__, log=lines.append, run_folder=tmp_path / "together"
    )
    assert "base" not in service.__dict__
    expected: dict[str, Any] = {}
    expected_lines: list[str] = []
    with TrainingService(Settings()) as single:
        alone = single.train(
            upload(tmp_path), {**INPUTS, "train_batch_size": 2}, record_metric=expected.__setitem__,
            log=expected_lines.append, run_folder=tmp_path / "alone",
        )  # fmt: skip
    assert_same_lora(together.path, alone.path)
    assert together.path == tmp_path / "together/lora.safetensors"
    assert together.resolved.prompt == alone.resolved.prompt
    for name, stage in alone.stages.items():
        assert together.stages[name].losses == pytest.approx(stage.losses, abs=2e-4)
    assert metrics.keys() == expected.keys()
    assert {metrics[name] for name in ("stage", "step", "of", "pictures_used")} == {"stage 2 (LoRA)", 3}
    beginnings = [line.split(",")[0].split(":")[0] for line in lines if not line.startswith("done")]
    assert beginnings == [line.split(",")[0].split(":")[0] for line in expected_lines if not line.startswith("done")]
    assert [path.name for path in (tmp_path / "together").iterdir() if path.suffix] == [
        path.name for path in (tmp_path / "alone").iterdir() if path.suffix
    ]


def test_an_error_of_the_processes_is_that_of_the_job(service: TrainingService, tmp_path: Path) -> None:
    metrics: dict[str, Any] = {}
    (tmp_path / "empty.zip").touch()
    with raises(PicturesError) as caught:
        service.train(TrainingUpload(tmp_path / "empty.zip", ""), INPUTS, record_metric=metrics.__setitem__)
    with TrainingService(Settings()) as single, raises(PicturesError, code=caught.value.code) as alone:
        single.train(TrainingUpload(tmp_path / "empty.zip", ""), INPUTS)
    assert str(caught.value) == str(alone.value)
    assert (metrics["error_code"], metrics["error_message"]) == (alone.value.code, str(alone.value))


def test_a_killed_process_ends_the_job_and_not_the_service(service: TrainingService, tmp_path: Path) -> None:
    with raises(ProcessesError, code="process_lost") as caught:
        service.train(upload(tmp_path), ENDLESS, log=at_step(lambda: training_processes()[-1].kill()))
    assert "SIGKILL" in str(caught.value)
    assert not training_processes()
    assert service.train(upload(tmp_path), {**INPUTS, "max_train_steps_ti": 0}).path.exists()


def test_a_cancelled_job_ends_its_processes(service: TrainingService, tmp_path: Path) -> None:
    found: list[psutil.Process] = []

    def cancel() -> None:
        found.extend(training_processes())
        raise Cancelled

    with pytest.raises(Cancelled):
        service.train(upload(tmp_path), ENDLESS, log=at_step(cancel))
    assert len(found) == 2
    assert not any(each.is_running() for each in found)


@pytest.mark.slow
def test_processes_that_do_not_react_are_killed(
    service: TrainingService, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lora_service.services.launched.ending._END_SECONDS", 0.5)

    def cancel() -> None:
        for each in training_processes():
            each.suspend()
        raise Cancelled

    with pytest.raises(Cancelled):
        service.train(upload(tmp_path), ENDLESS, log=at_step(cancel))


@pytest.mark.slow
def test_a_stop_that_is_asked_for_reaches_the_processes(service: TrainingService, tmp_path: Path) -> None:
    stop = StopSignal()

    def ask() -> None:
        assert stop.can_stop
        stop.requested = True

    result = service.train(
        upload(tmp_path), ENDLESS, log=at_step(ask), run_folder=tmp_path / "run", options=RunOptions(stop=stop)
    )
    assert result.interrupted
    assert result.path.exists()
    assert not RunFolder(tmp_path / "run").stop_request.exists()
