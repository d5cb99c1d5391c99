"""A server that dies is restarted, or given up with a reason; a signal ends it after its job."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import pytest
import requests

from lora_service.errors import ServingError
from lora_service.serving import server as server_module
from lora_service.serving.foreground import serve
from lora_service.serving.server import CogServer
from lora_service.serving.supervisor import Health, RestartPolicy, supervise
from tests.errors import raises

ENTRY = """
import os, pathlib, time
from cog import BaseRunner
from lora_service.services.worker import Worker

class Predictor(BaseRunner):
    def setup(self):
        if pathlib.Path("broken").exists():
            raise RuntimeError("it broke")
        self.worker = Worker()
        self.worker.prepare([])

    def run(self, sleep: float = 0.0) -> dict:
        with self.worker.running():
            end = time.monotonic() + sleep
            while time.monotonic() < end: time.sleep(0.01)
            return {"pid": os.getpid(), "server": os.getppid(), "folder": os.getcwd()}
"""
QUICK = RestartPolicy(interval=0.05, max_starts=2, unexplained_busy=1)


@pytest.fixture
def home(tmp_path) -> Path:
    (tmp_path / "predict.py").write_text(ENTRY)
    return tmp_path


@contextmanager
def supervised(server: CogServer, policy: RestartPolicy = QUICK) -> Iterator[None]:
    stop = threading.Event()
    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(supervise, server, stop=stop, policy=policy)
        try:
            yield
        finally:
            stop.set()
        future.result(30)


def post(url: str, sleep: float = 0) -> dict[str, Any]:
    """Post a job and return the answer; {} while the server refuses it (409), as it also does just after a job."""
    answer = requests.post(f"{url}/predictions", json={"input": {"sleep": sleep}}, timeout=60)
    return {} if answer.status_code == 409 else answer.json()


def refusal(url: str, identifier: str) -> str:
    """Post a job under an id and return the error; "" while the server is at capacity, as it is just after a job."""
    error = requests.post(f"{url}/predictions", json={"id": identifier, "input": {}}, timeout=30).json()["error"]
    return "" if "At capacity" in error else error


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


@pytest.mark.attack("ids of requests (G1)")
def test_a_request_whose_id_is_no_name_for_a_folder_does_not_block_the_server(home) -> None:
    with CogServer("predict", home=home) as server:
        server.wait_ready()
        first = worker_of(server.url)
        assert "Failed to create output dir" in eventually(lambda: refusal(server.url, "a\0b"))
        assert status(server.url) == "BUSY"
        with supervised(server):
            assert worker_of(server.url) != first


def test_a_stopped_server_is_replaced(home, monkeypatch) -> None:
    monkeypatch.setattr(server_module, "_HEALTH_TIMEOUT", 0.5)
    policy = RestartPolicy(interval=0.05, unresponsive_after=1)
    with CogServer("predict", home=home) as server:
        server.wait_ready()
        output = eventually(lambda: post(server.url).get("output"))
        os.kill(output["server"], signal.SIGSTOP)
        eventually(lambda: server.health() is Health.UNRESPONSIVE)  # its threads stop one after another
        with supervised(server, policy):
            eventually(lambda: not is_running(output["server"]) and not is_running(output["pid"]))
            assert worker_of(server.url) != output["pid"]


def test_a_job_longer_than_an_unexplained_one_is_left_alone(home) -> None:
    with CogServer("predict", home=home) as server, ThreadPoolExecutor(1) as pool, supervised(server):
        server.wait_ready()
        assert start_job(pool, server.url, sleep=2.5).result(30)["status"] == "succeeded"


class FakeServer:
    """A server with scripted health, which records the supervisor's calls; each look at it takes a second."""

    mode = "predict"
    without_job = 0.0
    seconds = 0.0

    def __init__(self, *script: Health, stop: threading.Event) -> None:
        self.script, self.end, self.calls = list(script), stop, []

    def seconds_without_job(self) -> float:
        return self.without_job

    def health(self) -> Health:
        self.seconds += 1
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


def watch(*script: Health, without_job: float = 0.0, **policy: float) -> list[str]:
    stop = threading.Event()
    server = FakeServer(*script, stop=stop)
    server.without_job = without_job
    supervise(server, stop=stop, policy=RestartPolicy(interval=0.001, **policy), clock=lambda: server.seconds)
    return server.calls


RESTART = ["stop", "start", "ready"]


