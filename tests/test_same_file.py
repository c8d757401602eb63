"""Several cases of one file: what a human says of one of them is said of the file."""

from __future__ import annotations

from typing import Any

import pytest

from proxy.cases.deciding import Confirmation, Decider
from proxy.cases.life import CaseState
from proxy.cases.sealing import Opened
from proxy.database import Case, Database, cases, decisions, memory, promising
from proxy.errors import CaseError
from tests.looker import sha256
from tests.store import Store
from tests.test_backlog_races import FILE, a_case

A, B = "20261123-000000-00000001", "20261123-000000-00000002"
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
