"""Tells those who wait that a job has changed; what it is now they read from the database."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager


class EventHub:
    """Wakes waiters of the event loop, from any thread."""

    def __init__(self) -> None:
        self._waiters: defaultdict[str, set[asyncio.Event]] = defaultdict(set)
        self._loop: asyncio.AbstractEventLoop | None = None

    def bind(self) -> None:
        """Take the running event loop for that of all waiters."""
        self._loop = asyncio.get_running_loop()

    def notify(self, name: str) -> None:
        """Wake all that wait for ``name``."""
        if self._loop is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._wake, name)

    def _wake(self, name: str) -> None:
        for event in self._waiters.get(name, ()):
            event.set()

    @contextmanager
    def waiting(self, name: str) -> Iterator[asyncio.Event]:
        """Yield an event that is set at each change from now on; look at the state after entering, not before."""
        event = asyncio.Event()
        self._waiters[name].add(event)
        try:
            yield event
        finally:
            self._waiters[name].discard(event)
            if not self._waiters[name]:
                del self._waiters[name]


async def wait(event: asyncio.Event, seconds: float) -> bool:
    """Wait for an event and clear it; returns False when the time is over."""
    try:
        await asyncio.wait_for(event.wait(), max(0.0, seconds))
    except TimeoutError:
        return False
    event.clear()
    return True
