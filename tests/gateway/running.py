"""A gateway as a process of its own, with Cog's real servers, as tests start and kill it."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import httpx
from replicate.client import Client

ROOT = Path(__file__).resolve().parents[2]
QUICK = Path(__file__).parent / "quick"
START_SECONDS = 300.0


def free_port() -> int:
    """A port that nothing listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@dataclass
class RunningGateway:
    """A gateway; a context in which it runs.

    Args:
        folder: its files; they outlive the process.
        home: the folder of the entries of its servers.
        environment: more settings.
        engine: what runs the jobs.
    """

    folder: Path
    home: Path = QUICK
    environment: Mapping[str, str] = field(default_factory=dict)
    engine: str = "local"
    port: int = field(default_factory=free_port)
    process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def log(self) -> Path:
        return self.folder / "gateway.log"

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def start(self) -> None:
        """Start the process and wait until it takes jobs."""
        self.folder.mkdir(parents=True, exist_ok=True)
        environment = {
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "GATEWAY_FOLDER": str(self.folder),
            "BASE_MODEL": "embedded",
            "DRAIN_SECONDS": "60",
            **({"CALLBACK_URL": self.url} if self.engine == "ray" else {}),
            **self.environment,
        }
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "tests.gateway.quick_gateway", str(self.port), str(self.home), self.engine],
                cwd=ROOT, env=environment, stdout=log, stderr=log,
            )  # fmt: skip
        self.wait_until_ready()

    def wait_until_ready(self) -> None:
        """Wait until the process takes jobs."""
        end = time.monotonic() + START_SECONDS
        while time.monotonic() < end:
            assert self.process is not None
            assert self.process.poll() is None, self.log.read_text()
            with contextlib.suppress(httpx.HTTPError):
                if httpx.get(f"{self.url}/readyz", timeout=5).status_code == 200:
                    return
            time.sleep(0.05)
        raise AssertionError(self.log.read_text())

    def kill(self) -> None:
        """End the process as a machine that loses its power would."""
        assert self.process is not None
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()

    def stop(self) -> None:
        """End the process as an operator would."""
        if self.process is not None and self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(120)
            except subprocess.TimeoutExpired:
                self.kill()
                raise

    def client(self, token: str = "") -> Client:
        """Replicate's own client."""
        return Client(api_token=token or "any", base_url=self.url, timeout=httpx.Timeout(300))

    def call(self, method: str, path: str, token: str = "", **options: Any) -> httpx.Response:
        """Send a request."""
        headers = {**options.pop("headers", {}), **({"Authorization": f"Bearer {token}"} if token else {})}
        return httpx.request(method, f"{self.url}{path}", headers=headers, timeout=120, **options)
