"""The database: migrated to what the models say, changed as a whole, its ledger a chain."""

from __future__ import annotations

import os
import sqlite3
import stat
import threading
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config as AlembicConfig
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import delete, text, update
from sqlalchemy.exc import SQLAlchemyError

from proxy.cases import life
from proxy.database import (
    Case,
    CaseState,
    Database,
    LedgerEntry,
    Promise,
    cases,
    decisions,
    engine,
    ledger,
    memory,
    promising,
    sqlite,
)
from proxy.database.models import Base
from proxy.database.sqlite import Sqlite
from proxy.errors import AliasTaken, CaseError, ConfigError


def promise(number: int = 1, **changes: object) -> Promise:
    facts: dict[str, object] = {
        "alias": f"{number}.png",
        "alias_key": f"key-{number}".encode(),
        "delete_token": "t",
        "details": {},
        "arguments": [],
    }
    return Promise(**{**facts, **changes})


def case(number: int = 1, **changes: object) -> Case:
    facts: dict[str, object] = {
        "id": f"case-{number}",
        "state": CaseState.PENDING,
        "created_at": datetime.now(UTC),
        "reason": "test",
        "file": f"case-{number}.age",
        "sha256": f"{number:064x}",
    }
    return Case(**{**facts, **changes})


def known(database: Database, sha256: str) -> tuple[str, str | None, str | None] | None:
    found = memory.exactly(database, sha256)
    return found and (found.verdict, found.by, found.case_id)


def test_the_migrations_make_what_the_models_say(database: Database) -> None:
    with database.reading() as session:
        context = MigrationContext.configure(session.connection())
        assert compare_metadata(context, Base.metadata) == []


def test_the_newest_migration_is_the_one_that_is_asked_for() -> None:
    folder = Path(engine.__file__).parent / "migrations"
    assert ScriptDirectory(str(folder)).get_current_head() == engine.HEAD


def test_what_an_older_gate_has_promised_survives_the_migrations(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/gate.db"
    config = AlembicConfig()
    config.set_main_option("script_location", "proxy:database/migrations")
    older = Sqlite(url).engine()
    with older.execution_options(writes=True).begin() as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, "0001")
        connection.execute(
            text(
                "INSERT INTO cases (id, state, created_at, reason, file) "
                "VALUES ('case-1', 'pending', '2026-11-22 20:00:00', 'test', 'case-1.age')"
            )
        )
        connection.execute(
            text(
                "INSERT INTO promises (case_id, alias, alias_key, delete_token, details, arguments) "
                "VALUES ('case-1', '1.png', 'key-1', 't', '{}', '[]')"
            )
        )
    older.dispose()
    # A gate of before knows neither `reported` and `expired` nor lockdowns: it must not go on beside it.
    with pytest.raises(ConfigError, match=r"stop them.*pictrs-gate migrate"):
        Database(url)
    engine.migrate(url)
    newer = Database(url)
    (found,) = cases.listed(newer)
    assert (found.state, found.tries, found.gate_reads) == (CaseState.PENDING, 0, False)
    assert [promise.alias for promise in found.promises] == ["1.png"]
    newer.close()


def test_a_second_process_finds_it_migrated(database: Database, database_url: str) -> None:
    cases.add(database, case(), facts={})
    other = Database(database_url)
    assert cases.get(other, "case-1").created_at.tzinfo is not None
    other.close()


def test_a_database_that_cannot_be_opened_is_said_in_one_line() -> None:
    with pytest.raises(ConfigError, match=r"database\.url"):
        Database("sqlite:////nowhere/gate.db")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"no database, but something else of some length " * 200, "file is not a database"),
        (b"SQLite format 3\0" + b"\0" * 8000, "file is not a database"),
    ],
)
def test_a_file_that_is_no_database_is_said_in_one_line(tmp_path: Path, content: bytes, said: str) -> None:
    (tmp_path / "gate.db").write_bytes(content)
    with pytest.raises(ConfigError, match=rf"database\.url: .*gate\.db: {said}"):
        Database(f"sqlite:///{tmp_path}/gate.db")
    assert (tmp_path / "gate.db").read_bytes() == content


