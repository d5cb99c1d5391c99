"""A Cog server elsewhere behind a gateway: one that somebody else starts, kills and starts again."""

from __future__ import annotations

import time
from collections.abc import Iterator

import httpx
import pytest

from lora_service.gateway.engine.remote import RemoteEngine
from lora_service.gateway.queue import dispatcher
from lora_service.serving.server import CogServer
from tests.gateway.in_process import Running, run_gateway
from tests.gateway.running import QUICK


@pytest.fixture(scope="module")
def server() -> Iterator[CogServer]:
    with CogServer("predict", home=QUICK) as server:
        server.wait_ready()
        yield server


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory, server: CogServer) -> Iterator[Running]:
    engine = RemoteEngine("predict", httpx.AsyncClient(trust_env=False), server.url)
    with run_gateway(tmp_path_factory.mktemp("gateway"), engines=[engine]) as running:
        yield running


def test_its_pictures_are_stored_here(running: Running) -> None:
    job = running.finished(running.draw(input={"prompt": "a cat", "num_outputs": 2}))
    assert (job["status"], job["logs"]) == ("succeeded", "drawing a cat\n")
    pictures = [running.call("GET", link.removeprefix(running.url)) for link in job["output"]]
    assert [picture.headers["content-type"] for picture in pictures] == ["image/png"] * 2
    assert pictures[0].content != pictures[1].content


def test_a_job_is_cancelled_there(running: Running, server: CogServer) -> None:
    job = running.draw(input={"seconds": 600})
    while running.call("GET", f"/v1/predictions/{job['id']}").json()["status"] != "processing":
        time.sleep(0.05)
    running.call("POST", f"/v1/predictions/{job['id']}/cancel")
    assert running.draw(wait=30)["status"] == "succeeded"


def test_its_error_is_the_jobs(running: Running) -> None:
    job = running.finished(running.draw(input={"behaviour": "fail"}))
    assert (job["status"], "asked to fail" in job["error"]) == ("failed", True)


def test_a_job_waits_for_a_server_that_is_away(
    running: Running, server: CogServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dispatcher, "_AWAY_SECONDS", 0.1)
    server.stop(grace=0)
    job = running.draw()
    time.sleep(1)
    assert running.call("GET", f"/v1/predictions/{job['id']}").json()["status"] == "starting"
    server.start()
    assert running.finished(job)["status"] == "succeeded"


def test_a_job_outlives_the_servers_end(running: Running, server: CogServer) -> None:
    job = running.draw(input={"seconds": 2})
    while running.call("GET", f"/v1/predictions/{job['id']}").json()["status"] != "processing":
        time.sleep(0.05)
    server.stop(grace=0)
    server.start()
    assert running.finished(job)["status"] == "succeeded"
