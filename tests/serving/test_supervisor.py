"""A server that dies is restarted, or given up with a reason; a signal ends it after its job."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import requests

from lora_service.errors import ServingError
from lora_service.serving.server import CogServer, serve
from lora_service.serving.supervisor import Health, RestartPolicy, supervise
from tests.errors import raises

ENTRY = """
import os, pathlib, time
from cog import BaseRunner

class Predictor(BaseRunner):
    def setup(self):
        if pathlib.Path("broken").exists():
            raise RuntimeError("it broke")

    def run(self, sleep: float = 0.0) -> dict:
        end = time.monotonic() + sleep
        while time.monotonic() < end: time.sleep(0.01)
        return {"pid": os.getpid()}
"""
QUICK = RestartPolicy(interval=0.05, max_starts=2)


@pytest.fixture
def home(tmp_path) -> Path:
    (tmp_path / "predict.py").write_text(ENTRY)
    return tmp_path


@contextmanager
def supervised(server: CogServer) -> Iterator[None]:
    stop = threading.Event()
    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(supervise, server, stop=stop, policy=QUICK)
        try:
            yield
        finally:
            stop.set()
        future.result(30)


def post(url: str, sleep: float = 0) -> dict[str, Any]:
    """Post a job and return the answer; {} while the server refuses it (409), as it also does just after a job."""
    answer = requests.post(f"{url}/predictions", json={"input": {"sleep": sleep}}, timeout=60)
    return {} if answer.status_code == 409 else answer.json()


def worker_of(url: str) -> int:
    return eventually(lambda: post(url).get("output"))["pid"]


def start_job(pool: ThreadPoolExecutor, url: str, sleep: float) -> Future[dict[str, Any]]:
    """Start a job; it runs when this returns."""
    eventually(lambda: status(url) == "READY")
    job = pool.submit(post, url, sleep)
    eventually(lambda: status(url) == "BUSY")
    return job


def status(url: str) -> str:
    return requests.get(f"{url}/health-check", timeout=10).json()["status"]


def eventually(poll: Callable[[], Any], seconds: float = 20) -> Any:
    """Call ``poll`` until it returns something true, and return that."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        try:
            if result := poll():
                return result
        except requests.ConnectionError:
            pass  # the server is restarting
        time.sleep(0.05)
    raise AssertionError(f"not within {seconds} s")


def test_a_killed_worker_is_replaced(home) -> None:
    with CogServer("predict", home=home) as server:
        server.wait_ready()
        first = worker_of(server.url)
        with supervised(server):
            os.kill(first, signal.SIGKILL)
            assert worker_of(server.url) != first


def test_a_worker_killed_in_a_job_fails_the_job_and_is_replaced(home) -> None:
    with CogServer("predict", home=home) as server, ThreadPoolExecutor(1) as pool:
        server.wait_ready()
        worker = worker_of(server.url)
        with supervised(server):
            job = start_job(pool, server.url, sleep=60)
            os.kill(worker, signal.SIGKILL)
            assert worker_of(server.url) != worker
        assert (job.result(5)["status"], job.result(5)["error"]) == ("failed", "Worker crashed")


def test_a_server_that_cannot_start_again_is_given_up_with_its_reason(home) -> None:
    with CogServer("predict", home=home) as server:
        server.wait_ready()
        (server.folder / "broken").touch()
        os.kill(worker_of(server.url), signal.SIGKILL)
        with raises(ServingError, code="restart_failed") as caught:
            supervise(server, policy=QUICK)
        assert "it broke" in str(caught.value)


class FakeServer:
    """A server with scripted health, which records the supervisor's calls."""

    mode = "predict"

    def __init__(self, *script: Health, stop: threading.Event) -> None:
        self.script, self.end, self.calls = list(script), stop, []

    def health(self) -> Health:
        health = self.script.pop(0)
        if not self.script:
            self.end.set()
        return health

    def stop(self, grace: float) -> None:
        self.calls.append("stop")

    def start(self) -> None:
        self.calls.append("start")

    def wait_ready(self, timeout: float) -> None:
        self.calls.append("ready")


def watch(*script: Health) -> list[str]:
    stop = threading.Event()
    server = FakeServer(*script, stop=stop)
    supervise(server, stop=stop, policy=RestartPolicy(interval=0.001))
    return server.calls


def test_a_job_that_delays_one_answer_is_left_alone() -> None:
    # Observed: a job that starts while the server asks its worker makes one answer UNHEALTHY, and the next is BUSY.
    assert watch(Health.READY, Health.UNHEALTHY, Health.BUSY, Health.UNHEALTHY, Health.UNRESPONSIVE, Health.READY) == []


def test_two_unhealthy_checks_in_a_row_and_an_ended_process_restart() -> None:
    once = ["stop", "start", "ready"]
    assert watch(Health.UNHEALTHY, Health.DEFUNCT, Health.READY, Health.READY) == once
    assert watch(Health.EXITED, Health.READY, Health.EXITED, Health.READY) == once * 2


def test_pauses_double_up_to_a_limit() -> None:
    policy = RestartPolicy(interval=1, max_pause=10)
    assert [policy.pause(deaths) for deaths in range(6)] == [0, 1, 3, 7, 10, 10]


@pytest.fixture
def command(home, tmp_path) -> Iterator[subprocess.Popen[str]]:
    """Run ``serve`` in a process of its own, as the command line does."""
    code = "import pathlib, sys; from lora_service.serving.server import serve; "
    code += f"sys.exit(serve('predict', port=0, home=pathlib.Path({str(home)!r})))"
    environment = os.environ | {"TMPDIR": str(tmp_path)}
    with subprocess.Popen(
        [sys.executable, "-c", code],
        env=environment,
        stdout=subprocess.PIPE,
        text=True,
        # A shell that starts the tests in the background has them, and their children, ignore SIGINT.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    ) as process:
        yield process
        process.kill()


def ready_url(process: subprocess.Popen[str]) -> str:
    line = process.stdout.readline()
    assert line.startswith("Ready: http://127.0.0.1:")
    assert "/openapi.json" in line
    assert "curl -s http" in line
    return line.split()[1]


def is_running(pid: int) -> bool:
    try:
        return "State:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except FileNotFoundError:
        return False


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_lets_the_running_job_finish_and_leaves_nothing(command, tmp_path, number) -> None:
    url = ready_url(command)
    worker = worker_of(url)
    with ThreadPoolExecutor(1) as pool:
        job = start_job(pool, url, sleep=1)
        command.send_signal(number)
        assert job.result(10)["status"] == "succeeded"
    assert command.wait(10) == 0
    assert not is_running(worker)
    assert not list(tmp_path.glob("lora-service-*"))


def test_a_second_signal_ends_the_running_job(command, tmp_path) -> None:
    url = ready_url(command)
    with ThreadPoolExecutor(1) as pool:
        job = start_job(pool, url, sleep=60)
        command.send_signal(signal.SIGINT)
        assert command.stdout.readline().startswith("Stopping after the running job")
        command.send_signal(signal.SIGINT)
        assert command.wait(10) == 130
        assert isinstance(job.exception(10), requests.ConnectionError)
    assert not list(tmp_path.glob("lora-service-*"))


def test_serve_ends_when_the_setup_fails(tmp_path) -> None:
    (tmp_path / "train.py").write_text("raise RuntimeError('no weights here')\ndef train() -> str: ...\n")
    with raises(ServingError, code="setup_failed") as caught:
        serve("train", port=0, home=tmp_path)
    assert "no weights here" in str(caught.value)
