"""The queue: jobs from their creation to their one final state."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from sqlalchemy import func, select, update
from sqlalchemy.orm import Session

from lora_service.gateway.database.tables import FINAL, Job, User
from lora_service.gateway.engine.jobs import WaitingJob

PLACE = func.coalesce(Job.place, Job.seq)
"""Where a job stands among its user's."""
State = Literal["starting", "processing", "succeeded", "failed", "canceled"]


@dataclass(frozen=True)
class Result:
    """The end of a job."""

    status: State
    output: Any = None
    error: str | None = None
    logs: str | None = None
    metrics: Mapping[str, Any] | None = None
    started_at: float | None = None


def count_open(session: Session, owner: str | None = None) -> int:
    """Return how many jobs wait or run, of one user or of all."""
    query = select(func.count()).select_from(Job).where(Job.status.in_(("starting", "processing")))
    return session.scalar(query if owner is None else query.where(Job.owner == owner)) or 0


def find(session: Session, identifier: str) -> Job | None:
    """Return the job of that identifier."""
    return session.scalar(select(Job).where(Job.id == identifier))


def page(
    session: Session, kind: str, owner: str, *, before: int | None = None, after: int | None = None, limit: int = 100
) -> list[Job]:
    """Return jobs of a user, newest first: those older than ``before``, or the next ones newer than ``after``."""
    query = select(Job).where(Job.kind == kind, Job.owner == owner).limit(limit)
    if after is not None:
        return list(session.scalars(query.where(Job.seq > after).order_by(Job.seq)))[::-1]
    if before is not None:
        query = query.where(Job.seq < before)
    return list(session.scalars(query.order_by(Job.seq.desc())))


def waiting(session: Session, engine: str, limit: int) -> list[WaitingJob]:
    """Return the first jobs that wait for a kind of server, in the order in which they should begin.

    The highest priority comes first; among those, the user who was served longest ago, and the first of their jobs.
    """
    query = (
        select(Job.id, Job.loras, Job.priority)
        .join(User, User.name == Job.owner)
        .where(Job.status == "starting", Job.engine == engine, Job.claimed.is_(False))
        .order_by(Job.priority.desc(), User.served, PLACE)
        .limit(limit)
    )
    return [WaitingJob(*row) for row in session.execute(query)]


def claim(session: Session, identifier: str) -> Job | None:
    """Mark a job that waits as taken and return it; None if it does not wait any more."""
    is_waiting = (Job.id == identifier, Job.status == "starting", Job.claimed.is_(False))
    values = {"claimed": True, "attempt": Job.attempt + 1}
    if not session.execute(update(Job).where(*is_waiting).values(**values)).rowcount:  # type: ignore[attr-defined]
        return None
    job = session.scalars(select(Job).where(Job.id == identifier)).one()
    session.execute(update(User).where(User.name == job.owner).values(served=time.time()))
    return job


def note_progress(session: Session, job: Job, **values: Any) -> bool:
    """Store what a running job has reported; returns False if it has ended or was begun anew meanwhile."""
    query = update(Job).where(Job.seq == job.seq, Job.attempt == job.attempt, Job.status.not_in(FINAL))
    return bool(session.execute(query.values(**values)).rowcount)  # type: ignore[attr-defined]


def finish(session: Session, job: Job, result: Result) -> bool:
    """Give a job its final state; returns False if it has one, or if it was begun anew meanwhile."""
    values: dict[str, Any] = {"status": result.status, "completed_at": time.time(), "claimed": False}
    values |= {"output": result.output, "error": result.error}
    values |= {} if result.logs is None else {"logs": result.logs}
    values |= {} if result.metrics is None else {"metrics": dict(result.metrics)}
    values |= {} if result.started_at is None else {"started_at": result.started_at}
    return note_progress(session, job, **values)


def give_back(session: Session, job: Job, *, lost: bool) -> bool:
    """Put a job back into the queue, as its server was lost under it or the gateway ends."""
    return note_progress(
        session, job, status="starting", claimed=False, started_at=None, losses=job.losses + (1 if lost else 0)
    )


def recover(session: Session) -> int:
    """Put back what a gateway that was killed had begun; returns how many there were."""
    query = update(Job).where(Job.claimed.is_(True), Job.status.not_in(FINAL))
    values = {"status": "starting", "claimed": False, "started_at": None}
    return int(session.execute(query.values(**values)).rowcount)  # type: ignore[attr-defined]


def due_for_cancel(session: Session, now: float) -> Sequence[str]:
    """Return the identifiers of open jobs whose ``Cancel-After`` is over."""
    query = select(Job.id).where(Job.status.in_(("starting", "processing")), Job.cancel_at <= now)
    return session.scalars(query).all()
