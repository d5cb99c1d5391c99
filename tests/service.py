"""A client of a running server, as tests use it."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import requests

from lora_service.serving.server import CogServer
from lora_service.serving.supervisor import Health


@dataclass(frozen=True)
class Service:
    """A client of a running server."""

    server: CogServer

    def post(self, path: str = "predictions", *, wait: float = 60.0, **inputs: Any) -> requests.Response:
        """Post a job, again for ``wait`` seconds while the server refuses it (409) because of the previous one."""
        end = time.monotonic() + wait
        while True:
            answer = requests.post(f"{self.server.url}/{path}", json={"input": inputs}, timeout=600)
            if answer.status_code != 409 or time.monotonic() > end:
                return answer
            time.sleep(0.05)

    def output(self, path: str = "predictions", **inputs: Any) -> Any:
        """Return the output of a job that must succeed."""
        answer = self.post(path, **inputs)
        body = answer.json()
        assert answer.status_code == 200, body
        assert body["status"] == "succeeded", body
        return body["output"]

    def wait_for(self, health: Health, seconds: float = 60.0) -> None:
        """Wait for a state of the server: ``READY`` for the next job, ``BUSY`` for one that has started."""
        end = time.monotonic() + seconds
        while self.server.health() is not health:
            assert time.monotonic() < end, f"not {health} within {seconds} s"
            time.sleep(0.02)
