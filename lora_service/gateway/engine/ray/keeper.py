"""Ray's driver, in a process of its own: ``python -m lora_service.gateway.engine.ray.keeper``.

It does what its standard input says, and tells on its standard output what becomes of the workers. It ends when the
input does, so with the gateway, and Ray ends its workers then.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import sys
import threading
import time
from collections.abc import Callable, Coroutine, Mapping
from typing import Any

import ray
from ray.exceptions import ActorDiedError, RayActorError, RayError, RayTaskError

from lora_service.gateway.engine.ray.messages import KeeperConfig, WorkerSpec
from lora_service.gateway.engine.ray.worker import CogWorker

_OBJECT_STORE_BYTES = 80 * 1024**2  # nothing of ours is kept there, and Ray's least is 75 MiB
_CALLS_AT_ONCE = 4
_PAUSE_SECONDS = 1.0
_LOOK_SECONDS = 5.0  # between two looks whether the cluster still knows us
_END_SECONDS = 5.0
Say = Callable[..., None]


class Keeper:
    """Keeps workers.

    Args:
        config: what kinds there are.
        say: called with each thing to tell.
    """

    def __init__(self, config: KeeperConfig, say: Say) -> None:
        self._config, self._say = config, say
        self._actors: dict[str, Any] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    def do(self, order: dict[str, str]) -> None:
        """Start, restart or stop a worker."""
        worker = order["worker"]
        if order["do"] == "start":
            self._start(worker, self._config.kinds[order["kind"]])
        elif worker in self._actors and order["do"] == "restart":
            ray.kill(self._actors[worker], no_restart=False)
        elif worker in self._actors:
            self._run(_end(self._actors.pop(worker)))

    async def close(self) -> None:
        """End all workers."""
        actors, self._actors = self._actors, {}
        await asyncio.gather(*map(_end, actors.values()))

    def _run(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _start(self, worker: str, spec: WorkerSpec) -> None:
        here = {} if self._config.address else ray.cluster_resources()
        gpus = spec.gpus
        if gpus is None:
            gpus = float(spec.processes) if self._config.address or here.get("GPU") else 0.0
        if here and (lacking := _lacking(here, {"CPU": spec.cpus, "GPU": gpus})):
            self._say(worker=worker, event="failed", error=f"a worker that is to {spec.kind} {lacking}")
            return
        # A job that was sent to a worker is never sent again by Ray: whether it is begun again is the gateway's to say.
        options = {"num_cpus": spec.cpus, "num_gpus": gpus, "max_restarts": -1, "max_task_retries": 0}
        actor = ray.remote(CogWorker).options(max_concurrency=_CALLS_AT_ONCE, **options)  # type: ignore[attr-defined]
        self._actors[worker] = actor.remote(spec)
        self._run(self._keep(worker))

    async def _keep(self, worker: str) -> None:
        """Tell of a worker's beginnings and ends until it is stopped or does not start."""
        actor = self._actors[worker]
        while worker in self._actors:
            try:
                # What was begun twice would be the same server.
                ready = await actor.start.options(max_task_retries=-1).remote()
                self._say(worker=worker, event="ready", **ready)
                await actor.watch.remote()
            except RayTaskError as error:
                self._fail(worker, str(error.cause or error))
            except ActorDiedError as error:
                self._fail(worker, str(error).strip().splitlines()[-1])
            except RayActorError:
                self._say(worker=worker, event="lost")
                await asyncio.sleep(_PAUSE_SECONDS)

    def _fail(self, worker: str, reason: str) -> None:
        actor = self._actors.pop(worker, None)
        if actor is not None:  # else it was stopped
            ray.kill(actor)
            self._say(worker=worker, event="failed", error=reason)


def _lacking(here: Mapping[str, float], needed: Mapping[str, float]) -> str:
    """Return what one machine alone, which no other will join, has too little of: Ray would wait for it for ever."""
    for name, count in needed.items():
        if count > here.get(name, 0.0):
            return f"needs {count:g} {name}s, and this machine has {here.get(name, 0.0):g}"
    return ""


async def _end(actor: Any) -> None:
    """End a worker: by itself, so that nothing is left on its disk, or by force."""
    with contextlib.suppress(RayError, TimeoutError):
        await asyncio.wait_for(actor.end.remote(), _END_SECONDS)
    ray.kill(actor)


def _connect(config: KeeperConfig) -> None:
    """Connect to the cluster, or start one."""
    if config.address:
        ray.init(address=config.address, log_to_driver=False, logging_level=logging.WARNING)
        return
    ray.init(
        address="local", include_dashboard=False, object_store_memory=_OBJECT_STORE_BYTES, log_to_driver=False,
        logging_level=logging.WARNING, _temp_dir=config.temporary or None,
    )  # fmt: skip


def _end_with_node(own: str, say: Say) -> None:
    """End this process once its own machine is no part of the cluster any more, as after a new start of the head.

    Ray takes such a driver's workers away and does not tell it.
    """
    while True:
        time.sleep(_LOOK_SECONDS)
        with contextlib.suppress(Exception):  # the head does not answer; it may come back, and know us
            if not any(node["NodeID"] == own and node["Alive"] for node in ray.nodes()):
                say(event="away", error="this machine is no part of the cluster any more")
                os._exit(1)


async def _serve(lines: asyncio.StreamReader, say: Say) -> None:
    config = KeeperConfig.of(json.loads(await lines.readline()))
    try:
        _connect(config)
    except (ConnectionError, RuntimeError, ValueError, TimeoutError) as error:
        say(event="away", error=str(error).strip().splitlines()[0])
        return
    say(event="connected")
    threading.Thread(target=_end_with_node, args=(ray.get_runtime_context().get_node_id(), say), daemon=True).start()
    keeper = Keeper(config, say)
    while line := await lines.readline():
        keeper.do(json.loads(line))
    await keeper.close()


async def _main() -> None:
    # What Ray prints must not come among the messages.
    out = os.fdopen(os.dup(sys.stdout.fileno()), "w", buffering=1, encoding="utf-8")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    lines = asyncio.StreamReader(limit=2**20)
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(lines), sys.stdin)
    try:
        await _serve(lines, lambda **message: print(json.dumps(message), file=out, flush=True))
    finally:
        ray.shutdown()


if __name__ == "__main__":
    asyncio.run(_main())
