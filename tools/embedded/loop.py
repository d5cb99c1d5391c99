"""A seeded training loop that can be stopped at any moment and started again, for a number of steps or of seconds."""

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
LOOK_SECONDS, SAVE_SECONDS = 2.0, 30.0
"""How often a run of so many seconds measures its pace, and how often it saves."""


@dataclass(frozen=True)
class Plan:
    """How long and how fast one part is trained.

    ``average`` is the decay of the moving average of the weights that is kept in
    the end; 0 keeps the last weights. ``orthogonal`` tells, by name and weights, which
    matrices and convolutions take Muon's steps (Jordan et al., 2024) in place of AdamW's.
    Step ``n`` draws what it needs from ``seed + n``. With ``seconds``, as many steps are made as
    fit in them (see ``Pace``), and ``steps`` and ``save_every`` are not what ends or saves them.
    """

    steps: int
    rate: float
    warmup: int = 100
    decay_from: float = 0.5
    average: float = 0.0
    orthogonal: Callable[[str, nn.Parameter], bool] = lambda _name, _weights: False
    seed: int = 1_000_003
    save_every: int = 250
    seconds: float = 0.0

    @staticmethod
    def within(seconds: float, rate: float, **more: Any) -> Plan:
        """As many steps as ``seconds`` allow; until the pace is known, no end is in sight."""
        return Plan(sys.maxsize, rate, seconds=seconds, **more)

    def rate_at(self, step: int) -> float:
        """Linear warm-up, constant, then a cosine to a hundredth from ``decay_from`` of the way."""
        start = self.decay_from * self.steps
        done = min(1.0, max(0.0, (step - start) / max(1.0, self.steps - start)))
        return self.rate * min(1.0, (step + 1) / self.warmup) * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * done)))


class Pace:
    """What the clock says of a run: ``plan`` with as many steps as fit, seconds spent, and when to save.

    With a budget in seconds the pace is measured every now and then, and the decay of the rate planned anew over
    what is left, so that a run ends in time, with the decay complete, whatever else the machine does meanwhile.
    """

    def __init__(self, plan: Plan, step: int, spent: float) -> None:
        if plan.seconds and step:
            plan = replace(plan, steps=step + max(0, int((plan.seconds - spent) * step / spent)))
        self.plan = plan
        self._step, self._spent = step, spent
        self._started = self._looked = self._saved = time.monotonic()

    @property
    def spent(self) -> float:
        """Seconds since the first step, with those before an interruption."""
        return self._spent + time.monotonic() - self._started

    def is_due(self, step: int) -> bool:
        """Whether the device should be waited for after ``step`` steps, to look at the clock or to save."""
        if step >= self.plan.steps or not self.plan.seconds:
            return step >= self.plan.steps or step % self.plan.save_every == 0
        return time.monotonic() - self._looked >= LOOK_SECONDS

    def look(self, step: int) -> float:
        """Seconds per step since the last look; the device has to be done with them."""
        pace = (time.monotonic() - self._looked) / (step - self._step)
        self._step = step
        if self.plan.seconds and step < self.plan.steps:
            left = self.plan.seconds - self.spent
            self.plan = replace(self.plan, steps=step + max(0, int(left / pace)))
        self._looked = time.monotonic()
        return pace

    def is_time_to_save(self, step: int) -> bool:
        """Whether to save at this look: always in a run of so many steps, now and then in one of so many seconds."""
        if step < self.plan.steps and self.plan.seconds and time.monotonic() - self._saved < SAVE_SECONDS:
            return False
        self._saved = time.monotonic()
        return True

    def saved(self) -> None:
        """What saving took is not the steps'."""
        self._looked = time.monotonic()


