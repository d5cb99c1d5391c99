"""The gradients of the micro-batches of several jobs, computed in one forward and backward pass.

Each job is a training as any other, in a thread of its own; of all threads one runs at a time. A job that has sampled
a micro-batch waits until all others have one too, or have ended. Whoever comes last computes the gradients of all.
"""

from __future__ import annotations

import sys
import threading
import time
import traceback
from collections import defaultdict
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import torch

from lora_service.errors import LoraServiceError
from lora_service.models.diffusion_base import DiffusionBase
from lora_service.training.losses.batch_loss import BatchLoss, NoisyBatch, SubjectLoss, predict_together
from lora_service.training.nested_tensors import map_tensors, shape_of
from lora_service.training.optimization.captured_gradients import PassRecorder
from lora_service.training.optimization.gradients import EagerGradients
from lora_service.training.optimization.loop import StageRun
from lora_service.training.together.joint_base import adapter_shape, joint_base

T = TypeVar("T")
MOST_JOINT_BASES = 16
"""Bases that are kept for later passes: where pictures are of several sizes, each set of jobs that ever meet has one, a
copy of all modules but not of their weights."""
_POLL_SECONDS = 0.2  # between looks for an interruption


class StoppedTogetherError(LoraServiceError):
    """The job ended because what ran all of them was interrupted."""


@dataclass(eq=False)
class _Request:
    """Job ``number``, which waits for the gradients of a micro-batch."""

    number: int
    job: DiffusionBase
    stage: StageRun
    batch: Any
    result: BatchLoss | None = None
    error: BaseException | None = None


@dataclass(frozen=True)
class JobGradients:
    """The gradients of job ``number`` of ``together``.

    Args:
        job: the job's own base, on weights that all share.
    """

    together: JointGradients
    number: int
    job: DiffusionBase

    @property
    def stay_in_place(self) -> bool:
        """True where passes are recorded."""
        return self.together.recorder is not None

    def add(self, stage: StageRun, batch: Any) -> BatchLoss:
        """Add the gradients of a micro-batch, as of :class:`Gradients`, together with those of the other jobs."""
        return self.together.add(_Request(self.number, self.job, stage, batch))


