"""An outage played through: every upload ends where it belongs, by itself, whatever is killed meanwhile."""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from proxy.cases.evidence import Files, check_files
from proxy.cases.sealing import open_sealed, read_identities
from proxy.database import backlog
from proxy.errors import SealingError
from tests import pictrs, pictures
from tests.client import get, send
from tests.gate import Gate, Twin
from tests.looker import HIT, Looker, pixels, sha256, until
from tests.pictrs import Pictrs

UPLOADS = int(os.environ.get("GATE_OUTAGE_UPLOADS", "40"))
SEEDS = itertools.count(920_000)


@pytest.fixture
def quick(tmp_path: Path) -> Iterator[Pictrs]:
    """The stand-in, as the real one takes half a second an import; `make outage` takes the real one."""
    is_asked_for = "GATE_OUTAGE_UPLOADS" in os.environ
    running = Pictrs(tmp_path / "pict-rs", real=pictrs.find() if is_asked_for else None)
    yield running
    running.stop()


@pytest.fixture
def usual(tmp_path: Path) -> Iterator[Pictrs]:
    """The real one where there is one, with nothing in it."""
    running = Pictrs(tmp_path / "pict-rs", real=pictrs.find())
    yield running
    running.stop()


@pytest.fixture
def looker() -> Iterator[Looker]:
    made = Looker()
    yield made
    made.close()


@pytest.fixture
def started(tmp_path: Path, looker: Looker) -> Iterator[Callable[..., Gate]]:
    """Starts a gate whose classifier is away."""
    made: list[Gate] = []

    def start(before: Pictrs, **policy: object) -> Gate:
        made.append(
            Gate(
                tmp_path / "gate",
                pictrs_url=before.url,
                api_key=before.api_key,
                classifier_url=looker.url,
                policy=policy,
            )
        )
        return made[0]

    yield start
    for gate in made:
        gate.stop()


def drawn() -> bytes:
    return pictures.png((64, 48), seed=next(SEEDS))


def upload_all(gate: Gate, contents: list[bytes]) -> dict[str, bytes]:
    """The aliases that were promised for some pictures."""

    async def all_of_them() -> dict[str, bytes]:
        limit = asyncio.Semaphore(8)

        async def one(content: bytes) -> tuple[str, bytes]:
            async with limit:
                answer = await asyncio.to_thread(gate.upload, content)
                assert answer.status == 201
                return answer.json()["files"][0]["file"], content

        return dict(await asyncio.gather(*map(one, contents)))

    return asyncio.run(all_of_them())


def states(gate: Gate) -> Counter[str]:
    with gate.database() as database:
        from proxy.database import cases

        return Counter(case.state.value for case in cases.listed(database, limit=10_000))


def waits(gate: Gate) -> backlog.Waiting:
    with gate.database() as database:
        return backlog.waiting(database)


def resealed(gate: Gate) -> int:
    return sum(entry.act == "resealed" for entry in gate.ledger())


def stored(pictrs: Pictrs) -> list[list[str]]:
    """The aliases of each file that pict-rs has."""
    answer = send(pictrs.url, "GET", "/internal/hashes?limit=1000", headers={"X-Api-Token": pictrs.api_key})
    return [entry["aliases"] for entry in answer.json()["page"]["hashes"]]


def shows(url: str, alias: str, content: bytes) -> bool:
    """Whether a picture is at an alias."""
    answer = get(url, f"/image/original/{alias}")
    return answer.status == 200 and pixels(answer.body) == pixels(content)


