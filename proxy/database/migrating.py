"""Migrations: what a database is at, what is missing, and bringing it there.

Each migration says whether it is additive (`is_additive`): new tables, columns and indexes only, so that
gates of the version before go on working beside it. Those are done when a gate starts; others only when
asked for.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sqlalchemy import Column, Connection, MetaData, String, Table, inspect, select

from proxy.errors import ConfigError

if TYPE_CHECKING:
    from alembic.config import Config as AlembicConfig

FOLDER = "proxy:database/migrations"


@dataclass(frozen=True, slots=True)
class Pending:
    """What is to be done.

    Attributes:
        found: the version that the database is at; None where there is nothing yet.
        wanted: the newest.
        is_safe: whether a gate may do it when it starts.
    """

    found: str | None
    wanted: str
    is_safe: bool

    @property
    def is_done(self) -> bool:
        """Whether nothing is missing."""
        return self.found == self.wanted

    def __str__(self) -> str:
        return self.wanted if self.is_done else f"{self.found or 'empty'} → {self.wanted}"


def found(connection: Connection) -> str | None:
    """The version that a database is at; None where there is nothing yet."""
    if not inspect(connection).has_table("alembic_version"):
        return None
    version = Table("alembic_version", MetaData(), Column("version_num", String))
    return connection.scalar(select(version.c.version_num))


def pending(connection: Connection, wanted: str) -> Pending:
    """What is missing.

    Raises:
        ConfigError: the database is of another version of the gate.
    """
    at = found(connection)
    if at in (None, wanted):
        return Pending(at, wanted, is_safe=True)
    # Imported only when there is something to do: it takes as long as the rest of a command.
    from alembic.script import ScriptDirectory

    with _same_version():
        steps = list(ScriptDirectory.from_config(_config(connection)).iterate_revisions(wanted, at))
    return Pending(at, wanted, all(getattr(step.module, "is_additive", False) for step in steps))


def migrate(connection: Connection, wanted: str, *, only_when_safe: bool) -> Pending:
    """Brings the tables to what the models say. The transaction is the caller's, and has the writers' lock.

    Returns:
        What was missing.

    Raises:
        ConfigError: the database is of another version of the gate, or a human has to ask for it.
    """
    missing = pending(connection, wanted)  # another process may have had the lock before
    if missing.is_done:
        return missing
    if only_when_safe and not missing.is_safe:
        raise ConfigError(
            f"database.url: {missing}: gates of the older version cannot go on beside this migration; "
            "stop them, make a copy of the database, and run `pictrs-gate migrate`"
        )
    from alembic import command

    with _same_version():
        command.upgrade(_config(connection), "head")
    return missing


def _config(connection: Connection) -> AlembicConfig:
    from alembic.config import Config as AlembicConfig

    config = AlembicConfig()
    config.set_main_option("script_location", FOLDER)
    config.attributes["connection"] = connection
    return config


@contextmanager
def _same_version() -> Iterator[None]:
    from alembic.script.revision import RevisionError
    from alembic.util import CommandError

    try:
        yield
    except (CommandError, RevisionError):
        raise ConfigError(
            "database.url: it was written by another version of pictrs-gate; install that one or a newer one"
        ) from None
