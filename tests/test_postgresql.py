"""PostgreSQL: every wait has a deadline, an error quotes no value, a restart costs no more than it must."""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from pydantic import SecretStr
from sqlalchemy import insert, text
from sqlalchemy.exc import OperationalError, SQLAlchemyError

from proxy import cli
from proxy.database import Database, KnownHash, cases, ledger
from proxy.database import postgresql as dialect
from proxy.database.engine import in_words
from proxy.errors import AliasTaken, ConfigError
from tests.gate import Gate
from tests.postgresql import LOCKED, PASSWORD, Postgresql
from tests.test_database import case, promise


@pytest.fixture
def url(postgresql: Postgresql) -> str:
    return postgresql.new_database()


@pytest.fixture
def database(url: str) -> Iterator[Database]:
    opened = Database(url)
    yield opened
    opened.close()


@contextmanager
def holding_the_lock(database: Database) -> Iterator[None]:
    with database.writing() as session:
        session.connection()
        yield


def test_no_error_quotes_a_key_or_a_row(database: Database) -> None:
    hush = "hush" * 8
    cases.add(database, case(id=hush, promises=[promise(alias_key=b"hush")]), facts={})
    with pytest.raises(AliasTaken) as taken:
        cases.add(database, case(2, promises=[promise(2, alias_key=b"hush")]), facts={})
    assert taken.value.__suppress_context__
    with pytest.raises(SQLAlchemyError) as same:  # PostgreSQL says: Key (id)=(hush…) already exists
        cases.add(database, case(id=hush), facts={})
    assert in_words(same.value) == "UniqueViolation: cases_pkey"
    with pytest.raises(SQLAlchemyError) as lacking, database.writing() as session:
        session.execute(insert(KnownHash).values(sha256=hush, verdict="block"))  # Failing row contains (hush…
    assert in_words(lacking.value) == "NotNullViolation: added_at"
    with pytest.raises(SQLAlchemyError) as bad, database.reading() as reading:
        reading.execute(text("SELECT CAST(:given AS integer)"), {"given": hush})
    for error in (same.value, lacking.value, bad.value):
        shown: BaseException | None = error
        while shown is not None:
            assert "hush" not in str(shown)
            shown = shown.__cause__


def test_a_password_is_used_and_never_shown(postgresql: Postgresql, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    url = postgresql.new_database().replace("gate@", f"{LOCKED}@")
    Database(url, password=SecretStr(PASSWORD)).close()
    for password in (None, SecretStr("wrong-hush")):
        with pytest.raises(ConfigError, match=r"database\.url: postgresql://locked@.*password") as error:
            Database(url, password=password)
        assert "hush" not in str(error.value)
        assert len(str(error.value).splitlines()) == 1
    assert "hush" not in caplog.text and PASSWORD not in caplog.text


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["lockdown", "on", "--reviewer", "ann"], "lockdown: on since"),
        (["lockdown", "status"], "lockdown: off"),
        (["lockdown", "off", "--reviewer", "ann"], "lockdown: there was none"),
        (["ledger", "verify"], "the ledger holds"),
        (["queue"], ""),
        (["review", "list"], ""),
        (["hashes", "list"], ""),
        (["migrate"], ""),
    ],
)
def test_every_command_shows_the_configured_password(
    words: list[str],
    said: str,
    postgresql: Postgresql,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    gate = Gate(
        tmp_path,
        pictrs_url="http://127.0.0.1:9",
        api_key="key",
        classifier_url="http://127.0.0.1:9",
        database_url=postgresql.new_database().replace("gate@", f"{LOCKED}@"),
        start=False,
    )
    (tmp_path / "password").write_text(PASSWORD)
    gate.config.write_text(
        gate.config.read_text().replace("[database]", '[database]\npassword_file = "password"')
    )
    before = os.umask(0o022)
    try:
        status = cli.main(["--log-level", "error", *words, "--config", str(gate.config)])
    finally:
        os.umask(before)
    out, err = capsys.readouterr()
    assert (status, err) == (0, "") and said in out


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (("/gate_", "/nowhere_"), "does not exist; create the database"),
        (("127.0.0.1:", "127.0.0.1:1"), "database.url"),
    ],
)
def test_a_database_that_cannot_be_opened_is_said_in_one_line(
    url: str, change: tuple[str, str], said: str
) -> None:
    with pytest.raises(ConfigError) as error:
        Database(url.replace(*change))
    assert said in str(error.value)
    assert len(str(error.value).splitlines()) == 1


def test_without_psycopg_it_says_what_to_install(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "psycopg", None)
    with pytest.raises(ConfigError, match=r"pip install 'pictrs-gate\[postgres\]'"):
        Database(url)


def test_what_is_committed_is_durable_whatever_the_server_is_used_to(
    postgresql: Postgresql, url: str
) -> None:
    name = url.rpartition("/")[2]
    postgresql.run(url, f"ALTER DATABASE {name} SET synchronous_commit = off")
    postgresql.run(url, f"ALTER DATABASE {name} SET timezone = 'Asia/Tokyo'")
    database = Database(url)
    with database.writing() as session:
        assert session.scalar(text("SHOW synchronous_commit")) == "on"
    cases.add(database, case(), facts={})
    assert str(cases.get(database, "case-1").created_at.tzinfo) == "UTC"
    database.close()


