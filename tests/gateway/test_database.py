"""The database: its migrations, and what must be true of it after a kill."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import create_engine, text
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from lora_service.errors import SettingError
from lora_service.gateway.database import accounts, jobs
from lora_service.gateway.database.connection import Database
from lora_service.gateway.database.jobs import Result
from lora_service.gateway.database.tables import Job, Table
from tests.gateway.postgres import Cluster, programs


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with Cluster() as cluster:
        yield cluster


@pytest.fixture(params=["sqlite", "postgresql"])
def database(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Database]:
    """An empty database of each kind."""
    if request.param == "postgresql":
        if programs() is None:
            pytest.skip("PostgreSQL is not installed")
        url = request.getfixturevalue("cluster").url
        engine = create_engine(url.replace("postgresql:", "postgresql+psycopg:"))
        with engine.begin() as connection:
            connection.execute(text("DROP SCHEMA public CASCADE"))
            connection.execute(text("CREATE SCHEMA public"))
        engine.dispose()
    else:
        url = f"sqlite:///{tmp_path / 'g.sqlite'}"
    database = Database(url)
    yield database
    database.close()


def add_job(database: Database, identifier: str = "a" * 26) -> None:
    with database.write() as session:
        accounts.user(session, "ann")
        session.add(
            Job(id=identifier, kind="prediction", owner="ann", engine="predict", model="local/lora", version="v",
                input={}, metrics={}, webhook_events=[], created_at=time.time())
        )  # fmt: skip


def claim_first(session: Session) -> Job | None:
    waiting = jobs.waiting(session, "predict", 1)
    return jobs.claim(session, waiting[0].id) if waiting else None


def test_the_migrations_make_the_tables_of_the_code(database: Database) -> None:
    with database.engine.connect() as connection:
        assert compare_metadata(MigrationContext.configure(connection), Table.metadata) == []


def test_what_ran_when_the_gateway_was_killed_waits_again_and_ends_once(database: Database) -> None:
    add_job(database)
    with database.write() as session:
        first = claim_first(session)
        assert first is not None
        assert claim_first(session) is None
        assert jobs.claim(session, first.id) is None
    with database.write() as session:
        assert jobs.recover(session) == 1
    with database.write() as session:
        second = claim_first(session)
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


def test_servers_that_take_jobs_at_once_take_different_ones(database: Database) -> None:
    identifiers = [f"{number:026}" for number in range(24)]
    for identifier in identifiers:
        add_job(database, identifier)

    def claim(_: object) -> list[str]:
        taken = []
        for identifier in identifiers:
            with database.write() as session:
                job = jobs.claim(session, identifier)
            taken += [job.id] if job else []
        return taken

    with ThreadPoolExecutor(6) as threads:
        taken = [identifier for each in threads.map(claim, range(6)) for identifier in each]
    assert sorted(taken) == identifiers


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
