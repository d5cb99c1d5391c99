"""A seeded training loop of a number of steps or of seconds, which can be interrupted and resumed at any moment."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from tools.embedded.muon import Muon

WEIGHT_DECAY = 0.01
MEASURE_SECONDS, SAVE_SECONDS = 2.0, 30.0
"""Intervals at which a run with a time budget measures its speed, and saves a checkpoint."""


@dataclass(frozen=True)
class Plan:
    """The length of a training, its learning rate and its optimizers.

    Attributes:
        steps: the number of steps, where ``seconds`` is 0.
        learning_rate: the largest learning rate, after the warm-up.
        warmup: steps of linear warm-up.
        decay_from: the share of the steps after which the cosine decay begins.
        ema_decay: decay of the exponential moving average of the weights, which is the result; 0: the last weights.
        uses_muon: selects, by name and weights, the matrices and convolutions that Muon (Jordan et al., 2024)
            updates in place of AdamW.
        seed: step ``n`` seeds its generator with ``seed + n``.
        save_every: steps between checkpoints, where ``seconds`` is 0.
        seconds: a time budget, in which as many steps are made as fit (see ``Pace``); 0: none.
    """

    steps: int
    learning_rate: float
    warmup: int = 100
    decay_from: float = 0.5
    ema_decay: float = 0.0
    uses_muon: Callable[[str, nn.Parameter], bool] = lambda _name, _weights: False
    seed: int = 1_000_003
    save_every: int = 250
    seconds: float = 0.0

    @staticmethod
    def within(seconds: float, learning_rate: float, **options: Any) -> Plan:
        """Return a plan of as many steps as fit into ``seconds``; ``steps`` is unlimited until the pace is measured."""
        return Plan(sys.maxsize, learning_rate, seconds=seconds, **options)

    def learning_rate_at(self, step: int) -> float:
        """Return the learning rate of a step: linear warm-up, constant, then cosine decay to a hundredth."""
        start = self.decay_from * self.steps
        decayed = min(1.0, max(0.0, (step - start) / max(1.0, self.steps - start)))
        warmup = min(1.0, (step + 1) / self.warmup)
        return self.learning_rate * warmup * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * decayed)))


class Pace:
    """The clock of a run: the plan with its number of steps, the seconds elapsed, and the time of the next checkpoint.

    With a time budget, the seconds per step are measured at intervals and the number of steps in ``plan`` is
    adjusted, so that the run ends in time with its learning rate fully decayed, even on a busy machine.
    """

    def __init__(self, plan: Plan, step: int, elapsed: float) -> None:
        """Start the clock of a run that has done ``step`` steps in ``elapsed`` seconds before it was interrupted."""
        if plan.seconds and step:
            plan = replace(plan, steps=step + max(0, int((plan.seconds - elapsed) * step / elapsed)))
        self.plan = plan
        self._step, self._elapsed = step, elapsed
        self._started = self._measured = self._saved = time.monotonic()

    @property
    def elapsed(self) -> float:
        """Seconds since the first step, including those before an interruption."""
        return self._elapsed + time.monotonic() - self._started

    def is_due(self, step: int) -> bool:
        """Return True where the device is to be synchronized after ``step`` steps, to measure and perhaps to save."""
        if step >= self.plan.steps or not self.plan.seconds:
            return step >= self.plan.steps or step % self.plan.save_every == 0
        return time.monotonic() - self._measured >= MEASURE_SECONDS

    def measure(self, step: int) -> float:
        """Return the seconds per step since the last measurement; the device has to be synchronized before."""
        seconds_per_step = (time.monotonic() - self._measured) / (step - self._step)
        self._step = step
        if self.plan.seconds and step < self.plan.steps:
            remaining = self.plan.seconds - self.elapsed
            self.plan = replace(self.plan, steps=step + max(0, int(remaining / seconds_per_step)))
        self._measured = time.monotonic()
        return seconds_per_step

    def is_time_to_save(self, step: int) -> bool:
        """Return True at every measurement of a run of steps, and every ``SAVE_SECONDS`` with a time budget."""
        if step < self.plan.steps and self.plan.seconds and time.monotonic() - self._saved < SAVE_SECONDS:
            return False
        self._saved = time.monotonic()
        return True

    def exclude_saving(self) -> None:
        """Restart the measurement after a checkpoint, so that the time to write it does not count."""
        self._measured = time.monotonic()


class MuonWithAdamW:
    """Muon for the parameters of ``model`` that ``plan.uses_muon`` selects, AdamW for the rest, at one learning rate.

    Muon updates matrices; it gets views of the convolutions, which have to be in the channels-last memory format.
    """

    def __init__(self, model: nn.Module, plan: Plan) -> None:
        self._all = list(model.parameters())
        self._muon_parameters = [weights for name, weights in model.named_parameters() if plan.uses_muon(name, weights)]
        muon_ids = {id(weights) for weights in self._muon_parameters}
        rest = [weights for weights in self._all if id(weights) not in muon_ids]
        self._adamw = torch.optim.AdamW(
            rest, lr=plan.learning_rate, weight_decay=WEIGHT_DECAY, betas=(0.9, 0.99), fused=True
        )
        # With updates of AdamW's RMS, one learning rate suits both (Liu et al., 2025).
        self._muon = Muon([_as_matrix(weights.data) for weights in self._muon_parameters], WEIGHT_DECAY)

    def step(self, learning_rate: float) -> None:
        """Clip the gradients to norm 1, update all parameters, and reset the gradients."""
        nn.utils.clip_grad_norm_(self._all, 1.0)
        self._muon.step([_gradient_as_matrix(weights) for weights in self._muon_parameters], learning_rate)
        for group in self._adamw.param_groups:
            group["lr"] = learning_rate
        self._adamw.step()
        for weights in self._all:
            weights.grad = None

    def state_dict(self) -> list[dict[str, Any]]:
        return [self._adamw.state_dict(), self._muon.state_dict()]

    def load_state_dict(self, states: list[dict[str, Any]]) -> None:
        adamw, muon = states
        self._adamw.load_state_dict(adamw)
        self._muon.load_state_dict(muon)


def _as_matrix(weights: torch.Tensor) -> torch.Tensor:
    """Return a view: ``(out, in)`` unchanged, ``(out, in, h, w)`` as ``(out, h · w · in)``.

    Raises:
        RuntimeError: a convolution that is not in the channels-last memory format.
    """
    return _channels_last(weights).view(len(weights), -1)


def _gradient_as_matrix(weights: nn.Parameter) -> torch.Tensor:
    gradient = torch.zeros_like(weights) if weights.grad is None else weights.grad
    return _channels_last(gradient).flatten(1)


def _channels_last(weights: torch.Tensor) -> torch.Tensor:
    return weights.permute(0, 2, 3, 1) if weights.ndim == 4 else weights


def fit(
    model: nn.Module, loss_of_step: Callable[[int, torch.Generator], torch.Tensor], plan: Plan, checkpoint: Path
) -> None:
    """Train ``model`` by ``plan`` on its device; afterwards it is in evaluation mode, with the averaged weights.

    Args:
        loss_of_step: gets the step and a generator on that device, seeded by the step, so that a resumed run
            draws the same numbers as an uninterrupted one.
        checkpoint: the file that the run is saved to, atomically, and resumed from where it exists.
    """
    model.train().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    device = next(model.parameters()).device
    optimizer, generator = MuonWithAdamW(model, plan), torch.Generator(device)
    current = model.state_dict()  # shares the weights' memory
    average = {k: v.clone() for k, v in current.items()}
    averaged = [k for k, v in current.items() if v.is_floating_point()]
    step, elapsed = _restore(model, optimizer, average, checkpoint)
    pace, losses = Pace(plan, step, elapsed), []
    while step < pace.plan.steps:
        loss = loss_of_step(step, generator.manual_seed(plan.seed + step))
        loss.backward()
        optimizer.step(pace.plan.learning_rate_at(step))
        losses.append(loss.detach())  # not .item(): the host would wait for the device at each step
        decay = min(plan.ema_decay, (1 + step) / (10 + step))
        torch._foreach_lerp_([average[k] for k in averaged], [current[k] for k in averaged], 1 - decay)
        step += 1
        if not pace.is_due(step):
            continue
        mean_loss = torch.stack(losses[-plan.save_every :]).mean().item()
        seconds = pace.measure(step)
        if pace.is_time_to_save(step):
            losses.clear()
            progress = f"{checkpoint.stem} {step}/{pace.plan.steps} loss {mean_loss:.4f}, {seconds:.3f} s a step"
            print(f"{progress}, {seconds * (pace.plan.steps - step) / 60:.1f} min left", flush=True)
            _save(model, optimizer, average, {"step": step, "seconds": pace.elapsed}, checkpoint)
            pace.exclude_saving()
    model.load_state_dict(average)
    model.eval()


def _save(
    model: nn.Module,
    optimizer: MuonWithAdamW,
    average: dict[str, torch.Tensor],
    progress: dict[str, float],
    checkpoint: Path,
) -> None:
    checkpoint.parent.mkdir(parents=True, exist_ok=True)
    part = checkpoint.with_suffix(".part")
    state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "average": average}
    torch.save(state | progress, part)
    part.replace(checkpoint)


def _restore(
    model: nn.Module, optimizer: MuonWithAdamW, average: dict[str, torch.Tensor], checkpoint: Path
) -> tuple[int, float]:
    """Load a checkpoint where there is one, and return the steps done and the seconds elapsed."""
    if not checkpoint.exists():
        return 0, 0.0
    saved = torch.load(checkpoint, map_location="cpu", weights_only=True)
    model.load_state_dict(saved["model"])
    optimizer.load_state_dict(saved["optimizer"])
    for name, value in saved["average"].items():
        average[name].copy_(value)
    return int(saved["step"]), float(saved["seconds"])
