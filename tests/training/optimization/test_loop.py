"""The optimiser's loop: what a step is made of, and what is said on the way."""

from typing import Any

import pytest
import torch
from torch import nn

from lora_service.errors import DivergedError
from lora_service.training.callbacks.training_progress import ProgressReporter, TrainingProgress
from lora_service.training.inputs.config import TrainConfig
from lora_service.training.inputs.resolved_config import warmup_steps
from lora_service.training.losses.batch_loss import BatchLoss
from lora_service.training.optimization.loop import LoopSpec, StageRun, TrainingCallback, run_loop
from tests.errors import raises


def test_each_step_takes_a_whole_group_of_batches_and_none_is_left_over() -> None:
    weight, seen = nn.Parameter(torch.zeros(1)), list[int]()

    def compute_loss(i: int) -> BatchLoss:
        seen.append(i)
        return BatchLoss((weight.sum() * 0 + i).float())

    stage = LoopSpec("s", 2, 1, [{"params": [weight], "lr": 0.1}], compute_loss)
    report = run_loop(stage, TrainConfig(gradient_accumulation_steps=3))
    assert seen == [0, 1, 2, 3, 4, 5]
    assert report.losses == [1.0, 4.0]


def test_the_gradient_of_a_step_is_the_mean_of_its_batches() -> None:
    """AdamW from zero moments: the first moment after one step is a tenth of the gradient."""
    weight, targets = nn.Parameter(torch.zeros(1)), (0.01, 0.02, 0.06)
    grads = list[float]()

    def compute_loss(i: int) -> BatchLoss:
        return BatchLoss(-targets[i] * weight.sum())

    weight.register_post_accumulate_grad_hook(lambda p: grads.append(p.grad.item()))  # type: ignore[union-attr]
    stage = LoopSpec("s", 1, 1, [{"params": [weight], "lr": 0.1}], compute_loss)
    run_loop(stage, TrainConfig(gradient_accumulation_steps=3))
    assert grads[-1] == pytest.approx(-sum(targets) / 3)


@pytest.mark.parametrize(
    ("scheduler", "warmup", "expected"),
    [
        ("constant", 0, [0.1, 0.1, 0.1, 0.1]),
        ("linear", 0, [0.1, 0.075, 0.05, 0.025]),
        ("constant_with_warmup", 2, [0.0, 0.05, 0.1, 0.1]),
        ("cosine", 0, [0.1, 0.0854, 0.05, 0.0146]),
        ("cosine_with_restarts", 0, [0.1, 0.0146, 0.05, 0.0854]),  # three cycles in four steps
        ("polynomial", 0, [0.1, 0.0563, 0.025, 0.0063]),
    ],
)
def test_rates_follow_the_schedule_and_reach_what_follows_a_step(
    scheduler: Any, warmup: int, expected: list[float]
) -> None:
    weight, lrs = nn.Parameter(torch.zeros(1)), list[float]()
    groups = [{"params": [weight], "lr": 0.1}]
    stage = LoopSpec("s", 4, 1, groups, lambda i: BatchLoss(weight.sum()), after_step=lambda now: lrs.extend(now))
    run_loop(stage, TrainConfig(lr_scheduler=scheduler, lr_warmup_steps=warmup))
    assert lrs == pytest.approx(expected, abs=1e-4)


def test_a_loss_that_is_no_number_is_said_with_the_rates() -> None:
    weight = nn.Parameter(torch.zeros(1))
    stage = LoopSpec(
        "stage 1", 2, 1, [{"params": [weight], "lr": 0.5}], lambda i: BatchLoss(weight.sum() * float("nan"))
    )
    with raises(DivergedError) as caught:
        run_loop(stage, TrainConfig())
    assert "stage 1" in str(caught.value)
    assert "0.5" in str(caught.value)


