"""A worker: Ray's actor around one of Cog's servers. It ends itself when the server does, and Ray starts it again."""

from __future__ import annotations

import os
import secrets
import socket
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path

import ray
import uvicorn

from lora_service.gateway.engine.ray.front import Front
from lora_service.gateway.engine.ray.messages import WorkerSpec
from lora_service.serving import entries
from lora_service.serving.server import UPLOADING, CogServer
from lora_service.serving.supervisor import HealthWatch
from lora_service.temporary_folders import LockedFolder, remove_abandoned_folders

_START_SECONDS = 900.0  # a base may have to be downloaded first


class CogWorker:
    """The actor.

    Args:
        spec: what it is to do.
    """

    def __init__(self, spec: WorkerSpec) -> None:
        self._spec = spec
        self._server: CogServer | None = None
        self._url, self._lock = "", threading.Lock()
        remove_abandoned_folders()
        self._runs = LockedFolder("lora-runs-")

    def start(self) -> dict[str, str]:
        """Start the server, once; returns the worker's address and machine when the server is ready.

        Raises:
            ServingError: it does not start.
        """
        with self._lock:  # Ray may ask twice
            if self._server is None:
                server = CogServer(
                    self._spec.kind,
                    home=Path(self._spec.home) if self._spec.home else entries.HOME,
                    log=os.fdopen(os.dup(sys.stderr.fileno()), "wb"),
                    environment=self._environment(),
                    upload_url=self._spec.upload_url,
                ).__enter__()  # what ends it is the end of this process
                server.wait_ready(_START_SECONDS)
                self._server, self._url = server, _open_port(server.url, self._runs.path)
        return {"url": self._url, "node": ray.util.get_node_ip_address()}

    def watch(self) -> None:
        """Return never: when the server is of no use any more, the process ends."""
        assert self._server is not None
        watch = HealthWatch(self._server, UPLOADING)
        while not (reason := watch.check()):
            time.sleep(UPLOADING.interval)
        print(f"The {self._spec.kind} server {reason}; the worker ends, and Ray starts another one.", file=sys.stderr)
        self.end()
        os._exit(1)

    def end(self) -> None:
        """End the server, and remove what is on the disk."""
        if self._server is not None:
            self._server.stop(grace=0)
            self._server.close()
        self._runs.remove()

    def _environment(self) -> Mapping[str, str]:
        given = {name: value for name, value in self._spec.given.items() if name not in os.environ}
        return {**given, **self._spec.fixed, "RUN_FOLDERS": str(self._runs.path)}


def _open_port(cog: str, runs: Path) -> str:
    """Open the worker's own port; returns the address with its key."""
    key, host = secrets.token_urlsafe(24), ray.util.get_node_ip_address()
    port = socket.create_server((host, 0), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    config = uvicorn.Config(Front(cog, key, runs).app, log_config=None, access_log=False)
    threading.Thread(target=uvicorn.Server(config).run, args=([port],), daemon=True).start()
    return f"http://{f'[{host}]' if ':' in host else host}:{port.getsockname()[1]}/{key}"
