"""Held by a backfill: sealed, a placeholder at every alias, gone from pict-rs; and put back as it was."""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import json
import signal
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import update

from proxy import faults
from proxy.aliases import alias_key
from proxy.backfill.holding import Holding
from proxy.backfill.looking import Result
from proxy.backfill.options import Options
from proxy.backfill.sources import Entry
from proxy.cases.quarantine import Quarantine
from proxy.cases.sealing import Sealer, open_sealed, read_identities, write_new_identity
from proxy.cases.stored import take_away
from proxy.database import BackfillHit, Case, CaseState, Database, Promise, cases, decisions, taking
from proxy.database import backfill as runs
from proxy.database.backfill import Batch, Looked
from proxy.errors import CaseError, PictrsError
from proxy.intake.budget import Budget
from proxy.pictrs import Pictrs
from tests import pictrs, pictures
from tests.client import form, get, send, upload
from tests.conftest import SIGNALS
from tests.fake import Asked, Fake, Reply, json_reply
from tests.gate import Classifier, Gate, scripted
from tests.kept import keeper_of
from tests.processes import Program

NewGate = Callable[..., Gate]
PICTRS_GATE = Path(sys.executable).parent / "pictrs-gate"
NAMES = ("first-name.png", "third.name.png", "0f8fad5b-d9cb-469f-a165-70867728950e.png")
# Larger than the classifier here takes: nobody looks at it.
LARGE = pictures.encode(pictures.draw((700, 700), seed=5779), "PNG", compress_level=0)


def planted(seed: int) -> bytes:
    """A PNG without metadata, which pict-rs keeps as it is. Those from 5100 to 5119 are hits."""
    return pictures.png((90, 60), seed=seed)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[pictrs.Pictrs]:
    running = pictrs.Pictrs(tmp_path_factory.mktemp("store"), real=pictrs.find())
    yield running
    running.stop()


@pytest.fixture(scope="module")
def looking(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Classifier]:
    folder = tmp_path_factory.mktemp("looking")
    recipe = scripted(folder, {planted(5100 + number): SIGNALS for number in range(20)})
    running = Classifier(folder, ensemble=recipe, options=["--max-body-mb", "1"])
    yield running
    running.stop()


@pytest.fixture
def gate(new_gate: NewGate, store: pictrs.Pictrs, looking: Classifier) -> Gate:
    return new_gate(pictrs_url=store.url, api_key=store.api_key, classifier_url=looking.url)


def imported(store: pictrs.Pictrs, content: bytes, *names: str) -> None:
    for name in names:
        content_type, body = form([(name, content)])
        headers = {"Content-Type": content_type, "X-Api-Token": store.api_key}
        assert send(store.url, "POST", "/internal/import", headers=headers, body=body).status == 201


def shown(url: str, alias: str) -> bytes | None:
    answer = get(url, f"/image/original/{alias}")
    return answer.body if answer.status == 200 else None


def run(gate: Gate, *words: str, check: bool = True, fault: str = "") -> Any:
    return gate.run(
        *("backfill", "run", "--config", str(gate.config), "--json", *words),
        check=check,
        env={"PICTRS_GATE_FAULT": fault},
    )


def test_a_file_of_three_aliases_is_held_and_after_its_release_all_three_show_the_same_bytes(
    gate: Gate, store: pictrs.Pictrs
) -> None:
    content, harmless = planted(5100), planted(5300)
    imported(store, content, *NAMES)
    other = upload(store.url, harmless).json()["files"][0]["file"]
    unread = upload(store.url, LARGE).json()["files"][0]["file"]
    files = len(store.stored_files())

    report = json.loads(run(gate, "--action", "hold").stdout)
    assert (report["hit_count"], report["held"], report["unreadable"]) == (1, 1, 1)
    (hit,) = report["hits"]
    (case,) = gate.cases()
    assert hit["case"] == case["id"] and sorted(hit["aliases"]) == sorted(NAMES)
    assert (case["state"], case["signals"], case["rule"]) == ("pending", SIGNALS, "a suspicion")
    assert {promise["alias"] for promise in case["promises"]} == set(NAMES)
    for name in NAMES:
        placeholder = shown(gate.url, name)
        assert placeholder is not None and placeholder != content
        assert shown(store.url, name) is None
    assert shown(gate.url, other) == harmless and shown(gate.url, unread) == LARGE
    if store.is_real:
        for _ in range(100):  # its queue removes the file a moment later
            if len(store.stored_files()) == files - 1:
                break
            time.sleep(0.05)
        assert len(store.stored_files()) == files - 1
    opened = open_sealed(gate.folder / "cases" / f"{case['id']}.age", read_identities(gate.key))
    assert opened.original == content
    assert sorted(opened.facts["found_by_backfill"]["aliases"]) == sorted(NAMES)
    assert [entry.act for entry in gate.ledger()] == ["pending", "taken from pict-rs"]

    said = gate.review("release", case["id"], "--reviewer", "ann").stdout
    assert "released" in said and "cannot be put back: the delete tokens" in said
    assert all(name in said for name in NAMES)
    for name in NAMES:
        assert shown(gate.url, name) == shown(store.url, name) == content
    again = json.loads(run(gate, "--action", "hold").stdout)
    assert (again["hit_count"], again["held"]) == (0, 0)  # a human has decided


