"""Connections, transactions and migrations."""

from __future__ import annotations

import asyncio
import logging
import os
import sqlite3
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
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
    make_url,
    select,
)
from sqlalchemy.exc import DBAPIError, SQLAlchemyError
from sqlalchemy.orm import Session

from proxy.errors import ConfigError

log = logging.getLogger(__name__)

HEAD = "0009"  # the newest of the migrations
_BUSY_S = 10.0  # how long a writer waits for another process's transaction

P = ParamSpec("P")
T = TypeVar("T")


class Database:
    """The database of one process: migrated when opened, used from any thread."""

    def __init__(self, url: str) -> None:
        """Opens and migrates the database at `url`, `sqlite:///FILE`.

        Raises:
            ConfigError: it cannot be opened or migrated.
        """
        self._engine = _sqlite_engine(url)
        # Few threads: SQLite has one writer, and a queue here is better than one at its lock.
        self._threads = ThreadPoolExecutor(max_workers=4, thread_name_prefix="database")
        try:
            _keep_private(Path(str(make_url(url).database)))
            # Only read, so that a command starts while another process writes.
            with self._engine.begin() as connection:
                is_migrated = _is_migrated(connection)
            if not is_migrated:
                with self._engine.execution_options(writes=True).begin() as connection:
                    _migrate(connection)
        except OSError as error:
            raise ConfigError(
                f"database.url: {url}: {error.strerror}; check that the folder exists and can be written"
            ) from None
        except SQLAlchemyError as error:
            raise ConfigError(f"database.url: {url}: {in_words(error)}") from None

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


def in_words(error: SQLAlchemyError) -> str:
    """What is wrong with the database, in one line and without any value of the statement that failed."""
    original = error.orig if isinstance(error, DBAPIError) else error
    code = getattr(original, "sqlite_errorcode", None)
    if code is None:  # not SQLite's own words, which name tables and columns only
        return type(original).__name__
    advice = {
        sqlite3.SQLITE_BUSY: f"another process has been writing for {_BUSY_S:.0f} s; try again later",
        sqlite3.SQLITE_READONLY: "the gate has to write it, and into its folder",
        sqlite3.SQLITE_CANTOPEN: "check that the folder exists and can be written",
        sqlite3.SQLITE_FULL: "make room on the disk",
        sqlite3.SQLITE_NOTADB: "name another file, or bring back a copy",
        sqlite3.SQLITE_CORRUPT: "bring back a copy",
    }.get(code & 0xFF)  # the rest says more closely what went wrong
    return f"{original}; {advice}" if advice else str(original)


def _keep_private(file: Path) -> None:
    """Makes sure that only the gate's user can read the database, and what SQLite writes beside it."""
    # SQLite gives -wal and -shm the mode of the database, so that has to be there before.
    os.close(os.open(file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
    for path in (file, Path(f"{file}-wal"), Path(f"{file}-shm")):
        try:
            if path.stat().st_mode & 0o077:
                path.chmod(0o600)
                log.warning("database.url: %s: others could read it; it is private now", path)
        except FileNotFoundError:
            continue
        except PermissionError:
            log.warning("database.url: %s: others can read it, and it belongs to somebody else", path)


def _sqlite_engine(url: str) -> Engine:
    # Errors of SQLAlchemy quote a statement's values otherwise: reasons, aliases, tokens.
    engine = create_engine(url, connect_args={"timeout": _BUSY_S}, hide_parameters=True)

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


def _is_migrated(connection: Connection) -> bool:
    if not inspect(connection).has_table("alembic_version"):
        return False
    version = Table("alembic_version", MetaData(), Column("version_num", String))
    return connection.scalar(select(version.c.version_num)) == HEAD


def _migrate(connection: Connection) -> None:
    """Brings the tables to what the models say."""
    if _is_migrated(connection):  # by another process that had the lock before
        return
    # Imported only when there is something to do: it takes as long as the rest of a command.
    from alembic import command
    from alembic.config import Config as AlembicConfig
    from alembic.util import CommandError

    config = AlembicConfig()
    config.set_main_option("script_location", "proxy:database/migrations")
    config.attributes["connection"] = connection
    try:
        command.upgrade(config, "head")
    except CommandError:
        raise ConfigError(
            "database.url: it was written by another version of pictrs-gate; install that one or a newer one"
        ) from None
