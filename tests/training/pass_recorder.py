"""A stand-in for CUDA graphs on a CPU."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from lora_service.training.nested_tensors import tensors_of


class Recorder:
    """Passes that are recorded run once, and replaying overwrites what they returned the last time."""

    def __init__(self) -> None:
        self.recorded = self.replayed = 0

    def record(self, passes: Callable[[], Any]) -> Callable[[], Any]:
        self.recorded += 1
        kept = passes()

        def replay() -> Any:
            self.replayed += 1
            for old, new in zip(tensors_of(kept), tensors_of(passes()), strict=True):
                old.copy_(new)
            return kept

        return replay
