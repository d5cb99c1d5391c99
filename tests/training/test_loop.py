"""The optimiser's loop: what a step is made of, and what is said on the way."""

from typing import Any

import pytest
import torch
from torch import nn

from lora_service.errors import DivergedError
from lora_service.training.config import TrainConfig, warmup_steps
from lora_service.training.loop import LoopSpec, TrainingProgress, run_loop
from tests.errors import raises


def test_each_step_takes_a_whole_group_of_batches_and_none_is_left_over() -> None:
    weight, seen = nn.Parameter(torch.zeros(1)), list[int]()

    def compute_loss(i: int) -> torch.Tensor:
        seen.append(i)
        return (weight.sum() * 0 + i).float()

    stage = LoopSpec("s", 2, 1, [{"params": [weight], "lr": 0.1}], compute_loss)
    report = run_loop(stage, TrainConfig(gradient_accumulation_steps=3), lambda progress: None)
    assert seen == [0, 1, 2, 3, 4, 5]
    assert report.losses == [1.0, 4.0]


def test_the_gradient_of_a_step_is_the_mean_of_its_batches() -> None:
    """AdamW from zero moments: the first moment after one step is a tenth of the gradient."""
    weight, targets = nn.Parameter(torch.zeros(1)), (0.01, 0.02, 0.06)
    grads = list[float]()

    def compute_loss(i: int) -> torch.Tensor:
        return -targets[i] * weight.sum()

    weight.register_post_accumulate_grad_hook(lambda p: grads.append(p.grad.item()))  # type: ignore[union-attr]
    stage = LoopSpec("s", 1, 1, [{"params": [weight], "lr": 0.1}], compute_loss)
    run_loop(stage, TrainConfig(gradient_accumulation_steps=3), lambda progress: None)
    assert grads[-1] == pytest.approx(-sum(targets) / 3)


@pytest.mark.parametrize(
    ("scheduler", "warmup", "expected"),
    [
        ("constant", 0, [0.1, 0.1, 0.1, 0.1]),
        ("linear", 0, [0.1, 0.075, 0.05, 0.025]),
        ("constant_with_warmup", 2, [0.0, 0.05, 0.1, 0.1]),
        ("cosine", 0, [0.1, 0.0854, 0.05, 0.0146]),
        ("cosine_with_restarts", 0, [0.1, 0.0854, 0.05, 0.0146]),
        ("polynomial", 0, [0.1, 0.075, 0.05, 0.025]),
    ],
)
def test_rates_follow_the_schedule_and_reach_what_follows_a_step(
    scheduler: Any, warmup: int, expected: list[float]
) -> None:
    weight, lrs = nn.Parameter(torch.zeros(1)), list[float]()
    groups = [{"params": [weight], "lr": 0.1}]
    stage = LoopSpec("s", 4, 1, groups, lambda i: weight.sum(), after_step=lambda now: lrs.extend(now))
    run_loop(stage, TrainConfig(lr_scheduler=scheduler, lr_warmup_steps=warmup), lambda progress: None)
    assert lrs == pytest.approx(expected, abs=1e-4)


def test_a_loss_that_is_no_number_is_said_with_the_rates() -> None:
    weight = nn.Parameter(torch.zeros(1))
    stage = LoopSpec("stage 1", 2, 1, [{"params": [weight], "lr": 0.5}], lambda i: weight.sum() * float("nan"))
    with raises(DivergedError) as caught:
        run_loop(stage, TrainConfig(), lambda progress: None)
    assert "stage 1" in str(caught.value)
    assert "0.5" in str(caught.value)


def test_a_loss_that_is_no_number_ends_the_stage_at_the_next_report(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lora_service.training.loop._REPORT_SECONDS", 0.0)
    weight, steps = nn.Parameter(torch.zeros(1)), list[int]()

    def compute_loss(i: int) -> torch.Tensor:
        steps.append(i)
        return weight.sum() * (float("nan") if i == 3 else 1.0)

    stage = LoopSpec("stage 1", 100, 1, [{"params": [weight], "lr": 0.5}], compute_loss)
    with raises(DivergedError, code="diverged") as caught:
        run_loop(stage, TrainConfig(lr_scheduler="linear", lr_warmup_steps=50), lambda progress: None)
    assert "0.5" in str(caught.value)
    assert steps == [0, 1, 2, 3]


def test_a_weight_that_is_no_number_ends_the_stage_though_the_loss_is_one() -> None:
    weight = nn.Parameter(torch.zeros(2))

    def compute_loss(i: int) -> torch.Tensor:
        weight.data[1] = float("inf")
        return weight[0]

    stage = LoopSpec("stage 2", 2, 1, [{"params": [weight], "lr": 0.5}], compute_loss)
    with raises(DivergedError):
        run_loop(stage, TrainConfig(), lambda progress: None)


@pytest.mark.parametrize(
    ("steps", "warmup", "expected"), [(1, 1, 0), (1, 10000, 0), (2, 2, 1), (50, 100, 25), (3, 2, 2)]
)
def test_a_warm_up_as_long_as_the_stage_is_shortened(steps: int, warmup: int, expected: int) -> None:
    assert warmup_steps(warmup, steps) == expected


def test_one_step_with_a_warm_up_teaches_something() -> None:
    weight = nn.Parameter(torch.zeros(1))
    stage = LoopSpec("s", 1, 1, [{"params": [weight], "lr": 0.1}], lambda i: weight.sum())
    run_loop(stage, TrainConfig(lr_scheduler="constant_with_warmup", lr_warmup_steps=1), lambda progress: None)
    assert weight.item() == pytest.approx(-0.1)


def test_the_time_left_counts_the_later_stages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lora_service.training.loop._REPORT_SECONDS", 0.0)
    weight, reports = nn.Parameter(torch.zeros(1)), list[TrainingProgress]()
    stage = LoopSpec("s", 2, 1, [{"params": [weight], "lr": 0.1}], lambda i: weight.sum(), later_steps=30)
    run_loop(stage, TrainConfig(), reports.append)
    seconds_per_step = [1 / report.pictures_per_second for report in reports]
    assert [report.seconds_left for report in reports] == pytest.approx(
        [31 * seconds_per_step[0], 30 * seconds_per_step[1]]
    )
    assert reports[1].metrics() == {
        "stage": "s", "step": 2, "of": 2, "loss": round(reports[1].loss, 5),
        "seconds_left": round(reports[1].seconds_left, 1),
    }  # fmt: skip


def test_a_progress_line_reads_well() -> None:
    line = TrainingProgress("stage 1 (tokens)", 40, 700, 0.12345, 11.96, 320).line()
    assert line == "stage 1 (tokens): step 40 of 700, loss 0.1235, 12.0 pictures/s, 5 min left in all"
