"""Forward and backward pass recorded once for each shape of a batch, and replayed: a CUDA graph.

At batch 1 a step of Stable Diffusion costs the launches of some 3,000 kernels rather than their arithmetic; a replay
launches all of them at once (https://pytorch.org/blog/accelerating-pytorch-with-cuda-graphs/). ``torch.compile`` saves
the launches too, but compiling a UNet's backward pass takes longer than a whole training.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor, nn

from lora_service.settings import Settings
from lora_service.training.losses.batch_loss import BatchLoss
from lora_service.training.nested_tensors import map_tensors, shape_of, tensors_of
from lora_service.training.optimization.gradients import EagerGradients

if TYPE_CHECKING:
    from lora_service.training.optimization.loop import StageRun

SEEN_BEFORE = 2
"""Batches of a shape that run eagerly before it is recorded: rare ones are not worth it, and gradients get tensors."""
MOST_GRAPHS = 16
"""Shapes that are recorded; batches of further ones run eagerly."""

Loss = TypeVar("Loss")
Record = Callable[[Callable[[], Any]], Callable[[], Any]]
"""Records passes, which it may also run, and returns what replays them and returns what they did, in the same tensors;
RuntimeError where it cannot."""


class PassRecorder:
    """Records passes once for each shape of their inputs, and replays them on copies of the inputs.

    What cannot be recorded runs eagerly. The parameters' gradients have to stay in place, as recorded kernels write to
    their addresses; and whatever else changes between passes has to change in place.

    Args:
        log: called with a line where recording fails.
    """

    def __init__(self, record: Record, log: Callable[[str], None] = lambda line: None) -> None:
        self._record, self._log = record, log
        self._seen: Counter[tuple[Hashable, Hashable]] = Counter()
        self._recorded: dict[tuple[Hashable, Hashable], tuple[list[Tensor], Callable[[], Any]]] = {}
        self._fails = False

    def run(
        self, owner: Hashable, inputs: Any, passes: Callable[[Any], Loss], parameters: Sequence[nn.Parameter]
    ) -> Loss:
        """Run ``passes`` on ``inputs``, or what was recorded of them.

        Args:
            owner: what the passes depend on besides.
            passes: add to the gradients of ``parameters``.

        Returns:
            What the passes return; it may be overwritten at the next call.
        """
        key = (owner, shape_of(inputs))
        if key not in self._recorded and not self._records(key, inputs, passes, parameters):
            return passes(inputs)
        kept, replay = self._recorded[key]
        torch._foreach_copy_(kept, tensors_of(inputs))
        return replay()  # type: ignore[no-any-return]

    def keep(self, is_kept: Callable[[Any], bool]) -> None:
        """Forget the passes of owners that are not to be kept."""
        self._recorded = {key: value for key, value in self._recorded.items() if is_kept(key[0])}
        self._seen = Counter({key: count for key, count in self._seen.items() if is_kept(key[0])})

    def _records(
        self,
        key: tuple[Hashable, Hashable],
        inputs: Any,
        passes: Callable[[Any], Any],
        parameters: Sequence[nn.Parameter],
    ) -> bool:
        """Record the passes of this shape if it is time; return False where they are to be run eagerly."""
        self._seen[key] += 1
        if self._fails or self._seen[key] <= SEEN_BEFORE or len(self._recorded) >= MOST_GRAPHS:
            return False
        kept = map_tensors(inputs, torch.clone)
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        before = [gradient.clone() for gradient in gradients]
        try:
            replay = self._record(lambda: passes(kept))
        except RuntimeError as error:
            self._fails = True
            self._log(f"warning: the steps are not recorded, which would be faster: {_first_line(error)}")
            return False
        finally:
            torch._foreach_copy_(gradients, before)  # recording may run the passes
        self._recorded[key] = (tensors_of(kept), replay)
        return True


class CapturedGradients:
    """The gradients of :class:`EagerGradients`, by passes that are recorded and replayed.

    Args:
        recorder: of this training alone.
    """

    stay_in_place = True

    def __init__(self, recorder: PassRecorder) -> None:
        self._recorder, self._eager = recorder, EagerGradients()
        self._stage: StageRun | None = None

    def add(self, stage: StageRun, batch: Any) -> BatchLoss:
        """Add the gradients of a micro-batch, as of :class:`Gradients`."""
        if stage is not self._stage:  # other parameters learn
            self._stage = stage
            self._recorder.keep(lambda owner: owner is stage)
        return self._recorder.run(stage, batch, lambda inputs: self._eager.add(stage, inputs), stage.parameters)


class CudaGraphs:
    """Records CUDA graphs that share their memory: one of them runs at a time, and its loss is read before the next."""

    def __init__(self) -> None:
        self._stream, self._pool = torch.cuda.Stream(), torch.cuda.graph_pool_handle()

    def record(self, passes: Callable[[], Any]) -> Callable[[], Any]:
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

        def replay() -> Any:
            graph.replay()
            return loss

        return replay


def recorder_of(settings: Settings, device: torch.device, log: Callable[[str], None]) -> PassRecorder | None:
    """Return what records passes where ``CUDA_GRAPHS`` asks for it; None where it does not, or cannot on ``device``."""
    if not settings.cuda_graphs:
        return None
    if device.type != "cuda":
        log(f"warning: CUDA_GRAPHS does nothing on a {device.type}")
        return None
    return PassRecorder(CudaGraphs().record, log)


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")
