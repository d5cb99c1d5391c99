"""The optimiser's loop that both stages share, and the callbacks that watch it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch

from lora_service.errors import DivergedError
from lora_service.training.config import TrainConfig
from lora_service.training.optimizers import learning_rates, make_lr_scheduler, make_optimizer
from lora_service.training.weight_average import WeightAverage

_REPORTED_LOSSES = 32
"""Means of the loss, evenly spread over a stage, in its report."""


@dataclass(frozen=True)
class BatchLoss:
    """The loss of a micro-batch.

    Attributes:
        total: the scalar that gradients are taken of.
        parts: scalars to log beside it, by name, where ``total`` has several.
    """

    total: torch.Tensor
    parts: Mapping[str, torch.Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class LoopSpec:
    """The steps of one stage.

    Attributes:
        param_groups: the optimiser's, each with ``params``, ``lr``, ``weight_decay`` and a ``name``; groups of one
            name have their gradients clipped together.
        compute_loss: the loss of micro-batch ``i``.
        generator: what ``compute_loss`` draws noise and timesteps from.
        later_steps: the stages after this one, as a number of this one's steps.
        after_step: called after each step with the groups' learning rates.
    """

    name: str
    steps: int
    batch_size: int
    param_groups: list[dict[str, Any]]
    compute_loss: Callable[[int], BatchLoss]
    autocast: torch.dtype | None = None
    generator: torch.Generator = field(default_factory=torch.Generator)
    later_steps: float = 0
    after_step: Callable[[Sequence[float]], None] = lambda lrs: None


@dataclass
class LoopReport:
    """The outcome of a stage.

    Attributes:
        steps: those taken; fewer than asked for where the stage was stopped.
        losses: means of equal stretches of the loss.
        stop_reason: the reason why it was stopped, "" where it was not.
    """

    steps: int
    seconds: float
    losses: list[float] = field(default_factory=list)
    stop_reason: str = ""


class TrainingCallback:
    """Watches a stage; each method does nothing unless a subclass has its own.

    What a callback raises ends the training. Losses lie on the device: a callback that reads them makes the host wait,
    so it does so now and then and not at every step.
    """

    def on_stage_start(self, stage: StageRun) -> None:
        """Called before the first step."""

    def on_step_end(self, stage: StageRun) -> None:
        """Called after each step; ``stage.step`` are done."""

    def on_stage_end(self, stage: StageRun) -> None:
        """Called once no further step will be taken."""


class StageRun:
    """A stage while it runs.

    Attributes:
        step: the steps done.
        losses: name -> loss of each step ``(steps,)``, fp32 on the device, 0 where not yet done; "total" is the one
            that gradients were taken of.
        stop_reason: the reason why it stops before its last step, "" where it does not.
    """

    def __init__(self, spec: LoopSpec, config: TrainConfig) -> None:
        self.spec, self.config = spec, config
        self.parameters: list[torch.nn.Parameter] = [p for group in spec.param_groups for p in group["params"]]
        self.device = self.parameters[0].device
        self.optimizer = make_optimizer(spec.param_groups, config, self.device)
        self.lr_scheduler = make_lr_scheduler(self.optimizer, config, spec.steps)
        # fp16 gradients underflow without it; bf16 and fp32 ones do not.
        self._scaler = torch.amp.GradScaler(self.device.type, enabled=spec.autocast == torch.float16)
        self._average = WeightAverage(self.parameters, self.optimizer, config.ema_decay)
        self._clipped = self._clipping_groups()
        self.losses: dict[str, torch.Tensor] = {}
        self.step = 0
        self.stop_reason = ""
        self.started = time.monotonic()

    @property
    def is_done(self) -> bool:
        """True if no further step will be taken."""
        return bool(self.stop_reason) or self.step >= self.spec.steps

    @property
    def seconds(self) -> float:
        """The seconds since the stage began."""
        return time.monotonic() - self.started

    def stop(self, reason: str) -> None:
        """End the stage after this step, as if it had no more; the first reason counts."""
        self.stop_reason = self.stop_reason or reason

    def take_step(self) -> None:
        """Take one optimiser step, which averages exactly ``gradient_accumulation_steps`` micro-batches."""
        accumulated = self.config.gradient_accumulation_steps
        for i in range(self.step * accumulated, (self.step + 1) * accumulated):
            with torch.autocast(self.device.type, self.spec.autocast) if self.spec.autocast else nullcontext():
                batch_loss = self.spec.compute_loss(i)
            self._scaler.scale(batch_loss.total / accumulated).backward()
            self._add_loss("total", batch_loss.total, accumulated)
            for name, part in batch_loss.parts.items():
                self._add_loss(name, part, accumulated)
        self._scaler.unscale_(self.optimizer)
        for parameters in self._clipped:
            torch.nn.utils.clip_grad_norm_(parameters, self.config.max_grad_norm)
        self._scaler.step(self.optimizer)
        self._scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        self.spec.after_step(learning_rates(self.optimizer))
        self._average.update()
        self.lr_scheduler.step()
        self.step += 1

    def _clipping_groups(self) -> list[list[torch.nn.Parameter]]:
        if not self.config.max_grad_norm:
            return []
        if not self.config.clip_by_group:
            return [self.parameters]
        by_name: dict[str, list[torch.nn.Parameter]] = {}
        for group in self.spec.param_groups:
            by_name.setdefault(group["name"], []).extend(group["params"])
        return list(by_name.values())

    def _add_loss(self, name: str, loss: torch.Tensor, accumulated: int) -> None:
        if name not in self.losses:
            self.losses[name] = torch.zeros(self.spec.steps, device=self.device)
        self.losses[name][self.step] += loss.detach() / accumulated

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """Within the context the parameters are those that are kept, and no gradients are recorded.

        Whoever draws samples, measures a loss or saves the adapter does it in here.
        """
        with torch.no_grad(), self._average.swapped_in():
            yield

    def keep_average(self) -> None:
        """Make the parameters those that are kept, for good: no further step will be taken."""
        self._average.keep()

    def parameter_copies(self) -> list[torch.Tensor]:
        """Return copies of all parameters, in their order."""
        return [parameter.detach().clone() for parameter in self.parameters]

    def set_parameters(self, values: Sequence[torch.Tensor]) -> None:
        """Set all parameters to ``values``, as of :meth:`parameter_copies`."""
        with torch.no_grad():
            for parameter, value in zip(self.parameters, values, strict=True):
                parameter.copy_(value)

    def state_dict(self) -> dict[str, Any]:
        """Return all that the following steps depend on, but the inputs: a stage that loads it goes on alike."""
        return {
            "step": self.step,
            "parameters": self.parameter_copies(),
            "optimizer": self.optimizer.state_dict(),
            "lr_scheduler": self.lr_scheduler.state_dict(),
            "scaler": self._scaler.state_dict(),
            "average": self._average.state_dict(),
            "generator": self.spec.generator.get_state(),
            "losses": dict(self.losses),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where the stage was whose :meth:`state_dict` this is."""
        self.step = state["step"]
        self.set_parameters(state["parameters"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.lr_scheduler.load_state_dict(state["lr_scheduler"])
        self._scaler.load_state_dict(state["scaler"])
        self._average.load_state_dict(state["average"])
        self.spec.generator.set_state(state["generator"].cpu())
        self.losses = {name: losses.to(self.device) for name, losses in state["losses"].items()}

    def diverged(self, subject: str) -> DivergedError:
        """Return the error of a stage in which ``subject`` is not finite."""
        # The schedule has changed "lr" by now.
        lrs = ", ".join(dict.fromkeys(f"{group.get('initial_lr', group['lr']):g}" for group in self.spec.param_groups))
        precision = ", or mixed_precision bf16 or no" if self.spec.autocast == torch.float16 else ""
        return DivergedError(
            f"{subject} of {self.spec.name} was no longer a number by step {self.step} of {self.spec.steps}; try lower "
            f"learning rates than {lrs}, a tenth of them first, or lr_warmup_steps{precision}."
        )

    def check_parameters(self) -> None:
        """Check that all parameters are finite.

        Raises:
            DivergedError: one is not.
        """
        if not all(bool(parameter.isfinite().all()) for parameter in self.parameters):
            raise self.diverged("A learned weight")

    def report(self) -> LoopReport:
        """Return the outcome so far."""
        losses = self.losses["total"][: self.step] if self.step else torch.zeros(0)
        return LoopReport(self.step, self.seconds, _means(losses, _REPORTED_LOSSES), self.stop_reason)


def run_loop(spec: LoopSpec, config: TrainConfig, callbacks: Sequence[TrainingCallback] = ()) -> LoopReport:
    """Run the steps of ``spec``; a step counts once however many micro-batches it has, and rates are used as given.

    Raises:
        DivergedError: a learned weight is not finite at the end.
    """
    stage = StageRun(spec, config)
    for callback in callbacks:
        callback.on_stage_start(stage)
    while not stage.is_done:
        stage.take_step()
        for callback in callbacks:
            callback.on_step_end(stage)
    stage.keep_average()
    for callback in callbacks:
        callback.on_stage_end(stage)
    stage.check_parameters()
    return stage.report()


def _means(losses: torch.Tensor, count: int) -> list[float]:
    """Return at most ``count`` means of equal stretches of ``losses``."""
    if not len(losses):
        return []
    stretches = torch.tensor_split(losses.float().cpu(), min(count, len(losses)))
    return [round(stretch.mean().item(), 5) for stretch in stretches]