@pytest.mark.timeout(300 + 4 * UPLOADS)
def test_after_an_outage_every_upload_ends_where_it_belongs(
    started: Callable[..., Gate], quick: Pictrs, looker: Looker
) -> None:
    contents = [drawn() for _ in range(UPLOADS)]
    hits = contents[::12]
    looker.hits = {pixels(content) for content in hits}
    gate = started(quick)
    began = time.monotonic()
    aliases = upload_all(gate, contents)
    deferred_s = time.monotonic() - began
    assert states(gate) == {"deferred": UPLOADS} and stored(quick) == []
    shown = json.loads(gate.run("queue", "--json", "--config", str(gate.config)).stdout)
    assert shown["deferred"] == UPLOADS and shown["since"]

    second = Twin(gate)
    try:
        looker.is_there, began = True, time.monotonic()
        until(lambda: len(looker.looks) > UPLOADS // 6, within_s=UPLOADS + 90)
        assert gate.program is not None
        gate.program.kill()  # whatever it has in hand
        gate.start()
        expected = {"released": UPLOADS - len(hits), "pending": len(hits)}
        until(lambda: states(gate) == expected, within_s=2 * UPLOADS + 90, every_s=UPLOADS / 250)
        settled_s = time.monotonic() - began
        until(lambda: resealed(gate) == UPLOADS)
    finally:
        second.program.stop()
    print(f"\n{UPLOADS} uploads deferred in {deferred_s:.0f} s; settled {settled_s:.0f} s after the return")

    # Nobody else was needed, nothing was done twice but what was in hand when the gate died.
    times = Counter(looker.looks)
    assert set(times) == {sha256(content) for content in contents}
    assert sum(times.values()) <= UPLOADS + 2
    assert sorted(stored(quick)) == sorted([alias] for alias in aliases if aliases[alias] not in hits)
    for alias, content in list(aliases.items())[:13]:
        assert get(gate.url, f"/image/original/{alias}").status == 200
        assert shows(gate.url, alias, content) == (content not in hits)
    own = read_identities(gate.folder / "gate.key")
    for case in gate.cases():
        file = gate.folder / "cases" / f"{case['id']}.age"
        with pytest.raises(SealingError):
            open_sealed(file, own)
        if case["state"] == "pending":
            assert case["signals"] == HIT and case["reason"].startswith("rule: ")
            facts = open_sealed(file, read_identities(gate.key)).facts
            assert facts["verdict"] == "defer" and facts["looked_later"]["signals"] == HIT
        else:
            assert case["decided_by"] == "gate"
    assert "Nothing waits" in gate.run("queue", "--config", str(gate.config)).stdout

    # It was no human's word: the same bytes are looked at again, and a human may still say otherwise.
    released = next(case for case in gate.cases() if case["state"] == "released")
    gate.decide("confirm", released["id"])
    assert get(quick.url, f"/image/original/{released['alias']}").status == 404
    assert get(gate.url, f"/image/original/{released['alias']}").headers["cache-control"] == "no-store"


@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    "point",
    ["backlog-looked", "imported", "backlog-settled", "case-written", "backlog-resealed", "case-replaced"],
)
def test_killed_anywhere_in_the_backlog_nothing_is_lost_or_done_twice(
    started: Callable[..., Gate], usual: Pictrs, looker: Looker, point: str
) -> None:
    gate = started(usual)
    harmless, hit = drawn(), drawn()
    looker.hits = {pixels(hit)}
    aliases = {content: alias for alias, content in upload_all(gate, [harmless, hit]).items()}
    gate.stop()
    looker.is_there = True
    gate.start({"PICTRS_GATE_FAULT": point})
    assert gate.program is not None
    assert gate.program.process.wait(60) == -9
    gate.start()
    until(lambda: states(gate) == {"released": 1, "pending": 1})
    until(lambda: resealed(gate) == 2)
    assert shows(gate.url, aliases[harmless], harmless)
    assert not shows(gate.url, aliases[hit], hit)
    assert stored(usual) == [[aliases[harmless]]]
    for case in gate.cases():  # what the look said has outlived the crash
        opened = open_sealed(gate.folder / "cases" / f"{case['id']}.age", read_identities(gate.key))
        assert opened.facts["looked_later"]["signals"] == case["signals"] is not None
        with pytest.raises(SealingError):
            open_sealed(
                gate.folder / "cases" / f"{case['id']}.age", read_identities(gate.folder / "gate.key")
            )
    assert len(list((gate.folder / "cases").glob("*.age"))) == 2
    with gate.database() as database:  # and each file is one that the ledger names
        assert check_files(database, gate.folder / "cases") == Files(held=2)


@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    "point", [None, "unseen-stored", "case-sealed", "unseen-held", "alias-taken", "all-taken"]
)
def test_what_was_allowed_unseen_is_looked_at_and_a_hit_is_sealed_and_taken_away(
    started: Callable[..., Gate], usual: Pictrs, looker: Looker, point: str | None
) -> None:
    gate = started(usual, on_unavailable="allow")
    harmless, hit, other = drawn(), drawn(), drawn()
    looker.hits = {pixels(hit)}
    aliases = {content: alias for alias, content in upload_all(gate, [harmless, hit]).items()}
    again = gate.upload(hit).json()["files"][0]  # one file in pict-rs with two aliases
    assert shows(gate.url, aliases[hit], hit)
    assert waits(gate).unseen == 3 and gate.cases() == []

    gate.stop()
    if point == "unseen-stored":
        gate.start({"PICTRS_GATE_FAULT": point})
        with pytest.raises(OSError):
            gate.upload(other)  # nobody is told its alias, and the ledger has it
        assert [entry.act for entry in gate.ledger()].count("allowed unseen") == 4
    looker.is_there = True
    if point is None or point == "unseen-stored":
        gate.start()
    else:
        gate.start({"PICTRS_GATE_FAULT": point})
        assert gate.program is not None and gate.program.process.wait(60) == -9
        gate.start()
    until(lambda: waits(gate).unseen == 0)
    for alias in (aliases[hit], again["file"]):
        assert get(usual.url, f"/image/original/{alias}").status == 404
        shown = get(gate.url, f"/image/original/{alias}")
        assert shown.status == 200 and shown.headers["cache-control"] == "no-store"
        assert not shows(gate.url, alias, hit)
    assert shows(gate.url, aliases[harmless], harmless)
    # What a crash has left sealed without a row is adopted after a minute, without an alias.
    (case,) = [case for case in gate.cases() if case["alias"]]
    assert case["state"] == "pending" and case["signals"] == HIT
    opened = open_sealed(gate.folder / "cases" / f"{case['id']}.age", read_identities(gate.key))
    assert pixels(opened.original) == pixels(hit)
    assert opened.facts["route"] == "POST /image" and opened.facts["uploader"]["address"] == "127.0.0.1"
    # Two have sent it. The one whose turn it was came first, and the other one is not forgotten.
    assert opened.facts["passed_unseen"]["uploaded_sha256"] == sha256(hit)
    (second,) = opened.facts["also_passed_unseen"]
    assert (second["alias"], second["uploader"]["address"]) == (again["file"], "127.0.0.1")

    if point is None:
        gate.decide("release", case["id"])
        assert shows(usual.url, aliases[hit], hit)
        assert shows(usual.url, again["file"], hit)
        gone = send(gate.url, "DELETE", f"/image/delete/{again['delete_token']}/{again['file']}")
        assert gone.status == 204  # with the token that pict-rs gave at first
    else:
        gate.decide("confirm", case["id"])
        refused = gate.upload(hit)
        assert (refused.status, refused.json()["code"]) == (400, "failed-external-validation")
