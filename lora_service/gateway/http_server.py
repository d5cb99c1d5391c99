"""Runs the gateway on a port, with the engines of this machine."""

from __future__ import annotations

import json
import logging
import os
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from types import FrameType
from typing import Any, Literal

import httpx
import uvicorn
from filelock import FileLock, Timeout

from lora_service.errors import ServingError, SettingError
from lora_service.gateway.app import create_app
from lora_service.gateway.connections import TimedProtocol
from lora_service.gateway.engine.jobs import EngineKind, JobEngine
from lora_service.gateway.engine.local import LocalEngine
from lora_service.gateway.engine.remote import RemoteEngine
from lora_service.gateway.gateway import Gateway
from lora_service.gateway.settings import GatewaySettings
from lora_service.serving import entries
from lora_service.serving.server import ServerAddress
from lora_service.settings import Settings

_KINDS: tuple[EngineKind, ...] = ("predict", "train")


def engines(
    gateway: Gateway, client: httpx.AsyncClient, urls: Mapping[EngineKind, str], home: Path = entries.HOME
) -> list[JobEngine]:
    """Return the servers of a gateway: those elsewhere by their addresses, else a pair for each device.

    Args:
        home: the folder of the entries.

    Raises:
        SettingError: a training needs several devices, and each server has one.
    """
    found: list[JobEngine] = []
    devices, processes = gateway.settings.gateway_devices, gateway.service.train_processes
    if devices and processes > 1 and not urls.get("train"):
        expected = f"empty with TRAIN_PROCESSES {processes}: a training has so many GPUs, and a server of them has one"
        raise SettingError("GATEWAY_DEVICES", ",".join(devices), expected)
    for kind in _KINDS:
        if urls.get(kind):
            found.append(RemoteEngine(kind, client, urls[kind]))
            continue
        for device in devices or ("",):
            log = gateway.settings.gateway_folder / "logs" / f"{kind}{'-' if device else ''}{device}.log"
            log.parent.mkdir(parents=True, exist_ok=True)
            found.append(LocalEngine(kind, client, _environment(gateway, device), gateway.upload_url, log, home))
    return found


def _environment(gateway: Gateway, device: str) -> dict[str, str]:
    """Return the variables of a server."""
    return gateway.server_environment() | ({"CUDA_VISIBLE_DEVICES": device} if device else {})


def up(
    host: str,
    port: int,
    urls: Mapping[EngineKind, str] | None = None,
    *,
    engine: Literal["local", "ray"] = "local",
    ray_address: str = "",
    home: Path = entries.HOME,
    ready: Callable[[str], None] = print,
) -> int:
    """Serve until SIGTERM or SIGINT; returns the exit status.

    Args:
        host: the IP address to listen on.
        port: 0 for any that is free.
        urls: addresses of servers elsewhere.
        engine: what runs the jobs: servers of this machine or at those addresses, or workers of a Ray cluster.
        ray_address: of the cluster; empty: that of the settings, else one is started on this machine.
        home: the folder of the servers' entries.
        ready: called with each line for the person who started it.

    Raises:
        InputError: host or port are invalid.
        ServingError: the port is in use, or another gateway uses the folder.
        SettingError: a setting cannot be used.
    """
    settings, service = GatewaySettings.from_environment(), Settings.from_environment()
    set_up_logging(settings.log_json)
    address = ServerAddress.claim(host, port)
    with ExitStack() as stack:
        _lock(stack, settings)
        gateway = Gateway.open(settings, service, address.host, address.port)
        client = httpx.AsyncClient(trust_env=False, limits=httpx.Limits(max_connections=None))
        if engine == "ray":
            from lora_service.gateway.engine.ray.setup import ray_engines

            found = ray_engines(gateway, client, ray_address, home)
        else:
            found = engines(gateway, client, urls or {}, home)
        app = create_app(gateway, found)
        config = uvicorn.Config(
            app, host=address.host, port=address.port, log_config=None, access_log=False, timeout_keep_alive=30,
            timeout_graceful_shutdown=5, server_header=False, limit_concurrency=1000,
            h11_max_incomplete_event_size=64 * 1024, http=TimedProtocol,
        )  # fmt: skip
        ready(f"The gateway listens on {address.url}: open it in a browser.")
        ready(f"Replicate's clients: REPLICATE_BASE_URL={address.url}")
        _DrainingServer(config, gateway).run()
    return 0


class _DrainingServer(uvicorn.Server):
    """Goes on to answer after SIGTERM or SIGINT until the running jobs have ended: their servers report to it.

    uvicorn by itself would first close its port, and then have the app wait for reports that cannot come. A second
    signal ends it at once; jobs that run then are begun again at the next start.
    """

    def __init__(self, config: uvicorn.Config, gateway: Gateway) -> None:
        super().__init__(config)
        self._gateway, self._until = gateway, 0.0

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Begin no more jobs; at the second signal, end."""
        self.should_exit = self._gateway.draining or not self.started
        self._until = time.monotonic() + self._gateway.settings.drain_seconds
        self._gateway.drain()

    async def on_tick(self, counter: int) -> bool:
        """Return True when it is to end."""
        # A job that was just taken is among the running ones a moment later.
        is_idle = not self._gateway.inboxes and counter % 10 == 0
        if self._gateway.draining and (is_idle or time.monotonic() > self._until):
            self.should_exit = True
        return await super().on_tick(counter)


def _lock(stack: ExitStack, settings: GatewaySettings) -> None:
    settings.gateway_folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(settings.gateway_folder / "lock", timeout=0)
    try:
        stack.enter_context(lock)
    except Timeout as error:
        folder = settings.gateway_folder
        message = f"Another gateway uses {str(folder)!r}: set GATEWAY_FOLDER to another folder, or end that one."
        raise ServingError(message, code="gateway_folder_in_use") from error


class _JsonLines(logging.Formatter):
    """Log records as JSON objects, with the job's identifier where there is one."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "time": self.formatTime(record, "%Y-%m-%dT%H:%M:%S"),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
        }
        line |= {name: getattr(record, name) for name in ("job", "user") if hasattr(record, name)}
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False)


def set_up_logging(as_json: bool) -> None:
    """Log to standard error: as lines for people, or as JSON objects."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_JsonLines() if as_json else logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    logging.basicConfig(level=os.environ.get("LOG_LEVEL", "INFO").upper(), handlers=[handler], force=True)
    for name in ("httpx", "alembic", "uvicorn.access"):
        logging.getLogger(name).setLevel(logging.WARNING)
