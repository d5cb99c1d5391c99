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


@dataclass(frozen=True)
class TrainingProgress:
    """Where a training is; ``loss`` is the mean since the last report."""

    stage: str
    step: int
    steps: int
    loss: float
    pictures_per_second: float
    seconds_left: float

    def line(self) -> str:
        left = f"{self.seconds_left / 60:.0f} min" if self.seconds_left >= 90 else f"{self.seconds_left:.0f} s"
        return (
            f"{self.stage}: step {self.step} of {self.steps}, loss {self.loss:.4f}, "
            f"{self.pictures_per_second:.1f} pictures/s, {left} left"
        )


OnProgress = Callable[[TrainingProgress], None]


@dataclass(frozen=True)
class LoopSpec:
    """One stage's steps: what learns, what a micro-batch costs, what follows a step.

    ``groups`` are the optimiser's parameter groups; ``loss_of_batch(i)`` is the loss
    of micro-batch ``i``; ``after_step(rates)`` gets the groups' rates as they are.
    """

    name: str
    steps: int
    batch_size: int
    groups: list[dict[str, Any]]
    loss_of_batch: Callable[[int], torch.Tensor]
    autocast: torch.dtype | None = None
    after_step: Callable[[Sequence[float]], None] = lambda lrs: None
    report_seconds: float = 5.0
    keep_losses: int = 32
    """How many means of the loss, evenly spread over the stage, go into the report."""


@dataclass
class LoopReport:
    """What a stage did."""

    steps: int
    seconds: float
    losses: list[float] = field(default_factory=list)


def run_loop(stage: LoopSpec, config: TrainConfig, on_progress: OnProgress) -> LoopReport:
    """Run all of ``stage``.

    Each optimiser step averages exactly ``gradient_accumulation_steps`` micro-batches;
    a step counts once however many those are, and rates are used as given. Losses
    stay on the device until a progress line is due.
    """
    parameters = [p for group in stage.groups for p in group["params"]]
    device = parameters[0].device
    optimizer = torch.optim.AdamW(stage.groups, betas=(0.9, 0.999), fused=device.type in ("cpu", "cuda"))
    schedule = get_scheduler(
        config.lr_scheduler, optimizer, num_warmup_steps=config.lr_warmup_steps, num_training_steps=stage.steps
    )
    # fp16 gradients underflow without it; bf16 and fp32 ones do not.
    scaler = torch.amp.GradScaler(device.type, enabled=stage.autocast == torch.float16)
    losses = torch.zeros(stage.steps, device=device)
    micro = config.gradient_accumulation_steps
    clock = ProgressReporter(stage, micro, on_progress)
    for step in range(stage.steps):
        for i in range(step * micro, (step + 1) * micro):
            with torch.autocast(device.type, stage.autocast) if stage.autocast else nullcontext():
                loss = stage.loss_of_batch(i) / micro
            scaler.scale(loss).backward()
            losses[step] += loss.detach()
        scaler.unscale_(optimizer)
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad(set_to_none=True)
        stage.after_step([group["lr"] for group in optimizer.param_groups])
        schedule.step()
        clock.tick(step + 1, losses)
    return LoopReport(stage.steps, clock.seconds(), _means(losses, stage.keep_losses))


class ProgressReporter:
    """Reports now and then; reading the losses is the only time the host waits for the device."""

    def __init__(self, stage: LoopSpec, micro: int, on_progress: OnProgress) -> None:
        self.stage, self.micro, self.on_progress = stage, micro, on_progress
        self.started = self.told = time.monotonic()
        self.told_step = 0

    def seconds(self) -> float:
        return time.monotonic() - self.started

    def tick(self, step: int, losses: torch.Tensor) -> None:
        now = time.monotonic()
        if step == self.stage.steps and not bool(losses.isfinite().all()):
            lrs = ", ".join(f"{group['lr']:g}" for group in self.stage.groups)
            raise DivergedError(f"The loss of {self.stage.name} was no longer a number; try lower rates than {lrs}.")
        if step < self.stage.steps and now - self.told < self.stage.report_seconds:
            return
        pace = max(now - self.started, 1e-9) / step
        self.on_progress(
            TrainingProgress(
                stage=self.stage.name,
                step=step,
                steps=self.stage.steps,
                loss=losses[self.told_step : step].mean().item(),
                pictures_per_second=self.stage.batch_size * self.micro / pace,
                seconds_left=pace * (self.stage.steps - step),
            )
        )
        self.told, self.told_step = now, step


def _means(losses: torch.Tensor, count: int) -> list[float]:
    """At most ``count`` means of equal stretches of ``losses``."""
    parts = torch.tensor_split(losses.float().cpu(), min(count, len(losses)))
    return [round(part.mean().item(), 5) for part in parts]