class JointGradients:
    """The place where the jobs wait for each other.

    Batches of pictures of one size, with captions of one length, on adapters of one shape, share a pass; others have
    one of their own, as have losses that keep the subject's class. A pass that does not fit the memory is divided.

    Args:
        base: whose weights the jobs share.
        log: called with a line where passes are divided.
        recorder: records the passes; None: they run eagerly.
    """

    def __init__(
        self,
        base: DiffusionBase,
        log: Callable[[str], None] = lambda line: None,
        recorder: PassRecorder | None = None,
    ) -> None:
        self._base, self._log, self.recorder = base, log, recorder
        self._turn = threading.Condition()
        self._running = 0
        self._waiting: list[_Request] = []
        self._is_stopped = False
        self._joint: dict[tuple[StageRun, ...], DiffusionBase] = {}
        self._shapes: dict[StageRun, Hashable | None] = {}
        self._most = sys.maxsize
        self._fitting: set[Hashable] = set()
        self.passes: list[int] = []
        """Jobs in each pass so far."""

    def run(self, jobs: Sequence[Callable[[], T]]) -> list[T | Exception]:
        """Run ``jobs``, each in a thread; return what each returned or raised.

        An interruption ends all of them at their next step, and is raised once they have ended.
        """
        results: list[T | Exception] = [StoppedTogetherError("It did not begin.", code="interrupted")] * len(jobs)

        def run_one(i: int) -> None:
            with self._turn:
                try:
                    if not self._is_stopped:
                        results[i] = jobs[i]()
                except Exception as error:
                    results[i] = error
                    _release(error)
                finally:
                    self._running -= 1
                    self._turn.notify_all()

        self._running = len(jobs)
        threads = [threading.Thread(target=run_one, args=(i,), name=f"training {i + 1}") for i in range(len(jobs))]
        try:
            for thread in threads:
                thread.start()
            while any(thread.is_alive() for thread in threads):
                time.sleep(_POLL_SECONDS)  # unlike join, it lets an exception through that another thread raises here
        except BaseException:
            self._is_stopped = True
            for thread in threads:
                if thread.ident is not None:
                    thread.join()
            raise
        return results

    def add(self, request: _Request) -> BatchLoss:
        """Wait until the gradients of ``request`` are computed with those of all others; return its loss."""
        self._waiting.append(request)
        while request.result is None and request.error is None:
            if self._is_stopped:
                self._waiting.remove(request)
                raise StoppedTogetherError("It was interrupted together with the other jobs.", code="interrupted")
            if len(self._waiting) == self._running:
                self._compute_all()
            else:
                self._turn.wait(timeout=_POLL_SECONDS)
        if request.error is not None:
            raise request.error
        assert request.result is not None
        return request.result

    def _compute_all(self) -> None:
        """Compute the gradients of all who wait; whatever goes wrong, none of them waits any longer."""
        requests, self._waiting = self._waiting, []
        try:
            self._compute(requests)
        except BaseException as error:
            self._fail([request for request in requests if request.result is None and request.error is None], error)
        finally:
            self._turn.notify_all()

    def _compute(self, requests: Sequence[_Request]) -> None:
        self._forget_other_stages({request.stage for request in requests})
        groups: dict[Hashable, list[_Request]] = defaultdict(list)
        for request in sorted(requests, key=lambda each: each.number):  # they come in any order
            groups[self._key(request)].append(request)
        for key, group in groups.items():
            self._compute_group(key, group)

    def _forget_other_stages(self, stages: set[StageRun]) -> None:
        self._joint = {of: base for of, base in self._joint.items() if stages.issuperset(of)}
        self._shapes = {of: shape for of, shape in self._shapes.items() if of in stages}
        if self.recorder is not None:
            self.recorder.keep(stages.issuperset)

    def _key(self, request: _Request) -> Hashable:
        """Return what batches have in common that can share a pass; of its own where there is no such thing."""
        stage, batch, loss = request.stage, request.batch, request.stage.spec.compute_loss
        if stage not in self._shapes:
            self._shapes[stage] = adapter_shape(request.job)
        if self._shapes[stage] is None or not isinstance(loss, SubjectLoss):
            return id(request)
        sizes = shape_of((batch.noisy, batch.captions, batch.sizes))
        return self._shapes[stage], stage.spec.autocast, loss.text.clip_skip, sizes

    def _compute_group(self, key: Hashable, group: Sequence[_Request]) -> None:
        if len(group) > self._most:
            self._compute_group(key, group[: self._most])
            self._compute_group(key, group[self._most :])
            return
        is_new = len(group) > 1 and (key, len(group)) not in self._fitting
        before = [_gradients(request.stage) if is_new else [] for request in group]
        try:
            self._pass(group)
        except torch.OutOfMemoryError as error:
            if not is_new:
                self._fail(group, error)
                return
            for request, gradients in zip(group, before, strict=True):
                _put_back(request.stage, gradients)
            self._most = len(group) // 2
            self._log(f"{len(group)} trainings do not fit the memory at once: at most {self._most} do so from now on")
        except Exception as error:
            self._fail(group, error)
            return
        else:
            if is_new:
                self._fitting.add((key, len(group)))
            self.passes.append(len(group))
            return
        self._compute_group(key, group)  # here, as the error no longer holds the tensors of its pass

    def _fail(self, group: Sequence[_Request], error: BaseException) -> None:
        for request in group:
            request.error = error

    def _pass(self, group: Sequence[_Request]) -> None:
        stages, batches = tuple(request.stage for request in group), tuple(request.batch for request in group)
        compute = partial(self._joint_pass, self._joint_base(group), stages) if len(group) > 1 else _pass_of(stages[0])
        if self.recorder is None:
            losses = compute(batches)
        else:
            parameters = [parameter for stage in stages for parameter in stage.parameters]
            recorded = self.recorder.run(stages, batches, compute, parameters)
            losses = map_tensors(recorded, torch.clone)  # the next group's pass may overwrite them
        for request, loss in zip(group, losses, strict=True):
            request.result = loss

    @staticmethod
    def _joint_pass(
        base: DiffusionBase, stages: Sequence[StageRun], batches: Sequence[NoisyBatch]
    ) -> tuple[BatchLoss, ...]:
        """Add the gradients of ``batches``, one of each stage; return their losses."""
        with stages[0].autocast():
            parts = predict_together(base, base.text, batches)
            losses = [BatchLoss(batch.loss_of(part)) for batch, part in zip(batches, parts, strict=True)]
        torch.autograd.backward([stage.scaled(loss) for stage, loss in zip(stages, losses, strict=True)])
        return tuple(loss.detach() for loss in losses)

    def _joint_base(self, group: Sequence[_Request]) -> DiffusionBase:
        stages = tuple(request.stage for request in group)
        base = self._joint.pop(stages, None)
        if base is None:
            text = group[0].stage.spec.compute_loss.text  # type: ignore[attr-defined]
            base = joint_base(self._base, [request.job for request in group], text)
        self._joint[stages] = base  # the one used last is the last
        while len(self._joint) > MOST_JOINT_BASES:
            self._joint.pop(next(iter(self._joint)))
        return base


def _release(error: BaseException) -> None:
    """Free what the frames of an error hold, such as a job's models: it is kept while the other jobs go on."""
    each: BaseException | None = error
    while each is not None:
        traceback.clear_frames(each.__traceback__)
        each = each.__cause__ or each.__context__


def _pass_of(stage: StageRun) -> Callable[[Sequence[Any]], tuple[BatchLoss, ...]]:
    """Return the pass of a job that shares none."""
    return lambda batches: (EagerGradients().add(stage, batches[0]),)


def _gradients(stage: StageRun) -> list[torch.Tensor | None]:
    return [None if parameter.grad is None else parameter.grad.clone() for parameter in stage.parameters]


def _put_back(stage: StageRun, gradients: Sequence[torch.Tensor | None]) -> None:
    for parameter, gradient in zip(stage.parameters, gradients, strict=True):
        if parameter.grad is not None and gradient is not None:
            parameter.grad.copy_(gradient)  # recorded passes have its address
        else:
            parameter.grad = gradient
