"""Predictions and trainings: create, get, list, cancel, wait."""

from __future__ import annotations

import time
from typing import Annotated, Any

from fastapi import APIRouter, Header, Response
from starlette.concurrency import run_in_threadpool

from lora_service.gateway import views
from lora_service.gateway.api import creation, pagination
from lora_service.gateway.api.access import Caller, GatewayOf, LinksOf, Reader, Runner
from lora_service.gateway.api.creation import Target
from lora_service.gateway.api.requests import (
    JobBody,
    PredictionBody,
    TrainingBody,
    VersionPredictionBody,
    cancel_seconds,
    wait_seconds,
)
from lora_service.gateway.database import catalog, jobs
from lora_service.gateway.database.tables import FINAL, Version
from lora_service.gateway.events import wait
from lora_service.gateway.gateway import Gateway
from lora_service.gateway.problems import invalid, not_found
from lora_service.gateway.queue.cancellation import cancel

router = APIRouter(prefix="/v1")
Prefer = Annotated[str, Header(description="wait, or wait=SECONDS: answer when the job has ended, after 60 s at most.")]
CancelAfter = Annotated[str | None, Header(description="Cancel the job after so long, like 90s or 5m.")]


async def _create(
    gateway: Gateway, caller: Caller, links: views.Links, target: Target, body: JobBody, after: str | None
) -> str:
    try:
        seconds = None if after is None else cancel_seconds(after)
    except ValueError as error:
        raise invalid("Cancel-After", f"must be {error}") from error
    job = await run_in_threadpool(creation.create, gateway, caller, links, target, body, seconds)
    return job.id


async def _created(
    gateway: Gateway, links: views.Links, identifier: str, response: Response, prefer: str
) -> dict[str, Any]:
    """Return a new job: at once, or when it has ended where the client prefers to wait."""
    seconds = wait_seconds(prefer)
    if seconds:
        response.headers["Preference-Applied"] = f"wait={seconds:.0f}"
        await wait_for_end(gateway, identifier, seconds)
    shown = await run_in_threadpool(_show, gateway, links, identifier)
    is_done = shown["status"] in FINAL
    response.status_code = 201 if is_done or not seconds else 202
    if seconds and not is_done:
        # Replicate's clients take any other state for the end of a job that they waited for.
        shown["status"] = "starting"
    return shown


async def wait_for_end(gateway: Gateway, identifier: str, seconds: float) -> None:
    """Wait until a job has ended, or the time is over."""
    end = time.monotonic() + seconds
    with gateway.hub.waiting(identifier) as changed:
        while not await run_in_threadpool(_is_final, gateway, identifier):
            if not await wait(changed, min(5.0, end - time.monotonic())) and time.monotonic() >= end:
                return


def _is_final(gateway: Gateway, identifier: str) -> bool:
    with gateway.database.read() as session:
        row = jobs.find(session, identifier)
        return row is None or row.status in FINAL


def _show(gateway: Gateway, links: views.Links, identifier: str) -> dict[str, Any]:
    with gateway.database.read() as session:
        row = jobs.find(session, identifier)
        if row is None:
            raise not_found("job")
        return views.job(session, row, links)


@router.post("/predictions", status_code=201, tags=["predictions"])
async def create_prediction(
    body: VersionPredictionBody, gateway: GatewayOf, caller: Runner, links: LinksOf, response: Response,
    prefer: Prefer = "", cancel_after: CancelAfter = None,
) -> dict[str, Any]:  # fmt: skip
    """Create a prediction of a version."""

    def find() -> Target:
        with gateway.database.read() as session:
            version = creation.find_version(session, caller, body.version)
            return Target("prediction", version, f"{version.owner}/{version.name}")

    target = await run_in_threadpool(find)
    identifier = await _create(gateway, caller, links, target, body, cancel_after)
    return await _created(gateway, links, identifier, response, prefer)


@router.post("/models/{owner}/{name}/predictions", status_code=201, tags=["predictions"])
async def create_prediction_of_model(
    owner: str, name: str, body: PredictionBody, gateway: GatewayOf, caller: Runner, links: LinksOf,
    response: Response, prefer: Prefer = "", cancel_after: CancelAfter = None,
) -> dict[str, Any]:  # fmt: skip
    """Create a prediction of a model's newest version."""

    def find() -> Target:
        with gateway.database.read() as session:
            creation.check_model(session, caller, owner, name)
            version = catalog.latest_version(session, owner, name)
            if version is None:
                raise not_found("version")
            return Target("prediction", version, f"{owner}/{name}")

    target = await run_in_threadpool(find)
    identifier = await _create(gateway, caller, links, target, body, cancel_after)
    return await _created(gateway, links, identifier, response, prefer)


