"""The progress of a training on a terminal: one line that is rewritten."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Never, Self

from tqdm import tqdm

if TYPE_CHECKING:  # it imports torch
    from lora_service.training.callbacks.training_progress import TrainingProgress


class ProgressBar:
    """A bar for each stage on standard error; a context manager that ends the last one."""

    def __init__(self) -> None:
        self._stage = ""
        self._bar: tqdm[Never] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        if self._bar is not None:
            self._bar.close()

    def show(self, progress: TrainingProgress) -> None:
        """Show ``progress`` in place of the one before."""
        bar = self._bar if progress.stage == self._stage else None
        if bar is None:
            self.__exit__()
            shape = "{desc}: {n_fmt}/{total_fmt} |{bar:24}| {postfix}"
            bar = tqdm(total=progress.steps, desc=progress.stage, file=sys.stderr, bar_format=shape)
            self._bar, self._stage = bar, progress.stage
        bar.n = progress.step
        bar.set_postfix_str(progress.summary())

    def log(self, line: str) -> None:
        """Print ``line`` above the bar, on standard output."""
        tqdm.write(line)
