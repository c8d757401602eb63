"""Retention: bytes go when their period is over and a rule or a human says so; what was decided stays."""

from __future__ import annotations

import asyncio
import functools
import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from proxy.cases.keeping import adopt_orphans
from proxy.cases.quarantine import Quarantine
from proxy.cases.retention import Retention
from proxy.cases.sealing import Sealer, write_new_identity
from proxy.database import Case, CaseState, Database, cases, ledger, notes, retention
from proxy.database.retention import Periods
from proxy.errors import CaseError
from tests.client import get, metric
from tests.gate import Gate

NewGate = Callable[..., Gate]
WEEK_AND_YEAR = Periods(released=timedelta(days=7), confirmed=timedelta(days=365))
OLD = timedelta(days=1000)


class Died(BaseException):
    """A kill -9, as far as the database and the folder are concerned."""


class Place:
    """A folder of sealed files and a database that knows them."""

    def __init__(self, database: Database, folder: Path) -> None:
        self.database, self.folder = database, folder / "cases"
        self.deadly: str | None = None
        recipient = write_new_identity(folder / "key")
        self.quarantine = Quarantine(self.folder, Sealer([recipient]), lambda _: None)

    def case(
        self, state: CaseState, *, decided: timedelta | None = OLD, reported: timedelta | None = None
    ) -> str:
        """A case that was decided, and reported, so long ago."""
        now = datetime.now(UTC)
        number = len(list(self.folder.iterdir()))
        case = Case(
            id=f"20200101-000000-{number:08x}",
            state=state,
            created_at=now - OLD,
            reason="",
            sha256=f"{number:064x}",
            decided_at=decided and now - decided,
            decided_by="ann" if decided else None,
            reported_at=reported and now - reported,
            uploader="a tag",
        )
        case.file = self.quarantine.seal(case.id, {}, b"content")
        case.sealed_size = self.quarantine.size(case.file)
        cases.add(self.database, case, facts={})
        return case.id

    def hold(self, case_id: str) -> None:
        with self.database.writing() as session:
            session.get_one(Case, case_id).hold_at = datetime.now(UTC)

    def run(self, periods: Periods = WEEK_AND_YEAR) -> list[str]:
        """Runs it; which bytes were deleted."""
        made = Retention(self.database, self.quarantine, periods, self._fault)
        return asyncio.run(made.run(on_behalf_of="ann")).deleted

    def is_there(self, name: str) -> bool:
        return name in self.quarantine.names()

    def has_bytes(self, case_id: str) -> bool:
        return (self.folder / f"{case_id}.age").exists()

    def acts(self, case_id: str) -> list[str]:
        return [entry.act for entry in ledger.entries(self.database, case_id=case_id)][1:]

    def _fault(self, point: str) -> None:
        if point == self.deadly:
            raise Died


@pytest.fixture
def place(database: Database, tmp_path: Path) -> Place:
    return Place(database, tmp_path)


def days(count: float) -> timedelta:
    return timedelta(days=count)


def test_each_state_has_its_period_and_what_is_not_decided_has_none(place: Place) -> None:
    S = CaseState
    kept = [
        place.case(S.DEFERRED, decided=None),
        place.case(S.PENDING, decided=None),
        place.case(S.RELEASING),
        place.case(S.RELEASED, decided=days(6.9)),
        place.case(S.CONFIRMED, decided=days(364)),
        place.case(S.REPORTED, decided=OLD, reported=days(364)),  # begins anew with the report
    ]
    gone = [
        place.case(S.RELEASED, decided=days(7.1)),
        place.case(S.CONFIRMED, decided=days(366)),
        place.case(S.REPORTED, decided=OLD, reported=days(366)),
    ]
    assert sorted(place.run()) == gone
    assert all(map(place.has_bytes, kept)) and not any(map(place.has_bytes, gone))
    for case_id in gone:
        case = cases.get(place.database, case_id)
        assert (case.state, case.decided_by, case.sealed_size, case.uploader) == (
            S.EXPIRED,
            "ann",
            None,
            None,
        )
        assert case.expired_at is not None and case.sha256 is not None
        assert place.acts(case_id) == ["expired", "bytes deleted"]
    assert place.run() == []  # a second run has nothing to do, and writes nothing
    assert all(len(place.acts(case_id)) == 2 for case_id in gone)
    assert ledger.first_broken(place.database) is None