def test_a_database_of_a_newer_gate_is_left_alone(database: Database, database_url: str) -> None:
    with database.writing() as session:
        session.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    for open_it in (Database, engine.migrate, engine.pending):
        with pytest.raises(ConfigError, match="another version of pictrs-gate"):
            open_it(database_url)


def test_a_second_process_starts_and_reads_while_another_writes(
    database: Database, database_url: str
) -> None:
    cases.add(database, case(), facts={})
    with database.writing() as session:
        session.connection()  # takes the lock
        other = Database(database_url)
        assert [found.id for found in cases.listed(other)] == ["case-1"]
    other.close()


def test_a_database_that_stays_locked_is_said_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sqlite, "_BUSY_S", 0.1)
    with closing(sqlite3.connect(tmp_path / "gate.db", isolation_level=None)) as other:
        other.execute("BEGIN EXCLUSIVE")
        with pytest.raises(ConfigError, match="database is locked; another process has been writing"):
            Database(f"sqlite:///{tmp_path}/gate.db")


def test_no_error_of_the_database_shows_what_was_to_be_written(database: Database) -> None:
    cases.add(database, case(reason="hush"), facts={})
    with pytest.raises(SQLAlchemyError) as error:
        cases.add(database, case(reason="hush"), facts={})
    assert "hush" not in str(error.value)
    assert engine.in_words(error.value) in (
        "UNIQUE constraint failed: cases.id",
        "UniqueViolation: cases_pkey",
    )


def test_the_database_and_what_sqlite_writes_beside_it_are_private(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def open_and_write() -> set[str]:
        """The files, each of which nobody else can read."""
        opened = Database(f"sqlite:///{tmp_path}/gate.db")
        ledger.record(opened, "noted", actor="gate", facts={})
        modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()}
        opened.close()
        assert set(modes.values()) == {0o600}
        return set(modes)

    before = os.umask(0)
    try:
        assert open_and_write() == {"gate.db", "gate.db-wal", "gate.db-shm"}
        assert caplog.text == ""
        (tmp_path / "gate.db").chmod(0o644)
        open_and_write()
    finally:
        os.umask(before)
    assert "others could read it; it is private now" in caplog.text


def test_a_database_of_somebody_else_s_is_used_with_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    (tmp_path / "gate.db").touch()
    (tmp_path / "gate.db").chmod(0o666)
    monkeypatch.setattr(Path, "chmod", refuse)
    Database(f"sqlite:///{tmp_path}/gate.db").close()
    assert "belongs to somebody else" in caplog.text


def test_a_case_and_its_ledger_entry_come_together_or_not_at_all(database: Database) -> None:
    cases.add(database, case(promises=[promise()]), facts={"sha256": "1"})
    with pytest.raises(AliasTaken):
        cases.add(database, case(2, promises=[promise()]), facts={})
    assert [entry.case_id for entry in ledger.entries(database)] == ["case-1"]
    assert len(cases.listed(database)) == 1


def test_a_decision_changes_state_memory_and_ledger_together(database: Database) -> None:
    cases.add(database, case(), facts={})
    decisions.confirmed(database, "case-1", by="ann", sha256=f"{1:064x}")
    assert known(database, f"{1:064x}") == ("block", "ann", "case-1")
    assert [entry.act for entry in ledger.entries(database, case_id="case-1")] == ["pending", "confirmed"]
    with pytest.raises(CaseError, match="is confirmed"):
        decisions.releasing(database, "case-1", by="bob", sha256=f"{1:064x}")


def test_a_file_that_was_confirmed_in_one_case_is_not_released_by_another(database: Database) -> None:
    same = f"{1:064x}"
    cases.add(database, case(1), facts={})
    cases.add(database, case(2, sha256=same), facts={})
    decisions.confirmed(database, "case-1", by="ann", sha256=same)
    with pytest.raises(CaseError, match=r"confirmed by ann in case case-1"):
        decisions.releasing(database, "case-2", by="bob", sha256=same)
    assert cases.get(database, "case-2").state is CaseState.PENDING
    assert known(database, same) == ("block", "ann", "case-1")


