"""Several processes that train one LoRA together, a GPU each, as ``accelerate launch`` starts them.

Every process holds the whole base and the whole adapter, samples the same batches and noise, computes the loss of its
share of the pictures, and takes the same optimiser step on the mean of all gradients. Models are not wrapped: what
learns is a few megabytes spread over several models, and goes over in one message a step.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from typing import TypeVar

import torch
from accelerate import PartialState
from accelerate.utils import broadcast, broadcast_object_list, reduce

T = TypeVar("T")


class Processes:
    """The processes of a training, usually one.

    Attributes:
        count: how many there are.
        index: the number of this one; 0 is the main one, which writes and logs.
    """

    def __init__(self, count: int = 1, index: int = 0) -> None:
        self.count, self.index = count, index

    @staticmethod
    def launched(device: torch.device) -> Processes:
        """Return those that ``accelerate launch`` or ``torchrun`` started, or this one alone."""
        if int(os.environ.get("WORLD_SIZE", "1")) == 1:
            return Processes()
        state = PartialState(cpu=device.type == "cpu")
        return Processes(state.num_processes, state.process_index)

    @property
    def is_main(self) -> bool:
        """True for the process that writes and logs."""
        return self.index == 0

    def share(self, count: int) -> tuple[slice, float]:
        """Return the pictures of a batch of ``count`` that are this process's, and the weight of their mean loss.

        The mean over processes of these weighted means is the mean over the batch. A process that gets none computes
        the first picture's loss, with weight 0.
        """
        part = range(self.index, count, self.count)
        if not part:
            return slice(0, 1), 0.0
        return slice(self.index, None, self.count), len(part) * self.count / count

    def average(self, parameters: Iterable[torch.nn.Parameter], *scalars: torch.Tensor) -> None:
        """Replace the gradients of ``parameters`` and the ``scalars`` by their means over all processes."""
        if self.count == 1:
            return
        tensors = [p.grad for p in parameters if p.grad is not None]
        tensors += [scalar.view(1) for scalar in scalars]
        flat = torch.cat([tensor.flatten() for tensor in tensors])
        means = reduce(flat, "mean")
        for tensor, mean in zip(tensors, means.split([tensor.numel() for tensor in tensors]), strict=True):
            tensor.copy_(mean.view_as(tensor))

    def synchronize(self, parameters: Sequence[torch.nn.Parameter]) -> None:
        """Give all processes the main one's ``parameters``."""
        if self.count > 1:
            for parameter in parameters:
                broadcast(parameter.data)

    def agree(self, value: T) -> T:
        """Return the main process's ``value`` in all of them; it must be picklable."""
        if self.count == 1:
            return value
        return broadcast_object_list([value])[0]  # type: ignore[no-any-return]
