"""The optimiser's loop that both stages share, and the callbacks that watch it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch

from lora_service.errors import DivergedError
from lora_service.training.inputs.config import TrainConfig
from lora_service.training.losses.batch_loss import BatchLoss
from lora_service.training.optimization.gradients import EagerGradients, Gradients
from lora_service.training.optimization.optimizers import learning_rates, make_lr_scheduler, make_optimizer
from lora_service.training.optimization.processes import Processes
from lora_service.training.optimization.weight_average import WeightAverage

_REPORTED_LOSSES = 32
"""Means of the loss, evenly spread over a stage, in its report."""
GOOD_LOSS = 2.0
"""A loss of so many times the first one's is no good state any more, though it is a number."""
KEPT_SHARE = 0.1
"""The share of a stage's steps after which its last good state is worth more than none."""


@dataclass(frozen=True)
class LoopSpec:
    """The steps of one stage.

    Attributes:
        param_groups: the optimiser's, each with ``params``, ``lr``, ``weight_decay`` and a ``name``; groups of one
            name have their gradients clipped together.
        compute_loss: the loss of what ``sample`` returned.
        sample: returns micro-batch ``i``, without gradients; the number itself unless given.
        generator: what ``sample`` draws noise and timesteps from.
        later_steps: the stages after this one, as a number of this one's steps.
        after_step: called after each step with the groups' learning rates.
    """

    name: str
    steps: int
    batch_size: int
    param_groups: list[dict[str, Any]]
    compute_loss: Callable[[Any], BatchLoss]
    sample: Callable[[int], Any] = lambda i: i
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
        parts: the same of what it is made of, by name, where it has several parts.
        stop_reason: the reason why it was stopped, "" where it was not.
        diverged_at: the step by which it was no number any more, and the state of ``steps`` was taken again; else 0.
        measurements: as of :class:`StageRun`.
        kept_step: the step whose parameters are the outcome.
    """

    steps: int
    seconds: float
    losses: list[float] = field(default_factory=list)
    stop_reason: str = ""
    diverged_at: int = 0
    measurements: dict[str, list[tuple[int, float]]] = field(default_factory=dict)
    kept_step: int = 0
    parts: dict[str, list[float]] = field(default_factory=dict)


class TrainingCallback:
    """Watches a stage; each method does nothing unless a subclass has its own.

    What a callback raises ends the training. Losses lie on the device: a callback that reads them makes the host wait,
    so it does so now and then and not at every step.
    """

    def on_stage_start(self, stage: StageRun) -> None:
        """Called before the first step; in a run that goes on from a checkpoint ``stage.step`` are behind it."""

    def on_step_end(self, stage: StageRun) -> None:
        """Called after each step; ``stage.step`` are done."""

    def on_stage_end(self, stage: StageRun) -> None:
        """Called once no further step will be taken."""

    def state_dict(self) -> Mapping[str, Any]:
        """Return what the callback has to know to go on from a checkpoint.

        It holds dictionaries, lists, tuples, numbers, texts and tensors. It is called after a step, or after
        ``on_stage_start``, of all callbacks.
        """
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from :meth:`state_dict`'s state, {} where there is none; called right after ``on_stage_start``."""


@dataclass(frozen=True)
class Snapshot:
    """The parameters of a step, in the stage's order, and a loss there."""

    step: int
    loss: float
    parameters: list[torch.Tensor]