def test_a_server_that_stays_silent_is_restarted() -> None:
    silent = [Health.UNRESPONSIVE] * 4
    assert watch(*silent, Health.READY, unresponsive_after=2) == RESTART
    assert watch(*silent, Health.READY) == []


def test_a_server_that_is_busy_for_long_is_restarted_only_if_its_worker_has_no_job() -> None:
    busy = [Health.BUSY] * 4
    assert watch(*busy, Health.READY, without_job=60, unexplained_busy=2) == RESTART
    assert watch(*busy, Health.READY, unexplained_busy=2) == []
    assert watch(*busy, Health.READY, without_job=60) == []


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


class Webhooks(BaseHTTPRequestHandler):
    """Keeps what is posted to it."""

    url = ""
    bodies: ClassVar[list[dict[str, Any]]] = []

    def do_POST(self) -> None:
        self.bodies.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *arguments: object) -> None:
        pass


@pytest.fixture
def webhooks() -> Iterator[type[Webhooks]]:
    Webhooks.bodies.clear()
    with ThreadingHTTPServer(("127.0.0.1", 0), Webhooks) as listener:
        threading.Thread(target=listener.serve_forever, daemon=True).start()
        Webhooks.url = f"http://127.0.0.1:{listener.server_port}/"
        yield Webhooks
        listener.shutdown()


@pytest.fixture
def command(home, tmp_path) -> Iterator[subprocess.Popen[str]]:
    """Run ``serve`` in a process of its own, as the command line does."""
    code = "import pathlib, sys; from lora_service.serving.foreground import serve; "
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
        assert job.result(60)["status"] == "succeeded"
    assert command.wait(60) == 0
    assert not is_running(worker)
    assert not list(tmp_path.glob("lora-service-*"))


def test_a_second_signal_ends_the_running_job(command, tmp_path) -> None:
    url = ready_url(command)
    with ThreadPoolExecutor(1) as pool:
        job = start_job(pool, url, sleep=60)
        command.send_signal(signal.SIGINT)
        assert command.stdout.readline().startswith("Stopping after the running job")
        command.send_signal(signal.SIGINT)
        assert command.wait(60) == 130
        assert isinstance(job.exception(10), requests.ConnectionError)
    assert not list(tmp_path.glob("lora-service-*"))


def test_a_signal_lets_a_job_finish_that_nobody_waits_for_and_its_webhook_is_sent(command, webhooks) -> None:
    url = ready_url(command)
    eventually(lambda: status(url) == "READY")
    body = {"input": {"sleep": 2}, "webhook": webhooks.url, "webhook_events_filter": ["completed"]}
    answer = requests.post(f"{url}/predictions", json=body, headers={"Prefer": "respond-async"}, timeout=10)
    assert answer.status_code == 202
    eventually(lambda: status(url) == "BUSY")
    command.send_signal(signal.SIGTERM)
    assert command.wait(60) == 0
    assert [body["status"] for body in webhooks.bodies] == ["succeeded"]


@pytest.mark.attack("temporary files (G9)")
def test_a_killed_supervisor_takes_its_server_along_and_the_next_start_clears_up(command, home, tmp_path) -> None:
    url = ready_url(command)
    output = eventually(lambda: post(url).get("output"))
    command.kill()
    eventually(lambda: not is_running(output["server"]) and not is_running(output["pid"]))
    assert Path(output["folder"]).exists()
    code = "import tempfile; from lora_service.serving import server; server._remove_abandoned_folders()"
    subprocess.run([sys.executable, "-c", code], env=os.environ | {"TMPDIR": str(tmp_path)}, check=True)
    assert not Path(output["folder"]).exists()


@pytest.mark.attack("temporary files (G9)")
def test_the_folder_of_a_running_server_is_not_cleared_up(command, tmp_path) -> None:
    folder = Path(eventually(lambda: post(ready_url(command)).get("output"))["folder"])
    code = "from lora_service.serving import server; server._remove_abandoned_folders()"
    subprocess.run([sys.executable, "-c", code], env=os.environ | {"TMPDIR": str(tmp_path)}, check=True)
    assert folder.exists()


def test_serve_ends_when_the_setup_fails(tmp_path) -> None:
    (tmp_path / "train.py").write_text("raise RuntimeError('no weights here')\ndef train() -> str: ...\n")
    with raises(ServingError, code="setup_failed") as caught:
        serve("train", port=0, home=tmp_path)
    assert "no weights here" in str(caught.value)