POINTS = ("case-sealed", *faults.BACKFILLING, *faults.TAKING_AWAY)


@pytest.mark.parametrize("point", POINTS)
def test_killed_while_it_holds_a_hit_nothing_is_lost_and_the_next_run_ends_it(
    new_gate: NewGate, store: pictrs.Pictrs, looking: Classifier, point: str
) -> None:
    content = planted(5101 + POINTS.index(point))
    names = [f"{point}-{number}.png" for number in range(2)]
    imported(store, content, *names)
    gate = new_gate(pictrs_url=store.url, api_key=store.api_key, classifier_url=looking.url)
    assert run(gate, "--action", "hold", "--prefix", point, check=False, fault=point).returncode == -9
    if point == "case-sealed":  # without a row: a placeholder stands for nothing yet, and pict-rs has all
        assert gate.cases() == []
        assert [shown(gate.url, name) for name in names] == [content, content]
    else:
        assert len(gate.cases()) == 1
        assert all(shown(gate.url, name) not in (None, content) for name in names)
    if point == "hit-held":
        assert [shown(store.url, name) for name in names] == [content, content]

    report = json.loads(run(gate, "--action", "hold").stdout)
    assert (report["run"], report["state"], report["looked_at"]) == (1, "finished", 1)
    assert (report["hit_count"], report["held"]) == (1, 1)
    assert [case["state"] for case in gate.cases()] == ["pending"]
    assert [shown(store.url, name) for name in names] == [None, None]
    assert all(shown(gate.url, name) not in (None, content) for name in names)


def test_a_release_first_ends_the_taking_away_that_a_crash_has_cut_off(
    gate: Gate, store: pictrs.Pictrs
) -> None:
    content, names = planted(5105), ("cut-off-1.png", "cut-off-2.png")
    imported(store, content, *names)
    run(gate, "--action", "hold", "--prefix", "cut-off", check=False, fault="hit-held")
    with gate.database() as database:  # whoever was taking it away is long gone
        case_id = cases.listed(database)[0].id
    gate.decide("release")
    for name in names:
        assert shown(gate.url, name) == shown(store.url, name) == content
    acts = [entry.act for entry in gate.ledger() if entry.case_id == case_id]
    assert acts == ["pending", "taken from pict-rs", "releasing", "released"]
    refused = run(gate, check=False)
    assert refused.returncode == 1
    assert "run 1 (pictrs, action hold, prefix cut-off) is not finished" in refused.stderr
    status = gate.run("backfill", "status", "--config", str(gate.config), env={"COLUMNS": "160"}).stdout
    assert "action hold, prefix cut-off" in status
    gone_on = run(gate, "--action", "hold").stderr.splitlines()
    assert "goes on with run 1: pictrs, action hold, prefix cut-off" in gone_on[0]
    for name in names:  # and what was begun before the release takes nothing of it away
        assert shown(gate.url, name) == content


