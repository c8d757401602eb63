"""The database: migrated to what the models say, changed as a whole, its ledger a chain."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import delete, update

from proxy.database import Case, CaseState, Database, LedgerEntry, cases, engine, ledger
from proxy.database.models import Base
from proxy.errors import CaseError, ConfigError


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    opened = Database(f"sqlite:///{tmp_path}/gate.db")
    yield opened
    opened.close()


def case(number: int = 1, **changes: object) -> Case:
    facts: dict[str, object] = {
        "id": f"case-{number}",
        "state": CaseState.PENDING,
        "created_at": datetime.now(UTC),
        "reason": "test",
        "file": f"case-{number}.age",
        "sha256": f"{number:064x}",
        "alias_key": f"key-{number}".encode(),
    }
    return Case(**{**facts, **changes})


def test_the_migrations_make_what_the_models_say(database: Database) -> None:
    with database.reading() as session:
        context = MigrationContext.configure(session.connection())
        assert compare_metadata(context, Base.metadata) == []


def test_the_newest_migration_is_the_one_that_is_asked_for() -> None:
    folder = Path(engine.__file__).parent / "migrations"
    assert ScriptDirectory(str(folder)).get_current_head() == engine.HEAD


def test_a_second_process_finds_it_migrated(database: Database, tmp_path: Path) -> None:
    cases.add(database, case(), facts={})
    other = Database(f"sqlite:///{tmp_path}/gate.db")
    assert cases.get(other, "case-1").created_at.tzinfo is not None
    other.close()


def test_a_database_that_cannot_be_opened_is_said_in_one_line() -> None:
    with pytest.raises(ConfigError, match=r"database\.url"):
        Database("sqlite:////nowhere/gate.db")


def test_a_case_and_its_ledger_entry_come_together_or_not_at_all(database: Database) -> None:
    cases.add(database, case(), facts={"sha256": "1"})
    with pytest.raises(Exception, match="UNIQUE"):
        cases.add(database, case(2, alias_key=b"key-1"), facts={})
    assert [entry.case_id for entry in ledger.entries(database)] == ["case-1"]
    assert len(cases.listed(database)) == 1


def test_a_decision_changes_state_memory_and_ledger_together(database: Database) -> None:
    cases.add(database, case(), facts={})
    undecided = {CaseState.PENDING, CaseState.DEFERRED}
    cases.decide(database, "case-1", to=CaseState.CONFIRMED, frm=undecided, reviewer="ann", facts={})
    known = cases.known(database, f"{1:064x}")
    assert known is not None and (known.verdict, known.added_by) == ("block", "ann")
    assert [entry.act for entry in ledger.entries(database, case_id="case-1")] == ["pending", "confirmed"]
    with pytest.raises(CaseError, match="is confirmed"):
        cases.decide(database, "case-1", to=CaseState.RELEASED, frm=undecided, reviewer="bob", facts={})


def test_a_promised_alias_is_found_by_its_key_until_the_release(database: Database) -> None:
    cases.add(database, case(), facts={})
    found = cases.promised(database, b"key-1")
    assert found is not None and found.id == "case-1"
    assert cases.promised(database, b"key-2") is None
    cases.decide(database, "case-1", to=CaseState.RELEASED, frm={CaseState.PENDING}, reviewer="ann", facts={})
    assert cases.promised(database, b"key-1") is None


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
