"""PostgreSQL: one database for several gates, also on several machines.

Writers go one after the other, as with SQLite, so that the ledger is one chain. Every wait has a deadline, on
the server's side and on this one, where the server may have gone away or hang. psycopg is imported only here.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Generator, Mapping
from types import MappingProxyType
from typing import Any, TypeVar

from pydantic import SecretStr
from sqlalchemy import Connection, Engine, create_engine, event, make_url

from proxy.errors import ConfigError

log = logging.getLogger(__name__)

# Of one gate: four threads for requests, two for sealing, one or two for what runs beside them.
_CONNECTIONS = 8
_CONNECT_S = 5
_STATEMENT_S = 10.0  # for a statement, and for the writers' lock
_MIGRATION_S, _MIGRATION_LOCK_S = 3600.0, 60.0
_SLACK_S = 2.0  # a wait for a lock is to end first, this side's deadline last: so the error says what it was
_TRANSACTION_S = _STATEMENT_S + 2 * _SLACK_S  # for all of what is written together
# Held by whoever writes. A number that nobody else takes; locks are a database's own.
_WRITERS = int.from_bytes(b"pictgate", "big")
_WRITE = (
    # A gate that stands still in the middle keeps the others waiting no longer than this.
    f"SELECT set_config('idle_in_transaction_session_timeout', '{_STATEMENT_S:.0f}s', true), "
    f"pg_advisory_xact_lock({_WRITERS})"
)
# SQLSTATEs, or their first two places, whose message names users, databases and tables, never a value.
_PLAIN = ("08", "25006", "28", "3D", "42501", "53", "57P", "58")
_ADVICE = {
    "25006": "the gate has to write it",
    "28": "check the user in database.url, and database.password_file",
    "3D": "create the database, and let the gate's user own it",
    "42501": "let the gate's user own the database",
    "53": "mend it on the server",
    "55P03": f"another gate has been writing for {_STATEMENT_S:.0f} s; try again later",
    "57014": "a statement took too long; see what keeps the server busy",
}
# What a server says before there is a connection comes without its SQLSTATE.
_OF_CONNECTIONS = {"authentication failed": "28", "no password supplied": "28", '" does not exist': "3D"}

T = TypeVar("T")


class Postgresql:
    """A database on a server, reached with psycopg."""

    reading: Mapping[str, Any] = MappingProxyType(
        {"isolation_level": "REPEATABLE READ", "postgresql_readonly": True}
    )

    def __init__(self, url: str, password: SecretStr | None) -> None:
        """
        Args:
            url: `postgresql://…`, without a password.
            password: None where the server asks for none, or libpq finds it by itself (`~/.pgpass`).

        Raises:
            ConfigError: psycopg is not installed.
        """
        self.shown = url
        self._url = make_url(url).set(drivername="postgresql+psycopg")
        self._password = password
        try:
            import psycopg  # noqa: F401 — only where somebody has PostgreSQL
        except ImportError:
            raise ConfigError(
                f"database.url: {url}: PostgreSQL needs psycopg; pip install 'pictrs-gate[postgres]'"
            ) from None

    def exists(self) -> bool:
        """Always: a database on a server is made by its administrator."""
        return True

    def prepare(self) -> None:
        """Nothing to prepare."""

    def engine(self, *, is_migrating: bool = False) -> Engine:
        """See `proxy.database.dialects.Dialect`."""
        lock_s = _MIGRATION_LOCK_S if is_migrating else _STATEMENT_S
        statement_s = _MIGRATION_S if is_migrating else _STATEMENT_S + _SLACK_S
        connection_class = _connection_class()
        given: dict[str, Any] = {
            "connect_timeout": _CONNECT_S,
            "application_name": "pictrs-gate",
            "client_encoding": "utf8",
            "options": f"-c statement_timeout={1000 * statement_s:.0f} -c lock_timeout={1000 * lock_s:.0f}",
            # A server that has vanished answers nothing, not even that it has.
            "tcp_user_timeout": int(1000 * _STATEMENT_S),
            "keepalives_idle": 5,
            "keepalives_interval": 2,
            "keepalives_count": 3,
        }
        if self._password is not None:
            given["password"] = self._password.get_secret_value()
        engine = create_engine(
            self._url,
            connect_args=given,
            hide_parameters=True,
            pool_size=_CONNECTIONS,
            max_overflow=0,
            pool_timeout=_STATEMENT_S,
            pool_pre_ping=True,  # what the server has closed meanwhile costs nobody an error
            use_native_hstore=False,
            # A writer must not see one moment only: it would be the one before it had the lock.
            isolation_level="READ COMMITTED",
        )

        @event.listens_for(engine, "do_connect")
        def _connect(_dialect: Any, _record: Any, args: Any, keywords: Any) -> Any:
            connection = connection_class.connect(*args, **keywords)
            connection.patience_s = statement_s + _SLACK_S
            return connection

        @event.listens_for(engine, "connect")
        def _on_connect(connection: Any, _record: Any) -> None:
            # What is promised has to be durable, whatever is this server's habit.
            connection.autocommit = True
            if connection.execute("SHOW synchronous_commit").fetchone() == ("off",):
                connection.execute("SET synchronous_commit = on")
            connection.autocommit = False

        @event.listens_for(engine, "checkin")
        def _on_checkin(connection: Any, _record: Any) -> None:
            if connection is not None:  # as a closed one is
                connection.until = None  # or whoever has it next would find its time over

        @event.listens_for(engine, "begin")
        def _on_begin(connection: Connection) -> None:
            writes = connection.get_execution_options().get("writes", False)
            raw: Any = connection.connection.driver_connection
            if writes:
                raw.until = None if is_migrating else time.monotonic() + _TRANSACTION_S
                connection.exec_driver_sql(_WRITE)

        return engine

    def check(self, connection: Connection) -> None:
        """Refuses a server that cannot keep what it is given, and complains about one that may lose it.

        Raises:
            ConfigError: names and reasons are in UTF-8, and the database is not.
        """
        encoding = connection.exec_driver_sql("SHOW server_encoding").scalar_one()
        if encoding != "UTF8":
            raise ConfigError(
                f"database.url: {self.shown}: its encoding is {encoding}; create one with ENCODING 'UTF8'"
            )
        if connection.exec_driver_sql("SHOW fsync").scalar_one() == "off":
            log.warning("database.url: %s: its fsync is off: a power cut loses promises", self.shown)


def in_words(error: BaseException) -> str | None:
    """What is wrong, without any value of a statement; None for errors that are not psycopg's."""
    diagnosis = getattr(error, "diag", None)
    if diagnosis is None:
        return None
    state = getattr(error, "sqlstate", None) or ""
    kind = type(error).__name__
    if not state and kind in ("OperationalError", "ConnectionTimeout"):
        said = " ".join(str(error).split())[:500]  # of connections: host, user and database, no password
        state = next((one for words, one in _OF_CONNECTIONS.items() if words in said), "")
    elif state.startswith("23"):
        return f"{kind}: {diagnosis.constraint_name or diagnosis.column_name}"
    elif state.startswith(_PLAIN):
        said = " ".join((diagnosis.message_primary or kind).split())
    else:
        said = f"{kind} {state}".strip()
    advice = _ADVICE.get(state) or _ADVICE.get(state[:2])
    return f"{said}; {advice}" if advice else said


