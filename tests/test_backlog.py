"""The backlog's own promises: leases, tries, refusals, keys, and what a human may do meanwhile."""

from __future__ import annotations

import asyncio
import hashlib
import io
import itertools
import socket
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from sqlalchemy import update
from sqlalchemy.exc import OperationalError

from proxy.cases.backlog import Backlog, NotNow, Pace, Queue
from proxy.cases.clearances import Clearances
from proxy.cases.deferred import Opener
from proxy.cases.life import Act, CaseState
from proxy.cases.quarantine import Quarantine
from proxy.cases.sealing import Sealer, gate_identities, open_sealed, read_identities, write_new_identity
from proxy.channels.lookout import Lookout
from proxy.channels.looks import Look, Seen, Unseen
from proxy.database import Case, Database, KnownHash, backlog, cases, decisions
from proxy.database.backlog import Lease, Looked
from proxy.errors import CaseError, SealingError, Unreadable
from proxy.intake.budget import Budget
from proxy.internal.hook import ValidationHook
from proxy.internal.server import HookAnswer
from proxy.media import Format
from proxy.metrics import Metrics
from proxy.policy import Decision, Verdict
from proxy.server.fetches import HookWatch
from tests import pictures
from tests.client import get, send
from tests.fake import Asked, Fake, Reply, json_reply
from tests.gate import Gate
from tests.kept import keeper_of
from tests.looker import Looker, pixels, sha256, until

FILE = pictures.png((64, 48), seed=910_000)
QUICK = Pace(lease_s=5, again_s=0.01, most_tries=3, idle_s=0.01, longest_pause_s=0.02)


def a_case(number: int = 1, **changes: Any) -> Case:
    usual: dict[str, Any] = {
        "id": f"20261123-000000-{number:08x}",
        "state": CaseState.DEFERRED,
        "created_at": datetime(2026, 11, 23, tzinfo=UTC) + timedelta(seconds=number),
        "reason": "unavailable: gone",
        "file": f"20261123-000000-{number:08x}.age",
        "sha256": sha256(FILE),
        "gate_reads": True,
    }
    return Case(**{**usual, **changes})


def added(database: Database, *made: Case) -> None:
    for case in made:
        cases.add(database, case, facts={})


def lease(owner: str = "a gate", *, for_s: float = 60) -> Lease:
    return Lease(owner, datetime.now(UTC) + timedelta(seconds=for_s))


# --- leases and tries, in the database ---


def test_of_many_gates_each_case_goes_to_one_and_the_oldest_goes_first(database: Database) -> None:
    added(database, *(a_case(number) for number in (3, 1, 2)))
    with ThreadPoolExecutor(4) as threads:
        leased = list(threads.map(lambda n: backlog.lease_case(database, lease(f"gate {n}")), range(6)))
    assert sorted(case.id for case in leased if case) == [a_case(number).id for number in (1, 2, 3)]
    assert leased.count(None) == 3
    first = next(case for case in leased if case and case.id == a_case(1).id)
    backlog.give_back(database, first, again_s=None, counts=False)
    taken = backlog.lease_case(database, lease("another"))
    assert taken is not None and taken.id == first.id
    with pytest.raises(CaseError, match="another gate"):
        backlog.suspected(database, first, Looked("too late"))


def test_a_try_in_vain_puts_a_case_behind_the_others_for_longer_each_time(database: Database) -> None:
    added(database, a_case())
    waited = []
    for _ in range(3):
        leased = backlog.lease_case(database, lease())
        assert leased is not None
        before = datetime.now(UTC)
        backlog.give_back(database, leased, again_s=100, counts=True)
        kept = cases.get(database, leased.id)
        assert kept.again_at is not None and backlog.lease_case(database, lease()) is None
        waited.append(round((kept.again_at - before).total_seconds(), -2))
        with database.writing() as session:
            session.execute(update(Case).values(again_at=None))
    assert waited == [200, 400, 800] and cases.get(database, a_case().id).tries == 3


