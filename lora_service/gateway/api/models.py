"""Models, their versions, and deployments."""

from __future__ import annotations

import time
from typing import Any

from fastapi import APIRouter, Request, Response
from sqlalchemy import select
from sqlalchemy.orm import Session

from lora_service.gateway import views
from lora_service.gateway.api.access import Caller, GatewayOf, LinksOf, Reader, Runner
from lora_service.gateway.api.creation import check_model, find_version
from lora_service.gateway.api.requests import DeploymentBody, DeploymentChange, ModelBody
from lora_service.gateway.database import catalog, stored_files
from lora_service.gateway.database.tables import FINAL, Deployment, Job, Model, Version
from lora_service.gateway.problems import Problem, not_found

router = APIRouter(prefix="/v1")


def _page(results: list[dict[str, Any]]) -> dict[str, Any]:
    return {"previous": None, "next": None, "results": results}


def _model(session: Session, caller: Caller, owner: str, name: str) -> Model:
    check_model(session, caller, owner, name)
    return session.get_one(Model, (owner, name))


def _check_own(caller: Caller, owner: str) -> None:
    if owner != caller.user and not caller.may("admin"):
        raise Problem(403, f"The token is that of {caller.user}, and not of {owner}.")


@router.get("/models", tags=["models"])
def list_models(gateway: GatewayOf, caller: Reader, links: LinksOf) -> dict[str, Any]:
    """Return the models that the caller may run."""
    with gateway.database.read() as session:
        rows = catalog.visible_models(session, None if caller.may("admin") else caller.user)
        return _page([views.model(session, row, links) for row in rows])


@router.api_route("/models", methods=["QUERY"], include_in_schema=False)
async def search_models(request: Request, gateway: GatewayOf, caller: Reader, links: LinksOf) -> dict[str, Any]:
    """Return the models with the query's words in their name or description."""
    words = (await request.body()).decode("utf-8", "replace").lower().split()
    page = list_models(gateway, caller, links)

    def text(model: dict[str, Any]) -> str:
        return f"{model['owner']}/{model['name']} {model['description'] or ''}".lower()

    return _page([model for model in page["results"] if all(word in text(model) for word in words)])


@router.post("/models", status_code=201, tags=["models"])
def create_model(body: ModelBody, gateway: GatewayOf, caller: Runner, links: LinksOf) -> dict[str, Any]:
    """Make a model, as a destination of trainings."""
    _check_own(caller, body.owner)
    details = body.model_dump(exclude={"owner", "name", "visibility", "hardware"}, exclude_none=True)
    with gateway.database.write() as session:
        if catalog.model(session, body.owner, body.name):
            raise Problem(409, f"The model {body.owner}/{body.name} exists already.")
        row = catalog.add_model(session, body.owner, body.name, visibility=body.visibility, details=details)
        return views.model(session, row, links)


@router.get("/models/{owner}/{name}", tags=["models"])
def get_model(owner: str, name: str, gateway: GatewayOf, caller: Reader, links: LinksOf) -> dict[str, Any]:
    """Return a model with its newest version."""
    with gateway.database.read() as session:
        return views.model(session, _model(session, caller, owner, name), links)


@router.delete("/models/{owner}/{name}", status_code=204, tags=["models"])
def delete_model(owner: str, name: str, gateway: GatewayOf, caller: Runner) -> Response:
    """Remove a model that has no versions."""
    with gateway.database.write() as session:
        row = _model(session, caller, owner, name)
        _check_own(caller, owner)
        if catalog.versions(session, owner, name, limit=1):
            raise Problem(409, "The model has versions; delete these first.")
        session.delete(row)
    return Response(status_code=204)


@router.get("/models/{owner}/{name}/versions", tags=["models"])
def list_versions(owner: str, name: str, gateway: GatewayOf, caller: Reader) -> dict[str, Any]:
    """Return a model's versions, newest first."""
    with gateway.database.read() as session:
        check_model(session, caller, owner, name)
        return _page([views.version(row) for row in catalog.versions(session, owner, name)])


def _version(session: Session, caller: Caller, owner: str, name: str, version: str) -> Version:
    check_model(session, caller, owner, name)
    row = session.get(Version, version)
    if row is None or (row.owner, row.name) != (owner, name):
        raise not_found("version")
    return row


