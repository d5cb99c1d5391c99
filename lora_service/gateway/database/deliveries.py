"""Webhooks that wait to be sent: written together with the event, removed when somebody took them."""

from __future__ import annotations

import time
from collections.abc import Sequence

from sqlalchemy import delete, func, select, update
from sqlalchemy.orm import Session

from lora_service.gateway.database.tables import Delivery, Job
from lora_service.gateway.identifiers import new_id

EVENTS = ("start", "output", "logs", "completed")


def add(session: Session, job: Job, event: str, body: str) -> bool:
    """Add a webhook if the job asked for the event; of events that only tell the newest, one waits at most."""
    if not job.webhook or (event not in job.webhook_events and job.webhook_events):
        return False
    if event in ("output", "logs"):
        untried = (Delivery.job == job.id, Delivery.event == event, Delivery.attempts == 0)
        session.execute(delete(Delivery).where(*untried))
    session.add(
        Delivery(id=f"msg_{new_id()}", job=job.id, owner=job.owner, event=event, url=job.webhook, body=body,
                 next_at=time.time())
    )  # fmt: skip
    return True


def due(session: Session, now: float, limit: int, *, jobs: list[str], owners: list[str]) -> Sequence[Delivery]:
    """Return webhooks whose time has come, oldest first, one of each job; none of ``jobs`` and ``owners``."""
    is_due = (Delivery.next_at <= now, Delivery.job.not_in(jobs), Delivery.owner.not_in(owners))
    first = select(func.min(Delivery.seq)).where(*is_due).group_by(Delivery.job)
    return session.scalars(select(Delivery).where(Delivery.seq.in_(first)).order_by(Delivery.seq).limit(limit)).all()


def next_time(session: Session) -> float | None:
    """Return when the next webhook is due, None while none waits."""
    return session.scalar(select(func.min(Delivery.next_at)))


def done(session: Session, identifier: str) -> None:
    """Forget a webhook that was taken or given up; SQLite gives its ``seq`` to others, its identifier is its own."""
    session.execute(delete(Delivery).where(Delivery.id == identifier))


def postpone(session: Session, identifier: str, until: float) -> None:
    """Count a failed attempt, and set the time of the next."""
    values = {"attempts": Delivery.attempts + 1, "next_at": until}
    session.execute(update(Delivery).where(Delivery.id == identifier).values(**values))
