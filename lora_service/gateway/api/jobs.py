"""Predictions and trainings: create, get, list, cancel, wait."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Header, Response
from sqlalchemy.orm import Session
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
_FIXED = (catalog.INFERENCE_MODEL, catalog.TRAINING_MODEL)
"""Models whose versions are those of the servers."""
Prefer = Annotated[str, Header(description="wait, or wait=SECONDS: answer when the job has ended, after 60 s at most.")]
CancelAfter = Annotated[str | None, Header(description="Cancel the job after so long, like 90s or 5m.")]


class JobCreation:
    """A request that creates a job: who sent it, how long they wait for the job, and when it is to be cancelled."""

    def __init__(
        self, gateway: GatewayOf, caller: Runner, links: LinksOf, response: Response,
        prefer: Prefer = "", cancel_after: CancelAfter = None,
    ) -> None:  # fmt: skip
        self.gateway, self.caller, self._links, self._response = gateway, caller, links, response
        self._prefer, self._cancel_after = prefer, cancel_after

    async def create(self, find: Callable[[Session], Target], body: JobBody) -> dict[str, Any]:
        """Return a new job: at once, or when it has ended where the client prefers to wait."""
        identifier = await run_in_threadpool(self._queue, find, body)
        seconds = wait_seconds(self._prefer)
        if seconds:
            self._response.headers["Preference-Applied"] = f"wait={seconds:.0f}"
            await wait_for_end(self.gateway, identifier, seconds)
        shown = await run_in_threadpool(_show, self.gateway, self._links, identifier)
        is_done = shown["status"] in FINAL
        self._response.status_code = 201 if is_done or not seconds else 202
        if seconds and not is_done:
            # Replicate's clients take any other state for the end of a job that they waited for.
            shown["status"] = "starting"
        return shown

    def _queue(self, find: Callable[[Session], Target], body: JobBody) -> str:
        try:
            seconds = None if self._cancel_after is None else cancel_seconds(self._cancel_after)
        except ValueError as error:
            raise invalid("Cancel-After", f"must be {error}") from error
        with self.gateway.database.read() as session:
            target = find(session)
        return creation.create(self.gateway, self.caller, self._links, target, body, seconds).id


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


JobCreationOf = Annotated[JobCreation, Depends()]


@router.post("/predictions", status_code=201, tags=["predictions"])
async def create_prediction(body: VersionPredictionBody, job: JobCreationOf) -> dict[str, Any]:
    """Create a prediction of a version."""

    def find(session: Session) -> Target:
        version = creation.find_version(session, job.caller, body.version)
        return Target("prediction", version, f"{version.owner}/{version.name}")

    return await job.create(find, body)


@router.post("/models/{owner}/{name}/predictions", status_code=201, tags=["predictions"])
async def create_prediction_of_model(owner: str, name: str, body: PredictionBody, job: JobCreationOf) -> dict[str, Any]:
    """Create a prediction of a model's newest version."""

    def find(session: Session) -> Target:
        creation.check_model(session, job.caller, owner, name)
        version = catalog.latest_version(session, owner, name)
        if version is None:
            raise not_found("version")
        return Target("prediction", version, f"{owner}/{name}")

    return await job.create(find, body)


@router.post("/deployments/{owner}/{name}/predictions", status_code=201, tags=["predictions"])
async def create_prediction_of_deployment(
    owner: str, name: str, body: PredictionBody, job: JobCreationOf
) -> dict[str, Any]:
    """Create a prediction of a deployment's version."""

    def find(session: Session) -> Target:
        job.caller.check_owner(owner, "deployment")
        row = catalog.deployment(session, owner, name)
        if row is None:
            raise not_found("deployment")
        version = session.get(Version, row.version)
        if version is None:
            raise not_found("version")
        return Target("prediction", version, f"{version.owner}/{version.name}", deployment=f"{owner}/{name}")

    return await job.create(find, body)


@router.post("/models/{owner}/{name}/versions/{version}/trainings", status_code=201, tags=["trainings"])
async def create_training(
    owner: str, name: str, version: str, body: TrainingBody, job: JobCreationOf
) -> dict[str, Any]:
    """Create a training, whose result becomes a version of its destination."""

    def find(session: Session) -> Target:
        found = creation.find_version(session, job.caller, f"{owner}/{name}:{version}")
        trainer = found if found.engine == "train" else catalog.latest_version(session, *catalog.TRAINING_MODEL)
        if trainer is None or found.weights:
            raise invalid("version", f"cannot be trained; {'/'.join(catalog.TRAINING_MODEL)} can")
        place = tuple(body.destination.split("/"))
        if (place[0] != job.caller.user and not job.caller.may("admin")) or place in _FIXED:
            raise invalid("destination", f"must be a model of yours, like {job.caller.user}/dog")
        return Target("training", trainer, f"{owner}/{name}", destination=body.destination)

    return await job.create(find, body)


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
