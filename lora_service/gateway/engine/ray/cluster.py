"""The gateway's side of the keeper: starts it again when it ends, and tells the engines what it says."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import sys
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

from lora_service.gateway.engine.ray.messages import KeeperConfig
from lora_service.temporary_folders import remove_abandoned_folders, temporary_folder

_log = logging.getLogger(__name__)
_FIRST_PAUSE, _LONGEST_PAUSE = 1.0, 30.0  # until an ended keeper is started again
_END_SECONDS = 20.0
_KEEPER = (sys.executable, "-m", "lora_service.gateway.engine.ray.keeper")
_AS_OTHERS = {"RAY_worker_niceness": "0"}
"""On a cluster of this machine alone, workers are no nicer than the servers of the local engine."""
_QUIET = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_DEDUP_LOGS": "0"}
Hear = Callable[[Mapping[str, Any]], None]


class RayCluster:
    """The connection to a cluster, by a keeper.

    Args:
        address: of the cluster, as ``ray.init`` takes it; empty: one is started on this machine.
        log: the file that takes what the keeper and Ray write.
    """

    def __init__(self, address: str, log: Path) -> None:
        self._address, self._log = address, log
        self._kinds: dict[str, Any] = {}
        self._hear: dict[str, Hear] = {}
        self._process: asyncio.subprocess.Process | None = None
        self._task: asyncio.Task[None] | None = None
        self.is_connected = False

    def add(self, kind: str, spec: Any, hear: Hear) -> None:
        """Add a kind of worker, before :meth:`open`.

        Args:
            spec: of its workers.
            hear: called with what becomes of them, and with the end of the connection (``event`` ``away``).
        """
        self._kinds[kind], self._hear[kind] = spec, hear

    def open(self) -> None:
        """Connect, and stay so."""
        if self._task is None:
            self._task = asyncio.create_task(self._keep_up())

    def order(self, do: str, worker: str, kind: str) -> None:
        """Have a worker started, restarted or stopped; without a connection nothing happens, and none is there."""
        if self.is_connected and self._process is not None and self._process.stdin is not None:
            self._process.stdin.write(f"{json.dumps({'do': do, 'worker': worker, 'kind': kind})}\n".encode())

    async def close(self) -> None:
        """End the keeper and with it the workers."""
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def _keep_up(self) -> None:
        pause = _FIRST_PAUSE
        while True:
            try:
                if await self._connect_once():
                    pause = _FIRST_PAUSE
            except (OSError, ValueError):  # no process could be started, or it said what nobody understands
                _log.exception("the connection to Ray is tried again after an error")
            await asyncio.sleep(pause)
            pause = min(2 * pause, _LONGEST_PAUSE)

    async def _connect_once(self) -> bool:
        """Run a keeper to its end; returns False if it could not connect."""
        remove_abandoned_folders()
        with ExitStack() as stack:
            temporary = "" if self._address else str(stack.enter_context(temporary_folder("lora-ray-")))
            log = stack.enter_context(self._log.open("ab"))
            self._process = process = await asyncio.create_subprocess_exec(
                *_KEEPER, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=log,
                start_new_session=True, env=_AS_OTHERS | os.environ | _QUIET,
            )  # fmt: skip
            try:
                return await self._listen(process, KeeperConfig(self._address, temporary, self._kinds))
            finally:
                self.is_connected = False
                for hear in self._hear.values():
                    hear({"event": "away"})
                await asyncio.shield(_end(process))

    async def _listen(self, process: asyncio.subprocess.Process, config: KeeperConfig) -> bool:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(f"{json.dumps(asdict(config))}\n".encode())
        reason = f"the keeper ended; see {self._log}"
        while line := await process.stdout.readline():
            message = json.loads(line)
            if message["event"] == "away":
                reason = message["error"]
            elif message["event"] == "connected":
                self.is_connected = True
                _log.info("connected to Ray")
                for hear in self._hear.values():
                    hear(message)
            else:
                self._hear[message["worker"].partition("-")[0]](message)
        _log.warning("Ray cannot be reached: %s", reason)
        return self.is_connected


async def _end(process: asyncio.subprocess.Process) -> None:
    """End a keeper: the end of its input is its signal."""
    if process.stdin is not None:
        process.stdin.close()
    try:
        await asyncio.wait_for(process.wait(), _END_SECONDS)
    except TimeoutError:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()
