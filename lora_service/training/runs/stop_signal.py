"""The wish to end a training and keep what it has learned; it imports no torch, so that a command line has it early."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class StopSignal:
    """Set by whoever wants the end, for example in a signal handler.

    Attributes:
        requested: True once somebody asked: the training ends after this step.
        can_stop: True while there is something to be kept; before the first step nothing is learned.
    """

    requested: bool = False
    can_stop: bool = False

    @property
    def stops_now(self) -> bool:
        """True if the training is to end with what it has."""
        return self.requested and self.can_stop