def test_a_release_that_has_begun_is_not_confirmed_until_it_must_have_ended(database: Database) -> None:
    sha256 = f"{1:064x}"
    cases.add(database, case(), facts={})
    decisions.releasing(database, "case-1", by="ann", sha256=sha256)
    with pytest.raises(CaseError, match="a release of it is under way; look again in two minutes, by ann"):
        decisions.confirmed(database, "case-1", by="bob", sha256=sha256)
    with database.writing() as session:
        session.get_one(Case, "case-1").decided_at = datetime.now(UTC) - timedelta(seconds=life.RELEASE_S)
    decisions.confirmed(database, "case-1", by="bob", sha256=sha256)
    with pytest.raises(CaseError, match="is confirmed already, by bob"):
        decisions.released(database, "case-1", by="ann", stored_as=[])


def test_a_release_may_be_begun_and_ended_twice(database: Database) -> None:
    sha256 = f"{1:064x}"
    cases.add(database, case(promises=[promise()]), facts={})
    for _ in range(2):
        decisions.releasing(database, "case-1", by="ann", sha256=sha256)
    (one,) = promising.to_store(database, "case-1")
    for token in ("token", None):
        promising.stored(database, one, token=token)
        decisions.released(database, "case-1", by="ann", stored_as=["f" * 64])
    kept = promising.promise_of(database, b"key-1")
    assert kept is not None and (kept.case.state, kept.stored_token) == (CaseState.RELEASED, "token")
    for one in (sha256, "f" * 64):
        assert known(database, one) == ("allow", "ann", "case-1")


def test_a_release_has_not_ended_while_an_alias_is_not_stored(database: Database) -> None:
    cases.add(database, case(promises=[promise()]), facts={})
    case_, _ = decisions.releasing(database, "case-1", by="ann", sha256=f"{1:064x}")
    promising.stored(database, case_.promises[0], token="t")
    assert promising.promise_more(database, promise(2, case_id="case-1"))
    assert decisions.released(database, "case-1", by="ann", stored_as=[]) is None
    (further,) = promising.to_store(database, "case-1")
    assert further.alias_key == b"key-2"
    promising.remove(database, [further], act="alias deleted")  # nobody wants it any more
    assert decisions.released(database, "case-1", by="ann", stored_as=[]) is not None
    assert not promising.promise_more(database, promise(3, case_id="case-1"))


def test_an_upload_id_is_claimed_once(database: Database) -> None:
    cases.add(database, case(promises=[promise(upload_id="u")]), facts={})
    first = promising.claim(database, "u")
    assert first is not None and first.alias == "1.png"
    assert promising.claim(database, "u") is None


def test_the_ledger_is_a_chain(database: Database) -> None:
    for number in range(5):
        ledger.record(database, "noted", actor="gate", facts={"n": number, "ü": [1.5, None]})
    assert ledger.first_broken(database) is None
    first, second, *_ = ledger.entries(database)
    assert first.previous == ledger.FIRST and second.previous == first.hash


@pytest.mark.parametrize(
    "tamper",
    [
        update(LedgerEntry).where(LedgerEntry.number == 3).values(actor="somebody else"),
        update(LedgerEntry).where(LedgerEntry.number == 3).values(facts={"n": 7}),
        update(LedgerEntry).where(LedgerEntry.number == 3).values(time="2020-01-01T00:00:00+00:00"),
        update(LedgerEntry).where(LedgerEntry.number == 3).values(hash="f" * 64),
        delete(LedgerEntry).where(LedgerEntry.number == 3),
    ],
)
def test_an_entry_that_was_altered_or_removed_is_found(database: Database, tamper: object) -> None:
    for number in range(5):
        ledger.record(database, "noted", actor="gate", facts={"n": number})
    with database.writing() as session:
        session.execute(tamper)  # type: ignore[call-overload]
    assert ledger.first_broken(database) == 3


def test_writers_in_several_threads_make_one_chain(database: Database) -> None:
    def write(who: int) -> None:
        for number in range(20):
            ledger.record(database, "noted", actor=f"thread {who}", facts={"n": number})

    threads = [threading.Thread(target=write, args=(who,)) for who in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(ledger.entries(database)) == 80
    assert ledger.first_broken(database) is None
