"""How many workers there are, and what becomes of jobs when one or the connection is lost; without a cluster."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

import httpx
import pytest

from lora_service.gateway.engine.jobs import EngineJob, EngineLostError, ServerAwayError, WaitingJob
from lora_service.gateway.engine.ray.cluster import Hear, RayCluster
from lora_service.gateway.engine.ray.engine import RayEngine, Scale
from lora_service.gateway.engine.ray.messages import WorkerSpec


class RecordingCluster(RayCluster):
    """Takes orders, and tells the engine what the test says."""

    def __init__(self) -> None:
        self.orders: list[tuple[str, str]] = []
        self.is_connected = True

    def add(self, kind: str, spec: Any, hear: Hear) -> None:
        self.tell = hear

    def order(self, do: str, worker: str, kind: str) -> None:
        self.orders.append((do, worker))

    def ready(self, *workers: str) -> None:
        for worker in workers:
            self.tell({"worker": worker, "event": "ready", "url": f"http://{worker}/key", "node": "10.0.0.1"})


class Setting:
    """An engine on a cluster that is none."""

    def __init__(self, scale: Scale, answer: Any = None) -> None:
        self.cluster, self.woken = RecordingCluster(), 0
        client = httpx.AsyncClient(transport=httpx.MockTransport(answer or (lambda _: httpx.Response(500))))
        self.engine = RayEngine(WorkerSpec("predict", "", ""), self.cluster, scale, client, self._wake)

    def _wake(self) -> None:
        self.woken += 1

    def started(self) -> list[str]:
        return [worker for do, worker in self.cluster.orders if do == "start"]

    def run(self, job: str) -> Mapping[str, Any]:
        async def run() -> Mapping[str, Any]:
            async def note(_: Mapping[str, Any], /) -> None: ...

            return await self.engine.run(EngineJob(job, {}, "http://gateway/hook"), note)

        return asyncio.run(run())


def waiting(count: int, first: int = 0) -> list[WaitingJob]:
    return [WaitingJob(f"job-{number}") for number in range(first, first + count)]


@pytest.mark.parametrize(
    ("scale", "busy", "waits", "expected"),
    [
        (Scale(0, 4), 0, 0, 0),
        (Scale(0, 4), 0, 1, 1),
        (Scale(0, 4), 2, 1, 3),
        (Scale(0, 4), 3, 9, 4),
        (Scale(2, 4), 0, 0, 2),
        (Scale(0, 9, waiting=4), 0, 1, 1),
        (Scale(0, 9, waiting=4), 1, 3, 1),
        (Scale(0, 9, waiting=4), 1, 8, 3),
    ],
)
def test_there_are_as_many_workers_as_the_queue_needs(scale: Scale, busy: int, waits: int, expected: int) -> None:
    assert scale.wanted(busy, waits) == expected


def test_workers_come_with_the_first_jobs_and_go_when_idle() -> None:
    setting = Setting(Scale(0, 2, idle_seconds=60))
    assert setting.engine.choose(waiting(3)) is None
    assert setting.started() == ["predict-1", "predict-2"]
    assert setting.engine.choose(waiting(3)) is None
    assert len(setting.started()) == 2
    setting.cluster.ready("predict-1")
    assert setting.woken
    assert setting.engine.choose(waiting(3)) == WaitingJob("job-0")
    assert setting.engine.choose(waiting(2, 1)) is None
    setting.cluster.ready("predict-2")
    assert setting.engine.choose(waiting(2, 1)) == WaitingJob("job-1")
    setting.engine.release("job-1")
    last = setting.engine.workers["predict-2"].since
    setting.engine._stop_idle(last + 59)
    assert len(setting.engine.workers) == 2
    setting.engine._stop_idle(last + 61)
    assert setting.cluster.orders[-1] == ("stop", "predict-2")
    assert list(setting.engine.workers) == ["predict-1"]  # it has a job


def test_as_many_as_are_to_stay_do() -> None:
    setting = Setting(Scale(1, 4, idle_seconds=0))
    setting.cluster.tell({"event": "connected"})
    assert setting.started() == ["predict-1"]
    setting.cluster.ready("predict-1")
    setting.engine._stop_idle(1e12)
    assert list(setting.engine.workers) == ["predict-1"]


def test_a_worker_that_does_not_start_fails_one_attempt_and_is_replaced() -> None:
    setting = Setting(Scale(0, 1))
    setting.engine.choose(waiting(1))
    setting.cluster.tell({"worker": "predict-1", "event": "failed", "error": "no base of that name"})
    assert setting.engine.choose(waiting(1)) == WaitingJob("job-0")
    with pytest.raises(EngineLostError, match="no base of that name"):
        setting.run("job-0")
    setting.engine.release("job-0")
    setting.engine.choose(waiting(1))
    assert setting.started() == ["predict-1", "predict-2"]


def test_a_job_whose_worker_was_lost_before_it_was_sent_was_not_begun() -> None:
    setting = Setting(Scale(0, 1))
    setting.engine.choose(waiting(1))
    setting.cluster.ready("predict-1")
    setting.engine.choose(waiting(1))
    setting.cluster.tell({"worker": "predict-1", "event": "lost"})
    with pytest.raises(ServerAwayError):
        setting.run("job-0")
    assert setting.engine.choose(waiting(1, 1)) is None  # until it is ready again
    setting.engine.release("job-0")
    setting.cluster.ready("predict-1")
    assert setting.engine.choose(waiting(1)) == WaitingJob("job-0")
    assert len(setting.started()) == 1


def test_a_worker_that_looks_alive_and_is_of_no_use_is_started_again() -> None:
    setting = Setting(Scale(0, 1), lambda _: httpx.Response(500))
    setting.engine.choose(waiting(1))
    setting.cluster.ready("predict-1")
    setting.engine.choose(waiting(1))
    with pytest.raises(EngineLostError):
        setting.run("job-0")
    assert setting.cluster.orders[-1] == ("restart", "predict-1")
    assert not setting.engine.workers["predict-1"].url


def test_jobs_outlive_the_connection_and_their_workers_are_used_no_more() -> None:
    setting = Setting(Scale(0, 2))
    setting.engine.choose(waiting(2))
    setting.cluster.ready("predict-1", "predict-2")
    setting.engine.choose(waiting(1))
    setting.cluster.is_connected = False
    setting.cluster.tell({"event": "away"})
    assert list(setting.engine.workers) == ["predict-1"]
    assert setting.engine.workers["predict-1"].url  # its server may live on, and its job with it
    assert setting.engine.choose(waiting(1, 1)) is None
    assert len(setting.started()) == 2
    setting.engine.release("job-0")
    assert not setting.engine.workers
    setting.cluster.is_connected = True
    setting.engine.choose(waiting(1, 1))
    assert setting.started()[-1] == "predict-3"
