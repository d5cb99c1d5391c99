"""Showing how far a download is."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from tqdm import tqdm

from lora_service.downloads.http.download import OnBytes


@contextlib.contextmanager
def bar(label: str, *, seconds: float = 0.5) -> Iterator[OnBytes]:
    """A progress bar on standard error while the context is open; it appears with the first bytes.

    Args:
        label: what is being downloaded.
        seconds: between two updates; many for a log, few for a terminal.
    """
    opened = contextlib.ExitStack()
    bars: list[tqdm[Any]] = []

    def update(done: int, total: int | None) -> None:
        if not bars:
            shown = tqdm(desc=label, total=total, unit="B", unit_scale=True, unit_divisor=1024, mininterval=seconds)
            bars.append(opened.enter_context(shown))
        bars[0].update(done - bars[0].n)

    with opened:
        yield update
