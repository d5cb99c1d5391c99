"""The optimiser's loop that both stages share."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from diffusers.optimization import get_scheduler

from lora_service.errors import DivergedError
from lora_service.training.config import TrainConfig

_REPORT_SECONDS = 5.0
_REPORTED_LOSSES = 32
"""Means of the loss, evenly spread over a stage, in its report."""


@dataclass(frozen=True)
class TrainingProgress:
    """The state of a stage; ``loss`` is the mean since the last report."""

    stage: str
    step: int
    steps: int
    loss: float
    pictures_per_second: float
    seconds_left: float

    def line(self) -> str:
        """Return one line for a person."""
        left = f"{self.seconds_left / 60:.0f} min" if self.seconds_left >= 90 else f"{self.seconds_left:.0f} s"
        return (
            f"{self.stage}: step {self.step} of {self.steps}, loss {self.loss:.4f}, "
            f"{self.pictures_per_second:.1f} pictures/s, {left} left"
        )


OnProgress = Callable[[TrainingProgress], None]


@dataclass(frozen=True)
class LoopSpec:
    """The steps of one stage.

    Attributes:
        param_groups: the optimiser's, each with ``params``, ``lr`` and ``weight_decay``.
        compute_loss: the loss of micro-batch ``i``, a scalar.
        after_step: called after each step with the groups' learning rates.
    """

    name: str
    steps: int
    batch_size: int
    param_groups: list[dict[str, Any]]
    compute_loss: Callable[[int], torch.Tensor]
    autocast: torch.dtype | None = None
    after_step: Callable[[Sequence[float]], None] = lambda lrs: None


@dataclass
class LoopReport:
    """The outcome of a stage."""

    steps: int
    seconds: float
    losses: list[float] = field(default_factory=list)


def run_loop(spec: LoopSpec, config: TrainConfig, on_progress: OnProgress) -> LoopReport:
    """Run all steps of ``spec``.

    Each optimiser step averages exactly ``gradient_accumulation_steps`` micro-batches; a step counts once however
    many those are, and learning rates are used as given. Losses stay on the device until a progress report is due.

    Raises:
        DivergedError: a loss is not finite.
    """
    parameters = [p for group in spec.param_groups for p in group["params"]]
    device = parameters[0].device
    optimizer = torch.optim.AdamW(spec.param_groups, betas=(0.9, 0.999), fused=device.type in ("cpu", "cuda"))
    lr_scheduler = get_scheduler(
        config.lr_scheduler, optimizer, num_warmup_steps=config.lr_warmup_steps, num_training_steps=spec.steps
    )
    # fp16 gradients underflow without it; bf16 and fp32 ones do not.
    scaler = torch.amp.GradScaler(device.type, enabled=spec.autocast == torch.float16)
    losses = torch.zeros(spec.steps, device=device)
    accumulated = config.gradient_accumulation_steps
    reporter = ProgressReporter(spec, accumulated, on_progress)
    for step in range(spec.steps):
        for i in range(step * accumulated, (step + 1) * accumulated):
            with torch.autocast(device.type, spec.autocast) if spec.autocast else nullcontext():
                loss = spec.compute_loss(i) / accumulated
            scaler.scale(loss).backward()
            losses[step] += loss.detach()
        scaler.unscale_(optimizer)
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad(set_to_none=True)
        spec.after_step([group["lr"] for group in optimizer.param_groups])
        lr_scheduler.step()
        reporter.step_done(step + 1, losses)
    return LoopReport(spec.steps, reporter.seconds(), _means(losses, _REPORTED_LOSSES))


class ProgressReporter:
    """Reports now and then; reading the losses is the only time the host waits for the device."""

    def __init__(self, spec: LoopSpec, accumulated: int, on_progress: OnProgress) -> None:
        self.spec, self.accumulated, self.on_progress = spec, accumulated, on_progress
        self.started = self.reported = time.monotonic()
        self.reported_step = 0

    def seconds(self) -> float:
        """Return the seconds since the stage began."""
        return time.monotonic() - self.started

    def step_done(self, step: int, losses: torch.Tensor) -> None:
        """Report if it is time to; ``losses`` are those of all steps, the first ``step`` of them computed.

        Raises:
            DivergedError: the stage has ended and a loss is not finite.
        """
        now = time.monotonic()
        if step == self.spec.steps and not bool(losses.isfinite().all()):
            lrs = ", ".join(f"{group['lr']:g}" for group in self.spec.param_groups)
            raise DivergedError(
                f"The loss of {self.spec.name} was no longer a number; try lower learning rates than {lrs}."
            )
        if step < self.spec.steps and now - self.reported < _REPORT_SECONDS:
            return
        seconds_per_step = max(now - self.started, 1e-9) / step
        self.on_progress(
            TrainingProgress(
                stage=self.spec.name,
                step=step,
                steps=self.spec.steps,
                loss=losses[self.reported_step : step].mean().item(),
                pictures_per_second=self.spec.batch_size * self.accumulated / seconds_per_step,
                seconds_left=seconds_per_step * (self.spec.steps - step),
            )
        )
        self.reported, self.reported_step = now, step


def _means(losses: torch.Tensor, count: int) -> list[float]:
    """Return at most ``count`` means of equal stretches of ``losses``."""
    stretches = torch.tensor_split(losses.float().cpu(), min(count, len(losses)))
    return [round(stretch.mean().item(), 5) for stretch in stretches]
