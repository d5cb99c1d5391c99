"""Work that is done at its time: Cancel-After, the end of uploads and of old jobs' data."""

from __future__ import annotations

import asyncio
import logging
import shutil
import time
from typing import Any

from sqlalchemy import or_, select, update

from lora_service.gateway.database import catalog, jobs, measurements, stored_files
from lora_service.gateway.database.tables import FINAL, Job, StoredFile, Version
from lora_service.gateway.gateway import Gateway
from lora_service.gateway.queue.cancellation import cancel

_log = logging.getLogger(__name__)
_TICK = 1.0
_SWEEP_SECONDS = 300.0
_AT_ONCE = 500


class Janitor:
    """Cancels in time, and removes what is kept no longer."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway

    async def serve(self) -> None:
        """Do so until cancelled."""
        swept = 0.0
        while True:
            try:
                for identifier in await asyncio.to_thread(self._due):
                    await cancel(self._gateway, identifier)
                if time.monotonic() - swept > _SWEEP_SECONDS:
                    swept = time.monotonic()
                    await asyncio.to_thread(self.sweep)
            except Exception:  # a database that is away for a moment must not end this
                _log.exception("the janitor goes on after an error")
            await asyncio.sleep(_TICK)

    def _due(self) -> list[str]:
        with self._gateway.database.read() as session:
            return list(jobs.due_for_cancel(session, time.time()))

    def sweep(self, now: float | None = None) -> int:
        """Remove what is kept no longer; returns the number of files."""
        now = time.time() if now is None else now
        self._forget_jobs(now)
        removed = 0
        while identifiers := self._expired(now):
            with self._gateway.database.write() as session:
                for identifier in identifiers:
                    session.delete(session.get_one(StoredFile, identifier))
            for identifier in identifiers:
                self._gateway.blobs.remove(identifier)
            removed += len(identifiers)
        self._remove_runs()
        return removed

    def _forget_jobs(self, now: float) -> None:
        """Remove inputs, logs and outputs of jobs that ended long ago; trained weights belong to their model."""
        seconds = self._gateway.settings.keep_jobs_seconds
        if not seconds:
            return
        with self._gateway.database.write() as session:
            query = select(Job.id).where(Job.completed_at < now - seconds, Job.data_removed.is_(False)).limit(_AT_ONCE)
            ended = list(session.scalars(query))
            empty: dict[str, Any] = {"input": {}, "output": None, "logs": "", "data_removed": True}
            session.execute(update(Job).where(Job.id.in_(ended)).values(**empty))
            made = set(session.scalars(select(Version.training).where(Version.training.in_(ended))))
            without_version = [job for job in ended if job not in made]
            measurements.remove(session, without_version)
            is_left = StoredFile.job.in_(without_version) & (StoredFile.purpose != "weights")
            is_left |= StoredFile.job.in_(made) & StoredFile.purpose.not_in(catalog.KEPT_WITH_VERSION)
            session.execute(update(StoredFile).where(is_left).values(expires_at=now))

    def _expired(self, now: float) -> list[str]:
        """Return files whose time is over, and which no waiting job has as an input."""
        with self._gateway.database.read() as session:
            used = stored_files.awaited(session)
            ended = select(Job.id).where(Job.status.in_(FINAL))
            for_its_run = StoredFile.purpose.in_(("fetched", "run")) & StoredFile.job.in_(ended)
            query = select(StoredFile.id).where(or_(StoredFile.expires_at <= now, for_its_run))
            return [name for name in session.scalars(query.limit(_AT_ONCE + len(used))) if name not in used][:_AT_ONCE]

    def _remove_runs(self) -> None:
        """Remove the run folders of jobs that have ended."""
        folders = {path.name: path for path in self._gateway.settings.runs.glob("*") if path.is_dir()}
        with self._gateway.database.read() as session:
            open_jobs = set(session.scalars(select(Job.id).where(Job.status.not_in(FINAL))))
        for name, path in folders.items():
            if name not in open_jobs:
                shutil.rmtree(path, ignore_errors=True)
