"""SQLite: one file, for one gate, or for several on one machine."""

from __future__ import annotations

import logging
import os
import sqlite3
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from sqlalchemy import Connection, Engine, create_engine, event, make_url

log = logging.getLogger(__name__)

_BUSY_S = 10.0  # how long a writer waits for another process's transaction


class Sqlite:
    """A file in WAL mode; every commit has reached the disk."""

    reading: Mapping[str, Any] = MappingProxyType({})  # a transaction sees one moment anyway

    def __init__(self, url: str) -> None:
        self.shown = url
        self._url, self._file = url, Path(str(make_url(url).database))

    def exists(self) -> bool:
        """Whether there is a database to open; one that is not there is made by opening it."""
        return self._file.exists()

    def prepare(self) -> None:
        """Makes sure that only the gate's user can read the database, and what SQLite writes beside it.

        Raises:
            OSError: the file cannot be made or written.
        """
        # SQLite gives -wal and -shm the mode of the database, so that has to be there before.
        os.close(os.open(self._file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
        for path in (self._file, Path(f"{self._file}-wal"), Path(f"{self._file}-shm")):
            try:
                if path.stat().st_mode & 0o077:
                    path.chmod(0o600)
                    log.warning("database.url: %s: others could read it; it is private now", path)
            except FileNotFoundError:
                continue
            except PermissionError:
                log.warning("database.url: %s: others can read it, and it belongs to somebody else", path)

    def engine(self, *, is_migrating: bool = False) -> Engine:
        """See `proxy.database.dialects.Dialect`."""
        # Errors of SQLAlchemy quote a statement's values otherwise: reasons, aliases, tokens.
        engine = create_engine(self._url, connect_args={"timeout": _BUSY_S}, hide_parameters=True)

        @event.listens_for(engine, "connect")
        def _on_connect(connection: Any, _record: Any) -> None:
            connection.isolation_level = None  # transactions are begun below, not by the driver
            connection.execute("PRAGMA journal_mode=WAL")
            connection.execute("PRAGMA synchronous=FULL")  # a commit has reached the disk
            connection.execute("PRAGMA foreign_keys=ON")

        @event.listens_for(engine, "begin")
        def _on_begin(connection: Connection) -> None:
            # A writer takes the lock at once: one that reads first and writes later can fail half-way.
            writes = connection.get_execution_options().get("writes", False)
            connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")

        return engine

    def check(self, connection: Connection) -> None:
        """Nothing to check: whatever matters is set on each connection."""


def in_words(error: BaseException) -> str | None:
    """What is wrong, in SQLite's own words, which name tables and columns only; None for others' errors."""
    code = getattr(error, "sqlite_errorcode", None)
    if code is None:
        return None
    known = {
        sqlite3.SQLITE_BUSY: f"another process has been writing for {_BUSY_S:.0f} s; try again later",
        sqlite3.SQLITE_READONLY: "the gate has to write it, and into its folder",
        sqlite3.SQLITE_CANTOPEN: "check that its folder is there, can be written, and its disk is not full",
        sqlite3.SQLITE_FULL: "make room on the disk",
        sqlite3.SQLITE_NOTADB: "name another file, or bring back a copy",
        sqlite3.SQLITE_CORRUPT: "bring back a copy",
        sqlite3.SQLITE_IOERR_SHMSIZE: "make room on the disk",
    }
    advice = known.get(code) or known.get(code & 0xFF)  # the rest says more closely what went wrong
    return f"{error}; {advice}" if advice else str(error)
