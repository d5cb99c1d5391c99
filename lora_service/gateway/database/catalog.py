"""Models, their versions, and deployments."""

from __future__ import annotations

import hashlib
import json
import time
from typing import Any

from sqlalchemy import delete, select, update
from sqlalchemy.orm import Session

from lora_service.gateway.database import measurements
from lora_service.gateway.database.tables import Deployment, Job, Model, StoredFile, Version

INFERENCE_MODEL, TRAINING_MODEL = ("local", "lora"), ("local", "lora-training")
"""Owner and name of the models that are there from the beginning."""
KEPT_WITH_VERSION = ("weights", "sample", "saved", "thumbnail")
"""Purposes of a training's files that are kept as long as the version that it made."""


def model(session: Session, owner: str, name: str) -> Model | None:
    """Return a model."""
    return session.get(Model, (owner, name))


def add_model(session: Session, owner: str, name: str, **values: Any) -> Model:
    """Add a model; returns the one that is there already."""
    row = model(session, owner, name)
    if row is None:
        row = Model(owner=owner, name=name, created_at=time.time(), **values)
        session.add(row)
        session.flush()
    return row


def visible_models(session: Session, owner: str | None, limit: int = 1000) -> list[Model]:
    """Return the models that a user may see: public ones and their own; None: all."""
    query = select(Model)
    if owner is not None:
        query = query.where((Model.visibility == "public") | (Model.owner == owner))
    return list(session.scalars(query.order_by(Model.created_at.desc()).limit(limit)))


def latest_version(session: Session, owner: str, name: str) -> Version | None:
    """Return the newest version of a model."""
    return next(iter(versions(session, owner, name, limit=1)), None)


def versions(session: Session, owner: str, name: str, limit: int = 1000) -> list[Version]:
    """Return a model's versions, newest first."""
    query = select(Version).where(Version.owner == owner, Version.name == name)
    return list(session.scalars(query.order_by(Version.created_at.desc()).limit(limit)))


def offer(session: Session, place: tuple[str, str], engine: str, document: dict[str, Any], base: str) -> Version:
    """Make a server's model and version known; the same document and base are the same version."""
    owner, name = place
    text = json.dumps([document, base, place], sort_keys=True)
    identifier = hashlib.sha256(text.encode()).hexdigest()
    verb = "Draws" if engine == "predict" else "Trains LoRAs"
    add_model(session, owner, name, visibility="public", details={"description": f"{verb} with the base {base}."})
    version = session.get(Version, identifier)
    if version is None:
        cog_version = str(document.get("info", {}).get("version", ""))
        version = Version(id=identifier, owner=owner, name=name, engine=engine, openapi_schema=document,
                          cog_version=cog_version, created_at=time.time())  # fmt: skip
        session.add(version)
    elif (latest := latest_version(session, owner, name)) is not None and latest.id != identifier:
        version.created_at = time.time()  # the server went back to an earlier base
    return version


def add_trained(session: Session, job: Job, file: StoredFile, document: dict[str, Any], cog_version: str) -> Version:
    """Make a training's result a version of the model that it was for."""
    owner, _, name = (job.destination or "").partition("/")
    add_model(session, owner, name, visibility="private", details={"description": "Trained here."})
    identifier = hashlib.sha256(f"{job.id} {file.sha256}".encode()).hexdigest()
    version = Version(id=identifier, owner=owner, name=name, engine="predict", openapi_schema=document,
                      cog_version=cog_version, weights=file.id, training=job.id, created_at=time.time())  # fmt: skip
    session.add(version)
    return version


def trained(session: Session, owner: str, limit: int = 1000) -> list[tuple[Version, StoredFile]]:
    """Return the versions that a user has taught with their weights, newest first."""
    query = select(Version, StoredFile).join(StoredFile, StoredFile.id == Version.weights)
    rows = session.execute(query.where(Version.owner == owner).order_by(Version.created_at.desc()).limit(limit))
    return [(version, file) for version, file in rows]


def of_weights(session: Session, file: str) -> Version | None:
    """Return the version that draws with these weights."""
    return session.scalar(select(Version).where(Version.weights == file))


def remove_trained(session: Session, version: Version) -> list[str]:
    """Remove a taught version, its weights and what its training left; returns the identifiers of the files."""
    owned = StoredFile.id == version.weights
    if version.training:
        owned |= (StoredFile.job == version.training) & StoredFile.purpose.in_(KEPT_WITH_VERSION)
        job = session.scalar(select(Job).where(Job.id == version.training))
        if job is None or job.data_removed:
            measurements.remove(session, [version.training])
    files = list(session.scalars(select(StoredFile.id).where(owned)))
    session.delete(version)
    session.execute(delete(StoredFile).where(StoredFile.id.in_(files)))
    return files


def without_weights(document: dict[str, Any]) -> dict[str, Any]:
    """Return a drawing server's document for a trained version, whose weights nobody has to name."""
    copy = json.loads(json.dumps(document))
    inputs = copy.get("components", {}).get("schemas", {}).get("Input", {})
    inputs.get("properties", {}).pop("replicate_weights", None)
    return copy


def count_run(session: Session, owner: str, name: str) -> None:
    """Count a run of a model."""
    query = update(Model).where(Model.owner == owner, Model.name == name)
    session.execute(query.values(run_count=Model.run_count + 1))


def deployment(session: Session, owner: str, name: str) -> Deployment | None:
    """Return a deployment."""
    return session.get(Deployment, (owner, name))


def deployments(session: Session, owner: str) -> list[Deployment]:
    """Return a user's deployments."""
    return list(session.scalars(select(Deployment).where(Deployment.owner == owner).order_by(Deployment.name)))
