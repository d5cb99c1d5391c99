"""Measurements that trainings have reported on the way."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import delete, select
from sqlalchemy.orm import Session

from lora_service.gateway.database.tables import Job, Measurement

NAMES = ("of", "loss", "held_out_loss", "learning_rate", "pictures_per_second", "seconds_left")
"""The metrics that are kept of a step."""


def add(session: Session, job: Job, metrics: Mapping[str, Any]) -> None:
    """Keep what a training reported, unless it names no step."""
    stage, step = metrics.get("stage"), metrics.get("step")
    if isinstance(stage, str) and isinstance(step, int):
        kept = {name: metrics[name] for name in NAMES if isinstance(metrics.get(name), int | float)}
        session.add(
            Measurement(job=job.id, attempt=job.attempt, stage=stage[:100], step=step, at=time.time(), metrics=kept)
        )


def of_job(session: Session, job: str) -> list[Measurement]:
    """Return what a training reported, in the order of its steps.

    An attempt that goes on from a checkpoint takes steps again; of these the newest report counts.
    """
    rows = session.scalars(select(Measurement).where(Measurement.job == job).order_by(Measurement.seq)).all()
    kept: list[Measurement] = []
    for row in rows:
        while kept and kept[-1].attempt < row.attempt and position(kept[-1]) >= position(row):
            kept.pop()
        kept.append(row)
    return kept


def position(row: Measurement) -> tuple[str, int]:
    """Return how far a training was; the stages' names begin with their numbers."""
    return row.stage, row.step


def remove(session: Session, jobs: Sequence[str]) -> None:
    """Forget what these trainings reported."""
    session.execute(delete(Measurement).where(Measurement.job.in_(jobs)))
