"""The kinds of database that there are. A new one is a file of its own and a line here."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from pydantic import SecretStr
from sqlalchemy import Connection, Engine
from sqlalchemy.exc import DBAPIError, SQLAlchemyError

from proxy.database import postgresql, sqlite


class Dialect(Protocol):
    """What differs between them.

    Attributes:
        shown: the URL for messages; it holds no password.
        reading: options of a connection that only reads, and is to see one moment.
    """

    shown: str
    reading: Mapping[str, Any]

    def exists(self) -> bool:
        """Whether there is something that can be looked at without making it."""

    def prepare(self) -> None:
        """What has to be done before it is opened."""

    def engine(self, *, is_migrating: bool = False) -> Engine:
        """A new engine. Its transactions with the option `writes` come one after the other.

        What one of them reads is what the one before it has left; once it is committed it is durable.
        Every wait has a deadline, and no error shows a value of a statement.

        Args:
            is_migrating: whether a statement may take an hour.
        """

    def check(self, connection: Connection) -> None:
        """Looks whether it is fit to keep evidence.

        Raises:
            ConfigError: it is not.
        """


def dialect_of(url: str, password: SecretStr | None = None) -> Dialect:
    """The kind that a URL names: `sqlite:///FILE`, or `postgresql://…` with the password apart.

    Raises:
        ConfigError: what it needs is not installed.
    """
    return postgresql.Postgresql(url, password) if url.startswith("postgresql") else sqlite.Sqlite(url)


def in_words(error: SQLAlchemyError) -> str:
    """What is wrong with the database, in one line and without any value of the statement that failed."""
    original = error.orig if isinstance(error, DBAPIError) else error
    if original is None:
        return type(error).__name__
    return sqlite.in_words(original) or postgresql.in_words(original) or type(original).__name__
