"""Restarts a server when its worker or the server itself dies or answers no more.

Cog's server never starts a dead worker again; it answers every request with 409. The same happens after a request whose
``id`` is no name for a folder: the server says BUSY from then on although no job runs.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

from lora_service.errors import ServingError

logger = logging.getLogger(__name__)


class Health(StrEnum):
    """The state of a server: those of Cog's health check, and three for a server that does not answer it."""

    STARTING = "STARTING"
    READY = "READY"
    BUSY = "BUSY"
    SETUP_FAILED = "SETUP_FAILED"
    UNHEALTHY = "UNHEALTHY"
    """The worker died; or, for one answer, a job that is just starting kept it from answering."""
    DEFUNCT = "DEFUNCT"
    UNKNOWN = "UNKNOWN"
    UNRESPONSIVE = "UNRESPONSIVE"
    """The process runs and does not answer."""
    EXITED = "EXITED"
    """The process has ended, or was not started."""

    @property
    def has_lost_worker(self) -> bool:
        """True where the server runs without its worker, or says so for one answer."""
        return self in (Health.UNHEALTHY, Health.DEFUNCT)


class SupervisedServer(Protocol):
    """The part of :class:`lora_service.serving.server.CogServer` that supervising it takes."""

    @property
    def mode(self) -> str: ...
    def health(self) -> Health: ...
    def seconds_without_job(self) -> float: ...
    def start(self) -> None: ...
    def stop(self, grace: float | None) -> None: ...
    def wait_ready(self, timeout: float) -> None: ...


@dataclass(frozen=True)
class RestartPolicy:
    """The conditions of a restart, and of giving up; times in seconds.

    A death soon after the last one doubles the pause before the next start, so that a job that kills its worker each
    time does not keep the machine busy. Only starts that never get ready count towards giving up.

    Attributes:
        interval: the time between two health checks.
        unhealthy_checks: failed health checks in a row before a restart: a job that is just starting can cause one.
        unresponsive_after: how long a server may leave its health checks unanswered.
        unexplained_busy: how long a server may be BUSY while its worker has no job and receives none.
        stable_after: a server that lived so long is restarted without a pause.
        max_pause: the longest pause before a start.
        max_starts: failed starts in a row before giving up.
    """

    interval: float = 1.0
    unhealthy_checks: int = 2
    unresponsive_after: float = 30.0
    unexplained_busy: float = 60.0
    stable_after: float = 60.0
    max_pause: float = 30.0
    max_starts: int = 5

    def pause(self, deaths: int) -> float:
        """Return the seconds to wait before a start after so many quick deaths: 0, 1, 3, 7, …"""
        return min(self.max_pause, self.interval * (2.0**deaths - 1))


def supervise(
    server: SupervisedServer,
    *,
    stop: threading.Event | None = None,
    policy: RestartPolicy | None = None,
    clock: Callable[[], float] = time.monotonic,
) -> None:
    """Watch a server that is ready, and restart it when it dies, until ``stop`` is set.

    Args:
        server: runs and is ready.
        stop: ends the watch.
        policy: when to restart.
        clock: the time in seconds, which a server's state is timed by.

    Raises:
        ServingError: it could not be started again.
    """
    stop, policy = stop or threading.Event(), policy or RestartPolicy()
    deaths, watch, started = 0, HealthWatch(server, policy, clock), clock()
    while not stop.wait(policy.interval):
        reason = watch.check()
        if not reason:
            continue
        deaths = deaths + 1 if clock() - started < policy.stable_after else 0
        logger.warning("The %s server %s; restarting it.", server.mode, reason)
        _restart(server, stop, policy, deaths)
        watch, started = HealthWatch(server, policy, clock), clock()


class HealthWatch:
    """The health checks of a server since its start."""

    def __init__(
        self, server: SupervisedServer, policy: RestartPolicy, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._server, self._policy, self._clock = server, policy, clock
        self._health, self._since, self._checks = Health.READY, clock(), 0

    def check(self) -> str:
        """Check the health once more; return why the server has to be restarted, or ""."""
        now, health = self._clock(), self._server.health()
        if health is not self._health and not (health.has_lost_worker and self._health.has_lost_worker):
            self._since, self._checks = now, 0
        self._health, self._checks = health, self._checks + 1
        if health is Health.EXITED:
            return "ended"
        if health.has_lost_worker and self._checks >= self._policy.unhealthy_checks:
            return "lost its worker"
        seconds = self._clock() - self._since
        if health is Health.UNRESPONSIVE and seconds > self._policy.unresponsive_after:
            return "does not answer"
        if health is Health.BUSY and min(seconds, self._server.seconds_without_job()) > self._policy.unexplained_busy:
            return "is busy without a job"
        return ""


def _restart(server: SupervisedServer, stop: threading.Event, policy: RestartPolicy, deaths: int) -> None:
    for attempt in range(policy.max_starts):
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
    message = f"The {server.mode} server failed to start {policy.max_starts} times: {failure}"
    raise ServingError(message, code="restart_failed") from failure