def test_what_a_killed_run_has_left_in_pict_rs_the_gate_takes_away_itself(
    gate: Gate, store: pictrs.Pictrs
) -> None:
    content = planted(5107)
    imported(store, content, "left.png")
    run(gate, "--action", "hold", "--prefix", "left", check=False, fault="hit-held")
    gate.stop()
    gate.start()  # young cases it leaves to whoever has made them
    assert shown(store.url, "left.png") == content
    gate.stop()
    with gate.database() as database, database.writing() as session:
        session.execute(update(Case).values(created_at=datetime.now(UTC) - timedelta(minutes=2)))
    gate.start()
    assert gate.program is not None
    gate.program.wait_until(lambda: gate.ledger()[-1].act == "taken from pict-rs")
    assert shown(store.url, "left.png") is None
    acts = [entry.act for entry in gate.ledger() if entry.case_id == gate.cases()[0]["id"]]
    assert acts == ["pending", "taken from pict-rs"]


def test_what_was_reported_before_is_held_without_another_look_and_confirmed_it_stays_away(
    gate: Gate, store: pictrs.Pictrs, looking: Classifier
) -> None:
    content = planted(5106)
    imported(store, content, "reported-first.png")
    assert json.loads(run(gate, "--prefix", "reported").stdout)["hits"][0]["case"] is None
    assert shown(store.url, "reported-first.png") == content
    looks = _looks(looking)
    report = json.loads(run(gate, "--prefix", "reported", "--action", "hold").stdout)
    assert (report["held"], _looks(looking)) == (1, looks)
    assert gate.cases()[0]["signals"] == SIGNALS
    gate.decide("confirm")
    assert shown(store.url, "reported-first.png") is None
    assert shown(gate.url, "reported-first.png") not in (None, content)


def test_a_watch_holds_what_it_has_only_reported_and_the_same_bytes_whenever_they_are_stored_again(
    new_gate: NewGate, store: pictrs.Pictrs, looking: Classifier, tmp_path: Path
) -> None:
    gate = new_gate(pictrs_url=store.url, api_key=store.api_key, classifier_url=looking.url, start=False)
    content = planted(5108)

    @contextmanager
    def watch(*words: str) -> Iterator[Program]:
        here = ("--every", "1s", "--config", str(gate.config), *words)
        program = Program([PICTRS_GATE, "backfill", "watch", *here], tmp_path / f"watch{len(words)}.log")
        program.wait_until(lambda: "watching" in program.output())
        yield program
        program.process.send_signal(signal.SIGINT)
        assert program.process.wait(20) == 0

    with watch() as program:
        imported(store, content, "watched-first.png")
        program.wait_until(lambda: "hold: watched-first.png" in program.output())
    assert shown(store.url, "watched-first.png") == content
    with watch("--action", "hold") as program:
        for alias in ("watched-first.png", "watched-again.png", "watched-third.png"):
            if alias != "watched-first.png":
                imported(store, content, alias)
            program.wait_until(lambda alias=alias: f"hold: {alias}" in program.output())
            program.wait_until(lambda alias=alias: shown(store.url, alias) is None)
    assert len(gate.cases()) == 3
    runs_ = json.loads(gate.run("backfill", "status", "--json", "--config", str(gate.config)).stdout)
    assert [(one["hit_count"], one["held"]) for one in runs_] == [(1, 3)]


def _looks(looking: Classifier) -> float:
    lines = get(looking.url, "/metrics").body.decode().splitlines()
    return sum(float(line.split()[-1]) for line in lines if 'outcome="ok",priority="backfill"' in line)


def test_a_hit_in_a_folder_is_held_where_pict_rs_is_there_and_stops_the_run_where_it_is_away(
    new_gate: NewGate, store: pictrs.Pictrs, looking: Classifier, tmp_path: Path
) -> None:
    content, folder = planted(5109), tmp_path / "folder"
    imported(store, content, "in-a-folder.png")
    folder.mkdir()
    (folder / "a.png").write_bytes(content)
    words = ("--source", f"files:{folder}")

    def gate_at(url: str, key: str) -> Gate:
        return new_gate(pictrs_url=url, api_key=key, classifier_url=looking.url, start=False)

    away = gate_at("http://127.0.0.1:9", store.api_key)
    stopped = run(away, *words, "--action", "hold", check=False)
    assert stopped.returncode == 1 and "pict-rs cannot be reached" in stopped.stderr
    (reported,) = json.loads(run(away, *words, "--new").stdout)["hits"]
    assert "pict-rs could not be asked" in reported["reason"] and reported["aliases"] == []
    wrong = run(gate_at(store.url, "wrong"), *words, "--action", "hold", check=False)
    assert wrong.returncode == 1 and "invalid-api-token" in wrong.stderr
    assert shown(store.url, "in-a-folder.png") == content
    gate = gate_at(store.url, store.api_key)
    assert json.loads(run(gate, *words, "--action", "hold").stdout)["held"] == 1
    assert shown(store.url, "in-a-folder.png") is None


