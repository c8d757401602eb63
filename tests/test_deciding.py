"""A confirmation or a release that is cut off, or overtaken, half way at pict-rs."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from proxy.cases.deciding import Decider
from proxy.cases.life import RELEASE_S, CaseState
from proxy.cases.sealing import Opened
from proxy.database import Case, Database, cases, decisions, promising, retention
from proxy.database.retention import Periods
from proxy.errors import CaseError, PictrsError
from tests.looker import sha256
from tests.store import STORED, Killed, Store, dying_at
from tests.test_backlog_races import FILE, a_case, leased, released_by_the_gate
from tests.test_same_file import A, confirmed, verdict

PERIODS = Periods(released=timedelta(days=7), confirmed=timedelta(days=365))


def decider(database: Database, pictrs: Store, dies_at: str = "") -> Decider:
    return Decider(database, None, None, None, pictrs, dying_at(dies_at))  # type: ignore[arg-type]


async def test_a_confirmation_that_is_cut_off_after_its_take_back_knows_what_pict_rs_had(
    database: Database,
) -> None:
    cases.add(database, a_case("a.png"), facts={})
    released_by_the_gate(database, leased(database))
    pictrs = Store({"a.png": STORED})
    with pytest.raises(Killed):
        await decider(database, pictrs, "taken-back").confirm(A, identity_file=None, reviewer="ann")
    assert pictrs.stored == {}
    await confirmed(database, pictrs, A)
    assert verdict(database, STORED) == "block"


async def test_a_case_does_not_expire_while_it_is_being_confirmed(database: Database) -> None:
    cases.add(database, a_case("a.png"), facts={})
    released_by_the_gate(database, leased(database))
    long_ago = datetime.now(UTC) - timedelta(days=8)
    with database.writing() as session:
        session.get_one(Case, A).decided_at = long_ago
    pictrs = Store({"a.png": STORED})
    with pytest.raises(Killed):
        await decider(database, pictrs, "taken-back").confirm(A, identity_file=None, reviewer="ann")
    with pytest.raises(CaseError, match="its period is not over"):
        retention.expire(database, A, PERIODS, on_behalf_of=None)
    await confirmed(database, pictrs, A)
    assert cases.get(database, A).state is CaseState.CONFIRMED


async def test_what_expires_before_a_confirmation_has_begun_is_left_as_it_is(database: Database) -> None:
    cases.add(database, a_case("a.png"), facts={})
    released_by_the_gate(database, leased(database))
    with database.writing() as session:
        session.get_one(Case, A).decided_at = datetime.now(UTC) - timedelta(days=8)
    pictrs = Store({"a.png": STORED})

    def expires(point: str) -> None:
        if point == "confirming":
            retention.expire(database, A, PERIODS, on_behalf_of=None)

    at_once = Decider(database, None, None, None, pictrs, expires)  # type: ignore[arg-type]
    with pytest.raises(CaseError, match="is expired already"):
        await at_once.confirm(A, identity_file=None, reviewer="ann")
    assert "a.png" in pictrs.stored and decisions.standing_of(cases.get(database, A)).by_gate


async def test_what_cannot_be_taken_back_keeps_nothing_else_from_being_taken_back(database: Database) -> None:
    ids = [f"20261123-000000-{number:08x}" for number in range(6)]
    for case_id in ids:
        sha256, aliases = f"{int(case_id[-1]):064x}", (f"{case_id}.png", f"{case_id}.jpg")
        pending = {"state": CaseState.PENDING, "id": case_id, "file": f"{case_id}.age", "sha256": sha256}
        cases.add(database, a_case(*aliases, **pending), facts={})
        decisions.releasing(database, case_id, by="ann", sha256=sha256)
        with database.writing() as session:
            session.get_one(Case, case_id).decided_at = datetime.now(UTC) - timedelta(seconds=RELEASE_S)
        await confirmed(database, Store(), case_id)
    pictrs = Store({f"{case_id}.{end}": STORED for case_id in ids for end in ("png", "jpg")})
    pictrs.stuck = {f"{case_id}.png" for case_id in ids[:5]}
    with pytest.raises(PictrsError):
        await decider(database, pictrs).take_back_overtaken()
    assert set(pictrs.stored) == pictrs.stuck


@pytest.mark.parametrize("has_ended", [True, False])
async def test_what_an_earlier_attempt_s_import_brings_after_the_confirmation_is_taken_away(
    database: Database, has_ended: bool
) -> None:
    cases.add(database, a_case("a.png"), facts={})
    pictrs = Store()
    if has_ended:
        released_by_the_gate(database, leased(database))  # by a second attempt
    else:
        decisions.releasing(database, A, by=decisions.GATE, sha256=sha256(FILE))
        (promise,) = promising.to_store(database, A)
        assert promising.storing(database, promise)  # and no answer came
        await decider(database, pictrs).take_back_unaided(A, "tries in vain")
    await confirmed(database, pictrs, A)
    pictrs.stored["a.png"] = STORED
    await decider(database, pictrs).take_back_overtaken()
    assert pictrs.stored == {}


async def release(database: Database, pictrs: Store, dies_at: str = "") -> Case:
    """Ann's of case A, as far as it gets."""
    case, is_repeated = decisions.releasing(database, A, by="ann", sha256=sha256(FILE))
    opened = Opened({"sha256": sha256(FILE)}, FILE)
    return await decider(database, pictrs, dies_at)._stored(case, opened, "ann", is_repeated=is_repeated)


