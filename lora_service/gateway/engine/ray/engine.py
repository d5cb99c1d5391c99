"""The engine of a Ray cluster: several workers of one kind, from none to as many as are allowed."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from lora_service.gateway.engine.cog_client import CogClient
from lora_service.gateway.engine.jobs import (
    EngineJob,
    EngineKind,
    EngineLostError,
    OnProgress,
    ServerAwayError,
    WaitingJob,
)
from lora_service.gateway.engine.ray.affinity import LoraMemory, Matcher
from lora_service.gateway.engine.ray.cluster import RayCluster
from lora_service.gateway.engine.ray.messages import WorkerSpec
from lora_service.serving.entries import HOME
from lora_service.serving.server import server_document

_log = logging.getLogger(__name__)
_LOOK_SECONDS = 1.0  # between two looks for workers without work
_CHECK_SECONDS = 5.0  # between two health checks of a server, whose end Ray tells of
_RUN_SECONDS = 600.0  # for a run folder to be brought to a worker, or its rest to be kept


class _RunFolderAwayError(ServerAwayError):
    """The run folder cannot be brought to a worker, which is not the worker's fault."""


@dataclass(frozen=True)
class Scale:
    """How many workers there may be.

    Attributes:
        least, most: workers.
        waiting: jobs that wait before one more is started; the first one is started for any job.
        idle_seconds: how long a worker without a job is kept.
        passes: how often a job may be passed over by one that suits a free worker better.
    """

    least: int
    most: int
    waiting: int = 1
    idle_seconds: float = 300.0
    passes: int = 4

    def wanted(self, busy: int, waiting: int) -> int:
        """Return how many workers there should be."""
        needed = max(1, busy + waiting // self.waiting) if busy + waiting else 0
        return max(self.least, min(self.most, needed))


@dataclass
class Worker:
    """A worker as the gateway knows it.

    Attributes:
        url: its server's; empty while there is none.
        job: which it has, or is kept for; empty: none.
        error: why it did not start; the next job is told.
        is_kept: False once nobody keeps it any more, and it goes with its job.
        since: when it had its last job, or was asked for.
    """

    id: str
    url: str = ""
    job: str = ""
    error: str = ""
    is_kept: bool = True
    since: float = field(default_factory=time.monotonic)
    memory: LoraMemory = field(default_factory=LoraMemory)

    @property
    def is_free(self) -> bool:
        """True if it may have a job."""
        return bool(self.url or self.error) and not self.job and self.is_kept


class RayEngine:
    """Workers of one kind.

    Args:
        spec: what they are.
        cluster: where they are.
        scale: how many.
        client: sends the requests.
        wake: called when a worker has become free.
    """

    def __init__(
        self, spec: WorkerSpec, cluster: RayCluster, scale: Scale, client: httpx.AsyncClient, wake: Callable[[], None]
    ) -> None:
        self.kind: EngineKind = spec.kind
        self.slots = scale.most
        self.workers: dict[str, Worker] = {}
        self._home, self._cluster, self._scale = Path(spec.home or HOME), cluster, scale
        self._client, self._wake = client, wake
        self._matcher, self._places = Matcher(scale.passes), dict[str, Worker]()
        self._numbers, self._demand = itertools.count(1), time.monotonic()
        self._sweeper: asyncio.Task[None] | None = None
        cluster.add(spec.kind, spec, self._hear)

    async def document(self) -> dict[str, Any]:
        """Return the document that the workers' servers are given, and connect to the cluster."""
        self._cluster.open()
        self._sweeper = self._sweeper or asyncio.create_task(self._sweep())
        return await asyncio.to_thread(server_document, self.kind, self._home)

    def choose(self, waiting: Sequence[WaitingJob]) -> WaitingJob | None:
        """Return the job that suits a free worker, and have workers started where there are too few."""
        self._demand = time.monotonic()
        self._start(self._scale.wanted(len(self._places), len(waiting)))
        free = [worker for worker in self.workers.values() if worker.is_free]
        if not free:
            return None
        number, place = self._matcher.choose(waiting, [worker.memory for worker in free])
        job, worker = waiting[number], free[place]
        worker.job, self._places[job.id] = job.id, worker
        worker.memory.note(job.loras, time.monotonic())
        return job

    def release(self, job: str) -> None:
        """Give a worker free."""
        worker = self._places.pop(job, None)
        if worker is None:
            return
        worker.job, worker.since = "", time.monotonic()
        if worker.error or not worker.is_kept:
            self.workers.pop(worker.id, None)
        self._wake()

    async def run(self, job: EngineJob, on_progress: OnProgress) -> Mapping[str, Any]:
        """Run a job on the worker that was chosen for it."""
        worker = self._places[job.id]
        if worker.error:
            raise EngineLostError(worker.error)
        url = worker.url
        if not url:
            raise ServerAwayError("the worker was lost before it had the job")
        try:
            async with self._run_folder(url, job):
                cog = CogClient(url, self._client, lambda: worker.url != url, _CHECK_SECONDS)
                return await cog.run(job, on_progress)
        except _RunFolderAwayError:
            raise
        except EngineLostError:
            if worker.url == url:  # Ray has not noticed anything: it looks alive, and is of no use
                self._lose(worker)
                self._cluster.order("restart", worker.id, self.kind)
            raise

    async def close(self) -> None:
        """End all workers."""
        if self._sweeper is not None:
            self._sweeper.cancel()
        await self._cluster.close()

    @asynccontextmanager
    async def _run_folder(self, url: str, job: EngineJob) -> AsyncIterator[None]:
        """Have the worker keep a training's run folder with the gateway, and begin with what is there."""
        if self.kind != "train":
            yield
            return
        place = f"{url}/runs/{job.id}"
        try:
            answer = await self._client.put(place, content=job.files, timeout=_RUN_SECONDS)
        except httpx.HTTPError as error:
            raise ServerAwayError(f"the worker cannot be reached ({type(error).__name__})") from error
        if answer.status_code >= 300:
            raise _RunFolderAwayError(answer.text[:300])
        try:
            yield
        finally:
            with contextlib.suppress(httpx.HTTPError):  # a worker that was lost has kept what it could
                await self._client.delete(place, timeout=_RUN_SECONDS)

    def _start(self, wanted: int) -> None:
        """Have as many workers as wanted, once there is a connection."""
        if not self._cluster.is_connected:
            return
        for _ in range(wanted - sum(worker.is_kept for worker in self.workers.values())):
            worker = Worker(f"{self.kind}-{next(self._numbers)}")
            self.workers[worker.id] = worker
            self._cluster.order("start", worker.id, self.kind)
            _log.info("the worker %s is asked for", worker.id)

    def _hear(self, message: Mapping[str, Any]) -> None:
        """Take note of what became of a worker, or of the connection."""
        match message["event"], self.workers.get(message.get("worker", "")):
            case "connected", _:
                self._start(self._scale.least)
            case "away", _:
                self._leave_all()
            case "ready", Worker() as worker:
                worker.url, worker.since = message["url"], time.monotonic()
                _log.info("the worker %s is ready on %s", worker.id, message["node"])
            case "lost", Worker() as worker:
                _log.warning("the worker %s was lost; Ray starts it again", worker.id)
                self._lose(worker)
            case "failed", Worker() as worker:
                _log.warning("the worker %s does not start: %s", worker.id, message["error"])
                self._lose(worker)
                worker.error = message["error"]
        self._wake()

    def _lose(self, worker: Worker) -> None:
        worker.url = ""
        worker.memory.forget()

    def _leave_all(self) -> None:
        """Go on with the jobs that run, whose servers may live on, and with no other worker of a lost connection."""
        for worker in list(self.workers.values()):
            worker.is_kept = False
            if not worker.job:
                self.workers.pop(worker.id)

    async def _sweep(self) -> None:
        while True:
            await asyncio.sleep(_LOOK_SECONDS)
            self._stop_idle(time.monotonic())

    def _stop_idle(self, now: float) -> None:
        """End workers that had no job for long, and those that were asked for and are needed no more."""
        idle = [
            worker for worker in self.workers.values()
            if not worker.job and now - max(worker.since, self._demand if not worker.url else 0.0)
            > self._scale.idle_seconds
        ]  # fmt: skip
        for worker in idle[: max(0, len(self.workers) - self._scale.least)]:
            self.workers.pop(worker.id)
            self._cluster.order("stop", worker.id, self.kind)
            _log.info("the worker %s had nothing to do, and ends", worker.id)