def test_an_action_that_needs_pict_rs_is_refused_without_its_key(
    new_gate: NewGate, store: pictrs.Pictrs, looking: Classifier, tmp_path: Path
) -> None:
    gate = new_gate(
        pictrs_url=store.url,
        api_key=None,
        classifier_url=looking.url,
        policy={"hold_response": "reject"},
        start=False,
    )
    refused = run(gate, "--action", "hold", "--source", f"files:{tmp_path}", check=False)
    assert refused.returncode == 1 and "--action hold: needs pictrs.api_key" in refused.stderr


# --- a pict-rs that does what the test says ---


@dataclass
class Upstream:
    """One original with its aliases, in a pict-rs whose queue is worked off when the test says so."""

    content: bytes
    aliases: list[str]
    works: bool = True
    gone: bool = False
    asked: list[str] = field(default_factory=list)

    @property
    def hex(self) -> str:
        return f"{hashlib.sha256(self.content).hexdigest()}{len(self.content):012x}07"

    def reply(self, asked: Asked) -> Reply:
        route, _, query = asked.target.partition("?")
        self.asked.append(f"{asked.method} {asked.target}")
        if route == "/internal/hashes":
            slug = base64.urlsafe_b64encode(bytes.fromhex(self.hex)).decode().rstrip("=")
            page = [{"hex": self.hex, "aliases": list(self.aliases), "details": None}]
            hashes = page if not self.gone and f"slug={slug}" in query else []
            return json_reply(200, {"page": {"hashes": hashes, "next": None}, "msg": "ok"})
        if route == "/internal/delete":
            alias = query.partition("=")[2]
            if alias in self.aliases:
                self.aliases.remove(alias)
                self.gone = self.works and not self.aliases
            return json_reply(200, {"msg": "ok"})
        if route.startswith("/image/original/"):
            return Reply(200 if route.rpartition("/")[2] in self.aliases else 404, self.content)
        raise AssertionError(asked.target)


@asynccontextmanager
async def holding_of(
    tmp_path: Path, upstream: Upstream, database: Database
) -> AsyncIterator[tuple[Holding, Pictrs]]:
    fault = faults.from_environment()
    recipient = write_new_identity(tmp_path / "key")
    quarantine = Quarantine(tmp_path / "cases", Sealer([recipient]), fault)
    keeper = keeper_of(database, quarantine, tmp_path / "cases", fault)
    fake = Fake(upstream.reply)
    client = Pictrs(fake.url, "key", 5.0)
    first = runs.begin(database, kind="run", options=Options(action="hold").to_json(), newest=None)
    try:
        yield (
            Holding(
                database=database,
                keeper=keeper,
                pictrs=client,
                budget=Budget(2**24),
                largest=2**22,
                fault=fault,
                run_id=first.id,
                by="backfill run",
            ),
            client,
        )
    finally:
        await client.close()
        fake.close()
        keeper.close()


def hit_of(upstream: Upstream, aliases: Sequence[str] = ()) -> tuple[Entry, Result]:
    sha256 = upstream.hex[:64]
    found = BackfillHit(
        run_id=1,
        hex=upstream.hex,
        place=upstream.hex,
        verdict="hold",
        reason="rule: a suspicion",
        aliases=list(aliases or upstream.aliases),
        signals={"sexual": 0.9},
        stored_at=None,
    )
    looked = Looked(bytes.fromhex(sha256), None, "eye 1", {"sexual": 0.9})
    return Entry(upstream.hex, len(upstream.content), sha256, upstream.aliases), Result((looked,), found)


async def held(holding: Holding, upstream: Upstream, aliases: Sequence[str] = ()) -> BackfillHit:
    entry, result = hit_of(upstream, aliases)
    left = await holding.hold(entry, None, result)
    if not left.is_recorded:
        await holding.database.run(
            runs.record, 1, Batch(findings=[left.finding] if left.finding is not None else [])
        )
    (found,) = runs.hits_of(holding.database, 1)
    return found