def _connection_class() -> Any:
    """psycopg's connection, with deadlines of this side, and errors that quote no value."""
    import psycopg

    class Bounded(psycopg.Connection[Any]):
        """
        Attributes:
            patience_s: seconds for one wait.
            until: for the transaction, on the monotonic clock; None where only each wait is bounded.
        """

        patience_s: float = _STATEMENT_S
        until: float | None = None

        def wait(self, gen: Any, *args: Any, **kwargs: Any) -> Any:
            """Waits for the server's answer; closes the connection where there is none in time."""
            deadline = time.monotonic() + self.patience_s
            if self.until is not None:
                deadline = min(deadline, self.until)
            try:
                return super().wait(_until(gen, deadline), *args, **kwargs)
            except TimeoutError:
                self.close()
                raise psycopg.OperationalError("the server did not answer in time") from None
            except psycopg.Error as failed:
                # PostgreSQL's own text quotes keys and rows: aliases, reasons, tokens.
                failed.args = (in_words(failed),)
                raise

    return Bounded


def _until(gen: Generator[Any, Any, T], deadline: float) -> Generator[Any, Any, T]:
    """A generator of psycopg's, which is asked again every tenth of a second, until a deadline."""
    try:
        wanted = next(gen)
        while True:
            ready = yield wanted
            if not ready and time.monotonic() >= deadline:
                raise TimeoutError
            wanted = gen.send(ready)
    except StopIteration as end:
        answer: T = end.value
        return answer