@router.get("/models/{owner}/{name}/versions/{version}", tags=["models"])
def get_version(owner: str, name: str, version: str, gateway: GatewayOf, caller: Reader) -> dict[str, Any]:
    """Return a version with the schema of its inputs."""
    with gateway.database.read() as session:
        return views.version(_version(session, caller, owner, name, version))


@router.delete("/models/{owner}/{name}/versions/{version}", status_code=202, tags=["models"])
def delete_version(owner: str, name: str, version: str, gateway: GatewayOf, caller: Runner) -> Response:
    """Remove a version and its weights; jobs that ran it stay."""
    with gateway.database.write() as session:
        row = _version(session, caller, owner, name, version)
        _check_own(caller, owner)
        if row.weights is None:
            raise Problem(403, "This version is that of a server, which would bring it back.")
        removed = remove_version(session, row)
    for file in removed:
        gateway.blobs.remove(file)
    return Response(status_code=204)  # what Replicate's Python client takes for a success


def remove_version(session: Session, version: Version) -> list[str]:
    """Remove a taught version; returns the files that go with it.

    Raises:
        Problem: a job of it, or one of its owner's with its files, waits or runs (409).
    """
    owner = version.owner
    if session.scalar(select(Job.seq).where(Job.version == version.id, Job.status.not_in(FINAL)).limit(1)):
        raise Problem(409, "A job of this version waits or runs.")
    removed = catalog.remove_trained(session, version)
    if stored_files.awaited(session, owner) & set(removed):  # the transaction is taken back
        raise Problem(409, "A job that waits or runs needs a file of this version; cancel the job first.")
    return removed


@router.get("/deployments", tags=["deployments"])
def list_deployments(gateway: GatewayOf, caller: Reader) -> dict[str, Any]:
    """Return the caller's deployments."""
    with gateway.database.read() as session:
        return _page([views.deployment(session, row) for row in catalog.deployments(session, caller.user)])


@router.post("/deployments", status_code=201, tags=["deployments"])
def create_deployment(body: DeploymentBody, gateway: GatewayOf, caller: Runner) -> dict[str, Any]:
    """Make a name for a version."""
    now = time.time()
    with gateway.database.write() as session:
        version = find_version(session, caller, f"{body.model}:{body.version}")
        if catalog.deployment(session, caller.user, body.name):
            raise Problem(409, f"The deployment {caller.user}/{body.name} exists already.")
        configuration = body.model_dump(include={"hardware", "min_instances", "max_instances"})
        row = Deployment(owner=caller.user, name=body.name, version=version.id, number=1,
                         configuration=configuration, created_at=now, released_at=now)  # fmt: skip
        session.add(row)
        session.flush()
        return views.deployment(session, row)


def _deployment(session: Session, caller: Caller, owner: str, name: str) -> Deployment:
    row = catalog.deployment(session, owner, name)
    if row is None:
        raise not_found("deployment")
    caller.check_owner(owner, "deployment")
    return row


@router.get("/deployments/{owner}/{name}", tags=["deployments"])
def get_deployment(owner: str, name: str, gateway: GatewayOf, caller: Reader) -> dict[str, Any]:
    """Return a deployment."""
    with gateway.database.read() as session:
        return views.deployment(session, _deployment(session, caller, owner, name))


@router.patch("/deployments/{owner}/{name}", tags=["deployments"])
def change_deployment(
    owner: str, name: str, body: DeploymentChange, gateway: GatewayOf, caller: Runner
) -> dict[str, Any]:
    """Put another version behind a deployment, or note another configuration."""
    with gateway.database.write() as session:
        row = _deployment(session, caller, owner, name)
        if body.version:
            row.version = find_version(session, caller, body.version).id
        row.configuration = row.configuration | body.model_dump(exclude={"version"}, exclude_none=True)
        row.number, row.released_at = row.number + 1, time.time()
        session.flush()
        return views.deployment(session, row)


@router.delete("/deployments/{owner}/{name}", status_code=204, tags=["deployments"])
def delete_deployment(owner: str, name: str, gateway: GatewayOf, caller: Runner) -> Response:
    """Remove a deployment."""
    with gateway.database.write() as session:
        session.delete(_deployment(session, caller, owner, name))
    return Response(status_code=204)