async def test_bytes_that_are_not_those_that_were_looked_at_are_left_alone(
    tmp_path: Path, database: Database
) -> None:
    upstream = Upstream(planted(1), ["a.png"])
    true_hex = upstream.hex
    async with holding_of(tmp_path, upstream, database) as (holding, _):
        served = upstream.reply

        def lies(asked: Asked) -> Reply:
            answer = served(asked)
            return Reply(200, planted(2)) if asked.target.startswith("/image/") else answer

        fake = Fake(lies)
        client = Pictrs(fake.url, "key", 5.0)
        found = await held(dataclasses.replace(holding, pictrs=client), upstream)
        await client.close()
        fake.close()
    assert found.hex == true_hex and found.case_id is None and "other bytes" in (found.not_held or "")
    assert cases.listed(database) == [] and upstream.aliases == ["a.png"]


async def test_an_original_that_does_not_come_stops_no_run_where_pict_rs_answers_else(
    tmp_path: Path, database: Database
) -> None:
    upstream = Upstream(planted(1), ["a.png"])
    async with holding_of(tmp_path, upstream, database) as (holding, _):
        served = upstream.reply

        def silent(asked: Asked) -> Reply:
            if asked.target.startswith("/image/"):
                raise ConnectionResetError("no answer")
            return served(asked)

        fake = Fake(silent)
        client = Pictrs(fake.url, "key", 5.0)
        found = await held(dataclasses.replace(holding, pictrs=client), upstream)
        await client.close()
        fake.close()
    assert found.case_id is None and (found.not_held or "").endswith("to be tried again")
    assert cases.listed(database) == [] and upstream.aliases == ["a.png"]


async def test_an_alias_that_came_since_the_listing_is_a_placeholder_too(
    tmp_path: Path, database: Database
) -> None:
    upstream = Upstream(planted(1), ["a.png", "b.png"])
    async with holding_of(tmp_path, upstream, database) as (holding, _):
        found = await held(holding, upstream, ["a.png"])
    (case,) = cases.listed(database)
    assert found.case_id == case.id
    assert [promise.alias for promise in case.promises] == ["a.png", "b.png"]
    assert all(promise.stored_at is None and promise.token_lost for promise in case.promises)
    assert upstream.gone
    run = runs.get(database, 1)
    assert (run.looked_at, run.hits, run.held, run.histogram["sexual"][18]) == (1, 1, 1, 1)
    assert runs.files(database, [bytes.fromhex(upstream.hex[:64])])


async def test_an_alias_that_came_after_the_sealing_is_a_placeholder_before_it_goes(
    tmp_path: Path, database: Database
) -> None:
    upstream = Upstream(planted(1), ["a.png"])

    def meanwhile(point: str) -> None:
        if point == "hit-held":
            upstream.aliases.append("late.png")

    async with holding_of(tmp_path, upstream, database) as (holding, _):
        await held(dataclasses.replace(holding, fault=meanwhile), upstream)
    (case,) = cases.listed(database)
    assert [promise.alias for promise in case.promises] == ["a.png", "late.png"]
    assert upstream.gone


