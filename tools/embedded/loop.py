"""A seeded training loop that can be stopped at any moment and started again."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn


@dataclass(frozen=True)
class Plan:
    """How long and how fast one part is trained.

    ``average`` is the decay of the moving average of the weights that is kept in
    the end; 0 keeps the last weights. ``orthogonal`` tells, by name and weights, which
    matrices and convolutions take Muon's steps (Jordan et al., 2024) in place of AdamW's.
    Step ``n`` draws what it needs from ``seed + n``.
    """

    steps: int
    rate: float
    warmup: int = 100
    decay_from: float = 0.5
    average: float = 0.0
    orthogonal: Callable[[str, nn.Parameter], bool] = lambda _name, _weights: False
    seed: int = 1_000_003
    save_every: int = 250

    def rate_at(self, step: int) -> float:
        """Linear warm-up, constant, then a cosine to a hundredth from ``decay_from`` of the way."""
        start = self.decay_from * self.steps
        done = min(1.0, max(0.0, (step - start) / max(1.0, self.steps - start)))
        return self.rate * min(1.0, (step + 1) / self.warmup) * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * done)))


class Stepper:
    """AdamW for the weights of ``model``, but Muon for those that ``plan.orthogonal`` tells, at one rate.

    PyTorch's Muon takes matrices only; it is given views of the convolutions, whose channels have to come last.
    """

    def __init__(self, model: nn.Module, plan: Plan) -> None:
        self._all = list(model.parameters())
        self._orthogonal = [weights for name, weights in model.named_parameters() if plan.orthogonal(name, weights)]
        self._matrices = [nn.Parameter(_as_matrix(weights.data)) for weights in self._orthogonal]
        chosen = {id(weights) for weights in self._orthogonal}
        rest = [weights for weights in self._all if id(weights) not in chosen]
        adamw = torch.optim.AdamW(rest, lr=plan.rate, weight_decay=0.01, betas=(0.9, 0.99), fused=True)
        self._optimizers: list[torch.optim.Optimizer] = [adamw]
        if self._matrices:
            # With AdamW's size of steps, one rate suits both (Liu et al., 2025).
            muon = torch.optim.Muon(self._matrices, lr=plan.rate, weight_decay=0.01, adjust_lr_fn="match_rms_adamw")
            self._optimizers.append(muon)

    def step(self, rate: float) -> None:
        """One step on the gradients, cut to norm 1, which are gone afterwards."""
        nn.utils.clip_grad_norm_(self._all, 1.0)
        for weights, matrix in zip(self._orthogonal, self._matrices, strict=True):
            matrix.grad = None if weights.grad is None else _channels_last(weights.grad).flatten(1)
        for optimizer in self._optimizers:
            for group in optimizer.param_groups:
                group["lr"] = rate
            optimizer.step()
        for weights in self._all:
            weights.grad = None

    def state_dict(self) -> list[dict[str, Any]]:
        return [optimizer.state_dict() for optimizer in self._optimizers]

    def load_state_dict(self, states: list[dict[str, Any]]) -> None:
        for optimizer, state in zip(self._optimizers, states, strict=True):
            optimizer.load_state_dict(state)


def _as_matrix(weights: torch.Tensor) -> torch.Tensor:
    """``(out, in)`` itself, ``(out, in, h, w)`` as ``(out, h · w · in)`` in the same memory, or ``RuntimeError``."""
    return _channels_last(weights).view(len(weights), -1)


def _channels_last(weights: torch.Tensor) -> torch.Tensor:
    return weights.permute(0, 2, 3, 1) if weights.ndim == 4 else weights


def fit(
    model: nn.Module, loss_of_step: Callable[[int, torch.Generator], torch.Tensor], plan: Plan, state: Path
) -> None:
    """Train ``model`` by ``plan``; afterwards it holds the averaged weights.

    ``loss_of_step`` gets the step and a generator seeded by it, so that a resumed
    run draws what the uninterrupted one would have drawn. ``state`` is written
    whole or not at all.
    """
    model.train().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimizer = Stepper(model, plan)
    current = model.state_dict()  # shares the weights' memory
    average = {k: v.clone() for k, v in current.items()}
    moving = [k for k, v in current.items() if v.is_floating_point()]
    first = _restore(model, optimizer, average, state)
    started, losses = time.monotonic(), []
    for step in range(first, plan.steps):
        loss = loss_of_step(step, torch.Generator().manual_seed(plan.seed + step))
        loss.backward()
        optimizer.step(plan.rate_at(step))
        losses.append(loss.detach())
        decay = min(plan.average, (1 + step) / (10 + step))
        torch._foreach_lerp_([average[k] for k in moving], [current[k] for k in moving], 1 - decay)
        if (step + 1) % plan.save_every == 0 or step + 1 == plan.steps:
            pace = (time.monotonic() - started) / (step + 1 - first)
            mean = torch.stack(losses).mean().item()
            losses.clear()
            left = pace * (plan.steps - step - 1) / 60
            print(
                f"{state.stem} {step + 1}/{plan.steps} loss {mean:.4f}, {pace:.2f} s a step, {left:.0f} min left",
                flush=True,
            )
            _save(model, optimizer, average, step + 1, state)
    model.load_state_dict(average)
    model.eval()


def _save(model: nn.Module, optimizer: Stepper, average: dict[str, torch.Tensor], step: int, state: Path) -> None:
    state.parent.mkdir(parents=True, exist_ok=True)
    part = state.with_suffix(".part")
    torch.save(
        {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "average": average, "step": step}, part
    )
    part.replace(state)


def _restore(model: nn.Module, optimizer: Stepper, average: dict[str, torch.Tensor], state: Path) -> int:
    if not state.exists():
        return 0
    saved = torch.load(state, weights_only=True)
    model.load_state_dict(saved["model"])
    optimizer.load_state_dict(saved["optimizer"])
    for name, value in saved["average"].items():
        average[name].copy_(value)
    return int(saved["step"])