def test_a_database_that_cannot_hold_every_name_is_refused(postgresql: Postgresql) -> None:
    postgresql.run(
        postgresql.url("postgres"), "CREATE DATABASE latin ENCODING 'LATIN1' LOCALE 'C' TEMPLATE template0"
    )
    with pytest.raises(ConfigError, match="its encoding is LATIN1"):
        Database(postgresql.url("latin"))


def test_reading_cannot_write_and_sees_one_moment(database: Database, url: str) -> None:
    other = Database(url)
    with pytest.raises(SQLAlchemyError) as error, database.reading() as session:
        session.add(case())
        session.flush()
    assert "read-only transaction" in in_words(error.value)
    with database.reading() as session:
        assert session.scalar(text("SELECT count(*) FROM ledger")) == 0
        ledger.record(other, "noted", actor="gate", facts={})
        assert session.scalar(text("SELECT count(*) FROM ledger")) == 0
    other.close()


def test_writers_of_several_gates_make_one_chain(database: Database, url: str) -> None:
    other = Database(url)

    def write(into: Database) -> None:
        for number in range(25):
            ledger.record(into, "noted", actor="gate", facts={"n": number})

    threads = [threading.Thread(target=write, args=(into,)) for into in (database, other) * 2]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(ledger.entries(database)) == 100
    assert ledger.first_broken(other) is None
    other.close()


def test_a_writer_waits_for_another_gate_only_so_long(
    database: Database, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dialect, "_STATEMENT_S", 1)
    other = Database(url)
    with holding_the_lock(database):
        with pytest.raises(SQLAlchemyError) as error:
            ledger.record(other, "noted", actor="gate", facts={})
        assert "another gate has been writing" in in_words(error.value)
        assert ledger.entries(other) == []  # whoever reads does not wait
    ledger.record(other, "noted", actor="gate", facts={})
    other.close()


def test_a_statement_takes_only_so_long(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dialect, "_STATEMENT_S", 1)
    database = Database(url)
    with pytest.raises(SQLAlchemyError) as error, database.reading() as session:
        session.execute(text("SELECT pg_sleep(30)"))
    assert "a statement took too long" in in_words(error.value)
    database.close()


def test_a_gate_that_stands_still_in_a_transaction_keeps_the_others_waiting_only_so_long(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(dialect, "_WRITE", dialect._WRITE.replace("'10s'", "'1s'"))
        still = Database(url)
        other = Database(url)
        with pytest.raises(SQLAlchemyError), still.writing() as session:
            session.add(case())
            session.flush()
            ledger.record(
                other, "noted", actor="gate", facts={}
            )  # as soon as the server has had enough of it
    assert [entry.act for entry in ledger.entries(other)] == ["noted"]
    assert cases.listed(other) == []
    ledger.record(still, "noted", actor="gate", facts={})
    still.close()
    other.close()


def test_a_server_that_hangs_is_waited_for_only_so_long(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dialect, "_STATEMENT_S", 1)
    monkeypatch.setattr(dialect, "_SLACK_S", 0.25)
    database = Database(url)
    stopped: list[int] = []

    def stop(backend: object) -> None:
        stopped.append(int(str(backend)))
        os.kill(stopped[-1], signal.SIGSTOP)  # it takes what it is sent, and does not answer

    pid = text("SELECT pg_backend_pid()")
    try:
        with pytest.raises(SQLAlchemyError) as error, database.reading() as session:
            stop(session.scalar(pid))
            session.execute(text("SELECT 1"))
        assert in_words(error.value) == "the server did not answer in time"
        with database.reading() as session:
            idle = session.scalar(pid)
        stop(idle)
        assert ledger.entries(database) == []  # on another connection
    finally:
        for backend in stopped:
            os.kill(backend, signal.SIGCONT)
    database.close()


async def test_whoever_waits_for_an_answer_waits_only_so_long(url: str) -> None:
    database = Database(url, within_s=0.5)

    def slowly(_: Database) -> None:
        going.wait(20)

    going = threading.Event()
    with pytest.raises(SQLAlchemyError):
        await database.run(slowly)
    going.set()
    assert await database.run(ledger.entries) == []
    database.close()


def test_a_server_that_was_restarted_costs_at_most_what_was_under_way(
    postgresql: Postgresql, database: Database
) -> None:
    noted: list[int] = []
    ending = threading.Event()

    def write() -> None:
        for number in range(100_000):
            if ending.is_set():
                return
            try:
                ledger.record(database, "noted", actor="gate", facts={"n": number})
            except OperationalError:
                time.sleep(0.05)
                continue
            noted.append(number)

    def until(count: int) -> None:
        end = time.monotonic() + 60
        while len(noted) < count:
            assert time.monotonic() < end
            time.sleep(0.02)

    writing = threading.Thread(target=write)
    writing.start()
    try:
        for _ in range(2):
            until(len(noted) + 10)
            postgresql.stop(at_once=True)
            time.sleep(0.2)
            postgresql.start()
        until(len(noted) + 20)
    finally:
        ending.set()
        writing.join()
    kept = [entry.facts["n"] for entry in ledger.entries(database)]
    assert set(noted) <= set(kept) and len(set(kept)) == len(kept)
    assert ledger.first_broken(database) is None