def test_what_a_gate_had_in_hand_when_it_died_counts_as_a_try(database: Database) -> None:
    added(database, a_case())
    for tries in range(3):
        leased = backlog.lease_case(database, lease())
        assert leased is not None and leased.tries == tries
        until = leased.leased_until
        assert until is not None
        for owner, then in (("another gate", until), ("a gate", until - timedelta(seconds=1))):
            backlog.forget_leases(database, owner, until=then)  # what it has taken since ends later
            assert backlog.lease_case(database, lease()) is None
        backlog.forget_leases(database, "a gate", until=until)


def test_the_gate_and_a_human_never_release_the_same_case_at_once(database: Database) -> None:
    added(database, a_case(1), a_case(2))
    first, second = backlog.lease_case(database, lease()), backlog.lease_case(database, lease())
    assert first is not None and second is not None
    backlog.releasing(database, first, sha256=sha256(FILE), looked=None)
    with pytest.raises(CaseError, match="the gate is releasing it right now"):
        decisions.releasing(database, first.id, by="ann", sha256=sha256(FILE))
    decisions.releasing(database, second.id, by="ann", sha256=sha256(FILE))
    for late in (
        lambda: backlog.releasing(database, second, sha256=sha256(FILE), looked=Looked("harmless")),
        lambda: backlog.suspected(database, second, Looked("a rule")),
        lambda: backlog.taking_back(database, second),
    ):
        with pytest.raises(CaseError):
            late()
    assert cases.get(database, second.id).reason == "unavailable: gone"


def test_once_the_gate_s_attempt_is_over_a_human_need_not_wait(database: Database) -> None:
    added(database, a_case())
    for _ in range(3):  # however often the gate repeats it
        leased = backlog.lease_case(database, lease())
        assert leased is not None
        backlog.releasing(database, leased, sha256=sha256(FILE), looked=None)
        with pytest.raises(CaseError, match="under way"):
            decisions.check(database, leased.id, Act.CONFIRM)
        backlog.give_back(database, leased, again_s=0, counts=False, is_over=True)
        decisions.check(database, leased.id, Act.CONFIRM)
    decisions.confirmed(database, leased.id, by="ann", sha256=sha256(FILE))
    assert backlog.lease_case(database, lease()) is None


def test_what_a_look_said_is_written_with_the_release(database: Database) -> None:
    added(database, a_case())
    leased = backlog.lease_case(database, lease())
    assert leased is not None
    looked = Looked(
        "no rule matched", signals={"sexual": 0.1}, ensemble="fake 1", pdq="0" * 64, pdq_quality=9
    )
    backlog.releasing(database, leased, sha256=sha256(FILE), looked=looked)
    kept = cases.get(database, leased.id)
    assert (kept.reason, kept.signals, kept.ensemble) == (looked.reason, looked.signals, looked.ensemble)
    assert (kept.pdq, kept.pdq_quality, kept.leased_by) == (looked.pdq, looked.pdq_quality, "a gate")


def test_the_queue_counts_everything_that_waits(database: Database) -> None:
    added(
        database,
        a_case(1),
        a_case(2),
        a_case(3, gate_reads=False),
        a_case(4, state=CaseState.RELEASING, decided_by="gate"),
        a_case(5, state=CaseState.PENDING),
        a_case(6, state=CaseState.RELEASING, decided_by="ann", decided_at=datetime.now(UTC)),
        a_case(7, state=CaseState.RELEASING, decided_by="ann", decided_at=datetime(2026, 1, 1, tzinfo=UTC)),
    )
    waiting = backlog.waiting(database)
    assert (waiting.deferred, waiting.releasing, waiting.for_reviewers, waiting.unseen) == (2, 1, 1, 0)
    assert waiting.since == a_case(1).created_at
    assert (waiting.pending, waiting.cut_off) == (1, 1)


# --- whose turn it is ---


