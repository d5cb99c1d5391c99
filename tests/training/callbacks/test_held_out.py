"""The held-out loss, the criteria that stop a stage by it, and the checkpoint that is kept."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from lora_service.errors import DivergedError
from lora_service.lora.files import read_lora
from lora_service.models.diffusion_base import DiffusionBase
from lora_service.training.callbacks.held_out import (
    HELD_OUT_LOSS,
    BestCheckpoint,
    HeldOutEvaluation,
    HeldOutLoss,
    choose_held_out,
    evaluation_steps,
    smoothed,
)
from lora_service.training.callbacks.training_progress import TrainingProgress
from lora_service.training.context import TrainingContext
from lora_service.training.data.latent_cache import cache_latents
from lora_service.training.inputs.config import TrainConfig
from lora_service.training.inputs.resolved_config import resolve_config
from lora_service.training.losses.batch_loss import BatchLoss
from lora_service.training.optimization.loop import LoopSpec, StageRun, TrainingCallback, run_loop
from lora_service.training.trainer import Trainer
from tests.errors import raises
from tests.small_base import DEFAULTS, picture, picture_zip, small_base

COLORS = ("red", "green", "blue", "black", "white", "gray", "pink", "brown", "orange", "purple", "navy", "gold")


def held_out_context(base: DiffusionBase, *sizes: tuple[int, int], **inputs: Any) -> TrainingContext:
    images = tuple(picture(color, size) for color, size in zip(COLORS, sizes, strict=False))
    latents = cache_latents(images, base, flip=False, color_jitter=False, seed=0)
    config = TrainConfig.of({"trigger": "zwx", "seed": 1, "max_train_steps_ti": 0} | inputs)
    resolved = resolve_config(config, DEFAULTS, "zwx", 1)
    held_out = {"held_out_images": images, "held_out_latents": latents}
    return TrainingContext(base, images, latents, resolved, base.text, None, **held_out)


@pytest.mark.parametrize(("pictures", "held", "excluded"), [(1, 1, 0), (4, 4, 0), (7, 1, 0), (12, 2, 2), (40, 4, 4)])
def test_one_picture_in_five_is_held_out_and_of_small_sets_none_is_missing_from_training(
    pictures: int, held: int, excluded: int
) -> None:
    images = [replace(picture(COLORS[i % len(COLORS)]), name=f"{i}.png") for i in range(pictures)]
    config = TrainConfig.of({"seed": 3, "keep": "best"})
    chosen = choose_held_out(images, config)
    trained, measured = chosen.split(images)
    assert (len(measured), len(trained)) == (held, pictures - excluded)
    assert chosen == choose_held_out(images, config)
    assert not choose_held_out(images, TrainConfig.of({"seed": 3})).are_excluded
    assert chosen.are_excluded == (not {id(image) for image in trained} & {id(image) for image in measured})


def test_the_last_step_is_evaluated_and_evaluations_cost_about_the_same_share() -> None:
    assert evaluation_steps(2, 1) == [1, 2]
    for steps, pictures in ((700, 1), (5000, 4), (100, 1)):
        chosen = evaluation_steps(steps, pictures)
        assert chosen[-1] == steps
        assert 4 <= len(chosen) <= 20
    assert len(evaluation_steps(1400, 1)) == 2 * len(evaluation_steps(700, 1)) + 1


def test_the_held_out_loss_is_the_unets_error_on_fixed_noise() -> None:
    """Against diffusers' own noise schedule, with the noise drawn anew from the seed."""
    base = small_base()
    context = held_out_context(base, (32, 32), (32, 32), snr_gamma=0)
    generator = torch.Generator().manual_seed(1)
    rows = torch.tensor([0, 1] * 4)
    latents = context.latents[0].mean[0, rows]
    noise = torch.randn(latents.shape, generator=generator)
    timesteps = torch.tensor([62, 187, 312, 437, 562, 687, 812, 937])
    noisy = base.noise_schedule.add_noise(latents, noise, timesteps)
    text = base.text.encode(base.text.tokenize(["a photo of zwx"] * 8))
    with torch.no_grad():
        expected = F.mse_loss(base.unet(noisy, timesteps, text.states).sample, noise).item()
        assert HeldOutLoss(context)() == pytest.approx(expected, rel=1e-5)


def test_pictures_of_all_sizes_are_measured_and_memory_only_splits_the_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    context = held_out_context(small_base(), (32, 32), (48, 32), (32, 32))
    loss, sizes = HeldOutLoss(context), list[int]()
    with torch.no_grad():
        expected = loss()
    denoise = DiffusionBase.denoise

    def short_of_memory(base: DiffusionBase, noisy: torch.Tensor, *others: Any) -> torch.Tensor:
        sizes.append(len(noisy))
        if len(noisy) > 2:
            raise torch.OutOfMemoryError
        return denoise(base, noisy, *others)

    monkeypatch.setattr(DiffusionBase, "denoise", short_of_memory)
    with torch.no_grad():
        assert loss() == pytest.approx(expected, rel=1e-5)
    assert sizes[-1] <= 2
    assert max(sizes) > 2