class StageRun:
    """A stage while it runs.

    Attributes:
        step: the steps done.
        losses: name -> loss of each step ``(steps,)``, fp32 on the device, 0 where not yet done; "total" is the one
            that gradients were taken of.
        gradient_norms: name of the parameters that are clipped together -> the norm of their gradient in each step,
            before it is clipped; as ``losses``.
        stop_reason: the reason why it stops before its last step, "" where it does not.
        diverged_at: as of :class:`LoopReport`.
        measurements: name -> step and value of what is measured now and then, such as the held-out loss.
        best: the snapshot of the lowest held-out loss so far, None where nobody looks for one.
        kept_step: the step whose parameters are kept at the end, 0 for the last one.
    """

    def __init__(
        self,
        spec: LoopSpec,
        config: TrainConfig,
        processes: Processes | None = None,
        gradients: Gradients | None = None,
    ) -> None:
        self.spec, self.config = spec, config
        self._gradients = gradients or EagerGradients()
        self._processes = processes or Processes()
        self.parameters: list[torch.nn.Parameter] = [p for group in spec.param_groups for p in group["params"]]
        self.device = self.parameters[0].device
        self.optimizer = make_optimizer(spec.param_groups, config, self.device)
        self.lr_scheduler = make_lr_scheduler(self.optimizer, config, spec.steps)
        # fp16 gradients underflow without it; bf16 and fp32 ones do not.
        self._scaler = torch.amp.GradScaler(self.device.type, enabled=spec.autocast == torch.float16)
        self._average = WeightAverage(self.parameters, self.optimizer, config.ema_decay)
        self._clipped = self._clipping_groups()
        self.losses: dict[str, torch.Tensor] = {}
        self.gradient_norms: dict[str, torch.Tensor] = {}
        self.step = 0
        self.stop_reason = self._asked_to_stop = ""
        self.diverged_at = 0
        self._first_loss = 0.0
        self._good: Snapshot | None = None
        self.measurements: dict[str, list[tuple[int, float]]] = {}
        self.best: Snapshot | None = None
        self.kept_step = 0
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
        """End the stage after this step, as if it had no more; the first reason counts.

        Several processes end it together, one step later.
        """
        self._asked_to_stop = self._asked_to_stop or reason
        if self._processes.count == 1:
            self.stop_reason = self._asked_to_stop

    def take_step(self) -> None:
        """Take one optimiser step, which averages exactly ``gradient_accumulation_steps`` micro-batches."""
        accumulated = self.config.gradient_accumulation_steps
        for i in range(self.step * accumulated, (self.step + 1) * accumulated):
            with self.autocast():
                batch = self.spec.sample(i)
            batch_loss = self._gradients.add(self, batch)
            for name, loss in {"total": batch_loss.total, **batch_loss.parts}.items():
                self._add(self.losses, name, loss / accumulated)
        self._share_gradients()
        self._scaler.unscale_(self.optimizer)
        for name, parameters in self._clipped.items():
            norm = torch.nn.utils.clip_grad_norm_(parameters, self.config.max_grad_norm)
            self._add(self.gradient_norms, name, norm)
        self._scaler.step(self.optimizer)
        self._scaler.update()
        self.optimizer.zero_grad(set_to_none=not self._gradients.stay_in_place)
        self.spec.after_step(learning_rates(self.optimizer))
        self._average.update()
        self.lr_scheduler.step()
        self.step += 1

    def autocast(self) -> AbstractContextManager[Any]:
        """Return the context in which batches are sampled and their losses computed."""
        return torch.autocast(self.device.type, self.spec.autocast) if self.spec.autocast else nullcontext()

    def scaled(self, batch_loss: BatchLoss) -> torch.Tensor:
        """Return the scalar whose gradients are a micro-batch's part of a step's."""
        return self._scaler.scale(batch_loss.total / self.config.gradient_accumulation_steps)  # type: ignore[no-any-return]

    def _share_gradients(self) -> None:
        """Share gradients and losses with the other processes, and whether one of them was asked to stop."""
        if self._processes.count == 1:
            return
        asked = torch.full((), float(bool(self._asked_to_stop)), device=self.device)
        self._processes.average(self.parameters, *(losses[self.step] for losses in self.losses.values()), asked)
        if asked.item():
            self.stop_reason = self._asked_to_stop or "another process stopped"

    def _clipping_groups(self) -> dict[str, list[torch.nn.Parameter]]:
        """Return the parameters whose gradients are clipped together, by a name of theirs."""
        if not self.config.max_grad_norm:
            return {}
        if not self.config.clip_by_group:
            return {"all": self.parameters}
        by_name: dict[str, list[torch.nn.Parameter]] = {}
        for group in self.spec.param_groups:
            by_name.setdefault(group["name"], []).extend(group["params"])
        return by_name

    def _add(self, series: dict[str, torch.Tensor], name: str, value: torch.Tensor) -> None:
        """Add ``value`` to this step's number in the series of that name."""
        if name not in series:
            series[name] = torch.zeros(self.spec.steps, device=self.device)
        series[name][self.step] += value

    def measure(self, name: str, value: float) -> None:
        """Note a value that was measured after this step."""
        self.measurements.setdefault(name, []).append((self.step, value))

    def measured_now(self, name: str) -> bool:
        """Return True if ``name`` was measured after this step."""
        return bool(self.measurements.get(name)) and self.measurements[name][-1][0] == self.step

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
            "stop_reason": self.stop_reason,
            "seconds": self.seconds,
            "parameters": self.parameter_copies(),
            "optimizer": self.optimizer.state_dict(),
            "lr_scheduler": self.lr_scheduler.state_dict(),
            "scaler": self._scaler.state_dict(),
            "average": self._average.state_dict(),
            "generator": self.spec.generator.get_state(),
            "losses": dict(self.losses),
            "gradient_norms": dict(self.gradient_norms),
            "first_loss": self._first_loss,
            "measurements": {name: list(values) for name, values in self.measurements.items()},
            "best": None if self.best is None else vars(self.best),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where the stage was whose :meth:`state_dict` this is."""
        self.step, self.stop_reason = state["step"], state["stop_reason"]
        self.started = time.monotonic() - state["seconds"]
        self.set_parameters(state["parameters"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.lr_scheduler.load_state_dict(state["lr_scheduler"])
        self._scaler.load_state_dict(state["scaler"])
        self._average.load_state_dict(state["average"])
        self.spec.generator.set_state(state["generator"].cpu())
        self.losses = {name: losses.to(self.device) for name, losses in state["losses"].items()}
        self.gradient_norms = {name: norms.to(self.device) for name, norms in state["gradient_norms"].items()}
        self._first_loss = state["first_loss"]
        self.measurements = {name: list(values) for name, values in state["measurements"].items()}
        self.best = Snapshot(**state["best"]) if state["best"] else None

    def keep_if_good(self, loss: float) -> None:
        """Remember the state, to go back to it, if its parameters are finite and ``loss`` is no wreck's.

        Args:
            loss: finite; a mean of the last steps.
        """
        self._first_loss = self._first_loss or loss
        if loss > GOOD_LOSS * self._first_loss:
            return
        with self.evaluating():
            copies = [parameter.to("cpu", copy=True) for parameter in self.parameters]
        if all(bool(copy.isfinite().all()) for copy in copies):
            self._good = Snapshot(self.step, loss, copies)

    def go_back(self) -> bool:
        """End a stage that diverged at its last good state; return False where there is none that is worth a file.

        A stage that others build on has none: they would build on what was about to break. Nor have several processes
        one, of which only the main one looks at losses.
        """
        good = self._good
        if (
            good is None
            or self._processes.count > 1
            or self.spec.later_steps
            or good.step < KEPT_SHARE * self.spec.steps
        ):
            return False
        self.set_parameters(good.parameters)
        self._average.forget()
        self.diverged_at, self.step = self.step, good.step
        self.stop_reason = f"no number any more by step {self.diverged_at}"
        return True

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
        means = {name: _means(losses[: self.step], _REPORTED_LOSSES) for name, losses in self.losses.items()}
        return LoopReport(
            steps=self.step,
            seconds=self.seconds,
            losses=means.pop("total", []),
            parts=means,
            stop_reason=self.stop_reason,
            diverged_at=self.diverged_at,
            measurements=self.measurements,
            kept_step=self.kept_step or self.step,
        )


def run_loop(
    spec: LoopSpec,
    config: TrainConfig,
    callbacks: Sequence[TrainingCallback] = (),
    processes: Processes | None = None,
    gradients: Gradients | None = None,
) -> LoopReport:
    """Run the steps of ``spec``; a step counts once however many micro-batches it has, and rates are used as given.

    A stage that diverges ends at its last good state, where there is one (:meth:`StageRun.go_back`).

    Args:
        callbacks: those of this process; what they set the parameters to at the end counts for all if it is the main.
        processes: the processes that train together; None: this one alone.
        gradients: how those of a micro-batch are computed; None: one operation after the other.

    Raises:
        DivergedError: it diverges, and there is none.
    """
    processes = processes or Processes()
    stage = StageRun(spec, config, processes, gradients)
    for callback in callbacks:
        callback.on_stage_start(stage)
    try:
        _take_steps(stage, callbacks)
    except DivergedError:
        if not stage.go_back():
            raise
    for callback in callbacks:
        callback.on_stage_end(stage)
    processes.synchronize(stage.parameters)
    stage.check_parameters()
    return stage.report()


def _take_steps(stage: StageRun, callbacks: Sequence[TrainingCallback]) -> None:
    """Take the steps that are left.

    Raises:
        DivergedError: a learned weight is not finite at the end, or a callback saw that a loss was not.
    """
    while not stage.is_done:
        stage.take_step()
        for callback in callbacks:
            callback.on_step_end(stage)
    stage.keep_average()
    stage.check_parameters()


def _means(losses: torch.Tensor, count: int) -> list[float]:
    """Return at most ``count`` means of equal stretches of ``losses``."""
    if not len(losses):
        return []
    stretches = torch.tensor_split(losses.float().cpu(), min(count, len(losses)))
    return [round(stretch.mean().item(), 5) for stretch in stretches]
