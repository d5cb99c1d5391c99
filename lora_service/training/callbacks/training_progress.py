"""The progress of a stage, for a person or a program."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from lora_service.training.callbacks.held_out import HELD_OUT_LOSS, smoothed
from lora_service.training.optimization.loop import StageRun, TrainingCallback
from lora_service.training.optimization.optimizers import learning_rates

_REPORT_SECONDS = 5.0
_REPORTS = 20
"""Of a stage, at least: a curve of a training that takes seconds has so many points."""
_FEWEST_STEPS = 5
"""Of a mean: single losses say how noisy their timesteps were."""


@dataclass(frozen=True)
class TrainingProgress:
    """The state of a stage.

    Attributes:
        loss: the mean since the last report, or of the last few steps where that was only just before.
        parts: the means of what it is made of, by name, where it has several parts.
        seconds_left: estimated time to the end of the last stage.
        held_out_loss: the latest one, smoothed; None where there is none yet.
        learning_rate: of the optimiser's first group: the tokens in stage 1, the UNet in stage 2.
    """

    stage: str
    step: int
    steps: int
    loss: float
    pictures_per_second: float
    seconds_left: float
    held_out_loss: float | None = None
    parts: Mapping[str, float] = field(default_factory=dict)
    learning_rate: float = 0.0

    def line(self) -> str:
        """Return one line for a person."""
        return f"{self.stage}: step {self.step} of {self.steps}, {self.summary()}"

    def summary(self) -> str:
        """Return the end of the line, without stage and step."""
        left = f"{self.seconds_left / 60:.0f} min" if self.seconds_left >= 90 else f"{self.seconds_left:.0f} s"
        held_out = "" if self.held_out_loss is None else f", held-out {self.held_out_loss:.4f}"
        parts = ", ".join(f"{name} {loss:.4f}" for name, loss in self.parts.items())
        loss = f"loss {self.loss:.4f} ({parts})" if parts else f"loss {self.loss:.4f}"
        return f"{loss}{held_out}, {self.pictures_per_second:.1f} pictures/s, {left} left in all"

    def metrics(self) -> dict[str, float | int | str]:
        """Return the numbers for a program that shows the progress."""
        metrics: dict[str, float | int | str] = {
            "stage": self.stage,
            "step": self.step,
            "of": self.steps,
            "loss": round(self.loss, 5),
            "seconds_left": round(self.seconds_left, 1),
            "pictures_per_second": round(self.pictures_per_second, 3),
            "learning_rate": self.learning_rate,
            **{f"loss_{name}": round(loss, 5) for name, loss in self.parts.items()},
        }
        if self.held_out_loss is not None:
            metrics["held_out_loss"] = round(self.held_out_loss, 5)
        return metrics


OnProgress = Callable[[TrainingProgress], None]


class ProgressReporter(TrainingCallback):
    """Reports now and then; reading the losses is the only time the host waits for the device."""

    def __init__(self, on_progress: OnProgress) -> None:
        self._on_progress = on_progress
        self._first_step = self._reported_step = 0
        self._reported_at = self._started_at = 0.0

    def on_stage_start(self, stage: StageRun) -> None:
        """Begin the count; a stage that goes on from a checkpoint has steps behind it already."""
        self._started_at = self._reported_at = time.monotonic()
        self._first_step = self._reported_step = stage.step

    def on_step_end(self, stage: StageRun) -> None:
        """Report if it is time to.

        Raises:
            DivergedError: it is, and a loss since the last report is not finite.
        """
        now, spec = time.monotonic(), stage.spec
        window = max(_FEWEST_STEPS, spec.steps // _REPORTS)
        is_due = now - self._reported_at >= _REPORT_SECONDS or stage.step - self._reported_step >= window
        if not stage.is_done and not is_due:
            return
        begin = min(self._reported_step, max(self._first_step, stage.step - window))
        means = {name: losses[begin : stage.step].mean().item() for name, losses in stage.losses.items()}
        loss = means.pop("total")
        if not math.isfinite(loss):
            raise stage.diverged("The loss")
        stage.keep_if_good(loss)
        seconds_per_step = max(now - self._started_at, 1e-9) / (stage.step - self._first_step)
        held_out = smoothed([value for _, value in stage.measurements.get(HELD_OUT_LOSS, ())])
        steps_left = 0 if stage.is_done else spec.steps - stage.step
        self._on_progress(
            TrainingProgress(
                stage=spec.name,
                step=stage.step,
                steps=spec.steps,
                loss=loss,
                pictures_per_second=spec.batch_size * stage.config.gradient_accumulation_steps / seconds_per_step,
                seconds_left=seconds_per_step * (steps_left + spec.later_steps),
                held_out_loss=held_out[-1] if held_out else None,
                parts=means,
                learning_rate=learning_rates(stage.optimizer)[0],
            )
        )
        self._reported_at, self._reported_step = now, stage.step
