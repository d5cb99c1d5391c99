"""Processes end, and no job does: kill -9 of the gateway and of a worker, and a drain on SIGTERM."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from tests.gateway.receiver import Receiver, receiving
from tests.gateway.running import RunningGateway


@pytest.fixture(scope="module")
def receiver() -> Iterator[Receiver]:
    with receiving() as receiver:
        yield receiver


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory, receiver: Receiver) -> Iterator[RunningGateway]:
    environment = {"ALLOW_PRIVATE_ADDRESSES": f"127.0.0.1:{receiver.port}"}
    with RunningGateway(tmp_path_factory.mktemp("gateway"), environment=environment) as running:
        yield running


def draw(gateway: RunningGateway, **body: Any) -> dict[str, Any]:
    answer = gateway.call("POST", "/v1/models/local/lora/predictions", json={"input": {}, **body})
    assert answer.status_code == 201, answer.text
    return dict(answer.json())


def train(gateway: RunningGateway, **inputs: Any) -> dict[str, Any]:
    version = gateway.call("GET", "/v1/models/local/lora-training").json()["latest_version"]["id"]
    body = {"input": {"instance_data": "data:application/zip;base64,YWJj", **inputs}, "destination": "me/dog"}
    return dict(gateway.call("POST", f"/v1/models/local/lora-training/versions/{version}/trainings", json=body).json())


def state(gateway: RunningGateway, job: dict[str, Any]) -> dict[str, Any]:
    return dict(gateway.call("GET", httpx.URL(job["urls"]["get"]).path).json())


def wait_for(gateway: RunningGateway, job: dict[str, Any], *states: str) -> dict[str, Any]:
    end = time.monotonic() + 200
    while (job := state(gateway, job))["status"] not in states:
        assert time.monotonic() < end, (job, gateway.log.read_text())
        assert job["status"] in ("starting", "processing"), job
        time.sleep(0.1)
    return job


def workers(gateway: RunningGateway) -> list[int]:
    """The processes of Cog's servers: children of the gateway, and theirs."""
    assert gateway.process is not None
    children, found = [gateway.process.pid], []
    while children:
        listed = subprocess.run(["pgrep", "-P", str(children.pop())], capture_output=True, text=True, check=False)
        children += (pids := [int(pid) for pid in listed.stdout.split()])
        found += pids
    return found


def test_a_killed_gateway_loses_no_job_and_no_webhook(gateway: RunningGateway, receiver: Receiver) -> None:
    hook = {"webhook": receiver.url, "webhook_events_filter": ["completed"]}
    training = train(gateway, steps=200, seconds=0.02)
    running = draw(gateway, input={"seconds": 3}, **hook)
    waiting = draw(gateway, input={"prompt": "the second"}, **hook)
    wait_for(gateway, running, "processing")
    step = gateway.folder / "runs" / training["id"] / "step"
    while not step.exists() or int(step.read_text() or 0) < 5:
        time.sleep(0.05)
    gateway.kill()
    done = int(step.read_text())
    gateway.start()
    assert wait_for(gateway, running, "succeeded")["output"]
    assert wait_for(gateway, waiting, "succeeded")["logs"] == "drawing the second\n"
    training = wait_for(gateway, training, "succeeded")
    begun_at = int(training["logs"].split("begins at step ")[1].split()[0])
    assert begun_at >= done
    weights = httpx.get(training["output"]["weights"]).content
    assert weights == b"3 bytes, 200 steps"
    told = {(each.headers["webhook-id"], each.job["id"]) for each in receiver.wait(2)}
    assert {job for _, job in told} == {running["id"], waiting["id"]}
    assert len(told) == 2
    assert not step.parent.exists()


def test_a_killed_worker_loses_no_job(gateway: RunningGateway) -> None:
    job = draw(gateway, input={"seconds": 2})
    wait_for(gateway, job, "processing")
    for pid in workers(gateway):
        os.kill(pid, signal.SIGKILL)
    assert wait_for(gateway, job, "succeeded")["output"]


def test_sigterm_lets_the_running_job_end_and_keeps_the_waiting_ones(gateway: RunningGateway) -> None:
    running, waiting = draw(gateway, input={"seconds": 3}), draw(gateway)
    wait_for(gateway, running, "processing")
    gateway.stop()
    assert gateway.process is not None
    assert gateway.process.returncode == 0
    gateway.start()
    ended = state(gateway, running)
    assert (ended["status"], ended["logs"]) == ("succeeded", "drawing a dog\n")
    assert wait_for(gateway, waiting, "succeeded")["started_at"] > ended["completed_at"]


def test_a_second_sigterm_ends_at_once_and_keeps_the_running_job(gateway: RunningGateway) -> None:
    job = draw(gateway, input={"seconds": 600})
    wait_for(gateway, job, "processing")
    assert gateway.process is not None
    gateway.process.terminate()
    while gateway.call("GET", "/readyz").status_code == 200:
        time.sleep(0.05)
    assert state(gateway, job)["status"] == "processing"  # requests are answered meanwhile
    gateway.stop()
    assert gateway.process.returncode == 0
    gateway.start()
    wait_for(gateway, job, "processing")
    assert gateway.call("POST", f"/v1/predictions/{job['id']}/cancel").json()["status"] == "canceled"
