"""Rows of the database as Replicate's API shows them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any
from urllib.parse import quote

from sqlalchemy import select
from sqlalchemy.orm import Session

from lora_service.gateway.database import catalog, stored_files
from lora_service.gateway.database.tables import Deployment, Job, Model, StoredFile, Version
from lora_service.gateway.identifiers import Signer
from lora_service.gateway.schemas import secret_inputs

HIDDEN = "[hidden]"
"""Shown in place of an input that is a secret."""
DOWNLOAD, STREAM, INTERNAL = "download", "stream", "internal"
"""The purposes of signed links."""


def time_text(seconds: float | None) -> str | None:
    """Return a time as ISO 8601, in UTC."""
    if seconds is None:
        return None
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")


@dataclass(frozen=True)
class Links:
    """Makes links.

    Args:
        base: the address of the gateway for whoever gets them.
        signer: signs them.
    """

    base: str
    signer: Signer

    def api(self, path: str) -> str:
        """Return the address of a path of the API."""
        return f"{self.base}/v1/{path}"

    def file(self, file: StoredFile, lifetime: int | None = None) -> str:
        """Return a link to a file's content that needs no token and expires, after its own seconds if it has some."""
        return f"{self.base}/files/{file.id}/{quote(file.name)}?{self.signer.query(DOWNLOAD, file.id, lifetime)}"

    def stream(self, job: str) -> str:
        """Return a link to a job's events; under ``/v1/files`` the JavaScript client takes outputs for files."""
        return f"{self.base}/v1/files/streams/{job}?{self.signer.query(STREAM, job)}"


def jobs(session: Session, rows: list[Job], links: Links) -> list[dict[str, Any]]:
    """Return jobs with fresh links to their files."""
    identifiers = [mark for row in rows for mark in stored_files.marked([row.input, row.output])]
    files = stored_files.find_all(session, sorted(set(identifiers)))
    secrets = _secrets(session, rows)
    return [_job(row, files, links, secrets[row.version]) for row in rows]


def _secrets(session: Session, rows: list[Job]) -> dict[str, list[str]]:
    """Return the inputs that hold secrets, by version; of one that was removed, those of our own servers."""
    identifiers = {row.version for row in rows}
    versions = {row.id: row for row in session.scalars(select(Version).where(Version.id.in_(identifiers)))}
    secrets = {name: secret_inputs(row.openapi_schema) for name, row in versions.items()}
    if identifiers - versions.keys():
        ours = (catalog.latest_version(session, *each) for each in (catalog.INFERENCE_MODEL, catalog.TRAINING_MODEL))
        known = [name for row in ours if row for name in secret_inputs(row.openapi_schema)]
        secrets |= dict.fromkeys(identifiers - versions.keys(), known)
    return secrets


def job(session: Session, row: Job, links: Links) -> dict[str, Any]:
    """Return one job."""
    return jobs(session, [row], links)[0]


def job_urls(row: Job, links: Links) -> dict[str, str]:
    """Return where a job can be looked at, cancelled and followed."""
    place = f"{row.kind}s/{row.id}"
    return {"get": links.api(place), "cancel": links.api(f"{place}/cancel"), "stream": links.stream(row.id)}


def _job(row: Job, files: Mapping[str, StoredFile], links: Links, secrets: Sequence[str]) -> dict[str, Any]:
    def link(identifier: str) -> str | None:
        file = files.get(identifier)
        return links.file(file) if file and row.owner in (file.owner, None) else None

    hidden = {name: HIDDEN for name in secrets if row.input.get(name)}
    shown = {
        "id": row.id,
        "model": row.model,
        "version": row.version,
        "input": stored_files.replace_marks(row.input, link) | hidden,
        "output": stored_files.replace_marks(row.output, link),
        "logs": row.logs,
        "error": row.error,
        "status": row.status,
        "metrics": _metrics(row),
        "created_at": time_text(row.created_at),
        "started_at": time_text(row.started_at),
        "completed_at": time_text(row.completed_at),
        "source": "api",
        "data_removed": row.data_removed,
        "webhook": row.webhook,
        "webhook_events_filter": row.webhook_events or None,
        "urls": job_urls(row, links),
    }
    if row.deployment:
        shown["deployment"] = row.deployment
    if row.destination:
        shown["destination"] = row.destination
    return shown


def _metrics(row: Job) -> dict[str, Any]:
    metrics = dict(row.metrics or {})
    if row.completed_at is not None:
        metrics["total_time"] = round(row.completed_at - row.created_at, 6)
        if row.started_at is not None:
            metrics.setdefault("predict_time", round(row.completed_at - row.started_at, 6))
    return metrics


def file(row: StoredFile, links: Links) -> dict[str, Any]:
    """Return an uploaded file; ``urls.get`` is what clients put into inputs."""
    return {
        "id": row.id,
        "name": row.name,
        "content_type": row.content_type,
        "size": row.size,
        "etag": row.sha256,
        "checksums": {"sha256": row.sha256},
        "metadata": row.details,
        "created_at": time_text(row.created_at),
        "expires_at": time_text(row.expires_at),
        "urls": {"get": links.api(f"files/{row.id}"), "download": links.file(row)},
    }


def training_file(row: StoredFile, links: Links) -> dict[str, Any]:
    """Return a sample or LoRA file that a training wrote on the way."""
    return {
        "id": row.id,
        "name": row.name,
        "stage": row.details.get("stage"),
        "step": row.details.get("step"),
        "size": row.size,
        "created_at": time_text(row.created_at),
        "url": links.file(row),
    }


def version(row: Version) -> dict[str, Any]:
    """Return a version."""
    return {
        "id": row.id,
        "created_at": time_text(row.created_at),
        "cog_version": row.cog_version,
        "openapi_schema": row.openapi_schema,
    }


def model(session: Session, row: Model, links: Links) -> dict[str, Any]:
    """Return a model with its newest version."""
    latest = catalog.latest_version(session, row.owner, row.name)
    details = row.details or {}
    names = ("description", "github_url", "paper_url", "license_url", "cover_image_url")
    return {
        "url": links.api(f"models/{row.owner}/{row.name}"),
        "owner": row.owner,
        "name": row.name,
        "visibility": row.visibility,
        **{name: details.get(name) for name in names},
        "run_count": row.run_count,
        "default_example": None,
        "latest_version": version(latest) if latest else None,
    }


def deployment(session: Session, row: Deployment) -> dict[str, Any]:
    """Return a deployment with its release."""
    target = session.get(Version, row.version)
    return {
        "owner": row.owner,
        "name": row.name,
        "current_release": {
            "number": row.number,
            "model": f"{target.owner}/{target.name}" if target else "",
            "version": row.version,
            "created_at": time_text(row.released_at),
            "created_by": {"type": "user", "username": row.owner, "name": row.owner, "github_url": None},
            "configuration": {"hardware": "local", "min_instances": 0, "max_instances": 1} | row.configuration,
        },
    }
