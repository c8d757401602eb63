"""What was let pass unseen is never forgotten, and neither is who sent it."""

from __future__ import annotations

import base64
import json
import threading
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, cast

import pyrage
import pytest
from sqlalchemy.exc import IntegrityError

from proxy.aliases import alias_key
from proxy.cases.keeping import Keeper, Origin, adopt_orphans
from proxy.cases.life import CaseState
from proxy.cases.quarantine import Quarantine
from proxy.cases.quota import Limits, Quota
from proxy.cases.sealing import Sealer, read_identities, write_new_identity
from proxy.cases.unseen import Noting, UnseenUploads, facts_of
from proxy.database import Case, Database, Promise, UnseenUpload, backlog, cases, ledger, unseen
from proxy.errors import CaseError, NoRoom, SealingError
from proxy.faults import nowhere
from proxy.intake.budget import Budget
from proxy.intake.uploads import upload_of
from proxy.metrics import Metrics
from proxy.pictrs import StoredFile, StoredPage
from proxy.policy import Decision, Verdict
from tests import pictures
from tests.kept import keeper_of
from tests.looker import sha256

FILE = pictures.png((64, 48), seed=940_000)
MB = 1024 * 1024
ENTRY = {"file": "a.png", "delete_token": "t"}


def noted(database: Database, alias: str = "a.png", *, facts: bytes = b"sealed") -> None:
    now = datetime.now(UTC)
    row = UnseenUpload(alias=alias, delete_token="t", sha256=sha256(FILE), created_at=now, facts=facts)
    unseen.passed_unseen(database, [row])


def leased(database: Database) -> UnseenUpload:
    found = backlog.lease_unseen(database, backlog.Lease("a gate", datetime.now(UTC) + timedelta(minutes=1)))
    assert found is not None
    return found


def rows(database: Database) -> list[UnseenUpload]:
    with database.reading() as session:
        return list(session.query(UnseenUpload).order_by(UnseenUpload.number))


def case_at(*aliases: str) -> Case:
    promises = [
        Promise(
            alias=alias,
            alias_key=alias.encode(),
            delete_token="t",
            details={},
            arguments=[],
            stored_at=datetime.now(UTC),
        )
        for alias in aliases
    ]
    return Case(
        id="case-1",
        state=CaseState.PENDING,
        created_at=datetime.now(UTC),
        reason="a rule",
        file="case-1.age",
        promises=promises,
    )


class Deleting:
    """As much of pict-rs as noting needs."""

    def __init__(self) -> None:
        self.deleted: list[str] = []

    async def delete(self, alias: str) -> None:
        self.deleted.append(alias)


class Broken(Sealer):
    """What fails as nobody thought of."""

    def __init__(self) -> None:
        super().__init__([])

    def seal_facts(self, facts: Any) -> bytes:
        raise pyrage.EncryptError("odd")


async def test_whatever_keeps_an_upload_from_being_noted_it_does_not_stay_in_pict_rs(
    database: Database,
) -> None:
    pictrs, upload = Deleting(), upload_of(FILE, sha256(FILE), file_name="", declared_type=None)
    noting = Noting(database, Broken(), pictrs)  # type: ignore[arg-type]
    with pytest.raises(SealingError, match="could not be written down"):
        await noting.note([upload], [ENTRY], Origin("POST /image", [], {}))
    assert pictrs.deleted == ["a.png"] and rows(database) == []


def test_who_sent_a_file_into_a_case_that_has_just_been_made_stays_with_the_case(database: Database) -> None:
    noted(database, "a.png")
    first = leased(database)
    case = case_at("a.png", "b.png")  # pict-rs knows of the second upload, and nobody has noted it yet
    noted(database, "b.png", facts=b"who sent b")
    unseen.held_since(database, first, case, others=[], facts={})
    unseen.done_with(database, cased(first, case))
    unseen.gone_since(database, leased(database), alias_key=b"b.png")
    of_a, of_b = rows(database)
    assert (of_a.facts, of_b.facts, of_b.case_id) == (b"", b"who sent b", case.id)
    assert [entry.act for entry in ledger.entries(database, case_id=case.id)][-1] == "gone unseen"
    assert backlog.waiting(database).unseen == 0


def cased(upload: UnseenUpload, case: Case) -> UnseenUpload:
    upload.case_id = case.id
    return upload


