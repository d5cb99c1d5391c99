"""The database: its migrations, and what must be true of it after a kill."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy.exc import IntegrityError

from lora_service.errors import SettingError
from lora_service.gateway.database import accounts, jobs
from lora_service.gateway.database.connection import Database
from lora_service.gateway.database.jobs import Result
from lora_service.gateway.database.tables import Job, Table


@pytest.fixture
def database(tmp_path: Path) -> Database:
    return Database(f"sqlite:///{tmp_path / 'g.sqlite'}")


def add_job(database: Database, identifier: str = "a" * 26) -> None:
    with database.write() as session:
        accounts.user(session, "ann")
        session.add(
            Job(id=identifier, kind="prediction", owner="ann", engine="predict", model="local/lora", version="v",
                input={}, metrics={}, webhook_events=[], created_at=time.time())
        )  # fmt: skip


def test_the_migrations_make_the_tables_of_the_code(database: Database) -> None:
    with database.engine.connect() as connection:
        assert compare_metadata(MigrationContext.configure(connection), Table.metadata) == []


def test_what_ran_when_the_gateway_was_killed_waits_again_and_ends_once(database: Database) -> None:
    add_job(database)
    with database.write() as session:
        first = jobs.claim(session, "predict")
        assert first is not None
        assert jobs.claim(session, "predict") is None
    with database.write() as session:
        assert jobs.recover(session) == 1
    with database.write() as session:
        second = jobs.claim(session, "predict")
    assert second is not None
    with database.write() as session:
        assert not jobs.finish(session, first, Result("failed"))  # the attempt before is told of late
        assert jobs.finish(session, second, Result("succeeded", output=1))
        assert not jobs.finish(session, second, Result("canceled"))
        assert jobs.recover(session) == 0
    with database.read() as session:
        row = jobs.find(session, "a" * 26)
        assert row is not None
        assert (row.status, row.output) == ("succeeded", 1)


def test_a_transaction_that_fails_leaves_nothing(database: Database) -> None:
    add_job(database)
    with pytest.raises(IntegrityError):
        add_job(database)  # of the same identifier
    with database.read() as session:
        assert jobs.count_open(session) == 1


@pytest.mark.parametrize("url", ["nonsense", "mysql://a/b", "sqlite:////proc/no/g.sqlite"])
def test_a_database_that_cannot_be_used_is_a_mistake_in_a_setting(url: str) -> None:
    with pytest.raises(SettingError) as raised:
        Database(url)
    assert raised.value.field == "DATABASE_URL"
