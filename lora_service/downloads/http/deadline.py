"""Ending a fetch on time: when it takes too long altogether, or when the caller wants to stop.

A time-out per read does not end a server that sends a byte now and then, and a blocked read hears nothing of
a cancellation. So a thread watches beside each fetch and shuts the socket down, which wakes the read at once.
"""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Callable
from typing import Protocol, Self

from lora_service.downloads.http.fetch_errors import FetchCancelled, UnreachableError

_TICK = 0.1


class Connectable(Protocol):
    """What of an HTTP connection is needed to open and end it."""

    sock: socket.socket | None

    def connect(self) -> None: ...
    def close(self) -> None: ...


class Deadline:
    """Use as a context around one fetch.

    Args:
        total: seconds that the whole fetch may take.
        should_stop: asked ten times a second from another thread; must be quick and must not raise.
    """

    def __init__(self, total: float, should_stop: Callable[[], bool] | None = None) -> None:
        self._total = total
        self._deadline = time.monotonic() + total
        self._should_stop = should_stop or (lambda: False)
        self._socket: socket.socket | None = None
        self._over = threading.Event()

    def __enter__(self) -> Self:
        threading.Thread(target=self._keep, name="link-watch", daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()

    def check(self) -> None:
        """End the fetch here if it has to end.

        Raises:
            FetchCancelled: the caller asked to stop.
            UnreachableError: the time is up.
        """
        if self._should_stop():
            raise FetchCancelled("The download was cancelled.")
        if time.monotonic() > self._deadline:
            raise UnreachableError(
                f"The download took longer than {self._total:g} seconds and was ended; try again, or another place.",
                retry=False,
            )

    def wait(self, seconds: float) -> None:
        """Sleep, but end as ``check`` does."""
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            self.check()
            time.sleep(min(left, _TICK))
        self.check()

    def connect(self, connection: Connectable, seconds: float) -> None:
        """Connect in a thread of its own, because looking up a name cannot be interrupted.

        Raises:
            TimeoutError: it took longer than ``seconds``.
        """
        ready, abandoned = threading.Event(), threading.Event()
        failures: list[BaseException] = []

        def work() -> None:
            try:
                connection.connect()
            except BaseException as error:  # handed over to the thread that waits
                failures.append(error)
            ready.set()
            if abandoned.is_set():
                connection.close()

        threading.Thread(target=work, name="link-connect", daemon=True).start()
        end = time.monotonic() + seconds
        try:
            while not ready.wait(_TICK):
                self.check()
                if time.monotonic() > end:
                    raise TimeoutError
        except BaseException:
            abandoned.set()
            if ready.is_set():
                connection.close()
            raise
        if failures:
            raise failures[0]
        self._socket = connection.sock

    def _keep(self) -> None:
        while not self._over.wait(_TICK):
            if (self._should_stop() or time.monotonic() > self._deadline) and self._socket is not None:
                with contextlib.suppress(OSError):  # it was closed meanwhile, which is what is wanted
                    # Not SSLSocket.shutdown, which takes the TLS object from under the reading thread.
                    socket.socket.shutdown(self._socket, socket.SHUT_RDWR)