class Some:
    """A queue that does with its cases what a test says."""

    def __init__(self, database: Database, settle: Callable[[Case], None]) -> None:
        self._database, self._settle = database, settle
        self.settled: list[str] = []
        self.given_up: list[str] = []

    async def lease(self, wanted: Lease, *, looking: bool) -> Case | None:
        return await self._database.run(backlog.lease_case, wanted, looking=looking)

    async def settle(self, item: Case) -> None:
        self._settle(item)
        await self._database.run(backlog.suspected, item, Looked("settled"))
        self.settled.append(item.id)

    async def give_up(self, item: Case, reason: str) -> None:
        await self._database.run(backlog.suspected, item, Looked(reason))
        self.given_up.append(item.id)


class Nothing:
    async def lease(self, _: Lease, *, looking: bool) -> None:
        return None

    async def settle(self, _: Any) -> None: ...

    async def give_up(self, *_: Any) -> None: ...


class Hopeful(Lookout):
    """Somebody is there to look."""

    is_hopeful = True  # type: ignore[assignment]

    def __init__(self) -> None:
        super().__init__([], frozenset(), Metrics())


async def never() -> bool:
    return False


async def none() -> int:
    return 0


async def worked_through(
    database: Database,
    queue: Some,
    enough: Callable[[], bool],
    *,
    lookout: Lookout | None = None,
    pause: Callable[[], Any] = never,
    sweeper: Queue | None = None,
    pace: Pace = QUICK,
) -> None:
    made = Backlog(
        database,
        lookout or Hopeful(),
        Metrics(),
        workers=[[queue], [queue]],
        sweeper=sweeper or Nothing(),
        owner="a gate",
        pause=pause,
        public=none,
        pace=pace,
    )
    running = asyncio.create_task(made.run())
    async with asyncio.timeout(60):
        while not enough():
            await asyncio.sleep(0.01)
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)


async def test_a_file_that_nobody_can_look_at_is_a_human_s_once_others_were_looked_at(
    database: Database,
) -> None:
    added(database, *(a_case(number) for number in range(1, 10)))
    poison, lookout = a_case(1).id, Hopeful()

    def settle(item: Case) -> None:
        if item.id == poison:
            raise NotNow("it fails", progress=("look", lookout.looked))
        lookout.looked += 1

    queue = Some(database, settle)
    others = asyncio.create_task(_time_goes_by(lookout))
    await worked_through(database, queue, lambda: len(queue.given_up + queue.settled) == 9, lookout=lookout)
    others.cancel()
    assert queue.given_up == [poison]
    case = cases.get(database, poison)
    assert (case.state, case.reason) == (CaseState.PENDING, "3 tries were in vain")


async def _time_goes_by(lookout: Lookout) -> None:
    while True:  # uploads that are looked at
        await asyncio.sleep(0.02)
        lookout.looked += 1


async def test_an_outage_counts_no_try_however_long_it_lasts(database: Database) -> None:
    added(database, a_case(1), a_case(2))
    tried = []

    def settle(item: Case) -> None:
        tried.append(item.id)
        raise NotNow("it fails", progress=("look", 0) if len(tried) % 2 else None)

    queue = Some(database, settle)
    await worked_through(database, queue, lambda: len(tried) > 12)
    assert set(tried) == {a_case(1).id, a_case(2).id} and queue.given_up == []
    assert {case.tries for case in cases.listed(database)} == {0}


async def test_no_error_whatever_ends_the_backlog_and_an_odd_file_is_a_human_s(database: Database) -> None:
    added(database, a_case(1), a_case(2))
    failures = iter([ZeroDivisionError(), RecursionError(), SealingError("no space")])

    class Failing(Some):
        async def lease(self, wanted: Lease, *, looking: bool) -> Case | None:
            if (failure := next(failures, None)) is not None:
                raise failure
            return await super().lease(wanted, looking=looking)

    def settle(item: Case) -> None:
        if item.id == a_case(1).id:
            raise AssertionError("what nobody thought of")

    queue = Failing(database, settle)
    await worked_through(database, queue, lambda: bool(queue.given_up and queue.settled))
    assert (queue.given_up, queue.settled) == ([a_case(1).id], [a_case(2).id])