def test_smoothing() -> None:
    assert smoothed([4.0, 2.0, 2.0]) == [4.0, 3.0, 2.5]


def run_with_losses(losses: list[float], *callbacks: TrainingCallback, later_steps: float = 0) -> tuple[Any, float]:
    """Run a stage whose weight is the number of steps done, with ``losses`` measured one a step."""
    weight = nn.Parameter(torch.zeros(1))

    class Measure(TrainingCallback):
        def on_step_end(self, stage: StageRun) -> None:
            weight.data.fill_(stage.step)
            stage.measure(HELD_OUT_LOSS, losses[stage.step - 1])

    groups = [{"params": [weight], "lr": 0.1}]
    spec = LoopSpec("s", len(losses), 1, groups, lambda i: BatchLoss(weight.sum()), later_steps=later_steps)
    report = run_loop(spec, TrainConfig(), [Measure(), *callbacks])
    return report, weight.item()


def test_the_best_step_is_kept_and_said() -> None:
    lines: list[str] = []
    report, weight = run_with_losses([4.0, 2.0, 1.0, 6.0, 7.0], BestCheckpoint(lines.append))
    assert (report.kept_step, weight, report.steps) == (3, 3.0, 5)
    assert "step 3 of 5 is kept" in lines[0]
    report, weight = run_with_losses([4.0, 2.0, 1.0], BestCheckpoint(lines.append), later_steps=9)
    assert (report.kept_step, weight, len(lines)) == (3, 3.0, 1)


def test_a_lowest_loss_in_the_first_half_is_not_the_best() -> None:
    report, weight = run_with_losses([1.0, 4.0, 9.0, 5.0, 3.0, 3.0], BestCheckpoint(lambda line: None))
    assert (report.kept_step, weight) == (6, 6.0)


def test_a_held_out_loss_that_is_no_number_ends_the_training() -> None:
    weight = nn.Parameter(torch.zeros(1))
    spec = LoopSpec("s", 2, 1, [{"params": [weight], "lr": 0.1}], lambda i: BatchLoss(weight.sum()))
    with raises(DivergedError, code="diverged"):
        run_loop(spec, TrainConfig(), [HeldOutEvaluation(lambda: float("nan"))])  # type: ignore[arg-type]


def test_a_stage_goes_on_with_its_measurements_and_its_best_step() -> None:
    weight = nn.Parameter(torch.ones(1))
    spec = LoopSpec("s", 2, 1, [{"params": [weight], "lr": 0.1}], lambda i: BatchLoss(weight.sum()))
    first, second = StageRun(spec, TrainConfig()), StageRun(spec, TrainConfig())
    first.take_step()
    first.measure(HELD_OUT_LOSS, 0.5)
    BestCheckpoint(lambda line: None).on_step_end(first)
    second.load_state_dict(first.state_dict())
    assert second.measurements == {HELD_OUT_LOSS: [(1, 0.5)]}
    assert second.best is not None
    assert first.best is not None
    assert torch.equal(second.best.parameters[0], first.best.parameters[0])


def test_progress_and_header_tell_the_held_out_loss(tmp_path: Path) -> None:
    reports: list[TrainingProgress] = []
    inputs = {"task": "object", "seed": 1, "max_train_steps_ti": 2, "max_train_steps_tuning": 3, "samples": 0}
    job = Trainer(small_base(), tmp_path / "job", on_progress=reports.append)
    result = job.run(picture_zip(tmp_path / "p.zip"), TrainConfig.of(inputs | {"keep": "best"}))
    measured = result.stages["stage 2"].measurements[HELD_OUT_LOSS]
    assert [step for step, _ in measured] == [1, 2, 3]
    assert reports[-1].metrics()["held_out_loss"] == pytest.approx(smoothed([v for _, v in measured])[-1], abs=1e-5)
    assert "held-out" in reports[-1].line()
    header = read_lora(result.path).metadata["lora_service.report"]
    assert '"held_out_losses"' in header
    assert f'"stage 2": {result.stages["stage 2"].kept_step}' in header


def test_what_is_held_out_is_not_trained_on(tmp_path: Path) -> None:
    lines: list[str] = []
    inputs = {"task": "object", "seed": 1, "max_train_steps_ti": 0, "max_train_steps_tuning": 2, "samples": 0}
    Trainer(small_base(), tmp_path / "job", log=lines.append).run(
        picture_zip(tmp_path / "p.zip", COLORS[:10]), TrainConfig.of(inputs | {"keep": "best"})
    )
    line = next(line for line in lines if line.startswith("held-out loss"))
    assert line.count(".png") == 2
    assert "not trained on" in line
