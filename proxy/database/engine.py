"""Connections and transactions."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Concatenate, ParamSpec, TypeVar

from pydantic import SecretStr
from sqlalchemy.exc import IntegrityError, SQLAlchemyError
from sqlalchemy.exc import TimeoutError as DatabaseTimeout
from sqlalchemy.orm import Session

from proxy.database import migrating
from proxy.database.dialects import Dialect, dialect_of, in_words
from proxy.database.migrating import Pending
from proxy.errors import ConfigError
from proxy.faults import FaultPoint, nowhere

HEAD = "0008"  # the newest of the migrations

P = ParamSpec("P")
T = TypeVar("T")


class Database:
    """The database of one process: migrated when opened, used from any thread."""

    def __init__(
        self,
        url: str,
        *,
        password: SecretStr | None = None,
        within_s: float | None = None,
        fault: FaultPoint = nowhere,
    ) -> None:
        """Opens the database, and migrates it where that is safe.

        Args:
            url: `sqlite:///FILE`, or `postgresql://…`.
            password: for PostgreSQL.
            within_s: seconds for each `run`; None where nobody waits for an answer.
            fault: points to die at.

        Raises:
            ConfigError: it cannot be opened, or a human has to migrate it.
        """
        dialect = dialect_of(url, password)
        self._within_s, self._fault = within_s, fault
        self._engine = dialect.engine()
        self._reads = self._engine.execution_options(**dialect.reading)
        self._writes = self._engine.execution_options(writes=True)
        # Few threads: there is one writer at a time, and a queue here is better than one at its lock.
        self._threads = ThreadPoolExecutor(max_workers=4, thread_name_prefix="database")
        with _said_in_one_line(dialect):
            dialect.prepare()
            # Only read, so that a command starts while another process writes.
            with self._reads.begin() as connection:
                dialect.check(connection)
                is_migrated = migrating.found(connection) == HEAD
            if not is_migrated:
                _migrate(dialect, only_when_safe=True)

    @contextmanager
    def reading(self) -> Iterator[Session]:
        """A session whose transaction only reads, and sees one moment."""
        with Session(self._reads, expire_on_commit=False) as session:
            yield session

    @contextmanager
    def writing(self) -> Iterator[Session]:
        """A session whose transaction is durable once the block is left without an exception.

        Such transactions come one after the other, over all processes.
        """
        with Session(self._writes, expire_on_commit=False) as session:
            with session.begin():
                yield session
                session.flush()
                self._fault("uncommitted")
            self._fault("committed")

    async def run(self, work: Callable[Concatenate[Database, P], T], *args: P.args, **kwargs: P.kwargs) -> T:
        """`work(self, …)` in a thread of the database's own.

        Raises:
            SQLAlchemyError: it failed, or there was no answer in time; nobody knows then whether it was done.
        """
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(self._within_s):
                return await loop.run_in_executor(self._threads, lambda: work(self, *args, **kwargs))
        except TimeoutError:
            raise DatabaseTimeout("the database did not answer in time") from None

    def answer_within(self, seconds: float) -> None:
        """From now on somebody waits for the answer of each `run`. What a start reads may take its time."""
        self._within_s = seconds

    def close(self) -> None:
        """Waits for what is under way and closes every connection."""
        self._threads.shutdown()
        self._engine.dispose()


def pending(url: str, password: SecretStr | None = None) -> Pending:
    """What a database lacks, without touching it.

    Raises:
        ConfigError: it cannot be opened, or is of another version of the gate.
    """
    dialect = dialect_of(url, password)
    if not dialect.exists():
        return Pending(None, HEAD, is_safe=True)
    engine = dialect.engine()
    try:
        with _said_in_one_line(dialect), engine.begin() as connection:
            return migrating.pending(connection, HEAD)
    finally:
        engine.dispose()


def migrate(url: str, password: SecretStr | None = None) -> Pending:
    """Brings a database to what this gate needs, safe or not; says what was missing.

    Raises:
        ConfigError: it cannot be opened, or is of another version of the gate.
    """
    dialect = dialect_of(url, password)
    with _said_in_one_line(dialect):
        dialect.prepare()
        return _migrate(dialect, only_when_safe=False)


def violated(error: IntegrityError) -> str:
    """The name of the constraint that was violated, or of its columns."""
    return in_words(error)


def _migrate(dialect: Dialect, *, only_when_safe: bool) -> Pending:
    engine = dialect.engine(is_migrating=True)
    try:
        with engine.execution_options(writes=True).begin() as connection:
            dialect.check(connection)
            return migrating.migrate(connection, HEAD, only_when_safe=only_when_safe)
    finally:
        engine.dispose()


@contextmanager
def _said_in_one_line(dialect: Dialect) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise ConfigError(
            f"database.url: {dialect.shown}: {error.strerror}; is its folder there, and can it be written?"
        ) from None
    except SQLAlchemyError as error:
        raise ConfigError(f"database.url: {dialect.shown}: {in_words(error)}") from None