def test_a_period_of_nothing_is_for_ever(place: Place) -> None:
    old = [place.case(CaseState.RELEASED), place.case(CaseState.CONFIRMED)]
    assert place.run(Periods(released=None, confirmed=None)) == []
    assert all(map(place.has_bytes, old))


def test_a_legal_hold_keeps_bytes_whatever_the_period_says(place: Place) -> None:
    held, free = place.case(CaseState.CONFIRMED), place.case(CaseState.CONFIRMED)
    place.hold(held)
    assert place.run() == [free] and place.has_bytes(held)
    assert cases.get(place.database, held).state is CaseState.CONFIRMED
    with pytest.raises(CaseError, match="legal hold"):  # also where it was put on after the list was made
        retention.expire(place.database, held, WEEK_AND_YEAR, on_behalf_of=None)


def test_a_decision_that_came_after_the_list_was_made_is_respected(place: Place) -> None:
    case_id = place.case(CaseState.RELEASED)
    with place.database.writing() as session:
        session.get_one(Case, case_id).decided_at = datetime.now(UTC)
    with pytest.raises(CaseError, match="period is not over"):
        retention.expire(place.database, case_id, WEEK_AND_YEAR, on_behalf_of=None)


@pytest.mark.parametrize("point", ["expired", "bytes-deleted"])
def test_killed_anywhere_the_ledger_knows_before_the_bytes_go_and_the_next_run_ends_it(
    place: Place, point: str
) -> None:
    case_id = place.case(CaseState.RELEASED)
    place.deadly = point
    with pytest.raises(Died):
        place.run()
    assert cases.get(place.database, case_id).state is CaseState.EXPIRED
    assert place.acts(case_id) == ["expired"]  # never: bytes gone, and no word of it
    assert place.has_bytes(case_id) == (point == "expired")
    # What lies about for a minute is not taken for a case that lost its row.
    assert adopt_orphans(place.database, place.quarantine, older_than_s=0) == []

    place.deadly = None
    assert place.run() == [case_id] and not place.has_bytes(case_id)
    assert place.acts(case_id) == ["expired", "bytes deleted"]


def test_a_hold_that_comes_between_expiry_and_deletion_keeps_the_bytes(place: Place) -> None:
    case_id = place.case(CaseState.RELEASED)
    place.deadly = "expired"
    with pytest.raises(Died):
        place.run()
    place.hold(case_id)
    place.deadly = None
    assert place.run() == [] and place.has_bytes(case_id)


def test_bytes_that_come_back_from_a_backup_are_deleted_again(place: Place) -> None:
    case_id = place.case(CaseState.RELEASED)
    path = place.folder / f"{case_id}.age"
    sealed = path.read_bytes()
    place.run()
    path.write_bytes(sealed)
    assert adopt_orphans(place.database, place.quarantine, older_than_s=-1) == []
    assert place.run() == [case_id] and not path.exists()


def test_bytes_that_come_back_are_told_and_can_be_kept(place: Place) -> None:
    case_id = place.case(CaseState.CONFIRMED)
    backup = place.quarantine.path(f"{case_id}.age").read_bytes()
    assert place.run() == [case_id]
    hold = functools.partial(notes.held_legally, place.database, case_id, place.is_there)
    with pytest.raises(CaseError, match="no bytes left"):
        hold(by="ann", reason="a court asks")
    place.quarantine.path(f"{case_id}.age").write_bytes(backup)
    rows = Retention(place.database, place.quarantine, WEEK_AND_YEAR, lambda _: None)
    (left,) = asyncio.run(rows.left())
    assert (left.case, left.size, left.on_hold) == (case_id, len(backup), False)
    hold(by="ann", reason="a court asks")
    assert place.run() == [] and place.has_bytes(case_id)


def test_what_a_rotation_that_was_cut_off_has_left_goes_too(place: Place) -> None:
    alone, beside = place.case(CaseState.RELEASED), place.case(CaseState.RELEASED)
    for case_id in (alone, beside):
        (place.folder / f"{case_id}.before").write_bytes((place.folder / f"{case_id}.age").read_bytes())
    (place.folder / f"{alone}.age").unlink()
    assert sorted(place.run()) == [alone, beside]
    assert list(place.folder.iterdir()) == []