@pytest.mark.parametrize("dies_at", ["release-refused", "release-taken-back", ""])
async def test_somebody_else_s_picture_under_its_alias_is_never_taken_for_the_case_s_own(
    database: Database, dies_at: str
) -> None:
    cases.add(database, a_case("b.png", "a.png", state=CaseState.PENDING, gate_reads=False), facts={})
    pictrs = Store({"a.png": "cc" * 32})
    with pytest.raises(Killed if dies_at else PictrsError):
        await release(database, pictrs, dies_at)
    with pytest.raises(PictrsError, match="another picture"):
        await release(database, pictrs)
    assert cases.get(database, A).state is CaseState.PENDING
    assert pictrs.stored == {"a.png": "cc" * 32} and verdict(database, "cc" * 32) is None
    await confirmed(database, pictrs, A)
    await decider(database, pictrs).take_back_overtaken()
    assert pictrs.stored == {"a.png": "cc" * 32} and verdict(database, "cc" * 32) is None


async def test_an_alias_that_is_free_again_is_the_case_s_own_from_then_on(database: Database) -> None:
    cases.add(database, a_case("a.png", state=CaseState.PENDING, gate_reads=False), facts={})
    pictrs = Store({"a.png": "cc" * 32})
    with pytest.raises(PictrsError):
        await release(database, pictrs)
    pictrs.stored.clear()
    with pytest.raises(Killed):
        await release(database, pictrs, "imported")
    assert (await release(database, pictrs)).state is CaseState.RELEASED
    assert pictrs.stored == {"a.png": STORED}


def test_of_two_attempts_the_slower_one_does_not_take_the_quicker_one_s_picture_for_somebody_else_s(
    database: Database,
) -> None:
    cases.add(database, a_case("a.png", state=CaseState.PENDING), facts={})
    decisions.releasing(database, A, by="ann", sha256=sha256(FILE))
    (promise,) = promising.to_store(database, A)
    first, second = promising.storing(database, promise), promising.storing(database, promise)
    assert first is not None and second is not None
    assert (first.is_again, second.is_again) == (False, True)
    promising.taken(database, promise, first)
    promising.taken(database, promise, second)
    assert promising.not_stored(database, A) == ["a.png"]


def test_the_gate_does_not_end_a_release_that_a_reviewer_has_begun_anew(database: Database) -> None:
    cases.add(database, a_case("a.png"), facts={})
    decisions.releasing(database, A, by=decisions.GATE, sha256=sha256(FILE))
    with database.writing() as session:
        session.get_one(Case, A).decided_at = datetime.now(UTC) - timedelta(seconds=RELEASE_S)
    decisions.releasing(database, A, by="ann", sha256=sha256(FILE))
    (promise,) = promising.to_store(database, A)
    promising.storing(database, promise)
    promising.stored(database, promise, token="t")
    with pytest.raises(CaseError, match="is a human's to decide"):
        decisions.released(database, A, by=decisions.GATE, stored_as=[])
    done = decisions.released(database, A, by="ann", stored_as=[])
    assert done is not None and done.decided_by == "ann"
    assert verdict(database, sha256(FILE)) == "allow"


@pytest.mark.parametrize("dies_at", ["imported", "import-noted"])
async def test_an_alias_that_was_deleted_while_it_was_stored_is_deleted_when_the_release_is_repeated(
    database: Database, dies_at: str
) -> None:
    cases.add(database, a_case("a.png", "b.png", state=CaseState.PENDING, gate_reads=False), facts={})
    pictrs = Store()

    def deleted_meanwhile(point: str) -> None:
        if point == "importing":
            promising.remove(database, promising.to_store(database, A)[:1], act="alias deleted")
        dying_at(dies_at)(point)

    case, is_repeated = decisions.releasing(database, A, by="ann", sha256=sha256(FILE))
    opened = Opened({"sha256": sha256(FILE)}, FILE)
    dying = Decider(database, None, None, None, pictrs, deleted_meanwhile)  # type: ignore[arg-type]
    with pytest.raises(Killed):
        await dying._stored(case, opened, "ann", is_repeated=is_repeated)
    assert set(pictrs.stored) == {"a.png"}
    assert (await release(database, pictrs)).state is CaseState.RELEASED
    assert set(pictrs.stored) == {"b.png"}


async def test_what_pict_rs_made_of_an_attempt_that_was_cut_off_is_refused_after_a_confirmation(
    database: Database,
) -> None:
    cases.add(database, a_case("a.png", state=CaseState.PENDING, gate_reads=False), facts={})
    pictrs = Store()
    with pytest.raises(Killed):
        await release(database, pictrs, "imported")
    with database.writing() as session:
        session.get_one(Case, A).decided_at = datetime.now(UTC) - timedelta(seconds=RELEASE_S)
    await confirmed(database, pictrs, A)
    assert (verdict(database, STORED), pictrs.stored) == ("block", {})
