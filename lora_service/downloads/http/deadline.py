"""The limits of a fetch, and the thread that ends it when its time is up.

A time-out per read does not end a server that sends a byte now and then, and a blocked read hears of nothing else.
So a thread beside each fetch shuts the socket down at the deadline, which wakes the read at once.
"""

from __future__ import annotations

import contextlib
import math
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, Self, TypeVar

from lora_service.errors import UnreachableError
from lora_service.settings import MEBIBYTE

_TICK = 0.1
"""Seconds between two looks at the clock."""
_CANCEL_TIMEOUT = 5.0
"""Seconds for a cancelled download to end."""

Result = TypeVar("Result")


@dataclass(frozen=True)
class DownloadLimits:
    """Limits of time (in seconds), number and size.

    Attributes:
        address_timeout: to connect to one address of a host.
        connect_timeout: to look up the host, connect and agree on TLS, all addresses together.
        read_timeout: without a single byte from the server.
        total_timeout: for all of a fetch, also while another fetch of the same file holds the lock.
        max_redirects: redirects of one request.
        max_pages: pages that ask to confirm a download, one behind the other.
        max_attempts: requests before a server that is busy or breaks off is given up.
        backoff: before the second attempt; doubled for each after it.
        max_retry_after: largest Retry-After that is waited for.
        max_age: for which a cached file is used without asking the server for a newer one.
        max_page_bytes: bytes of a listing that are read.
    """

    address_timeout: float = 5.0
    connect_timeout: float = 15.0
    read_timeout: float = 30.0
    total_timeout: float = 1800.0
    max_redirects: int = 8
    max_pages: int = 3
    max_attempts: int = 5
    backoff: float = 0.5
    max_retry_after: float = 60.0
    max_age: float = 600.0
    max_page_bytes: int = 8 * MEBIBYTE


class Connectable(Protocol):
    """The part of an HTTP connection that is needed to open and end it."""

    sock: socket.socket | None

    def connect(self) -> None: ...
    def close(self) -> None: ...


class Deadline:
    """A context around one fetch.

    Args:
        seconds: time for the whole fetch.
        until: time of :func:`time.monotonic` at which it ends in any case.
        cancelled: ends it when it is set.
    """

    def __init__(self, seconds: float, until: float | None = None, cancelled: threading.Event | None = None) -> None:
        self._seconds = seconds
        self._end = min(time.monotonic() + seconds, math.inf if until is None else until)
        self._cancelled = cancelled or threading.Event()
        self._socket: socket.socket | None = None
        self._finished = threading.Event()

    def __enter__(self) -> Self:
        threading.Thread(target=self._shut_down_in_time, name="download-deadline", daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._finished.set()

    def check(self) -> None:
        """End the fetch here if it has to end.

        Raises:
            UnreachableError: the time is up.
        """
        if self._cancelled.is_set():
            raise UnreachableError("The download was cancelled.", code="cancelled", retry=False)
        if time.monotonic() > self._end:
            raise UnreachableError(
                f"The downloads took longer than {self._seconds:g} seconds and were ended; try again, or another "
                "place.",
                code="deadline_exceeded",
                retry=False,
            )

    def run(self, work: Callable[[], Result]) -> Result:
        """Return the result of ``work``, which runs in a thread: reading a socket would hold up a cancelled job.

        An exception that is raised in this thread meanwhile, as a cancellation is, ends the work within a second.
        """
        results: list[Result] = []
        failures: list[BaseException] = []

        def run() -> None:
            try:
                results.append(work())
            except BaseException as error:  # raised again in the thread that waits
                failures.append(error)

        thread = threading.Thread(target=run, name="download", daemon=True)
        thread.start()
        try:
            while thread.is_alive():
                thread.join(_TICK)
        except BaseException:
            self._cancelled.set()
            thread.join(_CANCEL_TIMEOUT)
            raise
        if failures:
            raise failures[0]
        return results[0]

    def wait(self, seconds: float) -> None:
        """Sleep, but end as ``check`` does."""
        end = time.monotonic() + seconds
        while (remaining := end - time.monotonic()) > 0:
            self.check()
            time.sleep(min(remaining, _TICK))
        self.check()

    def connect(self, connection: Connectable, timeout: float) -> None:
        """Connect in a thread of its own, because looking up a name cannot be interrupted.

        Args:
            connection: not connected yet.
            timeout: in seconds.

        Raises:
            TimeoutError: it took longer than ``timeout``.
        """
        ready, abandoned = threading.Event(), threading.Event()
        failures: list[BaseException] = []

        def work() -> None:
            try:
                connection.connect()
            except BaseException as error:  # raised again in the thread that waits
                failures.append(error)
            ready.set()
            if abandoned.is_set():
                connection.close()

        threading.Thread(target=work, name="download-connect", daemon=True).start()
        end = time.monotonic() + timeout
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

    def _shut_down_in_time(self) -> None:
        while not self._finished.wait(_TICK):
            if (self._cancelled.is_set() or time.monotonic() > self._end) and self._socket is not None:
                with contextlib.suppress(OSError):  # it was closed meanwhile, and nothing is blocked on it
                    # Not SSLSocket.shutdown, which takes the TLS object from under the reading thread.
                    socket.socket.shutdown(self._socket, socket.SHUT_RDWR)
