"""Cog's servers on this machine, under the supervisor: started at their first job and kept warm."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Mapping
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import httpx

from lora_service.errors import LoraServiceError
from lora_service.gateway.engine.cog_client import CogClient
from lora_service.gateway.engine.jobs import EngineJob, EngineKind, EngineLostError, OneByOne, OnProgress
from lora_service.serving import entries
from lora_service.serving.server import UPLOADING, CogServer, server_document
from lora_service.serving.supervisor import Health, supervise

_log = logging.getLogger(__name__)
_START_SECONDS = 900.0  # a base may have to be downloaded first


class _CountedServer(CogServer):
    """A server that counts how often the supervisor has started it."""

    starts = 0

    def start(self) -> None:
        """Start the process."""
        self.starts += 1
        super().start()


class LocalEngine(OneByOne):
    """One of Cog's servers.

    Args:
        kind: what it does.
        client: sends the requests.
        environment: variables of the server besides those of this process.
        upload_url: where the server puts its output files.
        log: the file that takes what server and worker write.
        home: the folder of the entries.
    """

    def __init__(
        self,
        kind: EngineKind,
        client: httpx.AsyncClient,
        environment: Mapping[str, str],
        upload_url: str,
        log: Path,
        home: Path = entries.HOME,
    ) -> None:
        self.kind: EngineKind = kind
        self._client, self._environment, self._upload_url = client, dict(environment), upload_url
        self._log, self._home = log, home
        self._server: _CountedServer | None = None
        self._open = ExitStack()
        self._stop = threading.Event()
        self._watch: threading.Thread | None = None
        self._lock = asyncio.Lock()

    async def document(self) -> dict[str, Any]:
        """Return the document that the server is given, without starting it."""
        return await asyncio.to_thread(server_document, self.kind, self._home)

    async def run(self, job: EngineJob, on_progress: OnProgress) -> Mapping[str, Any]:
        """Run a job, after starting the server where it does not run."""
        server = await self._ready()
        seen = server.starts
        try:
            return await CogClient(server.url, self._client, lambda: server.starts != seen).run(job, on_progress)
        except EngineLostError:
            if server.starts == seen:  # the supervisor has not restarted it: it looks alive, and is of no use
                await asyncio.to_thread(self._end)
            raise

    async def close(self) -> None:
        """End the server and what it runs."""
        await asyncio.to_thread(self._end)

    async def _ready(self) -> _CountedServer:
        async with self._lock:
            try:
                return await asyncio.to_thread(self._start)
            except LoraServiceError as error:
                await asyncio.to_thread(self._end)
                raise EngineLostError(str(error)) from error

    def _start(self) -> _CountedServer:
        if self._watch is not None and not self._watch.is_alive():  # the supervisor has given up
            self._end()
        if self._server is None:
            log = self._open.enter_context(self._log.open("ab"))
            self._server = server = self._open.enter_context(
                _CountedServer(
                    self.kind, home=self._home, log=log, environment=self._environment, upload_url=self._upload_url
                )
            )
            server.wait_ready(_START_SECONDS)
            self._stop = threading.Event()
            self._watch = threading.Thread(target=self._supervise, args=(server, self._stop), daemon=True)
            self._watch.start()
        self._server.wait_ready(_START_SECONDS)
        return self._server

    def _supervise(self, server: CogServer, stop: threading.Event) -> None:
        with suppress(LoraServiceError):  # noticed by the next job, which starts a new server
            supervise(server, stop=stop, policy=UPLOADING)

    def _end(self) -> None:
        self._stop.set()
        server, self._server = self._server, None
        watch, self._watch = self._watch, None
        if server is not None and server.health() is Health.BUSY:
            server.stop(grace=0)
        self._open.close()
        if watch is not None:
            watch.join(timeout=60)
        if server is not None:
            server.stop(grace=0)  # where the supervisor was just starting it again
