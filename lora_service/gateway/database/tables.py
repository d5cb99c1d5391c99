"""The tables; a change here needs a migration, and a test compares the two."""

from __future__ import annotations

from typing import Any

from sqlalchemy import JSON, BigInteger, Boolean, Float, ForeignKey, Index, Integer, String, Text
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

_BIG = BigInteger().with_variant(Integer, "sqlite")  # SQLite numbers rows by itself in a column INTEGER alone

FINAL = ("succeeded", "failed", "canceled")
"""The states that a job never leaves."""


class Table(DeclarativeBase):
    """The base of all tables."""

    type_annotation_map = {dict[str, Any]: JSON, list[str]: JSON, str: Text, float: Float, bool: Boolean}  # noqa: RUF012


class User(Table):
    """Somebody with jobs; ``served`` is when a job of theirs was last begun, for a fair order."""

    __tablename__ = "users"
    name: Mapped[str] = mapped_column(String(100), primary_key=True)
    webhook_secret: Mapped[str]
    created_at: Mapped[float]
    served: Mapped[float] = mapped_column(default=0.0)


class Token(Table):
    """A token by its hash; the token itself is nowhere."""

    __tablename__ = "tokens"
    hash: Mapped[str] = mapped_column(String(64), primary_key=True)
    user: Mapped[str] = mapped_column(ForeignKey("users.name"))
    scope: Mapped[str] = mapped_column(String(10))
    created_at: Mapped[float]


class Model(Table):
    """A model; what is trained becomes versions of one."""

    __tablename__ = "models"
    owner: Mapped[str] = mapped_column(String(100), primary_key=True)
    name: Mapped[str] = mapped_column(String(100), primary_key=True)
    visibility: Mapped[str] = mapped_column(String(10), default="private")
    details: Mapped[dict[str, Any]] = mapped_column(default=dict)
    run_count: Mapped[int] = mapped_column(default=0)
    created_at: Mapped[float]


class Version(Table):
    """A version of a model: the server that runs it, and the LoRA that it draws with, if it was trained."""

    __tablename__ = "versions"
    id: Mapped[str] = mapped_column(String(64), primary_key=True)
    owner: Mapped[str] = mapped_column(String(100))
    name: Mapped[str] = mapped_column(String(100))
    engine: Mapped[str] = mapped_column(String(10))
    openapi_schema: Mapped[dict[str, Any]]
    cog_version: Mapped[str] = mapped_column(String(40))
    weights: Mapped[str | None] = mapped_column(String(26))
    training: Mapped[str | None] = mapped_column(String(26))
    created_at: Mapped[float]
    __table_args__ = (Index("versions_of_model", "owner", "name", "created_at"),)


class Deployment(Table):
    """A name for a version that can be changed behind it."""

    __tablename__ = "deployments"
    owner: Mapped[str] = mapped_column(String(100), primary_key=True)
    name: Mapped[str] = mapped_column(String(100), primary_key=True)
    version: Mapped[str] = mapped_column(String(64))
    number: Mapped[int] = mapped_column(default=1)
    configuration: Mapped[dict[str, Any]] = mapped_column(default=dict)
    created_at: Mapped[float]
    released_at: Mapped[float]


class Job(Table):
    """A prediction or training.

    ``place`` is where it stands among its user's, by ``seq`` where nobody reordered them.

    ``loras`` is the same text for jobs that draw with the same LoRAs, empty for those without.

    ``claimed`` is true while a server has it. ``attempt`` counts how often it was begun, ``losses`` how often its
    server was lost under it.
    """

    __tablename__ = "jobs"
    seq: Mapped[int] = mapped_column(_BIG, primary_key=True, autoincrement=True)
    id: Mapped[str] = mapped_column(String(26), unique=True)
    kind: Mapped[str] = mapped_column(String(10))
    owner: Mapped[str] = mapped_column(String(100))
    engine: Mapped[str] = mapped_column(String(10))
    model: Mapped[str] = mapped_column(String(201))
    version: Mapped[str] = mapped_column(String(64))
    deployment: Mapped[str | None] = mapped_column(String(201))
    destination: Mapped[str | None] = mapped_column(String(201))
    input: Mapped[dict[str, Any]]
    output: Mapped[Any] = mapped_column(JSON, nullable=True)
    logs: Mapped[str] = mapped_column(default="")
    error: Mapped[str | None]
    metrics: Mapped[dict[str, Any]] = mapped_column(default=dict)
    status: Mapped[str] = mapped_column(String(10), default="starting")
    priority: Mapped[int] = mapped_column(default=0)
    place: Mapped[int | None] = mapped_column(_BIG)
    loras: Mapped[str] = mapped_column(String(16), default="")
    claimed: Mapped[bool] = mapped_column(default=False)
    attempt: Mapped[int] = mapped_column(default=0)
    losses: Mapped[int] = mapped_column(default=0)
    webhook: Mapped[str | None]
    webhook_events: Mapped[list[str]] = mapped_column(default=list)
    cancel_at: Mapped[float | None]
    created_at: Mapped[float]
    started_at: Mapped[float | None]
    completed_at: Mapped[float | None]
    data_removed: Mapped[bool] = mapped_column(default=False)
    __table_args__ = (
        Index("jobs_waiting", "status", "engine", "claimed", "owner"),
        Index("jobs_of_owner", "owner", "kind", "seq"),
        Index("jobs_ended", "completed_at", "data_removed"),
    )


class Measurement(Table):
    """The values that a training reported after a step, in its so many-th attempt."""

    __tablename__ = "measurements"
    seq: Mapped[int] = mapped_column(_BIG, primary_key=True, autoincrement=True)
    job: Mapped[str] = mapped_column(String(26), index=True)
    attempt: Mapped[int]
    stage: Mapped[str] = mapped_column(String(100))
    step: Mapped[int]
    at: Mapped[float]
    metrics: Mapped[dict[str, Any]]


class StoredFile(Table):
    """A file in the blob store, under its identifier."""

    __tablename__ = "files"
    id: Mapped[str] = mapped_column(String(26), primary_key=True)
    owner: Mapped[str] = mapped_column(String(100), index=True)
    purpose: Mapped[str] = mapped_column(String(10))
    job: Mapped[str | None] = mapped_column(String(26), index=True)
    name: Mapped[str] = mapped_column(String(255))
    content_type: Mapped[str] = mapped_column(String(255))
    size: Mapped[int] = mapped_column(BigInteger)
    sha256: Mapped[str] = mapped_column(String(64))
    details: Mapped[dict[str, Any]] = mapped_column(default=dict)
    created_at: Mapped[float]
    expires_at: Mapped[float | None] = mapped_column(index=True)


class Delivery(Table):
    """A webhook that is to be sent; it stays until somebody took it or it was given up."""

    __tablename__ = "deliveries"
    seq: Mapped[int] = mapped_column(_BIG, primary_key=True, autoincrement=True)
    id: Mapped[str] = mapped_column(String(40), unique=True)
    job: Mapped[str] = mapped_column(String(26), index=True)
    owner: Mapped[str] = mapped_column(String(100))
    event: Mapped[str] = mapped_column(String(10))
    url: Mapped[str]
    body: Mapped[str]
    attempts: Mapped[int] = mapped_column(default=0)
    next_at: Mapped[float] = mapped_column(index=True)
