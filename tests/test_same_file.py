"""Several cases of one file: what a human says of one of them is said of the file."""

from __future__ import annotations

from typing import Any

import pytest

from proxy.cases.deciding import Confirmation, Decider
from proxy.cases.life import CaseState
from proxy.cases.sealing import Opened
from proxy.database import Case, Database, cases, decisions, ledger, memory, promising
from proxy.errors import CaseError, PictrsError
from tests.looker import sha256
from tests.store import Store
from tests.test_backlog_races import FILE, a_case

A, B, C, OTHER = (f"20261123-000000-{number:08x}" for number in range(1, 5))
BYTES, STORED = sha256(FILE), "bb" * 32


def held(database: Database, case_id: str, alias: str, **changes: Any) -> None:
    changes = {"state": CaseState.PENDING, **changes}
    cases.add(database, a_case(alias, id=case_id, file=f"{case_id}.age", **changes), facts={})


def stored(database: Database, case_id: str) -> None:
    for promise in promising.to_store(database, case_id):
        promising.storing(database, promise)
        promising.stored(database, promise, token="t")


def released(database: Database, case_id: str, by: str) -> Case | None:
    decisions.releasing(database, case_id, by=by, sha256=BYTES)
    stored(database, case_id)
    return decisions.released(database, case_id, by=by, stored_as=[STORED])


async def confirmed(database: Database, pictrs: Store, case_id: str, by: str = "bob") -> Confirmation:
    decider = Decider(database, None, None, None, pictrs, lambda _: None)  # type: ignore[arg-type]
    return await decider.confirm(case_id, identity_file=None, reviewer=by)


def verdict(database: Database, known: str) -> str | None:
    found = memory.exactly(database, known)
    return found and found.verdict


async def test_what_one_reviewer_released_and_another_confirms_in_a_second_case_passes_no_more(
    database: Database,
) -> None:
    held(database, A, "a.png")
    held(database, B, "b.png")
    assert released(database, A, "ann") is not None
    pictrs = Store({"a.png": STORED})
    done = await confirmed(database, pictrs, B)
    assert (verdict(database, BYTES), verdict(database, STORED)) == ("block", "block")
    # Ann's is a human's word: it is not taken away unasked, but Bob is told of it, and may.
    assert [(one.id, one.state) for one in done.shown] == [(A, CaseState.RELEASED)]
    assert "a.png" in pictrs.stored
    done = await confirmed(database, pictrs, A)
    assert (done.case.state, done.case.decided_by, list(done.shown)) == (CaseState.CONFIRMED, "bob", [])
    assert pictrs.stored == {}


async def test_what_the_gate_released_of_the_same_file_is_confirmed_with_it_and_taken_away(
    database: Database,
) -> None:
    for number, case_id in enumerate((A, B, C, OTHER)):
        held(database, case_id, f"{case_id}.png", state=CaseState.DEFERRED)
        if case_id is OTHER:
            with database.writing() as session:
                session.get_one(Case, case_id).sha256 = "dd" * 32
            decisions.releasing(database, case_id, by=decisions.GATE, sha256="dd" * 32)
            stored(database, case_id)
            decisions.released(database, case_id, by=decisions.GATE, stored_as=[STORED])
        else:
            decisions.releasing(database, case_id, by=decisions.GATE, sha256=BYTES)
            stored(database, case_id)
            decisions.released(database, case_id, by=decisions.GATE, stored_as=[f"{number:064x}"])
    with database.writing() as session:
        session.get_one(Case, C).state = CaseState.EXPIRED
    pictrs = Store({f"{one}.png": STORED for one in (A, B, C, OTHER)} | {"x.png": STORED, "y.png": "ee" * 32})
    done = await confirmed(database, pictrs, A)
    with_it = [(one.id, one.state) for one in done.with_it]
    assert with_it == [(B, CaseState.CONFIRMED), (C, CaseState.EXPIRED)]
    assert cases.get(database, B).decided_by == "bob"
    # What stands for none of these cases may be somebody else's: it is named, and noted.
    assert set(pictrs.stored) == {f"{OTHER}.png", "x.png", "y.png"}
    assert done.aliases == [f"{OTHER}.png", "x.png"] and not done.shown
    assert "same file in pict-rs" in [entry.act for entry in ledger.entries(database, case_id=A)]
    assert [verdict(database, one) for one in (STORED, f"{1:064x}", f"{2:064x}")] == ["block"] * 3


async def test_what_is_confirmed_with_another_case_is_taken_away_by_a_gate_where_that_was_cut_off(
    database: Database,
) -> None:
    for case_id in (A, B):
        held(database, case_id, f"{case_id}.png", state=CaseState.DEFERRED)
        assert released(database, case_id, decisions.GATE) is not None
    pictrs = Store({f"{one}.png": STORED for one in (A, B)})
    pictrs.stuck.add(f"{B}.png")
    with pytest.raises(PictrsError, match="is confirmed, and so is"):
        await confirmed(database, pictrs, A)
    assert set(pictrs.stored) == {f"{B}.png"}
    assert {cases.get(database, one).state for one in (A, B)} == {CaseState.CONFIRMED}
    pictrs.stuck.clear()
    decider = Decider(database, None, None, None, pictrs, lambda _: None)  # type: ignore[arg-type]
    await decider.take_back_overtaken()
    assert pictrs.stored == {}


@pytest.mark.parametrize("by", ["ann", decisions.GATE])
async def test_a_release_that_another_case_s_confirmation_overtakes_does_not_end(
    database: Database, by: str
) -> None:
    held(database, A, "a.png", state=CaseState.DEFERRED)
    held(database, B, "b.png")
    case, is_repeated = decisions.releasing(database, A, by=by, sha256=BYTES)
    pictrs = Store()

    def meanwhile(point: str) -> None:
        if point == "import-noted":
            decisions.confirmed(database, B, by="bob", sha256=BYTES)

    decider = Decider(database, None, None, None, pictrs, meanwhile)  # type: ignore[arg-type]
    with pytest.raises(CaseError, match="the same file has just been confirmed"):
        await decider._stored(case, Opened({"sha256": BYTES}, FILE), by, is_repeated=is_repeated)
    assert cases.get(database, A).state is CaseState.PENDING
    assert (pictrs.stored, pictrs.deleted) == ({}, ["a.png"])
    assert (verdict(database, BYTES), verdict(database, STORED)) == ("block", None)


def test_a_release_does_not_end_where_what_pict_rs_has_made_of_it_was_confirmed(database: Database) -> None:
    held(database, A, "a.png")
    held(database, B, "b.png", sha256="cc" * 32)
    decisions.confirmed(database, B, by="bob", sha256="cc" * 32, stored_as=[STORED])
    with pytest.raises(CaseError, match="the same file has just been confirmed"):
        released(database, A, "ann")
    assert cases.get(database, A).state is CaseState.RELEASING
    assert verdict(database, BYTES) is None