def test_nothing_is_deleted_that_the_gate_has_not_written(place: Place, tmp_path: Path) -> None:
    case_id = place.case(CaseState.RELEASED)
    path, elsewhere = place.folder / f"{case_id}.age", tmp_path / "somebody-s-own"
    elsewhere.write_bytes(b"precious")
    path.unlink()
    path.symlink_to(elsewhere)
    foreign = place.folder / "20200101-000000-ffffffff.age"
    foreign.write_bytes(b"of no case")
    (place.folder / "notes.txt").write_bytes(b"mine")
    assert place.run() == []
    assert path.is_symlink() and elsewhere.read_bytes() == b"precious"
    assert foreign.exists() and (place.folder / "notes.txt").exists()
    assert place.acts(case_id) == ["expired"]


def test_where_the_folder_is_away_nothing_is_noted_as_deleted(place: Place, tmp_path: Path) -> None:
    case_id = place.case(CaseState.RELEASED)
    place.folder.rename(tmp_path / "unmounted")
    assert place.run() == []
    (tmp_path / "unmounted").rename(place.folder)
    assert place.has_bytes(case_id) and place.run() == [case_id]


# --- at the terminal, and by the gate itself ---


def make_old(gate: Gate, *case_ids: str) -> None:
    with gate.database() as database, database.writing() as session:
        for case_id in case_ids:
            session.get_one(Case, case_id).decided_at = datetime.now(UTC) - OLD


def test_after_expiry_a_released_alias_shows_the_picture_and_a_confirmed_one_the_placeholder(
    new_gate: NewGate, hits: list[bytes]
) -> None:
    gate, contents = new_gate(), [hits.pop(), hits.pop()]
    aliases = []
    for content, decision in zip(contents, ("release", "confirm"), strict=True):
        aliases.append(gate.upload(content).json()["files"][0]["file"])
        gate.decide(decision)
    make_old(gate, *(case["id"] for case in gate.cases()))
    run = ("retention", "run", "--config", str(gate.config), "--reviewer", "ann")

    due = json.loads(gate.run(*run, "--dry-run", "--json").stdout)
    assert sorted(one["state"] for one in due) == ["confirmed", "released"]
    assert len(list((gate.folder / "cases").iterdir())) == 2  # it has done nothing
    done = json.loads(gate.run(*run, "--json").stdout)
    assert len(done["deleted"]) == 2 and not any((gate.folder / "cases").iterdir())
    told = [(entry.actor, entry.facts["on behalf of"]) for entry in gate.ledger()[-4:]]
    assert told == [("retention", "ann")] * 4
    periods = {
        entry.facts["was"]: entry.facts["period_days"] for entry in gate.ledger() if entry.act == "expired"
    }
    assert periods == {"released": 7, "confirmed": 365}

    released, confirmed = (get(gate.url, f"/image/original/{alias}") for alias in aliases)
    assert released.status == 200 and released.headers["cache-control"].startswith("public")
    assert confirmed.status == 200 and confirmed.headers["cache-control"] == "no-store"
    # What was decided is remembered.
    assert gate.upload(contents[0]).status == 201 and len(gate.cases()) == 2
    assert gate.upload(contents[1]).json()["code"] == "failed-external-validation"
    assert metric(gate.internal_url, "pictrs_gate_quarantine_bytes") >= 0


def test_the_gate_deletes_by_itself_only_where_the_admin_has_switched_it_on(
    new_gate: NewGate, hit: bytes
) -> None:
    gate = new_gate()
    gate.upload(hit)
    gate.decide("release")
    case_id = gate.cases()[0]["id"]
    make_old(gate, case_id)
    gate.stop()
    sealed = gate.folder / "cases" / f"{case_id}.age"
    gate.start()  # as it comes
    get(gate.internal_url, "/readyz")
    gate.stop()
    assert sealed.exists() and gate.cases()[0]["state"] == "released"
    gate.start({"GATE__RETENTION__ENABLED": "true"})
    assert gate.program is not None
    gate.program.wait_until(lambda: gate.ledger()[-1].act == "bytes deleted")
    assert not sealed.exists() and gate.cases()[0]["state"] == "expired"