def test_only_whoever_has_the_lease_goes_on(database: Database) -> None:
    noted(database)
    first = leased(database)
    unseen.still_unseen(database, first)
    assert first.leased_until is not None
    backlog.forget_leases(database, "a gate", until=first.leased_until)
    second = leased(database)
    with pytest.raises(CaseError, match="another gate has it"):
        unseen.still_unseen(database, first)
    unseen.seen_since(database, second, reason="no rule matched")
    with pytest.raises(CaseError, match="done with"):
        unseen.still_unseen(database, second)


def test_of_what_a_user_has_deleted_before_anybody_looked_nothing_stays_but_the_ledger(
    database: Database,
) -> None:
    noted(database)
    unseen.gone_since(database, leased(database), alias_key=b"a.png")
    (row,) = rows(database)
    assert (row.facts, row.case_id) == (b"", None) and row.done_at is not None
    assert [entry.act for entry in ledger.entries(database)] == ["gone unseen"]


def test_uploads_of_one_picture_are_one_case_and_no_other_s_row_is_touched(database: Database) -> None:
    for alias in ("a.png", "b.png", "c.png"):
        noted(database, alias)
    first = leased(database)
    others = unseen.same_picture(database, first, ["a.png", "b.png"])
    assert [one.alias for one in others] == ["b.png"]
    unseen.held_since(database, first, case_at("a.png", "b.png"), others=others, facts={})
    assert [row.done_at is not None for row in rows(database)] == [False, True, False]
    assert [row.case_id for row in rows(database)] == ["case-1", "case-1", None]
    assert cases.get(database, "case-1").state is CaseState.PENDING


def test_facts_that_the_gate_cannot_open_any_more_go_to_the_reviewers_as_they_are(tmp_path: Path) -> None:
    for name in ("lost.key", "new.key", "reviewer.key"):
        write_new_identity(tmp_path / name)
    recipients = [
        str(read_identities(tmp_path / name)[0].to_public()) for name in ("lost.key", "reviewer.key")
    ]
    sealed = Sealer(recipients).seal_facts({"uploader": {"address": "192.0.2.1"}})
    row = UnseenUpload(number=1, facts=sealed)
    kept = facts_of(row, read_identities(tmp_path / "new.key"))
    assert list(kept) == ["sealed"]
    opened = pyrage.decrypt(base64.b64decode(kept["sealed"]), read_identities(tmp_path / "reviewer.key"))
    assert json.loads(opened) == {"uploader": {"address": "192.0.2.1"}}


def test_what_is_sealed_already_is_taken_away_also_where_nobody_may_look(database: Database) -> None:
    noted(database, "a.png")
    noted(database, "b.png")
    now = backlog.Lease("a gate", datetime.now(UTC) + timedelta(minutes=1))
    assert backlog.lease_unseen(database, now, looking=False) is None
    first = leased(database)
    unseen.held_since(database, first, case_at("a.png"), others=[], facts={})
    backlog.give_back(database, first, again_s=None, counts=False)
    again = backlog.lease_unseen(database, now, looking=False)
    assert again is not None and (again.alias, again.case_id) == ("a.png", "case-1")
    assert backlog.lease_unseen(database, now, looking=False) is None


class Having(Deleting):
    """As much of pict-rs as holding needs: it has the file until its last alias is deleted."""

    def __init__(self, *aliases: str) -> None:
        super().__init__()
        self._aliases = aliases

    async def original(self, alias: str, *, largest: int) -> bytes:
        return FILE

    async def aliases(self, alias: str) -> list[str]:
        return [one for one in self._aliases if one not in self.deleted]

    async def stored(self, *, slug: str, limit: int) -> StoredPage:
        key, left = f"{sha256(FILE)}{len(FILE):012x}07", await self.aliases("")
        asked = base64.urlsafe_b64decode(slug + "=" * (-len(slug) % 4)).hex()
        return StoredPage([StoredFile(key, left)] if left and asked == key else [], None, None)


class Confirmed:
    """Everything is known to be what it must not be."""

    async def find(self, sha256: str) -> Decision:
        return Decision(Verdict.BLOCK, "confirmed before")


def queue_of(database: Database, keeper: Keeper, pictrs: Having) -> UnseenUploads:
    unused = cast(Any, None)
    return UnseenUploads(
        database=database,
        identities=[],
        memory=Budget(10 * MB),
        largest_bytes=MB,
        judge=unused,
        known=cast(Any, Confirmed()),
        lookout=unused,
        keeper=keeper,
        pictrs=cast(Any, pictrs),
        fault=nowhere,
        owner="a gate",
    )


