"""The weights that are kept where they are not those that learn: an exponential mean, or the schedule-free one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from diffusers.training_utils import EMAModel
from schedulefree import AdamWScheduleFree


class WeightAverage:
    """A mean of the parameters of a stage over its steps; without one, every method does nothing.

    The exponential mean is diffusers', whose decay rises to ``decay`` as ``(1 + step) / (10 + step)``. That of
    schedule-free AdamW is the optimiser's own: gradients are taken between it and the newest weights.
    """

    def __init__(
        self, parameters: Sequence[torch.nn.Parameter], optimizer: torch.optim.Optimizer, ema_decay: float
    ) -> None:
        self._parameters = parameters
        self._schedule_free = optimizer if isinstance(optimizer, AdamWScheduleFree) else None
        self._ema = EMAModel(parameters, decay=ema_decay) if ema_decay else None
        self._is_in = self._schedule_free is None and self._ema is None
        if self._schedule_free is not None:
            self._schedule_free.train()

    def update(self) -> None:
        """Count the parameters of a step in."""
        if self._ema is not None:
            self._ema.step(self._parameters)

    @torch.no_grad()
    def keep(self) -> None:
        """Set the parameters to the mean."""
        if self._is_in:
            return
        if self._schedule_free is not None:
            self._schedule_free.eval()
        if self._ema is not None:
            self._ema.copy_to(self._parameters)
        self._is_in = True

    def forget(self) -> None:
        """Take the parameters as they are for those that are kept."""
        self._is_in = True

    @contextmanager
    def swapped_in(self) -> Iterator[None]:
        """Set the parameters to the mean within the context, and put exactly those that learn back."""
        if self._is_in:
            yield
            return
        learning = [parameter.detach().clone() for parameter in self._parameters]
        try:
            self.keep()
            yield
        finally:
            self._is_in = False
            if self._schedule_free is not None:
                self._schedule_free.train()  # its own way back rounds, so that a look would change the training
            with torch.no_grad():
                for parameter, value in zip(self._parameters, learning, strict=True):
                    parameter.copy_(value)

    def state_dict(self) -> dict[str, Any]:
        """Return what the following steps depend on; schedule-free AdamW has its own in its state."""
        return {"is_in": self._is_in, "ema": self._ema and self._ema.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from :meth:`state_dict`."""
        self._is_in = state["is_in"]
        if self._ema is not None:
            self._ema.load_state_dict(state["ema"])
