"""Limits of time, and what is left of a training that diverges."""

import json
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from lora_service.errors import DivergedError
from lora_service.training.callbacks import training_progress
from lora_service.training.callbacks.stopping import TimeLimit
from lora_service.training.callbacks.training_progress import ProgressReporter
from lora_service.training.inputs.config import TrainConfig
from lora_service.training.losses.batch_loss import BatchLoss
from lora_service.training.optimization.loop import LoopSpec, StageRun, run_loop
from lora_service.training.trainer import Trainer, TrainResult
from tests.small_base import picture_zip, small_base


def spec(steps: int, parameter: torch.nn.Parameter, compute_loss: Any, later_steps: float = 0) -> LoopSpec:
    groups = [{"params": [parameter], "lr": 0.1, "weight_decay": 0.0}]
    return LoopSpec("stage", steps, 1, groups, compute_loss, later_steps=later_steps)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time in seconds, which a test moves on."""
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    return now


def run_timed(clock: list[float], steps: int, seconds_each: float, limit: TimeLimit, later: float = 0) -> int:
    def compute_loss(i: int) -> BatchLoss:
        clock[0] += seconds_each
        return BatchLoss(parameter.sum())

    parameter = torch.nn.Parameter(torch.ones(1))
    return run_loop(spec(steps, parameter, compute_loss, later), TrainConfig(), [limit]).steps


def test_both_stages_share_the_time_by_their_steps(clock: list[float]) -> None:
    limit = TimeLimit(100, started=clock[0] - 5)  # the pictures took 5 of 100 s, and 10 are reserved
    first = run_timed(clock, 100, 1.0, limit, later=200)
    second = run_timed(clock, 200, 1.0, limit)
    assert first == 28
    assert second == 57
    assert clock[0] - 95 <= 90


def test_a_stage_that_is_fast_leaves_its_time_to_the_next(clock: list[float]) -> None:
    limit = TimeLimit(100, started=clock[0])
    assert run_timed(clock, 10, 0.1, limit, later=90) == 10
    assert run_timed(clock, 80, 1.0, limit) == 80
    assert run_timed(clock, 90, 1.0, limit) == 9


def test_every_stage_takes_a_step_though_there_is_no_time(clock: list[float]) -> None:
    limit = TimeLimit(10, started=clock[0] - 50)
    assert run_timed(clock, 10, 1.0, limit) == 1


def test_the_time_before_an_interruption_counts(clock: list[float]) -> None:
    limit = TimeLimit(100, started=clock[0])
    stage = StageRun(spec(10, torch.nn.Parameter(torch.ones(1)), lambda i: None), TrainConfig())
    limit.on_stage_start(stage)
    clock[0] += 80
    state = limit.state_dict()
    again = TimeLimit(100, started=clock[0])
    again.on_stage_start(stage)
    again.load_state_dict(state)
    assert again.state_dict() == {"used": 80.0}
    clock[0] += 10
    stage.step = 1
    again.on_step_end(stage)
    assert "stop_after_seconds" in stage.stop_reason


def diverging(good_steps: int, later: float = 0, losses: tuple[float, ...] = ()) -> Any:
    """Run a stage of 20 steps whose loss is no number after ``good_steps``, with a report after each step."""
    parameter = torch.nn.Parameter(torch.ones(1))
    values: list[torch.Tensor] = []

    def compute_loss(i: int) -> BatchLoss:
        values.append(parameter.detach().clone())
        factor = float("nan") if i >= good_steps else losses[i] if i < len(losses) else 1.0
        return BatchLoss(parameter.sum() * 0 + parameter.sum() / parameter.sum().detach() * factor)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training_progress, "_REPORT_SECONDS", 0.0)
        report = run_loop(
            spec(20, parameter, compute_loss, later), TrainConfig(), [ProgressReporter(lambda progress: None)]
        )
    return report, parameter.detach(), values


def test_a_stage_that_diverges_ends_at_its_last_good_state() -> None:
    report, parameter, values = diverging(6)
    assert (report.steps, report.diverged_at) == (6, 7)
    assert torch.equal(parameter, values[6])
    assert all(loss == loss for loss in report.losses)
    assert "step 7" in report.stop_reason


@pytest.mark.parametrize("options", [{"good_steps": 1}, {"good_steps": 6, "later": 5.0}])
def test_nothing_good_is_left_of_a_start_or_of_what_others_build_on(options: dict[str, Any]) -> None:
    with pytest.raises(DivergedError):
        diverging(**options)


def test_a_loss_that_explodes_is_not_good_though_it_is_a_number() -> None:
    report, _, _ = diverging(8, losses=(1, 1, 1, 1.5, 30, 900, 1e6, 1e9))
    assert (report.steps, report.diverged_at) == (4, 9)


def train(folder: Path, log: list[str], **inputs: Any) -> TrainResult:
    steps = {"task": "object", "seed": 1, "max_train_steps_ti": 2, "max_train_steps_tuning": 10, "resolution": 32}
    job = Trainer(small_base(), folder / "run", log=log.append)
    return job.run(picture_zip(folder / "p.zip"), TrainConfig.of(steps | inputs))


def read_report(result: TrainResult) -> dict[str, Any]:
    from safetensors import safe_open

    with safe_open(result.path, "pt") as file:
        return dict(json.loads(file.metadata()["lora_service.report"]), ss_steps=file.metadata()["ss_steps"])


def test_the_file_of_a_training_that_diverged_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    take_step = StageRun.take_step

    def broken(self: StageRun) -> None:
        take_step(self)
        if self.spec.steps == 10 and self.step == 5:
            with torch.no_grad():
                self.parameters[0].fill_(float("nan"))

    monkeypatch.setattr(training_progress, "_REPORT_SECONDS", 0.0)
    monkeypatch.setattr(StageRun, "take_step", broken)
    lines: list[str] = []
    result = train(tmp_path, lines)
    report = read_report(result)
    assert report["diverged_at"] == {"stage 2": 5}  # by the held-out loss
    assert report["ss_steps"] == "4"
    assert any(line.startswith("warning: stage 2 diverged") for line in lines)


def test_a_limit_of_time_is_kept_and_said(tmp_path: Path) -> None:
    lines: list[str] = []
    started = time.monotonic()
    inputs = {"max_train_steps_ti": 20000, "max_train_steps_tuning": 20000, "stop_after_seconds": 20}
    result = train(tmp_path, lines, **inputs)
    seconds = time.monotonic() - started
    assert not result.interrupted
    assert set(read_report(result)["stopped"]) == {"stage 1", "stage 2"}
    assert sum("stop_after_seconds is 20" in line for line in lines) == 2
    assert seconds < 30  # of a machine that is busy with other things