async def test_while_pict_rs_has_not_ended_its_taking_away_nothing_is_put_back(
    tmp_path: Path, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its queue would purge the file once more, with the alias that has just come back."""
    monkeypatch.setattr("proxy.cases.stored._GONE_S", 0.2)
    upstream = Upstream(planted(1), ["a.png"], works=False)
    async with holding_of(tmp_path, upstream, database) as (holding, client):
        found = await held(holding, upstream)
        case_id = str(found.case_id)
        assert taking.not_taken(database) == [case_id]
        with pytest.raises(CaseError, match="just being taken away"):
            await take_away(database, client, holding.fault, case_id, by="release 1")
        with pytest.raises(CaseError, match="just being taken away"):
            decisions.releasing(database, case_id, by="ann", sha256=upstream.hex[:64])
        assert await holding.take_rest() == 1
        upstream.gone = True
        assert await holding.take_rest() == 0
    assert taking.not_taken(database) == []
    decisions.releasing(database, case_id, by="ann", sha256=upstream.hex[:64])


async def test_only_the_last_alias_is_deleted_alone(tmp_path: Path, database: Database) -> None:
    """Two deletions at once may both have been the last, and then pict-rs removes the file twice."""
    names = [f"{number:03}.png" for number in range(40)]
    upstream = Upstream(planted(1), list(names))
    async with holding_of(tmp_path, upstream, database) as (holding, _):
        await held(holding, upstream)
    at = [number for number, line in enumerate(upstream.asked) if "/internal/delete" in line]
    assert len(at) == 40
    assert any("/internal/hashes" in line for line in upstream.asked[at[-2] + 1 : at[-1]])


def case_with(database: Database, alias: str, state: CaseState, by: str | None) -> str:
    now = datetime.now(UTC)
    case = Case(id=f"older-{state.value}", state=state, created_at=now, reason="r", file="f.age")
    case.decided_at, case.decided_by = now, by
    case.promises.append(
        Promise(
            alias=alias,
            alias_key=alias_key(alias),
            delete_token="known-token",
            details={"width": 1, "height": 1},
            arguments=[],
            stored_at=now if state is CaseState.RELEASED else None,
            stored_token="pict-rs's own",
        )
    )
    cases.add(database, case, facts={})
    return case.id


async def test_what_the_gate_has_released_by_itself_is_held_under_the_tokens_that_it_had(
    tmp_path: Path, database: Database
) -> None:
    older = case_with(database, "a.png", CaseState.RELEASED, decisions.GATE)
    upstream = Upstream(planted(1), ["a.png", "b.png"])
    async with holding_of(tmp_path, upstream, database) as (holding, _):
        found = await held(holding, upstream)
    case = cases.get(database, str(found.case_id))
    assert cases.get(database, older).promises == []
    tokens = {promise.alias: (promise.delete_token, promise.token_lost) for promise in case.promises}
    assert tokens["a.png"] == ("known-token", False) and tokens["b.png"][1]
    assert upstream.gone


async def test_what_a_human_has_released_is_not_held_again(tmp_path: Path, database: Database) -> None:
    older = case_with(database, "a.png", CaseState.RELEASED, "ann")
    upstream = Upstream(planted(1), ["a.png", "b.png"])
    async with holding_of(tmp_path, upstream, database) as (holding, _):
        found = await held(holding, upstream)
    assert found.case_id is None and f"released it in case {older}" in (found.not_held or "")
    assert upstream.aliases == ["a.png", "b.png"]


async def test_what_is_a_case_already_is_not_sealed_twice(tmp_path: Path, database: Database) -> None:
    older = case_with(database, "a.png", CaseState.PENDING, None)
    upstream = Upstream(planted(1), ["a.png"])
    async with holding_of(tmp_path, upstream, database) as (holding, _):
        found = await held(holding, upstream)
    assert found.case_id == older and len(cases.listed(database)) == 1
    assert not list((tmp_path / "cases").iterdir())


async def test_where_pict_rs_is_gone_it_stops_and_takes_nothing_away(
    tmp_path: Path, database: Database
) -> None:
    upstream = Upstream(planted(1), ["a.png"])
    async with holding_of(tmp_path, upstream, database) as (holding, client):
        await client.close()
        nobody = Pictrs("http://127.0.0.1:9", "key", 1.0)
        with pytest.raises(PictrsError):
            await held(dataclasses.replace(holding, pictrs=nobody), upstream)
        await nobody.close()
    assert cases.listed(database) == [] and upstream.aliases == ["a.png"]


async def test_what_is_released_while_somebody_was_slow_to_take_it_away_stays(
    tmp_path: Path, database: Database
) -> None:
    upstream = Upstream(planted(1), ["a.png", "b.png", "c.png"])

    def meanwhile(point: str) -> None:
        if point == "alias-taken" and taking.not_taken(
            database
        ):  # its lease is over, and a reviewer has released the case
            with database.writing() as session:
                case = session.get_one(Case, taking.not_taken(database)[0])
                case.state, case.decided_by = CaseState.RELEASED, "ann"
            upstream.aliases[:] = ["a.png", "b.png", "c.png"]

    async with holding_of(tmp_path, upstream, database) as (holding, _):
        await held(dataclasses.replace(holding, fault=meanwhile), upstream)
    assert upstream.aliases == ["a.png", "b.png", "c.png"]
