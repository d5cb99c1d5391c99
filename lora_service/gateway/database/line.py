"""The line of the jobs that wait: what comes when, and another order of one's own."""

from __future__ import annotations

import heapq
from collections import defaultdict, deque
from collections.abc import Sequence

from sqlalchemy import select
from sqlalchemy.orm import Session, defer

from lora_service.gateway.database.jobs import PLACE
from lora_service.gateway.database.tables import FINAL, Job, User

_WITHOUT_TEXTS = (defer(Job.input), defer(Job.output), defer(Job.logs))


class CannotReorderError(Exception):
    """Jobs cannot take each other's places; the message says why."""


def running(session: Session, limit: int = 1000) -> list[Job]:
    """Return the jobs that servers have, those that run longest first."""
    query = select(Job).options(*_WITHOUT_TEXTS).where(Job.status.not_in(FINAL), Job.claimed.is_(True))
    return list(session.scalars(query.order_by(Job.started_at, Job.seq).limit(limit)))


def waiting(session: Session) -> list[tuple[int, Job]]:
    """Return the jobs that wait with their place in the line of their kind of server, in the order of beginning.

    It is the order of :func:`~lora_service.gateway.database.jobs.claim` if nothing is added: of the highest priority,
    users take turns.
    """
    query = select(Job, User.served).options(*_WITHOUT_TEXTS).join(User, User.name == Job.owner)
    rows = session.execute(query.where(Job.status == "starting", Job.claimed.is_(False)).order_by(PLACE)).all()
    lines: dict[str, list[Job]] = {}
    for engine in sorted({job.engine for job, _ in rows}):
        lines[engine], served = [], {job.owner: since for job, since in rows}
        for priority in sorted({job.priority for job, _ in rows if job.engine == engine}, reverse=True):
            jobs = [job for job, _ in rows if job.engine == engine and job.priority == priority]
            lines[engine] += _in_turns(jobs, served)
    placed = [(place, job) for line in lines.values() for place, job in enumerate(line, start=1)]
    return sorted(placed, key=lambda each: (each[0], each[1].seq))


def _in_turns(jobs: Sequence[Job], served: dict[str, float]) -> list[Job]:
    """Return jobs of one priority in the order of their turns; ``served`` is set to when their users had theirs."""
    of_user: defaultdict[str, deque[Job]] = defaultdict(deque)
    for job in jobs:
        of_user[job.owner].append(job)
    turns = [(served[user], _place(line[0]), user) for user, line in of_user.items()]
    heapq.heapify(turns)
    clock = max(served.values(), default=0.0)
    ordered = []
    while turns:
        _, _, user = heapq.heappop(turns)
        ordered.append(of_user[user].popleft())
        clock += 1
        served[user] = clock
        if of_user[user]:
            heapq.heappush(turns, (clock, _place(of_user[user][0]), user))
    return ordered


def _place(job: Job) -> int:
    return job.seq if job.place is None else job.place


def reorder(session: Session, owner: str, identifiers: Sequence[str]) -> None:
    """Have waiting jobs of a user come in this order, in the places that they have together.

    Raises:
        KeyError: there is no such job of theirs.
        CannotReorderError: one does not wait any more, or they are of different priorities or kinds of server.
    """
    query = select(Job).where(Job.id.in_(identifiers), Job.owner == owner).with_for_update()
    by_id = {job.id: job for job in session.scalars(query)}
    jobs = [by_id[identifier] for identifier in identifiers]
    if late := next((job for job in jobs if job.status != "starting" or job.claimed), None):
        raise CannotReorderError(f"the job {late.id} does not wait any more")
    if len({job.engine for job in jobs}) > 1:
        raise CannotReorderError("predictions and trainings wait in lines of their own")
    if len({job.priority for job in jobs}) > 1:
        raise CannotReorderError("they have different priorities, which go before the order")
    places = sorted(map(_place, jobs))
    for job, place in zip(jobs, places, strict=True):
        job.place = place
