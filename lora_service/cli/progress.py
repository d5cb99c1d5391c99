"""The progress of a training on a terminal: one line that is rewritten."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Self

from tqdm import tqdm

if TYPE_CHECKING:  # it imports torch
    from lora_service.training.loop import TrainingProgress


class ProgressBar:
    """A bar for each stage on standard error; a context manager that ends the last one."""

    def __init__(self) -> None:
        self._bar: tqdm[None] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        if self._bar is not None:
            self._bar.close()

    def show(self, progress: TrainingProgress) -> None:
        """Show ``progress`` in place of the one before."""
        if self._bar is None or self._bar.desc != progress.stage:
            self.__exit__()
            shape = "{desc}: {n_fmt}/{total_fmt} |{bar:24}| {postfix}"
            self._bar = tqdm(total=progress.steps, desc=progress.stage, file=sys.stderr, bar_format=shape)
            self._bar.desc = progress.stage
        self._bar.n = progress.step
        self._bar.postfix = progress.summary()
        self._bar.refresh()

    def log(self, line: str) -> None:
        """Print ``line`` above the bar, on standard output."""
        tqdm.write(line)
