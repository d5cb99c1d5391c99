"""Keeps a server answering: restarts it when its worker or itself dies, and ends it in good order.

Cog's server never starts a dead worker again; it answers 409 for ever.
"""

from __future__ import annotations

import logging
import math
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from lora_service.errors import ServingError
from lora_service.serving import entries
from lora_service.serving.entries import Mode
from lora_service.serving.server import CogServer, Health

logger = logging.getLogger(__name__)

DEFAULT_PORTS: Mapping[Mode, int] = MappingProxyType({"predict": 5000, "train": 5001})
_EXAMPLES: Mapping[Mode, str] = MappingProxyType(
    {
        "predict": '{"input": {"prompt": "a photo of a red house"}}',
        "train": '{"input": {"instance_data": "https://example.com/pictures.zip"}}',
    }
)


@dataclass(frozen=True)
class RestartPolicy:
    """When to restart, and when to give up; times in seconds.

    A death soon after the last doubles the pause before the next start, so that a job which kills its worker each time
    does not keep the machine busy. Only starts that never get ready count towards giving up.
    """

    interval: float = 1.0
    """Between two looks at the server."""
    sightings: int = 2
    """Looks in a row that must find the worker dead: a job that is just starting can fake one."""
    steady: float = 60.0
    """A server that lived so long starts again without a pause."""
    longest_pause: float = 30.0
    starts: int = 5

    def pause(self, deaths: int) -> float:
        """Seconds to wait before a start that follows so many quick deaths: 0, 1, 3, 7, …"""
        return min(self.longest_pause, self.interval * (2.0**deaths - 1))


def supervise(server: CogServer, *, stop: threading.Event | None = None, policy: RestartPolicy | None = None) -> None:
    """Watch a server that is ready, and restart it when it dies, until ``stop`` is set.

    Raises:
        ServingError: it could not be started again.
    """
    stop, policy = stop or threading.Event(), policy or RestartPolicy()
    sightings = deaths = 0
    born = time.monotonic()
    while not stop.wait(policy.interval):
        health = server.health()
        sightings = sightings + 1 if health in (Health.UNHEALTHY, Health.DEFUNCT) else 0
        if health is not Health.EXITED and sightings < policy.sightings:
            continue
        deaths = deaths + 1 if time.monotonic() - born < policy.steady else 0
        what = "ended" if health is Health.EXITED else "lost its worker"
        logger.warning("The %s server %s; starting it again.", server.mode, what)
        _revive(server, stop, policy, deaths)
        sightings, born = 0, time.monotonic()


def _revive(server: CogServer, stop: threading.Event, policy: RestartPolicy, deaths: int) -> None:
    for attempt in range(policy.starts):
        server.stop(grace=0)
        if stop.wait(policy.pause(deaths + attempt)):
            return
        server.start()
        try:
            server.wait_ready(math.inf)
        except ServingError as error:
            logger.warning("%s", error)
            failure = error
        else:
            return
    raise ServingError(f"The {server.mode} server failed to start {policy.starts} times: {failure}") from failure


def serve(
    mode: Mode,
    *,
    port: int | None = None,
    host: str = "127.0.0.1",
    folder: Path | None = None,
    home: Path = entries.HOME,
) -> int:
    """Serve until SIGTERM or SIGINT; a second one ends a running job too.

    Args:
        mode: ``predict`` or ``train``.
        port: 5000 for predict and 5001 for train unless given; 0 for any that is free.
        host: the IP address to listen on.
        folder: the working folder; a temporary one unless given.
        home: where the entries lie.

    Returns:
        The exit status: 0, or 130 when a running job was ended.

    Raises:
        InputError: host or port cannot be used.
        ServingError: the port is taken, the entry's setup fails, or the server cannot be kept running.
        EntryError: Cog's build would refuse or misread the entry.
    """
    readable = {"LOG_FORMAT": "console"} if sys.stderr.isatty() and "LOG_FORMAT" not in os.environ else {}
    server = CogServer(
        mode,
        host=host,
        port=DEFAULT_PORTS[mode] if port is None else port,
        folder=folder,
        home=home,
        log=sys.stderr.buffer,
        environment=readable,
    )
    try:
        with _terminating(), server:
            _run(server)
    except KeyboardInterrupt:
        return 130
    return 0


def _run(server: CogServer) -> None:
    try:
        server.wait_ready(math.inf)
        print(_welcome(server), flush=True)
        supervise(server)
    except KeyboardInterrupt:
        busy = server.health() is Health.BUSY
        if busy:
            print("Stopping after the running job; interrupt once more to end it now.", flush=True)
        server.stop(grace=None if busy else 5.0)


def _welcome(server: CogServer) -> str:
    return (
        f"Ready: {server.url} (inputs: {server.url}/openapi.json), for example: "
        f"curl -s {server.url}/predictions -H 'Content-Type: application/json' -d '{_EXAMPLES[server.mode]}'"
    )


@contextmanager
def _terminating() -> Iterator[None]:
    """A termination, or the loss of the terminal, interrupts as Ctrl-C does; the server has no terminal to lose."""
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)}
    for number, handler in before.items():
        if handler is not signal.SIG_IGN:  # as nohup leaves it
            signal.signal(number, signal.default_int_handler)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler or signal.SIG_DFL)
