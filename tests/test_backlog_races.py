"""What happens in the moment between two steps of the backlog: a human, another gate, retention, a crash."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import update

from proxy.cases.deciding import Decider
from proxy.cases.deferred import Opener, Resealer
from proxy.cases.life import RELEASE_S, CaseState
from proxy.cases.quarantine import Quarantine
from proxy.cases.sealing import Sealer, open_sealed, read_identities, write_new_identity
from proxy.database import (
    Case,
    Database,
    Promise,
    backlog,
    cases,
    decisions,
    ledger,
    memory,
    promising,
)
from proxy.errors import CaseError, StoredMeanwhile
from proxy.intake.budget import Budget
from proxy.metrics import Metrics
from tests import pictures
from tests.looker import sha256

FILE = pictures.png((64, 48), seed=930_000)
LEASE_S = 60


def a_case(*aliases: str, **changes: Any) -> Case:
    usual: dict[str, Any] = {
        "id": "20261123-000000-00000001",
        "state": CaseState.DEFERRED,
        "created_at": datetime(2026, 11, 23, tzinfo=UTC),
        "reason": "unavailable: gone",
        "file": "20261123-000000-00000001.age",
        "sha256": sha256(FILE),
        "gate_reads": True,
        "promises": [
            Promise(alias=alias, alias_key=alias.encode(), delete_token="t", details={}, arguments=[])
            for alias in aliases
        ],
    }
    return Case(**{**usual, **changes})


def leased(database: Database) -> Case:
    found = backlog.lease_case(
        database, backlog.Lease("a gate", datetime.now(UTC) + timedelta(seconds=LEASE_S))
    )
    assert found is not None
    return found


def released_by_the_gate(database: Database, case: Case) -> None:
    backlog.releasing(database, case, sha256=sha256(FILE), looked=None)
    for promise in promising.to_store(database, case.id):
        assert promising.storing(database, promise)
        assert promising.stored(database, promise, token="t")
    assert decisions.released(database, case.id, by=decisions.GATE, stored_as=[]) is not None


class Stored:
    """As much of pict-rs as a confirmation needs."""

    def __init__(self) -> None:
        self.deleted: list[str] = []

    async def delete(self, alias: str) -> None:
        self.deleted.append(alias)

    async def stored_sha256(self, alias: str) -> str | None:
        return None

    async def aliases(self, alias: str) -> list[str]:
        return [alias]


# --- a human and the gate ---


async def test_what_the_gate_stores_while_a_human_confirms_it_is_taken_away_again(
    database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cases.add(database, a_case("a.png", "b.png"), facts={})
    pictrs, check = Stored(), decisions.check

    def then_the_gate_is_quick(*given: Any) -> Case:
        read = check(*given)  # it is deferred still: nothing to take away
        released_by_the_gate(database, leased(database))
        return read

    monkeypatch.setattr(decisions, "check", then_the_gate_is_quick)
    decider = Decider(database, None, None, None, pictrs, lambda _: None)  # type: ignore[arg-type]
    done = await decider.confirm(a_case().id, identity_file=None, reviewer="ann")
    assert (done.case.state, done.case.decided_by) == (CaseState.CONFIRMED, "ann")
    assert pictrs.deleted == ["a.png", "b.png"]


async def test_what_an_overtaken_release_stores_before_it_dies_is_taken_away_by_a_gate(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    cases.add(database, a_case("a.png"), facts={})
    decisions.releasing(database, a_case().id, by="ann", sha256=sha256(FILE))
    with database.writing() as session:  # which stands still for more than two minutes
        session.get_one(Case, a_case().id).decided_at = datetime.now(UTC) - timedelta(seconds=RELEASE_S)
    pictrs = Stored()
    decider = Decider(database, None, None, None, pictrs, lambda _: None)  # type: ignore[arg-type]
    await decider.confirm(a_case().id, identity_file=None, reviewer="bo")
    pictrs.deleted.clear()
    await decider.take_back_overtaken()  # what has come since, from one that never looked again
    assert pictrs.deleted == ["a.png"]
    monkeypatch.setattr("proxy.cases.deciding._LATE", timedelta(0))
    await decider.take_back_overtaken()
    pictrs.deleted.clear()
    await decider.take_back_overtaken()
    assert pictrs.deleted == []


async def test_a_confirmed_case_that_nobody_was_releasing_is_left_alone(database: Database) -> None:
    """Its alias may be, by an import under a name, somebody else's picture."""
    cases.add(database, a_case("a.png"), facts={})
    pictrs = Stored()
    decider = Decider(database, None, None, None, pictrs, lambda _: None)  # type: ignore[arg-type]
    await decider.confirm(a_case().id, identity_file=None, reviewer="bo")
    await decider.take_back_overtaken()
    assert pictrs.deleted == []