async def test_a_hit_takes_over_what_the_gate_had_released_of_it_and_leaves_what_a_human_had(
    database: Database, tmp_path: Path
) -> None:
    """pict-rs keeps one file for all who have sent the same picture; it is shown as long as one alias is."""
    noted(database, "a.png")
    for alias, by in (("b.png", "gate"), ("c.png", "ann")):
        older = case_at(alias)
        older.id, older.state, older.decided_by = f"by-{by}", CaseState.RELEASED, by
        for promise in older.promises:
            promise.alias_key = alias_key(alias)
        cases.add(database, older, facts={})
    quarantine = Quarantine(tmp_path, Sealer([write_new_identity(tmp_path / "key")]), nowhere)
    keeper = keeper_of(database, quarantine, tmp_path, nowhere)
    pictrs = Having("a.png", "b.png", "c.png")
    try:
        await queue_of(database, keeper, pictrs).settle(leased(database))
    finally:
        keeper.close()
    (row,) = rows(database)
    held = cases.get(database, str(row.case_id))
    assert {one.alias: one.stored_at for one in held.promises} == {"a.png": None, "b.png": None}
    assert sorted(pictrs.deleted) == ["a.png", "b.png"] and row.done_at is not None
    assert [one.alias for one in cases.get(database, "by-ann").promises] == ["c.png"]


async def test_a_hit_finds_room_when_uploads_do_not_and_until_then_it_is_counted(
    database: Database, tmp_path: Path
) -> None:
    noted(database)
    taken = case_at()
    taken.sealed_size = 10 * MB - 250 * 1024
    cases.add(database, taken, facts={})
    quarantine = Quarantine(tmp_path, Sealer([write_new_identity(tmp_path / "key")]), nowhere)
    metrics, pictrs = Metrics(), Having("a.png")

    async def settled(quota: int) -> tuple[int, int]:
        """How many are public then, and how often pict-rs was told to delete it."""
        room = Quota(database, tmp_path, Limits(quota, quota, 0), metrics)
        await room.count()
        keeper = Keeper(database, quarantine, room, metrics, nowhere)
        queue = queue_of(database, keeper, pictrs)
        item = leased(database)
        try:
            upload = upload_of(FILE, sha256(FILE), file_name="", declared_type=None)
            held = Decision(Verdict.HOLD, "a rule")
            with pytest.raises(NoRoom):  # uploads have none either way
                await keeper.keep(upload, held, None, Origin("", [], {}), None)
            with suppress(NoRoom):
                await queue.settle(item)
            return await queue.count_public(), len(pictrs.deleted)
        finally:
            keeper.close()
            backlog.give_back(database, item, again_s=None, counts=False)

    assert await settled(5 * MB) == (1, 0)
    assert await settled(10 * MB) == (0, 1)


@pytest.mark.parametrize("failure", [IntegrityError("", {}, Exception()), CaseError("another has it")])
async def test_what_was_sealed_stays_whatever_became_of_its_record(
    database: Database, tmp_path: Path, failure: Exception
) -> None:
    """It becomes a case of its own: twice the evidence rather than none."""
    quarantine = Quarantine(tmp_path / "cases", Sealer([write_new_identity(tmp_path / "key")]), nowhere)
    room = Quota(database, tmp_path, Limits(MB, MB, 0), Metrics())
    keeper = Keeper(database, quarantine, room, Metrics(), nowhere)
    upload, held = upload_of(FILE, sha256(FILE), file_name="", declared_type=None), Decision(Verdict.HOLD, "")
    origin = Origin("", [], {})

    def record(*_: Any) -> None:
        raise failure

    with pytest.raises(type(failure)):
        await keeper.keep_stored(upload, held, None, origin, promises=[], facts={}, record=record)
    keeper.close()
    assert len(adopt_orphans(database, quarantine, older_than_s=0)) == 1


async def test_what_passed_unseen_is_noted_in_the_database_s_own_threads(database: Database) -> None:
    """There are as many as there are connections for them."""
    threads: list[str] = []

    class Watching(Sealer):
        def seal_facts(self, facts: Any) -> bytes:
            threads.append(threading.current_thread().name)
            return b"sealed"

    upload = upload_of(FILE, sha256(FILE), file_name="", declared_type=None)
    noting = Noting(database, Watching([]), cast(Any, Deleting()))
    await noting.note([upload], [ENTRY], Origin("POST /image", [], {}))
    assert [name.partition("_")[0] for name in threads] == ["database"] and len(rows(database)) == 1
