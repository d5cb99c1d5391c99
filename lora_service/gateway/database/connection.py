"""Opens and migrates the database, and hands out sessions."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from alembic import command
from alembic.config import Config
from sqlalchemy import Connection, Engine, create_engine, event, make_url, text
from sqlalchemy.exc import ArgumentError, NoSuchModuleError, SQLAlchemyError
from sqlalchemy.orm import Session

from lora_service.errors import SettingError

_BUSY_SECONDS = 30.0
_MIGRATIONS = Path(__file__).parent / "migrations"


class Database:
    """The database of one gateway.

    Args:
        url: SQLAlchemy's; of SQLite and PostgreSQL.

    Raises:
        SettingError: the URL is none, or of another kind, or nothing answers there.
    """

    def __init__(self, url: str) -> None:
        self.engine = _engine(url)
        try:
            self.migrate()
        except (SQLAlchemyError, OSError) as error:
            reason = str(error).splitlines()[0]
            shown = self.engine.url.render_as_string(hide_password=True)
            raise SettingError("DATABASE_URL", shown, f"a database that can be opened ({reason})") from error

    @property
    def is_sqlite(self) -> bool:
        """True for SQLite."""
        return self.engine.dialect.name == "sqlite"

    def migrate(self) -> None:
        """Bring the tables to what this version of the code expects."""
        config = Config()
        config.set_main_option("script_location", str(_MIGRATIONS))
        with self.engine.connect() as connection:
            config.attributes["connection"] = connection
            command.upgrade(config, "head")

    @contextmanager
    def read(self) -> Iterator[Session]:
        """Yield a session that sees one state of the database."""
        with Session(self.engine, expire_on_commit=False) as session:
            yield session

    @contextmanager
    def write(self) -> Iterator[Session]:
        """Yield a session whose changes are on disk at the end, all of them or none."""
        with Session(self.engine.execution_options(writes=True), expire_on_commit=False) as session, session.begin():
            yield session

    def ping(self) -> None:
        """Raise an error of SQLAlchemy if the database does not answer."""
        with self.engine.connect() as connection:
            connection.execute(text("SELECT 1"))

    def close(self) -> None:
        """Close all connections."""
        self.engine.dispose()


def _engine(url: str) -> Engine:
    try:
        parsed = make_url(url)
        if parsed.get_backend_name() == "postgresql":
            if parsed.drivername == "postgresql":
                parsed = parsed.set(drivername="postgresql+psycopg")
            return create_engine(parsed, pool_size=20, max_overflow=30, pool_pre_ping=True)
        if parsed.get_backend_name() != "sqlite":
            raise SettingError("DATABASE_URL", parsed.get_backend_name(), "a URL of sqlite or postgresql")
        if parsed.database:
            Path(parsed.database).parent.mkdir(parents=True, exist_ok=True)
        engine = create_engine(parsed, pool_size=20, max_overflow=30, connect_args={"timeout": _BUSY_SECONDS})
    except (ArgumentError, NoSuchModuleError) as error:
        raise SettingError("DATABASE_URL", "…", "SQLAlchemy's URL of a database, like sqlite:////data/g.db") from error
    except OSError as error:
        raise SettingError("DATABASE_URL", url, f"a database whose folder can be made ({error.strerror})") from error
    except ImportError as error:
        raise SettingError("DATABASE_URL", url.partition(":")[0], "one whose driver is installed: psycopg") from error
    event.listen(engine, "connect", _prepare_sqlite)
    event.listen(engine, "begin", _begin_sqlite)
    return engine


def _prepare_sqlite(connection: Any, _record: object) -> None:
    connection.isolation_level = None  # the driver would begin transactions by itself, and late
    cursor = connection.cursor()
    for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON"):
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()


def _begin_sqlite(connection: Connection) -> None:
    """Take the lock at once in transactions that write: a reader that becomes a writer may be refused at any moment."""
    connection.exec_driver_sql("BEGIN IMMEDIATE" if connection.get_execution_options().get("writes") else "BEGIN")
