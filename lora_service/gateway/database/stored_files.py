"""Records of files in the blob store, and their marks in the inputs and outputs of jobs."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from lora_service.gateway.database.tables import FINAL, Job, StoredFile
from lora_service.gateway.identifiers import ID_PATTERN

_MARK = re.compile(rf"gateway-file:({ID_PATTERN})")


def mark(identifier: str) -> str:
    """Return what stands for a file in a job's input or output: links to it expire."""
    return f"gateway-file:{identifier}"


def replace_marks(value: Any, link: Callable[[str], str | None]) -> Any:
    """Return a job's input or output with links for marks; a mark that ``link`` has none for stays."""
    if isinstance(value, str):
        return _MARK.sub(lambda match: link(match[1]) or match[0], value) if "gateway-file:" in value else value
    if isinstance(value, list):
        return [replace_marks(item, link) for item in value]
    if isinstance(value, dict):
        return {key: replace_marks(item, link) for key, item in value.items()}
    return value


def marked(value: Any) -> list[str]:
    """Return the identifiers of the files that an input or output has marks of."""
    identifiers: list[str] = []
    replace_marks(value, lambda identifier: identifiers.append(identifier))  # type: ignore[func-returns-value]
    return identifiers


def find(session: Session, identifier: str) -> StoredFile | None:
    """Return the record of a file."""
    return session.get(StoredFile, identifier)


def find_all(session: Session, identifiers: list[str]) -> dict[str, StoredFile]:
    """Return the records of files by identifier."""
    if not identifiers:
        return {}
    return {file.id: file for file in session.scalars(select(StoredFile).where(StoredFile.id.in_(identifiers)))}


def awaited(session: Session, owner: str | None = None) -> set[str]:
    """Return the files that are inputs of jobs which have not ended, of one user's or of all."""
    query = select(Job.input).where(Job.status.not_in(FINAL))
    inputs = session.scalars(query if owner is None else query.where(Job.owner == owner))
    return {identifier for each in inputs for identifier in marked(each)}


def of_job(session: Session, job: str, purposes: Sequence[str]) -> list[StoredFile]:
    """Return the files of a job, oldest first."""
    query = select(StoredFile).where(StoredFile.job == job, StoredFile.purpose.in_(purposes))
    return list(session.scalars(query.order_by(StoredFile.created_at, StoredFile.id)))


def uploads(session: Session, owner: str, limit: int = 1000) -> list[StoredFile]:
    """Return the files that a user has uploaded, newest first."""
    query = select(StoredFile).where(StoredFile.owner == owner, StoredFile.purpose == "input")
    return list(session.scalars(query.order_by(StoredFile.created_at.desc()).limit(limit)))
