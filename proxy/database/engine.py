"""Connections, transactions and migrations."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, Concatenate, ParamSpec, TypeVar

from sqlalchemy import (
    Column,
    Connection,
    Engine,
    MetaData,
    String,
    Table,
    create_engine,
    event,
    inspect,
    select,
)
from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import Session

from proxy.errors import ConfigError

HEAD = "0001"  # the newest of the migrations
_BUSY_S = 10.0  # how long a writer waits for another process's transaction

P = ParamSpec("P")
T = TypeVar("T")


class Database:
    """The database of one process: migrated when opened, used from any thread."""

    def __init__(self, url: str) -> None:
        """Opens and migrates the database at `url`.

        Raises:
            ConfigError: it cannot be opened.
        """
        self._engine = _sqlite_engine(url)
        # Few threads: SQLite has one writer, and a queue here is better than one at its lock.
        self._threads = ThreadPoolExecutor(max_workers=4, thread_name_prefix="database")
        try:
            with self._engine.execution_options(writes=True).begin() as connection:
                _migrate(connection)
        except OperationalError as error:
            raise ConfigError(
                f"database.url: {url}: {error.orig}; check that the folder exists and can be written"
            ) from None

    @contextmanager
    def reading(self) -> Iterator[Session]:
        """A session whose transaction only reads."""
        with Session(self._engine, expire_on_commit=False) as session:
            yield session

    @contextmanager
    def writing(self) -> Iterator[Session]:
        """A session whose transaction is durable once the block is left without an exception."""
        engine = self._engine.execution_options(writes=True)
        with Session(engine, expire_on_commit=False) as session, session.begin():
            yield session

    async def run(self, work: Callable[Concatenate[Database, P], T], *args: P.args, **kwargs: P.kwargs) -> T:
        """`work(self, …)` in a thread of the database's own."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._threads, lambda: work(self, *args, **kwargs))

    def close(self) -> None:
        """Waits for what is under way and closes every connection."""
        self._threads.shutdown()
        self._engine.dispose()


def _sqlite_engine(url: str) -> Engine:
    engine = create_engine(url, connect_args={"timeout": _BUSY_S})

    @event.listens_for(engine, "connect")
    def _on_connect(connection: Any, _record: Any) -> None:
        connection.isolation_level = None  # transactions are begun below, not by the driver
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA synchronous=FULL")  # a commit has reached the disk
        connection.execute("PRAGMA foreign_keys=ON")

    @event.listens_for(engine, "begin")
    def _on_begin(connection: Connection) -> None:
        # A writer takes the lock at once: a transaction that reads first and writes later can fail half-way.
        writes = connection.get_execution_options().get("writes", False)
        connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")

    return engine


def _migrate(connection: Connection) -> None:
    """Brings the tables to what the models say."""
    if inspect(connection).has_table("alembic_version"):
        version = Table("alembic_version", MetaData(), Column("version_num", String))
        if connection.scalar(select(version.c.version_num)) == HEAD:
            return
    # Imported only when there is something to do: it takes as long as the rest of a command.
    from alembic import command
    from alembic.config import Config as AlembicConfig

    config = AlembicConfig()
    config.set_main_option("script_location", "proxy:database/migrations")
    config.attributes["connection"] = connection
    command.upgrade(config, "head")
