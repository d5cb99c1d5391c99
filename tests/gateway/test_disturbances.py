"""The gateway when its own database fails at a job, or is away for a moment."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy.exc import OperationalError

from lora_service.gateway.database import deliveries
from lora_service.gateway.database.connection import Database
from lora_service.gateway.database.tables import Delivery, Job
from lora_service.gateway.queue.dispatcher import Dispatcher
from tests.gateway.in_process import run_gateway


def test_a_job_goes_on_when_the_database_was_away_at_its_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    finish, failures = Dispatcher._finish, []

    def failing(self: Dispatcher, job: Job, *arguments: Any) -> None:
        if len(failures) < 5:  # more often than a job may lose its server
            failures.append(job.id)
            raise OperationalError("COMMIT", {}, Exception("the server closed the connection"))
        finish(self, job, *arguments)

    monkeypatch.setattr(Dispatcher, "_finish", failing)
    monkeypatch.setattr("lora_service.gateway.queue.dispatcher._PAUSE_SECONDS", 0.01)
    with run_gateway(tmp_path) as running:
        job = running.draw()
        assert running.finished(job)["status"] == "succeeded"
    assert failures == [job["id"]] * 5


def test_a_job_that_the_gateway_fails_at_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(*_: object) -> None:
        raise TypeError("not to be stored")

    monkeypatch.setattr(Dispatcher, "_result", failing)
    monkeypatch.setattr("lora_service.gateway.queue.dispatcher._PAUSE_SECONDS", 0.01)
    with run_gateway(tmp_path) as running:
        job = running.finished(running.draw())
        assert (job["status"], job["error"]) == ("failed", "The gateway failed at this job; its log says why.")
        assert len(running.engine.begun) == 3


def test_a_late_note_of_one_webhook_does_not_remove_another(tmp_path: Path) -> None:
    database = Database(f"sqlite:///{tmp_path / 'gateway.sqlite'}")

    def job(identifier: str) -> Job:
        return Job(id=identifier, owner="me", webhook="https://example.org", webhook_events=[])

    with database.write() as session:
        deliveries.add(session, job("first"), "completed", "{}")
    with database.write() as session:
        first = session.query(Delivery).one()
        deliveries.done(session, first.id)
    with database.write() as session:
        deliveries.add(session, job("second"), "completed", "{}")
    with database.write() as session:
        second = session.query(Delivery).one()
        assert second.seq == first.seq  # SQLite numbers it like the one that is gone
        deliveries.done(session, first.id)
        deliveries.postpone(session, first.id, time.time() + 60)
    with database.read() as session:
        assert session.query(Delivery).one().attempts == 0
    database.close()