async def test_a_database_that_does_not_take_a_case_back_counts_no_try(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    added(database, a_case(1), a_case(2))
    tried: list[tuple[str, int]] = []
    give_back, calls = backlog.give_back, itertools.count()

    def hiccup(*given: Any, **more: Any) -> None:
        if next(calls) % 2 == 0:
            raise OperationalError("", {}, Exception())
        give_back(*given, **more)

    class Tried(Some):
        async def settle(self, item: Case) -> None:
            tried.append((item.id, item.tries))
            if len(tried) < 10:
                raise NotNow("it fails")
            await super().settle(item)

    monkeypatch.setattr(backlog, "give_back", hiccup)
    queue = Tried(database, lambda _: None)
    pace = replace(QUICK, lease_s=3)
    await worked_through(database, queue, lambda: len(queue.settled + queue.given_up) == 2, pace=pace)
    assert queue.given_up == [] and {tries for _, tries in tried} == {0}


async def test_while_it_is_to_pause_nothing_is_looked_at_and_the_rest_goes_on(database: Database) -> None:
    added(
        database,
        a_case(1),
        a_case(2, state=CaseState.RELEASING, decided_by="gate"),
        a_case(3, state=CaseState.PENDING),
    )
    asked: list[int] = []

    async def pause() -> bool:
        asked.append(1)
        return True

    class Begun(Some):
        async def settle(self, item: Case) -> None:
            self.settled.append(item.id)
            await self._database.run(decisions.released, item.id, by=decisions.GATE, stored_as=[])

    class Resealing(Some):
        async def lease(self, wanted: Lease, *, looking: bool) -> Case | None:
            return await self._database.run(backlog.lease_to_reseal, wanted)

        async def settle(self, item: Case) -> None:
            self.settled.append(item.id)
            await self._database.run(backlog.resealed, item, to=None, replace=None)

    queue, sweeper = Begun(database, lambda _: None), Resealing(database, lambda _: None)

    def is_enough() -> bool:
        return len(asked) >= 9 and bool(queue.settled) and len(sweeper.settled) >= 2

    await worked_through(database, queue, is_enough, pause=pause, sweeper=sweeper)
    assert queue.settled == [a_case(2).id]
    assert set(sweeper.settled) == {a_case(2).id, a_case(3).id}
    assert cases.get(database, a_case(1).id).state is CaseState.DEFERRED


async def test_told_to_stop_it_gives_back_what_it_has(database: Database) -> None:
    added(database, a_case())
    begun = threading.Event()

    class Hanging(Some):
        async def settle(self, item: Case) -> None:
            begun.set()
            await asyncio.sleep(60)

    await worked_through(database, Hanging(database, lambda _: None), begun.is_set)
    case = cases.get(database, a_case().id)
    assert (case.leased_by, case.tries, case.again_at) == (None, 0, None)


# --- the gate's own key ---


def test_gates_that_start_together_agree_on_one_key_for_nobody_else(tmp_path: Path) -> None:
    path = tmp_path / "gate.key"
    with ThreadPoolExecutor(8) as threads:
        made = list(threads.map(lambda _: [str(key) for key in gate_identities(path)], range(8)))
    assert len({tuple(keys) for keys in made}) == 1 and len(made[0]) == 1
    assert path.stat().st_mode & 0o777 == 0o600
    assert list(tmp_path.iterdir()) == [path]
    with pytest.raises(SealingError, match=r"gate\.key: .*the gate makes a key of its own there"):
        gate_identities(tmp_path / "nowhere" / "gate.key")


def test_trouble_with_the_disk_is_not_taken_for_a_wrong_key(tmp_path: Path) -> None:
    write_new_identity(tmp_path / "a.key")
    (own,) = read_identities(tmp_path / "a.key")
    write_new_identity(tmp_path / "b.key")
    (other,) = read_identities(tmp_path / "b.key")
    path = tmp_path / "case.age"
    with path.open("wb") as file:
        Sealer([str(own.to_public())]).seal(file, {"sha256": "x"}, FILE)
    with pytest.raises(Unreadable) as found:
        open_sealed(path, [other])
    assert found.value.is_for_others
    whole = path.read_bytes()
    for damaged in (whole[:-50], whole[:40], b"", whole.replace(b"age-encryption", b"age-encryptiom")):
        path.write_bytes(damaged)
        with pytest.raises(Unreadable) as found:
            open_sealed(path, [own])
        assert not found.value.is_for_others
    path.unlink()
    for _ in range(2):
        with pytest.raises(SealingError) as trouble:
            open_sealed(path, [own])
        assert not isinstance(trouble.value, Unreadable)
        path.mkdir(exist_ok=True)  # it cannot be read, for another reason


async def test_what_is_opened_is_within_the_bound_on_memory(tmp_path: Path) -> None:
    write_new_identity(tmp_path / "a.key")
    keys = read_identities(tmp_path / "a.key")
    sealer = Sealer([str(keys[0].to_public())])
    quarantine = Quarantine(tmp_path / "cases", sealer, lambda _: None, with_gate=sealer)
    case = a_case()
    name = quarantine.seal(case.id, {"sha256": sha256(FILE)}, FILE, gate_reads=True)
    assert name == case.file
    memory = Budget(3 * quarantine.size(name))
    opener, held = Opener(quarantine, keys, memory), asyncio.Event()

    async def one() -> None:
        async with opener.opened(case):
            await held.wait()

    both = [asyncio.create_task(one()) for _ in range(2)]
    for _ in range(20):
        await asyncio.sleep(0.01)
        assert memory.lent in (0, 2 * quarantine.size(name))  # one at a time
    held.set()
    await asyncio.gather(*both)
    assert memory.lent == 0


# --- pict-rs's hook ---


class Says:
    """A judge of one opinion."""

    def __init__(self, look: Look | None, decision: Decision) -> None:
        self._answer = look, decision

    async def judge(self, content: bytes, media: Format, sha256: str, **_: Any) -> Any:
        return self._answer


SEEN = Seen({"sexual": 0.9}, [], "fake 1", "png", 64, 48, pdq="0" * 64, pdq_quality=100)


@pytest.mark.parametrize(
    ("by", "verdict", "answer"),
    [
        ("gate", Verdict.DEFER, HookAnswer.KEEP),
        ("gate", Verdict.HOLD, HookAnswer.REFUSE),
        ("gate", Verdict.BLOCK, HookAnswer.REFUSE),
        ("ann", Verdict.DEFER, HookAnswer.KEEP),
        ("ann", Verdict.HOLD, HookAnswer.KEEP),
    ],
)
async def test_what_the_gate_releases_by_itself_passes_the_hook_only_where_nobody_can_look(
    database: Database, tmp_path: Path, by: str, verdict: Verdict, answer: HookAnswer
) -> None:
    added(database, a_case(state=CaseState.RELEASING, decided_by=by, decided_at=datetime.now(UTC)))
    write_new_identity(tmp_path / "a.key")
    sealer = Sealer([str(read_identities(tmp_path / "a.key")[0].to_public())])
    quarantine = Quarantine(tmp_path / "cases", sealer, lambda _: None)
    keeper = keeper_of(database, quarantine, tmp_path / "cases")
    look = Unseen("gone") if verdict is Verdict.DEFER else SEEN
    hook = ValidationHook(
        judge=Says(look, Decision(verdict, "because")),  # type: ignore[arg-type]
        keeper=keeper,
        clearances=Clearances(),
        watch=HookWatch(),
        database=database,
        verdict_s=1,
    )
    assert await hook.validate(FILE) is answer
    keeper.close()


# --- the whole gate, before a pict-rs that refuses ---


@pytest.fixture
def looker() -> Iterator[Looker]:
    made = Looker()
    yield made
    made.close()


class Refusing:
    """As much of pict-rs as a release needs; imports are answered as a test says."""

    def __init__(self) -> None:
        self.refusal: tuple[int, str] | None = None
        self.asks: Callable[[], int] = lambda: 200  # its hook, for a status
        self.stored: list[str] = []
        self.deleted: list[str] = []
        self.fake = Fake(self._answer)

    def _answer(self, asked: Asked) -> Reply:
        if asked.target.startswith("/internal/import"):
            if self.refusal is not None:
                return json_reply(self.refusal[0], {"code": self.refusal[1], "msg": "…"})
            if self.asks() != 200:
                return json_reply(400, {"code": "failed-external-validation", "msg": "…"})
            self.stored.append(hashlib.sha256(asked.body).hexdigest())
            return json_reply(201, {"files": [{"file": "x", "delete_token": "t"}], "msg": "ok"})
        if asked.target.startswith("/internal/delete"):
            self.deleted.append(asked.target)
            return json_reply(200, {"msg": "ok"})
        return Reply(404)


@pytest.fixture
def refusing() -> Iterator[Refusing]:
    made = Refusing()
    yield made
    made.fake.close()


@pytest.fixture
def gate(tmp_path: Path, looker: Looker, refusing: Refusing) -> Iterator[Gate]:
    """A gate whose classifier is away."""
    made = Gate(tmp_path / "gate", pictrs_url=refusing.fake.url, api_key="k", classifier_url=looker.url)
    yield made
    made.stop()


def at_once(gate: Gate) -> None:
    """What is to be tried again later is tried now."""
    with gate.database() as database, database.writing() as session:
        session.execute(update(Case).values(again_at=None))


def imports(refusing: Refusing) -> int:
    return sum("/internal/import" in asked.target for asked in refusing.fake.asked)


def the_case(gate: Gate) -> Case:
    with gate.database() as database:
        return cases.listed(database)[0]


def test_only_what_pict_rs_says_of_the_file_itself_makes_a_harmless_case_a_human_s(
    gate: Gate, looker: Looker, refusing: Refusing
) -> None:
    assert gate.upload(FILE).status == 201
    refusing.refusal, looker.is_there = (500, "unknown-error"), True
    until(lambda: imports(refusing) == 1)
    for refusal in [
        (500, "unknown-error"),
        (401, "invalid-api-token"),
        (403, "x"),
        (400, "failed-external-validation"),
        (400, "duplicate-alias"),  # an earlier attempt may have got there, and shows in a moment
    ]:
        until(lambda: the_case(gate).leased_by is None)
        before, refusing.refusal = imports(refusing), refusal
        at_once(gate)
        until(lambda before=before: imports(refusing) > before)  # type: ignore[misc]
        until(lambda: the_case(gate).leased_by is None)
        case = the_case(gate)
        assert case.state is CaseState.RELEASING and case.tries == 0
        assert case.decided_at is None  # a human may confirm it, and need not wait for that
    assert len(looker.looks) == 1  # it is known to be harmless
    refusing.refusal = (400, "validate-width")
    at_once(gate)
    until(lambda: the_case(gate).state is CaseState.PENDING)
    refused = [entry.facts for entry in gate.ledger() if entry.act == "pending"]
    assert refused == [{"release refused": "400 validate-width"}]
    assert refusing.deleted and refusing.stored == []


def test_what_a_human_has_released_before_passes_the_hook_when_the_gate_stores_it(
    gate: Gate, looker: Looker, refusing: Refusing
) -> None:
    rewritten = pictures.encode(Image.open(io.BytesIO(FILE)), "PNG", compress_level=1)
    looker.hits = {pixels(FILE)}
    assert gate.upload(FILE).status == 201
    before = a_case(9, state=CaseState.RELEASED, decided_by="ann", gate_reads=False)
    before.pdq, before.pdq_quality = pixels(FILE), 100
    allowed = KnownHash(sha256=before.sha256, verdict="allow", added_at=datetime.now(UTC), added_by="ann")
    with gate.database() as database, database.writing() as session:
        session.add_all([before, allowed])

    def hook() -> int:
        headers = {"Content-Type": "image/png"}
        return send(gate.internal_url, "POST", "/validate", headers=headers, body=rewritten).status

    refusing.asks = hook
    looker.is_there = True
    until(lambda: the_case(gate).state is not CaseState.DEFERRED and the_case(gate).leased_by is None)
    assert the_case(gate).state is CaseState.RELEASED
    assert sha256(rewritten) in looker.looks and hook() == 406  # on no other occasion


def test_killed_after_the_import_what_was_confirmed_meanwhile_is_taken_back(
    gate: Gate, looker: Looker, refusing: Refusing
) -> None:
    alias = gate.upload(FILE).json()["files"][0]["file"]
    gate.stop()
    looker.is_there = True
    gate.start({"PICTRS_GATE_FAULT": "imported"})
    assert gate.program is not None and gate.program.process.wait(60) == -9
    assert the_case(gate).state is CaseState.RELEASING and len(refusing.stored) == 1
    refusing.refusal = (500, "unknown-error")
    gate.start()
    until(lambda: imports(refusing) == 2 and the_case(gate).leased_by is None)
    # Only this attempt is over. For what the killed gate has sent a human has to wait.
    assert the_case(gate).decided_at is not None
    with gate.database() as database, database.writing() as session:
        known = KnownHash(
            sha256=sha256(FILE),
            verdict="block",
            added_at=datetime.now(UTC),
            added_by="ann",
            case_id="another",
        )
        session.add(known)
    at_once(gate)
    until(lambda: the_case(gate).state is CaseState.PENDING)
    case = the_case(gate)
    assert any(alias in target for target in refusing.deleted) and len(refusing.stored) == 1
    assert (case.decided_at, case.decided_by) == (None, None)
    assert [promise.stored_at for promise in case.promises] == [None]
    gate.decide("confirm", case.id)


def test_a_case_whose_file_cannot_be_read_waits_and_a_damaged_one_is_a_human_s(
    gate: Gate, looker: Looker
) -> None:
    for seed in (1, 2, 3):
        assert gate.upload(pictures.png((64, 48), seed=910_000 + seed)).status == 201
    gone, damaged, _ = sorted((gate.folder / "cases").glob("*.age"))
    away = gate.folder / "away"
    gone.rename(away)
    damaged.write_bytes(damaged.read_bytes()[:-100])
    looker.is_there = True

    def states() -> dict[str, str]:
        return {case["id"]: case["state"] for case in gate.cases()}

    until(lambda: sorted(states().values()) == ["deferred", "pending", "released"])
    assert states()[gone.stem] == "deferred" and states()[damaged.stem] == "pending"
    assert [entry.case_id for entry in gate.ledger() if entry.act == "resealed"].count(gone.stem) == 0
    away.rename(gone)
    at_once(gate)
    until(lambda: states()[gone.stem] == "released")


def test_a_second_start_by_mistake_takes_nothing_from_the_first(gate: Gate) -> None:
    assert gate.upload(FILE).status == 201
    with gate.database() as database:
        owner = f"{socket.gethostname()} 127.0.0.1:{gate.port}"
        leased = backlog.lease_case(database, lease(owner, for_s=600))
    assert leased is not None
    second = gate.run("serve", "--config", str(gate.config), check=False)
    assert second.returncode == 1
    assert the_case(gate).leased_until == leased.leased_until


def test_what_the_backlog_has_to_do_is_on_the_metrics(gate: Gate) -> None:
    assert gate.upload(FILE).status == 201
    until(lambda: b'pictrs_gate_backlog{kind="deferred"} 1.0' in get(gate.internal_url, "/metrics").body)


def test_a_gate_without_a_key_file_that_it_can_make_does_not_start(gate: Gate) -> None:
    gate.stop()
    text = gate.config.read_text().replace("[cases]", '[cases]\ngate_identity_file = "nowhere/gate.key"')
    gate.config.write_text(text)
    said = gate.run("serve", "--config", str(gate.config), check=False)
    assert said.returncode == 1 and "cases.gate_identity_file: " in said.stderr
