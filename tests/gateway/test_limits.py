"""Limits of the queue, of requests and of sizes."""

from __future__ import annotations

import contextlib
import io
import socket
import time
from collections.abc import Iterator
from http.client import HTTPConnection

import pytest

from lora_service.gateway import connections, guards
from tests.gateway.in_process import DRAW, Running, run_gateway

ANN, BOB, CAT = ("anns" * 5, "bobs" * 5, "cats" * 5)
TOKENS = f"ann:run:{ANN},bob:run:{BOB},cat:run:{CAT}"


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with run_gateway(
        tmp_path_factory.mktemp("gateway"), require_tokens="yes", api_tokens=TOKENS, max_queue=3, max_queue_per_user=2,
        max_body_bytes=250_000, max_upload_bytes=300_000, rate_limit=20,
    ) as running:  # fmt: skip
        yield running


def test_a_full_queue_answers_429_until_a_job_ends(running: Running) -> None:
    jobs = [running.draw(ANN, input={"seconds": 60}) for _ in range(2)]
    refused = running.call("POST", DRAW, ANN, json={"input": {}})
    assert refused.status_code == 429
    assert int(refused.headers["retry-after"]) > 0
    jobs.append(running.draw(BOB, input={"seconds": 60}))
    assert running.call("POST", DRAW, CAT, json={"input": {}}).status_code == 429
    running.call("POST", f"/v1/predictions/{jobs[0]['id']}/cancel", ANN)
    last = running.draw(CAT, input={"seconds": 60})
    for job, token in zip([*jobs[1:], last], (ANN, BOB, CAT), strict=True):
        assert running.call("POST", f"/v1/predictions/{job['id']}/cancel", token).status_code == 200


def test_bodies_and_files_that_are_too_large_are_refused(running: Running) -> None:
    long = running.call("POST", DRAW, BOB, json={"input": {"prompt": "x" * 260_000}})
    assert long.status_code == 413
    text = running.call("POST", DRAW, BOB, json={"input": {"lora_urls": "x" * 210_000}})
    assert text.status_code == 413

    def pieces() -> Iterator[bytes]:  # without a Content-Length
        for _ in range(100):
            yield b"x" * 10_000

    assert running.call("POST", DRAW, BOB, content=pieces()).status_code == 413
    upload = running.call("POST", "/v1/files", BOB, files={"content": io.BytesIO(b"x" * 301_000)})
    assert upload.status_code == 413
    assert running.call("POST", "/v1/files", BOB, files={"content": io.BytesIO(b"x" * 299_000)}).status_code == 201
    files = list((running.gateway.settings.gateway_folder / "files").iterdir())
    assert [path.stat().st_size for path in files] == [299_000]


def test_too_many_requests_have_to_wait(running: Running) -> None:
    answers = [running.call("GET", "/v1/account", CAT) for _ in range(65)]
    refused = [answer for answer in answers if answer.status_code == 429]
    assert refused
    assert int(refused[0].headers["retry-after"]) >= 1
    assert running.call("GET", "/v1/account", ANN).status_code == 200


def _seconds_until_closed(running: Running, begin: bytes) -> tuple[float, bytes]:
    with socket.create_connection(("127.0.0.1", running.gateway.port), timeout=30) as connection:
        connection.sendall(begin)
        started, answer = time.monotonic(), b""
        while part := connection.recv(4096):
            answer += part
        return time.monotonic() - started, answer


@pytest.mark.attack("slow")
@pytest.mark.parametrize("begin", [b"", b"GET /healthz HT", b"GET /healthz HTTP/1.1\r\nHost: loc"])
def test_a_head_that_does_not_come_ends_the_connection(
    running: Running, monkeypatch: pytest.MonkeyPatch, begin: bytes
) -> None:
    monkeypatch.setattr(connections, "HEAD_SECONDS", 0.3)
    seconds, answer = _seconds_until_closed(running, begin)
    assert (answer, seconds < 20) == (b"", True)


@pytest.mark.attack("slow")
def test_a_body_that_does_not_come_is_answered(running: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guards, "_PIECE_SECONDS", 0.3)
    head = f"POST {DRAW} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {ANN}\r\nContent-Length: 100\r\n\r\n{{"
    _, answer = _seconds_until_closed(running, head.encode())
    assert answer.startswith(b"HTTP/1.1 408")


def test_a_kept_connection_outlives_the_time_of_a_head(running: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "HEAD_SECONDS", 0.3)
    with contextlib.closing(HTTPConnection("127.0.0.1", running.gateway.port, timeout=30)) as connection:
        connection.connect()
        kept = connection.sock
        for _ in range(2):
            connection.request("GET", "/healthz")
            response = connection.getresponse()
            assert (response.status, response.read()) == (200, b'{"status":"ok"}')
            time.sleep(0.5)
        assert connection.sock is kept