def test_a_loss_that_is_no_number_ends_the_stage_at_the_next_report(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lora_service.training.callbacks.training_progress._REPORT_SECONDS", 0.0)
    weight, steps = nn.Parameter(torch.zeros(1)), list[int]()

    def compute_loss(i: int) -> BatchLoss:
        steps.append(i)
        return BatchLoss(weight.sum() * (float("nan") if i == 3 else 1.0))

    stage = LoopSpec("stage 1", 100, 1, [{"params": [weight], "lr": 0.5}], compute_loss)
    with raises(DivergedError, code="diverged") as caught:
        run_loop(
            stage, TrainConfig(lr_scheduler="linear", lr_warmup_steps=50), [ProgressReporter(lambda progress: None)]
        )
    assert "0.5" in str(caught.value)
    assert steps == [0, 1, 2, 3]


def test_a_weight_that_is_no_number_ends_the_stage_though_the_loss_is_one() -> None:
    weight = nn.Parameter(torch.zeros(2))

    def compute_loss(i: int) -> BatchLoss:
        weight.data[1] = float("inf")
        return BatchLoss(weight[0])

    stage = LoopSpec("stage 2", 2, 1, [{"params": [weight], "lr": 0.5}], compute_loss)
    with raises(DivergedError):
        run_loop(stage, TrainConfig())


def test_parts_of_a_loss_are_kept_beside_the_total() -> None:
    weight, runs = nn.Parameter(torch.zeros(1)), list[StageRun]()

    def compute_loss(i: int) -> BatchLoss:
        return BatchLoss(weight.sum() * 0 + i, {"class": torch.tensor(10.0 * i)})

    class Watch(TrainingCallback):
        def on_stage_end(self, stage: StageRun) -> None:
            runs.append(stage)

    spec = LoopSpec("s", 2, 1, [{"params": [weight], "lr": 0.1}], compute_loss)
    run_loop(spec, TrainConfig(gradient_accumulation_steps=2), [Watch()])
    assert {name: losses.tolist() for name, losses in runs[0].losses.items()} == {
        "total": [0.5, 2.5],
        "class": [5.0, 25.0],
    }


def test_a_callback_can_stop_a_stage() -> None:
    class Stop(TrainingCallback):
        def on_step_end(self, stage: StageRun) -> None:
            if stage.step == 3:
                stage.stop("it is enough")
                stage.stop("a later reason")

    weight, reports = nn.Parameter(torch.zeros(1)), list[TrainingProgress]()
    spec = LoopSpec("s", 9, 1, [{"params": [weight], "lr": 0.1}], lambda i: BatchLoss(weight.sum() + i), later_steps=6)
    report = run_loop(spec, TrainConfig(), [Stop(), ProgressReporter(reports.append)])
    assert (report.steps, report.stop_reason) == (3, "it is enough")
    assert len(report.losses) == 3
    assert [progress.step for progress in reports] == [3]
    assert reports[0].seconds_left == pytest.approx(6 / reports[0].pictures_per_second)


def _noisy_stage(steps: int = 8) -> StageRun:
    """Return a stage that learns a matrix from noise, with a schedule."""
    generator = torch.Generator().manual_seed(1)
    weight = nn.Parameter(torch.ones(3, 3))

    def compute_loss(i: int) -> BatchLoss:
        return BatchLoss((weight @ torch.randn(3, generator=generator) - i).square().mean())

    groups = [{"params": [weight], "lr": 0.1, "weight_decay": 0.01}]
    spec = LoopSpec("s", steps, 1, groups, compute_loss, generator=generator)
    return StageRun(spec, TrainConfig(lr_scheduler="cosine", lr_warmup_steps=2, gradient_accumulation_steps=2))


def test_a_stage_goes_on_from_its_state_as_if_it_had_not_been_interrupted() -> None:
    whole, first, second = _noisy_stage(), _noisy_stage(), _noisy_stage()
    for _ in range(8):
        whole.take_step()
    for _ in range(3):
        first.take_step()
    second.load_state_dict(first.state_dict())
    while not second.is_done:
        second.take_step()
    assert torch.equal(whole.parameters[0], second.parameters[0])
    assert torch.equal(whole.losses["total"], second.losses["total"])


@pytest.mark.parametrize(
    ("steps", "warmup", "expected"), [(1, 1, 0), (1, 10000, 0), (2, 2, 1), (50, 100, 25), (3, 2, 2)]
)
def test_a_warm_up_as_long_as_the_stage_is_shortened(steps: int, warmup: int, expected: int) -> None:
    assert warmup_steps(warmup, steps) == expected


def test_one_step_with_a_warm_up_teaches_something() -> None:
    weight = nn.Parameter(torch.zeros(1))
    stage = LoopSpec("s", 1, 1, [{"params": [weight], "lr": 0.1}], lambda i: BatchLoss(weight.sum()))
    run_loop(stage, TrainConfig(lr_scheduler="constant_with_warmup", lr_warmup_steps=1))
    assert weight.item() == pytest.approx(-0.1)


def test_a_stage_of_seconds_has_a_curve_of_means(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lora_service.training.callbacks.training_progress._REPORT_SECONDS", 1000.0)
    weight, reports = nn.Parameter(torch.zeros(1)), list[TrainingProgress]()
    spec = LoopSpec("s", 203, 1, [{"params": [weight], "lr": 0.1}], lambda i: BatchLoss(weight.sum() * 0 + i))
    run_loop(spec, TrainConfig(), [ProgressReporter(reports.append)])
    assert [report.step for report in reports] == [*range(10, 201, 10), 203]
    assert [reports[0].loss, reports[-1].loss] == [4.5, 197.5], "the last one is no mean of three steps"


def test_the_time_left_counts_the_later_stages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lora_service.training.callbacks.training_progress._REPORT_SECONDS", 0.0)
    weight, reports = nn.Parameter(torch.zeros(1)), list[TrainingProgress]()
    stage = LoopSpec("s", 2, 1, [{"params": [weight], "lr": 0.1}], lambda i: BatchLoss(weight.sum()), later_steps=30)
    run_loop(stage, TrainConfig(), [ProgressReporter(reports.append)])
    seconds_per_step = [1 / report.pictures_per_second for report in reports]
    assert [report.seconds_left for report in reports] == pytest.approx(
        [31 * seconds_per_step[0], 30 * seconds_per_step[1]]
    )
    assert reports[1].metrics() == {
        "stage": "s", "step": 2, "of": 2, "loss": round(reports[1].loss, 5),
        "seconds_left": round(reports[1].seconds_left, 1), "learning_rate": 0.1,
        "pictures_per_second": round(reports[1].pictures_per_second, 3),
    }  # fmt: skip


def test_a_progress_line_reads_well() -> None:
    line = TrainingProgress("stage 1 (tokens)", 40, 700, 0.12345, 11.96, 320).line()
    assert line == "stage 1 (tokens): step 40 of 700, loss 0.1235, 12.0 pictures/s, 5 min left in all"
