"""Takes the next job of the queue, runs it on its engine, and gives it its final state."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import shutil
import time
from collections.abc import Mapping
from typing import Any

from sqlalchemy.exc import InterfaceError, OperationalError
from sqlalchemy.orm import Session

from lora_service.errors import LoraServiceError
from lora_service.gateway.database import catalog, jobs, measurements
from lora_service.gateway.database.jobs import Result
from lora_service.gateway.database.tables import FINAL, Job
from lora_service.gateway.engine.jobs import (
    EngineJob,
    EngineLostError,
    JobEngine,
    RefusedError,
    ServerAwayError,
    WaitingJob,
)
from lora_service.gateway.events import wait
from lora_service.gateway.gateway import QUEUE, Gateway, Inbox
from lora_service.gateway.metrics import Metrics
from lora_service.gateway.problems import Problem
from lora_service.gateway.queue import inputs, outputs, run_files

_log = logging.getLogger(__name__)
_LOOK_SECONDS = 5.0  # a look at the queue although nobody said that something was added
_PAUSE_SECONDS = 1.0  # after a server was lost
_AWAY_SECONDS = 5.0  # until a server is tried again that was not there
_WINDOW = 32  # jobs among which an engine may choose
_DATABASE_IS_AWAY = (OperationalError, InterfaceError)


class Dispatcher:
    """Runs jobs of one engine, one after another; an engine of several slots has one of these for each.

    Args:
        gateway: whose queue.
        engine: the server.
        metrics: where waits and runs are noted.
        turn: held by the one that looks at the queue, of those of one engine; the others need not.
    """

    def __init__(self, gateway: Gateway, engine: JobEngine, metrics: Metrics, turn: asyncio.Lock | None = None) -> None:
        self.gateway, self.engine, self.metrics = gateway, engine, metrics
        self._turn = turn or asyncio.Lock()
        self._taken: Job | None = None
        self._measured: tuple[Any, ...] = ()

    async def serve(self) -> None:
        """Run jobs until the gateway drains."""
        while not self.gateway.draining:
            self._taken = chosen = None
            try:
                async with self._turn:
                    chosen = await self._choose()
                    job = await asyncio.to_thread(self._claim, chosen) if chosen else None
                if job is not None:
                    await self._run(job)
            except Exception as error:  # a database that is away for a moment must not end the queue
                _log.exception("the queue of the %s server goes on after an error", self.engine.kind)
                await self._put_back(isinstance(error, _DATABASE_IS_AWAY))
            finally:
                if chosen:
                    self.engine.release(chosen.id)

    async def _choose(self) -> WaitingJob | None:
        """Wait for a job that the engine has a place for; None when the gateway drains."""
        with self.gateway.hub.waiting(QUEUE) as changed:
            while not self.gateway.draining:
                waiting = await asyncio.to_thread(self._waiting)
                if waiting and (chosen := self.engine.choose(waiting)):
                    return chosen
                await wait(changed, _LOOK_SECONDS)
        return None

    def _waiting(self) -> list[WaitingJob]:
        with self.gateway.database.read() as session:
            return jobs.waiting(session, self.engine.kind, max(_WINDOW, self.engine.slots))

    def _claim(self, chosen: WaitingJob) -> Job | None:
        with self.gateway.database.write() as session:
            self._taken = jobs.claim(session, chosen.id)  # also where the commit fails, which may be done
        return self._taken

    async def _put_back(self, is_away: bool) -> None:
        """Put the job of an attempt that an error ended back into the queue, as soon as the database can be reached.

        An error of anything but the database's connection is counted as a loss, so that no job fails for ever.
        """
        job = self._taken
        while not self.gateway.draining:
            await asyncio.sleep(_PAUSE_SECONDS)
            try:
                if job is not None and not is_away and job.losses + 1 >= self.gateway.settings.max_job_attempts:
                    result = Result("failed", error="The gateway failed at this job; its log says why.")
                    await asyncio.to_thread(self._finish, job, result)
                elif job is not None:
                    await asyncio.to_thread(self._give_back, job, not is_away)
            except _DATABASE_IS_AWAY as error:
                _log.warning("the database cannot be reached: %s", str(error).splitlines()[0])
            else:
                return

    async def _run(self, job: Job) -> None:
        extra = {"job": job.id, "user": job.owner}
        _log.info("job %s begins (attempt %d)", job.id, job.attempt, extra=extra)
        self.metrics.wait.labels(job.engine).observe(max(0.0, time.time() - job.created_at))
        begun = time.monotonic()
        inbox = self.gateway.inboxes[job.id] = Inbox(job.attempt)
        try:
            status = await self._attempt(job, inbox)
        finally:
            self.gateway.inboxes.pop(job.id, None)
        self.metrics.run.labels(job.engine, status).observe(time.monotonic() - begun)
        _log.info("job %s: %s after %.1f s", job.id, status, time.monotonic() - begun, extra=extra)

    async def _attempt(self, job: Job, inbox: Inbox) -> str:
        """Run a job once; returns what became of it."""
        job.logs = ""  # those of an attempt before are not of this one
        try:
            prepared = await self._prepared(job)
            if prepared is None:
                return "canceled"
            webhook, files = (self.gateway.job_link(purpose, job) for purpose in ("jobs", "runs"))
            task = EngineJob(job.id, prepared, webhook, files, inbox.events)
            begun = time.time()
            response = await self.engine.run(task, lambda progress: asyncio.to_thread(self._note, job, progress))
            result = await asyncio.to_thread(self._result, job, response, begun)
            self.metrics.count_loras(result.metrics or {})
        except EngineLostError as error:
            return await self._lost(job, error)
        except (RefusedError, LoraServiceError, Problem) as error:
            result = Result("failed", error=_text(error))
        await asyncio.to_thread(self._finish, job, result)
        return result.status

    async def _prepared(self, job: Job) -> dict[str, Any] | None:
        """Return a job's input for its server; None for a cancelled one, whose downloads must not hold up the next."""
        with self.gateway.hub.waiting(job.id) as changed:
            preparing = asyncio.create_task(asyncio.to_thread(inputs.prepare, self.gateway, job))
            preparing.add_done_callback(lambda _: changed.set())
            preparing.add_done_callback(lambda task: task.cancelled() or task.exception())  # nobody may ask for it
            while not preparing.done():
                await changed.wait()
                changed.clear()
                if await asyncio.to_thread(self._has_ended, job):
                    return None
        return await preparing

    def _has_ended(self, job: Job) -> bool:
        with self.gateway.database.read() as session:
            row = jobs.find(session, job.id)
            return row is None or row.status in FINAL

    def _note(self, job: Job, response: Mapping[str, Any]) -> None:
        """Store the state of a running job, and wake those who wait for it."""
        job.logs = _text(response.get("logs"))
        values: dict[str, Any] = {"logs": job.logs}
        metrics = response.get("metrics")
        if isinstance(metrics, Mapping):
            values["metrics"] = dict(metrics)
        is_start = job.started_at is None
        if is_start:
            job.started_at = time.time()
            values |= {"status": "processing", "started_at": job.started_at}
        with self.gateway.database.write() as session:
            if not jobs.note_progress(session, job, **values):
                return
            self._measure(session, job, values.get("metrics", {}))
            row = jobs.find(session, job.id)
            if row is not None:
                session.refresh(row)
                self.gateway.add_webhook(session, row, "start" if is_start else "logs")
        self._collect(job)
        self.gateway.hub.notify(job.id)

    def _collect(self, job: Job) -> None:
        """Store what a training has written on the way; what cannot be stored is not worth the training."""
        if job.engine == "train":
            try:
                run_files.collect(self.gateway, job)
            except (OSError, Problem) as error:
                _log.warning("a sample or saved file of the job %s is left out: %s", job.id, error)

    def _measure(self, session: Session, job: Job, metrics: Mapping[str, Any]) -> None:
        """Keep a training's metrics of a step that it has not told of before."""
        position = (job.id, job.attempt, metrics.get("stage"), metrics.get("step"))
        if job.engine == "train" and position != self._measured:
            self._measured = position
            measurements.add(session, job, metrics)

    def _result(self, job: Job, response: Mapping[str, Any], begun: float) -> Result:
        """Return the end of a job as its server's response has it, with the output stored."""
        status = response["status"]
        metrics = response.get("metrics")
        metrics = dict(metrics) if isinstance(metrics, Mapping) else {}
        output = outputs.stored(self.gateway, job, response.get("output")) if status == "succeeded" else None
        # Cog puts words of its own before the sentence of an error, and drops the logs; our entries report both apart.
        error = metrics.pop("error_message", None) or response.get("error")
        return Result(
            status,
            output=output,
            error=None if error is None else _text(error),
            logs=_text(response.get("logs")) or job.logs or _text(metrics.get("log")),
            metrics={name: value for name, value in metrics.items() if name != "log"},
            started_at=job.started_at or begun,
        )

    def _finish(self, job: Job, result: Result) -> None:
        self._collect(job)
        with self.gateway.database.write() as session:
            if jobs.finish(session, job, result):
                self._measure(session, job, result.metrics or {})
                row = jobs.find(session, job.id)
                assert row is not None
                session.refresh(row)
                if result.status == "succeeded":
                    if row.destination:
                        row.output = outputs.make_version(session, row, row.output)
                        session.flush()
                    catalog.count_run(session, *row.model.split("/", 1))
                if row.output is not None:
                    self.gateway.add_webhook(session, row, "output")
                self.gateway.add_webhook(session, row, "completed")
        self.gateway.hub.notify(job.id)
        if job.engine == "train":
            shutil.rmtree(self.gateway.settings.runs / job.id, ignore_errors=True)

    async def _lost(self, job: Job, error: EngineLostError) -> str:
        """Put a job back into the queue, or fail it if its server was lost too often; returns what became of it."""
        _log.warning("job %s: %s", job.id, error, extra={"job": job.id})
        if self.gateway.draining or isinstance(error, ServerAwayError):
            await asyncio.to_thread(self._give_back, job, False)
            await asyncio.sleep(0 if self.gateway.draining else _AWAY_SECONDS)
            return "put back"
        if job.losses + 1 >= self.gateway.settings.max_job_attempts:
            message = f"The server was lost under this job {job.losses + 1} times: {error}."
            await asyncio.to_thread(self._finish, job, Result("failed", error=message))
            return "failed"
        await asyncio.to_thread(self._give_back, job, True)
        await asyncio.sleep(_PAUSE_SECONDS)
        return "put back"

    def _give_back(self, job: Job, lost: bool) -> None:
        with self.gateway.database.write() as session:
            jobs.give_back(session, job, lost=lost)
        self.gateway.hub.notify(QUEUE)


def _text(value: object) -> str:
    """Return a server's text as a database can store it: PostgreSQL has no NUL, and UTF-8 no half characters."""
    return str(value or "").replace("\0", "\N{REPLACEMENT CHARACTER}").encode("utf-8", "replace").decode()


async def end(tasks: list[asyncio.Task[None]], seconds: float) -> None:
    """Wait for dispatchers whose gateway drains; those that take longer are ended."""
    if tasks:
        _, late = await asyncio.wait(tasks, timeout=seconds)
        for task in late:
            task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.gather(*late, return_exceptions=True)