def test_nothing_that_pict_rs_has_is_confirmed(database: Database) -> None:
    cases.add(database, a_case("a.png"), facts={})
    released_by_the_gate(database, leased(database))
    with pytest.raises(StoredMeanwhile):
        decisions.confirmed(database, a_case().id, by="ann", sha256=sha256(FILE))
    assert memory.exactly(database, sha256(FILE)) is None
    promising.not_stored(database, a_case().id)
    decisions.confirmed(database, a_case().id, by="ann", sha256=sha256(FILE))


# --- sealing anew ---


@pytest.fixture
def sealed(tmp_path: Path, database: Database) -> tuple[Resealer, Opener, Path, Path]:
    """A released case that the gate can open still; its resealer, its opener, its file and the gate's key."""
    write_new_identity(tmp_path / "gate.key")
    write_new_identity(tmp_path / "reviewer.key")
    (own,), (other,) = (read_identities(tmp_path / name) for name in ("gate.key", "reviewer.key"))
    both = Sealer([str(other.to_public()), str(own.to_public())])
    quarantine = Quarantine(
        tmp_path / "cases", Sealer([str(other.to_public())]), lambda _: None, with_gate=both
    )
    case = a_case(state=CaseState.RELEASED, decided_by="gate", decided_at=datetime.now(UTC))
    quarantine.seal(case.id, {"sha256": sha256(FILE)}, FILE, gate_reads=True)
    cases.add(database, case, facts={})
    opener = Opener(quarantine, [own], Budget(1_000_000))
    resealer = Resealer(database, quarantine, opener, Metrics(), lambda _: None)
    return resealer, opener, quarantine.path(case.file), tmp_path / "gate.key"


@pytest.mark.parametrize(
    "meanwhile", [{"leased_by": "another gate"}, {"state": CaseState.EXPIRED}], ids=["another", "expired"]
)
async def test_a_file_sealed_anew_too_late_takes_nobody_s_place(
    database: Database, sealed: tuple[Resealer, Opener, Path, Path], meanwhile: dict[str, Any]
) -> None:
    resealer, opener, file, key = sealed
    item = backlog.lease_to_reseal(
        database, backlog.Lease("a gate", datetime.now(UTC) + timedelta(minutes=1))
    )
    assert item is not None
    async with opener.opened(item) as opened:
        with database.writing() as session:
            session.execute(update(Case).values(**meanwhile))
        if "state" in meanwhile:
            file.unlink()  # as its period was over
        with pytest.raises(CaseError):
            await resealer.reseal(item, opened, {})
    assert list(file.parent.iterdir()) == ([] if "state" in meanwhile else [file])
    if file.exists():
        assert open_sealed(file, read_identities(key)).original == FILE
    assert cases.get(database, item.id).gate_reads


async def test_a_commit_that_fails_after_the_file_was_replaced_is_made_good(
    database: Database, sealed: tuple[Resealer, Opener, Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    resealer, _, file, _ = sealed
    before = file.read_bytes()

    def item() -> Case:
        found = backlog.lease_to_reseal(
            database, backlog.Lease("a gate", datetime.now(UTC) + timedelta(minutes=1))
        )
        assert found is not None
        return found

    append = ledger.append

    def fails(session: Any, act: str, **more: Any) -> Any:
        if act == "resealed":
            raise OSError("no space")
        return append(session, act, **more)

    first = item()
    with monkeypatch.context() as broken:
        broken.setattr("proxy.database.backlog.ledger.append", fails)
        with pytest.raises(OSError, match="no space"):
            await resealer.settle(first)
    assert file.read_bytes() != before and cases.get(database, first.id).gate_reads
    assert first.leased_until is not None
    backlog.forget_leases(database, "a gate", until=first.leased_until)
    await resealer.settle(item())
    assert not cases.get(database, first.id).gate_reads
    assert list(file.parent.iterdir()) == [file]
