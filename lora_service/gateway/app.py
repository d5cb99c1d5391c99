"""The gateway as an ASGI app, with what runs beside its requests."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from fastapi import FastAPI

from lora_service import __version__
from lora_service.gateway import problems
from lora_service.gateway.api import (
    account,
    files,
    internal,
    jobs,
    loras,
    models,
    operations,
    previews,
    progress,
    queue,
    runs,
    streams,
)
from lora_service.gateway.api.access import Gatekeeper
from lora_service.gateway.database import catalog
from lora_service.gateway.database import jobs as job_rows
from lora_service.gateway.engine.jobs import EngineLostError, JobEngine
from lora_service.gateway.file_work import FileWork
from lora_service.gateway.gateway import Gateway
from lora_service.gateway.guards import Guards
from lora_service.gateway.metrics import Metrics
from lora_service.gateway.page import pages
from lora_service.gateway.queue.dispatcher import Dispatcher, end
from lora_service.gateway.queue.janitor import Janitor
from lora_service.gateway.webhooks import WebhookSender

_log = logging.getLogger(__name__)
_PLACES = {"predict": catalog.INFERENCE_MODEL, "train": catalog.TRAINING_MODEL}
_THREADS = 64
_END_SECONDS = 5.0  # for results that were reported to be stored
_PAUSE_SECONDS = 5.0  # between two attempts to reach a server elsewhere
_ABOUT = (
    "A durable queue in front of Cog's servers, with Replicate's HTTP API v1: its clients work unchanged with "
    "REPLICATE_BASE_URL set to this address."
)


def create_app(gateway: Gateway, engines: Sequence[JobEngine] = ()) -> FastAPI:
    """Make the app.

    Args:
        gateway: its parts; it is closed with the app.
        engines: what runs the jobs.

    Raises:
        SettingError: ``API_TOKENS`` cannot be read.
    """

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with _running(gateway, engines, app.state.metrics):
            yield

    app = FastAPI(title="lora-service", version=__version__, description=_ABOUT, lifespan=lifespan)
    app.state.gateway = gateway
    app.state.gatekeeper = Gatekeeper(gateway)
    app.state.metrics = Metrics(gateway)
    app.state.file_work = FileWork(gateway)
    parts = (streams, jobs, previews, progress, queue, loras, models, files, account, operations, internal, runs)
    for part in parts:
        app.include_router(part.router)
    pages.install(app)
    problems.install(app)
    app.add_middleware(Guards, gateway=gateway)
    return app


@contextlib.asynccontextmanager
async def _running(gateway: Gateway, engines: Sequence[JobEngine], metrics: Metrics) -> AsyncIterator[None]:
    """Put the queue in order, run jobs, send webhooks; what still runs at the end is begun again at the next start."""
    gateway.hub.bind()
    # Of asyncio's own few threads, starts of servers and slow downloads could take all.
    asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(_THREADS, thread_name_prefix="gateway"))
    recovered = await asyncio.to_thread(_recover, gateway)
    if recovered:
        _log.info("%d jobs that were running when the gateway ended are begun again", recovered)
    known = await asyncio.gather(*(_make_known(gateway, engine) for engine in engines))
    dispatchers: list[asyncio.Task[Any]] = [
        asyncio.create_task(_serve(gateway, engine, metrics, is_known))
        for engine, is_known in zip(engines, known, strict=True)
    ]
    beside = [asyncio.create_task(part.serve()) for part in (WebhookSender(gateway), Janitor(gateway))]
    gateway.ready = True
    try:
        yield
    finally:
        gateway.drain()
        await end(dispatchers, _END_SECONDS)
        for task in beside:
            task.cancel()
        await asyncio.gather(*beside, return_exceptions=True)
        await asyncio.gather(*(engine.close() for engine in engines), return_exceptions=True)
        await asyncio.to_thread(_recover, gateway)
        gateway.database.close()


async def _serve(gateway: Gateway, engine: JobEngine, metrics: Metrics, is_known: bool) -> None:
    """Run the jobs of an engine, once its model is known."""
    while not is_known and not gateway.draining:
        await asyncio.sleep(_PAUSE_SECONDS)
        is_known = await _make_known(gateway, engine)
    turn = asyncio.Lock()
    await asyncio.gather(*(Dispatcher(gateway, engine, metrics, turn).serve() for _ in range(engine.slots)))


async def _make_known(gateway: Gateway, engine: JobEngine) -> bool:
    """Offer an engine's model; returns False where its server is elsewhere and does not answer."""
    try:
        document = await engine.document()
    except EngineLostError as error:
        _log.warning("the %s server is not there yet: %s", engine.kind, error)
        return False
    await asyncio.to_thread(_offer, gateway, engine, document)
    return True


def _offer(gateway: Gateway, engine: JobEngine, document: dict[str, Any]) -> None:
    with gateway.database.write() as session:
        catalog.offer(session, _PLACES[engine.kind], engine.kind, document, gateway.service.base_model)


def _recover(gateway: Gateway) -> int:
    with gateway.database.write() as session:
        return job_rows.recover(session)