@router.post("/deployments/{owner}/{name}/predictions", status_code=201, tags=["predictions"])
async def create_prediction_of_deployment(
    owner: str, name: str, body: PredictionBody, gateway: GatewayOf, caller: Runner, links: LinksOf,
    response: Response, prefer: Prefer = "", cancel_after: CancelAfter = None,
) -> dict[str, Any]:  # fmt: skip
    """Create a prediction of a deployment's version."""

    def find() -> Target:
        with gateway.database.read() as session:
            row = catalog.deployment(session, owner, name)
            if row is None:
                raise not_found("deployment")
            caller.check_owner(owner, "deployment")
            version = session.get(Version, row.version)
            if version is None:
                raise not_found("version")
            return Target("prediction", version, f"{version.owner}/{version.name}", deployment=f"{owner}/{name}")

    target = await run_in_threadpool(find)
    identifier = await _create(gateway, caller, links, target, body, cancel_after)
    return await _created(gateway, links, identifier, response, prefer)


@router.post("/models/{owner}/{name}/versions/{version}/trainings", status_code=201, tags=["trainings"])
async def create_training(
    owner: str, name: str, version: str, body: TrainingBody, gateway: GatewayOf, caller: Runner, links: LinksOf,
    response: Response, cancel_after: CancelAfter = None,
) -> dict[str, Any]:  # fmt: skip
    """Create a training, whose result becomes a version of its destination."""

    def find() -> Target:
        with gateway.database.read() as session:
            found = creation.find_version(session, caller, f"{owner}/{name}:{version}")
            teacher = found if found.engine == "train" else catalog.latest_version(session, *catalog.TEACHING)
            if teacher is None or found.weights:
                raise invalid("version", f"cannot be trained; {'/'.join(catalog.TEACHING)} can")
            target_owner, _, target_name = body.destination.partition("/")
            model = catalog.model(session, target_owner, target_name)
            if (target_owner != caller.user and not caller.may("admin")) or (
                (target_owner, target_name) in (catalog.DRAWING, catalog.TEACHING)
            ):
                raise invalid("destination", f"must be a model of yours, like {caller.user}/dog")
            if model is not None:
                caller.check_owner(model.owner, "model")
            return Target("training", teacher, f"{owner}/{name}", destination=body.destination)

    target = await run_in_threadpool(find)
    identifier = await _create(gateway, caller, links, target, body, cancel_after)
    return await _created(gateway, links, identifier, response, "")


def _get(gateway: Gateway, caller: Caller, links: views.Links, kind: str, identifier: str) -> dict[str, Any]:
    with gateway.database.read() as session:
        return views.job(session, caller.check_job(jobs.find(session, identifier), kind), links)


def _list(gateway: Gateway, caller: Caller, links: views.Links, kind: str, cursor: str) -> dict[str, Any]:
    arguments = pagination.read_cursor(cursor)
    with gateway.database.read() as session:
        rows = jobs.page(session, kind, caller.user, limit=pagination.PAGE + 1, **arguments)
        more = len(rows) > pagination.PAGE
        kept = (rows[1:] if "after" in arguments else rows[:-1]) if more else rows
        shown = views.jobs(session, kept, links)
    return pagination.page(kept, shown, links.api(f"{kind}s"), cursor, more)


async def _cancelled(gateway: Gateway, caller: Caller, links: views.Links, kind: str, job: str) -> dict[str, Any]:
    await run_in_threadpool(_get, gateway, caller, links, kind, job)
    await cancel(gateway, job)
    return await run_in_threadpool(_show, gateway, links, job)


@router.get("/predictions/{job}", tags=["predictions"])
def get_prediction(job: str, gateway: GatewayOf, caller: Reader, links: LinksOf) -> dict[str, Any]:
    """Return a prediction."""
    return _get(gateway, caller, links, "prediction", job)


@router.get("/predictions", tags=["predictions"])
def list_predictions(gateway: GatewayOf, caller: Reader, links: LinksOf, cursor: str = "") -> dict[str, Any]:
    """Return predictions, newest first."""
    return _list(gateway, caller, links, "prediction", cursor)


@router.post("/predictions/{job}/cancel", tags=["predictions"])
async def cancel_prediction(job: str, gateway: GatewayOf, caller: Runner, links: LinksOf) -> dict[str, Any]:
    """Cancel a prediction."""
    return await _cancelled(gateway, caller, links, "prediction", job)


@router.get("/trainings/{job}", tags=["trainings"])
def get_training(job: str, gateway: GatewayOf, caller: Reader, links: LinksOf) -> dict[str, Any]:
    """Return a training."""
    return _get(gateway, caller, links, "training", job)


@router.get("/trainings", tags=["trainings"])
def list_trainings(gateway: GatewayOf, caller: Reader, links: LinksOf, cursor: str = "") -> dict[str, Any]:
    """Return trainings, newest first."""
    return _list(gateway, caller, links, "training", cursor)


@router.post("/trainings/{job}/cancel", tags=["trainings"])
async def cancel_training(job: str, gateway: GatewayOf, caller: Runner, links: LinksOf) -> dict[str, Any]:
    """Cancel a training."""
    return await _cancelled(gateway, caller, links, "training", job)
