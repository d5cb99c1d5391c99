"""Forward and backward pass recorded once for each shape of a batch, and replayed: a CUDA graph.

At batch 1 a step of Stable Diffusion costs the launches of some 3,000 kernels rather than their arithmetic; a replay
launches all of them at once (https://pytorch.org/blog/accelerating-pytorch-with-cuda-graphs/). ``torch.compile`` saves
the launches too, but compiling a UNet's backward pass takes longer than a whole training.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from lora_service.training.losses.batch_loss import BatchLoss
from lora_service.training.nested_tensors import map_tensors, shape_of, tensors_of
from lora_service.training.optimization.gradients import EagerGradients

if TYPE_CHECKING:
    from lora_service.training.optimization.loop import StageRun

SEEN_BEFORE = 2
"""Batches of a shape that run eagerly before it is recorded: rare ones are not worth it, and gradients get tensors."""
MOST_GRAPHS = 16
"""Shapes that are recorded; batches of further ones run eagerly."""

Replay = Callable[[], BatchLoss]
"""Runs the recorded passes on what their inputs hold now; the loss lies in the same tensors at each call."""


class CapturedGradients:
    """Records the passes of each shape of a batch, and replays them on copies of the batches.

    The parameters' gradients stay in place from step to step, as recorded kernels write to their addresses; whatever
    else a training changes, it changes in place. What cannot be recorded runs eagerly.

    Args:
        record: records passes, which it may also run, and returns what replays them; RuntimeError where it cannot.
        log: called with a line where recording fails.
    """

    stay_in_place = True

    def __init__(
        self,
        record: Callable[[Callable[[], BatchLoss]], Replay],
        log: Callable[[str], None] = lambda line: None,
    ) -> None:
        self._record, self._log = record, log
        self._eager = EagerGradients()
        self._stage: StageRun | None = None
        self._seen: dict[Hashable, int] = {}
        self._recorded: dict[Hashable, tuple[list[Tensor], Replay]] = {}
        self._fails = False

    def add(self, stage: StageRun, batch: Any) -> BatchLoss:
        """Add the gradients of a micro-batch, as of :class:`Gradients`."""
        if stage is not self._stage:  # other parameters learn: nothing that was recorded is of use
            self._stage, self._seen, self._recorded = stage, {}, {}
        shape = shape_of(batch)
        if shape not in self._recorded and not self._records(stage, batch, shape):
            return self._eager.add(stage, batch)
        inputs, replay = self._recorded[shape]
        torch._foreach_copy_(inputs, tensors_of(batch))
        return replay()

    def _records(self, stage: StageRun, batch: Any, shape: Hashable) -> bool:
        """Record the passes of this shape if it is time; return False where the batch is to be run eagerly."""
        self._seen[shape] = self._seen.get(shape, 0) + 1
        if self._fails or self._seen[shape] <= SEEN_BEFORE or len(self._recorded) >= MOST_GRAPHS:
            return False
        inputs = map_tensors(batch, torch.clone)
        gradients = [parameter.grad for parameter in stage.parameters if parameter.grad is not None]
        before = [gradient.clone() for gradient in gradients]
        try:
            replay = self._record(lambda: self._eager.add(stage, inputs))
        except RuntimeError as error:
            self._fails = True
            self._log(f"warning: the steps are not recorded, which would be faster: {_first_line(error)}")
            return False
        finally:
            torch._foreach_copy_(gradients, before)  # recording may run the passes
        self._recorded[shape] = (tensors_of(inputs), replay)
        return True


class CudaGraphs:
    """Records CUDA graphs that share their memory: one of them runs at a time, and its loss is read before the next."""

    def __init__(self) -> None:
        self._stream, self._pool = torch.cuda.Stream(), torch.cuda.graph_pool_handle()

    def record(self, passes: Callable[[], BatchLoss]) -> Replay:
        """Run ``passes`` once on a stream of its own, as PyTorch asks for, and record them there.

        Raises:
            RuntimeError: something in them waits for the device, or is done by the host.
        """
        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream):
            passes()
        torch.cuda.current_stream().wait_stream(self._stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool, stream=self._stream):
            loss = passes()

        def replay() -> BatchLoss:
            graph.replay()
            return loss

        return replay


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")
