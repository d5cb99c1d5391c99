"""Requests to a real server of the embedded base: each is answered shortly, and the worker does the next job."""

from __future__ import annotations

import base64
import contextlib
import json
import random
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import pytest
import requests

from benchmarks.request_memory import long_name
from lora_service.serving.server import CogServer
from lora_service.serving.supervisor import RestartPolicy, supervise
from tests.service import Service

pytestmark = pytest.mark.campaign

LONGEST_ANSWER = 100_000
DRAWING = {"prompt": "a red star", "num_inference_steps": 1, "width": 32, "height": 32}
IDS = [
    "a\0b",
    "x" * 256,
    "é" * 200,
    "x" * 100_000,
    "../../../tmp/lora-service-attack/x",
    "/",
    ".",
    "..",
    "a/b",
    "\n",
    "%00",
]


@dataclass
class Attacked:
    """A supervised server, and how often it was restarted."""

    service: Service
    restarts: list[int] = field(default_factory=list)


@pytest.fixture(scope="module")
def attacked() -> Iterator[Attacked]:
    stop = threading.Event()
    with CogServer("predict", environment={"BASE_MODEL": "embedded"}) as server, ThreadPoolExecutor(1) as pool:
        server.wait_ready(600)
        result = Attacked(Service(server))
        start = server.start
        server.start = lambda: (result.restarts.append(1), start())[1]  # type: ignore[method-assign]
        # Nearly every id wedges the server: without max_pause the restarts would be half a minute apart.
        policy = RestartPolicy(interval=0.2, unexplained_busy=5, max_pause=1)
        watch = pool.submit(supervise, server, stop=stop, policy=policy)
        try:
            yield result
        finally:
            stop.set()
        watch.result(600)


def draws(service: Service) -> bool:
    """Return True if the server does a job, now or once it was restarted; 409: it is busy, 503: it starts."""
    end = time.monotonic() + 600
    while time.monotonic() < end:
        with contextlib.suppress(requests.ConnectionError):
            answer = requests.post(f"{service.server.url}/predictions", json={"input": DRAWING}, timeout=600)
            if answer.status_code not in (409, 503):
                return bool(answer.json()["status"] == "succeeded")
        time.sleep(0.2)
    return False


def data_uri(data: bytes) -> str:
    return f"data:application/octet-stream;base64,{base64.b64encode(data).decode()}"


BODIES: dict[str, Any] = {
    "20 MB in place of a picture": {"image": "x" * 20_000_000},
    "a picture that is none": {"image": data_uri(b"\x89PNG\r\n\x1a\n" + bytes(1000))},
    "20 MB of links": {"lora_urls": "https://example.org/?a=" + "x" * 20_000_000},
    "a tensor's name of 7 MB": {"lora_urls": data_uri(long_name(random.Random(0)))},
    "a LoRA that is none": {"lora": data_uri(b"PK\x03\x04" + bytes(1000))},
    "1,666 references": {"prompt": "<1>" * 1666},
    "a prompt of 9 MB": {"prompt": "x" * 9_000_000},
    "half a character": {"prompt": "a \ud800"},
    "pixel-steps of hours": {"width": 2048, "height": 2048, "num_inference_steps": 500, "num_outputs": 8},
    "an unknown input": {"x" * 100_000: 1},
    "a number without end": {"seed": 10**400},
    "a list in place of a text": {"prompt": ["a"] * 1000},
    "no object": [1],
}
NO_REQUESTS = {
    "nothing": b"",
    "a brace": b"{",
    "brackets": b"[" * 200_000,
    "objects": b'{"input":' * 50_000,
    "half a character": b'{"input": {"prompt": "\\ud800"}}',
    "noise": random.Random(0).randbytes(1000),
    "zeros": bytes(10**6),
}


@pytest.mark.attack("requests to a server (G2, G10)")
@pytest.mark.parametrize("kind", BODIES)
def test_a_request_is_answered_shortly_and_the_worker_goes_on(attacked: Attacked, kind: str) -> None:
    before = len(attacked.restarts)
    body = BODIES[kind]
    inputs = {**DRAWING, **body} if isinstance(body, dict) else body
    answer = requests.post(f"{attacked.service.server.url}/predictions", json={"input": inputs}, timeout=300)
    assert answer.status_code < 500
    echoed = json.dumps(inputs) if answer.status_code >= 400 else ""  # Cog's own refusal quotes the value that it got
    assert len(answer.text) < LONGEST_ANSWER + 2 * len(echoed)
    assert draws(attacked.service)
    assert len(attacked.restarts) == before


@pytest.mark.attack("ids of requests (G1)")
@pytest.mark.parametrize("method", ["POST", "PUT"])
@pytest.mark.parametrize("identifier", IDS, ids=lambda text: ascii(text[:20]))
def test_an_id_does_not_wedge_the_server(attacked: Attacked, identifier: str, method: str) -> None:
    url = f"{attacked.service.server.url}/predictions"
    if method == "PUT":
        url += f"/{requests.utils.quote(identifier[:2000], safe='')}"
    with contextlib.suppress(requests.RequestException):
        requests.request(method, url, json={"id": identifier, "input": DRAWING}, timeout=120)
    assert draws(attacked.service)


@pytest.mark.attack("requests to a server (G2, G10)")
@pytest.mark.parametrize("kind", NO_REQUESTS)
def test_a_body_that_is_no_request_is_refused(attacked: Attacked, kind: str) -> None:
    before = len(attacked.restarts)
    headers = {"Content-Type": "application/json"}
    answer = requests.post(
        f"{attacked.service.server.url}/predictions", data=NO_REQUESTS[kind], headers=headers, timeout=120
    )
    assert len(answer.content) < LONGEST_ANSWER
    assert draws(attacked.service)
    assert len(attacked.restarts) == before