class Stepper:
    """AdamW for the weights of ``model``, but Muon for those that ``plan.orthogonal`` tells, at one rate.

    Muon takes matrices only; it is given views of the convolutions, whose channels have to come last.
    """

    def __init__(self, model: nn.Module, plan: Plan) -> None:
        self._all = list(model.parameters())
        self._orthogonal = [weights for name, weights in model.named_parameters() if plan.orthogonal(name, weights)]
        self._matrices = [_as_matrix(weights.data) for weights in self._orthogonal]
        chosen = {id(weights) for weights in self._orthogonal}
        rest = [weights for weights in self._all if id(weights) not in chosen]
        self._adamw = torch.optim.AdamW(rest, lr=plan.rate, weight_decay=WEIGHT_DECAY, betas=(0.9, 0.99), fused=True)
        # With AdamW's size of steps, one rate suits both (Liu et al., 2025).
        self._muon = Muon(self._matrices, WEIGHT_DECAY)

    def step(self, rate: float) -> None:
        """One step on the gradients, cut to norm 1, which are gone afterwards."""
        nn.utils.clip_grad_norm_(self._all, 1.0)
        self._muon.step([_gradient_as_matrix(weights) for weights in self._orthogonal], rate)
        for group in self._adamw.param_groups:
            group["lr"] = rate
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
    """``(out, in)`` itself, ``(out, in, h, w)`` as ``(out, h · w · in)`` in the same memory, or ``RuntimeError``."""
    return _channels_last(weights).view(len(weights), -1)


def _gradient_as_matrix(weights: nn.Parameter) -> torch.Tensor:
    gradient = torch.zeros_like(weights) if weights.grad is None else weights.grad
    return _channels_last(gradient).flatten(1)


def _channels_last(weights: torch.Tensor) -> torch.Tensor:
    return weights.permute(0, 2, 3, 1) if weights.ndim == 4 else weights


def fit(
    model: nn.Module, loss_of_step: Callable[[int, torch.Generator], torch.Tensor], plan: Plan, state: Path
) -> None:
    """Train ``model`` by ``plan`` on the device it is on; afterwards it holds the averaged weights.

    ``loss_of_step`` gets the step and a generator of that device, seeded by the step, so
    that a resumed run draws what the uninterrupted one would have drawn. ``state`` is
    written whole or not at all.
    """
    model.train().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    device = next(model.parameters()).device
    optimizer, generator = Stepper(model, plan), torch.Generator(device)
    current = model.state_dict()  # shares the weights' memory
    average = {k: v.clone() for k, v in current.items()}
    moving = [k for k, v in current.items() if v.is_floating_point()]
    step, spent = _restore(model, optimizer, average, state)
    pace, losses = Pace(plan, step, spent), []
    while step < pace.plan.steps:
        loss = loss_of_step(step, generator.manual_seed(plan.seed + step))
        loss.backward()
        optimizer.step(pace.plan.rate_at(step))
        losses.append(loss.detach())  # not .item(): the host would wait for the device at each step
        decay = min(plan.average, (1 + step) / (10 + step))
        torch._foreach_lerp_([average[k] for k in moving], [current[k] for k in moving], 1 - decay)
        step += 1
        if not pace.is_due(step):
            continue
        mean = torch.stack(losses[-plan.save_every :]).mean().item()
        seconds = pace.look(step)
        if pace.is_time_to_save(step):
            losses.clear()
            left = seconds * (pace.plan.steps - step) / 60
            print(
                f"{state.stem} {step}/{pace.plan.steps} loss {mean:.4f}, {seconds:.3f} s a step, {left:.1f} min left",
                flush=True,
            )
            _save(model, optimizer, average, step, pace.spent, state)
            pace.saved()
    model.load_state_dict(average)
    model.eval()


def _save(
    model: nn.Module, optimizer: Stepper, average: dict[str, torch.Tensor], step: int, spent: float, state: Path
) -> None:
    state.parent.mkdir(parents=True, exist_ok=True)
    part = state.with_suffix(".part")
    saved = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "average": average}
    torch.save(saved | {"step": step, "seconds": spent}, part)
    part.replace(state)


def _restore(model: nn.Module, optimizer: Stepper, average: dict[str, torch.Tensor], state: Path) -> tuple[int, float]:
    """Steps done, and the seconds they took."""
    if not state.exists():
        return 0, 0.0
    saved = torch.load(state, map_location="cpu", weights_only=True)
    model.load_state_dict(saved["model"])
    optimizer.load_state_dict(saved["optimizer"])
    for name, value in saved["average"].items():
        average[name].copy_(value)
    return int(saved["step"]), float(saved["seconds"])
