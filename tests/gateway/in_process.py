"""A gateway in a thread of the tests, with a scripted server in place of Cog's."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import httpx
import replicate
import uvicorn

from lora_service.gateway.app import create_app
from lora_service.gateway.connections import TimedProtocol
from lora_service.gateway.engine.jobs import (
    CANCEL,
    EngineJob,
    EngineKind,
    EngineLostError,
    JobEngine,
    OneByOne,
    OnProgress,
)
from lora_service.gateway.gateway import Gateway
from lora_service.gateway.settings import GatewaySettings
from lora_service.serving.server import server_document
from lora_service.settings import Settings
from tests.gateway.running import QUICK, free_port

PICTURE = "data:image/png;base64,iVBORw0KGgo="
DRAW = "/v1/models/local/lora/predictions"


@cache
def document(kind: EngineKind, home: Path = QUICK) -> dict[str, Any]:
    """The document of the quick entries, or of those in ``home``."""
    return dict(server_document(kind, home))


@dataclass
class ScriptedEngine(OneByOne):
    """Does what the quick entries do, without a process: waits, draws, fails, is lost."""

    kind: EngineKind = "predict"
    begun: list[str] = field(default_factory=list)
    inputs: list[Mapping[str, Any]] = field(default_factory=list)

    async def document(self) -> dict[str, Any]:
        return document(self.kind)

    async def run(self, job: EngineJob, on_progress: OnProgress) -> Mapping[str, Any]:
        self.begun.append(job.id)
        self.inputs.append(job.input)
        logs = f"begun with {job.input.get('prompt', '')}\n"
        await on_progress({"status": "processing", "logs": logs, "metrics": {"step": 1}})
        end = time.monotonic() + job.input.get("seconds", 0)
        while time.monotonic() < end:
            try:
                event = await asyncio.wait_for(job.events.get(), end - time.monotonic())
            except TimeoutError:
                break
            if event == CANCEL:
                return {"status": "canceled", "logs": logs}
        behaviour = job.input.get("behaviour")
        if behaviour == "fail":
            metrics = {"error_code": "asked", "error_message": "It was asked to fail.", "log": "the last line"}
            return {"status": "failed", "error": "Prediction failed: ValueError", "logs": "", "metrics": metrics}
        if behaviour == "crash" or (behaviour == "crash once" and self.begun.count(job.id) == 1):
            raise EngineLostError("it was asked to be lost")
        output: Any = "data:application/octet-stream;base64,bG9yYQ==" if self.kind == "train" else [PICTURE]
        metrics = {"step": 2, "loras": 3, "loras_in_memory": 2}
        return {"status": "succeeded", "logs": logs + "drawn\n", "output": output, "metrics": metrics}

    async def close(self) -> None:
        """Nothing is to be ended."""


@dataclass
class Running:
    """A gateway that runs in a thread."""

    gateway: Gateway
    engine: ScriptedEngine

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.gateway.port}"

    def call(self, method: str, path: str, token: str = "", **options: Any) -> httpx.Response:
        """Send a request."""
        headers = {**options.pop("headers", {}), **({"Authorization": f"Bearer {token}"} if token else {})}
        return httpx.request(method, f"{self.url}{path}", headers=headers, timeout=60, **options)

    def draw(self, token: str = "", *, wait: int = 0, **body: Any) -> dict[str, Any]:
        """Create a prediction."""
        headers = {"Prefer": f"wait={wait}"} if wait else {}
        answer = self.call("POST", DRAW, token, json={"input": {}, **body}, headers=headers)
        assert answer.status_code in (201, 202), answer.text
        return dict(answer.json())

    def finished(self, job: dict[str, Any], token: str = "") -> dict[str, Any]:
        """Wait for the end of a job."""
        end = time.monotonic() + 200
        while job["status"] not in ("succeeded", "failed", "canceled"):
            assert time.monotonic() < end
            time.sleep(0.02)
            job = self.call("GET", job["urls"]["get"].removeprefix(self.url), token).json()
        return job

    def client(self, token: str = "any") -> replicate.Client:
        """Replicate's own client."""
        return replicate.Client(api_token=token, base_url=self.url)


@contextmanager
def run_gateway(
    folder: Path,
    *,
    engines: Sequence[JobEngine] | None = None,
    private: Sequence[str] = (),
    port: int = 0,
    **settings: Any,
) -> Iterator[Running]:
    """Run a gateway with these settings.

    Args:
        engines: none: a scripted one of each kind.
        private: the private addresses that it may tell of jobs.
    """
    port = port or free_port()
    service = Settings(base_model="embedded", allow_private_addresses=tuple(private))
    gateway = Gateway.open(GatewaySettings(gateway_folder=folder, **settings), service, "127.0.0.1", port)
    engine = ScriptedEngine()
    app = create_app(gateway, [engine, ScriptedEngine("train")] if engines is None else engines)
    server = uvicorn.Server(
        uvicorn.Config(
            app, host="127.0.0.1", port=port, log_config=None, http=TimedProtocol, timeout_graceful_shutdown=1
        )
    )
    thread = threading.Thread(target=server.run)
    thread.start()
    running = Running(gateway, engine)
    try:
        _wait_until_ready(running, thread)
        yield running
    finally:
        server.should_exit = True
        thread.join(60)


def _wait_until_ready(running: Running, thread: threading.Thread) -> None:
    end = time.monotonic() + 60
    while time.monotonic() < end and thread.is_alive():
        try:
            if running.call("GET", "/readyz").status_code == 200:
                return
        except httpx.ConnectError:
            pass
        time.sleep(0.02)
    raise AssertionError("the gateway does not get ready")
