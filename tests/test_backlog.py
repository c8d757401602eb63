"""An outage: what nobody could look at is looked at later, by itself and in order, whatever comes between."""

from __future__ import annotations

import asyncio
import hashlib
import itertools
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from proxy.cases.sealing import open_sealed, read_identities
from proxy.errors import SealingError
from tests import pictures
from tests.client import form, get, send
from tests.conftest import SIGNALS
from tests.fake import INFO, SEEN, Asked, Fake, Reply, json_reply
from tests.gate import Classifier, Gate, Twin, scripted
from tests.pictrs import Pictrs
from tests.processes import free_port

HITS = [pictures.jpeg((320, 240), seed=8_000 + number) for number in range(3)]
SEEDS = itertools.count(920_000)
WITHIN_S = 60.0
UPLOADS = int(os.environ.get("GATE_OUTAGE_UPLOADS", "200"))


@pytest.fixture
def gate(tmp_path: Path, running_pictrs: Pictrs) -> Iterator[Gate]:
    """A gate whose classifier is not there yet."""
    running = Gate(
        tmp_path / "gate",
        pictrs_url=running_pictrs.url,
        api_key=running_pictrs.api_key,
        classifier_url=f"http://127.0.0.1:{free_port()}",
    )
    yield running
    running.stop()


@pytest.fixture
def quick(tmp_path: Path) -> Iterator[Pictrs]:
    """The stand-in, for many files."""
    running = Pictrs(tmp_path / "pict-rs", real=None)
    yield running
    running.stop()


def back(gate: Gate, folder: Path) -> Classifier:
    """The classifier is back."""
    recipe = scripted(folder, dict.fromkeys(HITS, SIGNALS))
    port = int(gate.config.read_text().split("[[classifiers]]")[1].split("127.0.0.1:")[1].split('"')[0])
    return Classifier(folder, ensemble=recipe, port=port)


def alias_of(gate: Gate, content: bytes) -> str:
    answer = gate.upload(content)
    assert answer.status == 201
    alias: str = answer.json()["files"][0]["file"]
    return alias


def states(gate: Gate) -> dict[str, int]:
    counted: dict[str, int] = {}
    for case in gate.cases():
        counted[case["state"]] = counted.get(case["state"], 0) + 1
    return counted


def until(holds: object, *, within_s: float = WITHIN_S) -> None:
    end = time.monotonic() + within_s
    while not holds():  # type: ignore[operator]
        assert time.monotonic() < end, "it has not come to pass"
        time.sleep(0.1)


def test_after_an_outage_every_upload_ends_where_it_belongs(gate: Gate, tmp_path: Path) -> None:
    harmless = [pictures.png(seed=next(SEEDS)) for _ in range(5)]
    aliases = {alias_of(gate, content): content for content in [*harmless, *HITS]}
    assert states(gate) == {"deferred": 8}
    waiting = json.loads(gate.run("queue", "--json", "--config", str(gate.config)).stdout)
    assert waiting["waiting"] == 8 and waiting["since"]

    classifier = back(gate, tmp_path / "classifier")
    try:
        until(lambda: states(gate) == {"released": 5, "pending": 3})
        for alias, content in aliases.items():
            shown = get(gate.url, f"/image/original/{alias}")
            assert shown.status == 200
            assert (shown.body == content) == (content in harmless)
        for case in gate.cases():
            if case["state"] == "pending":
                assert case["signals"] == SIGNALS and case["reason"].startswith("rule: ")
            else:
                assert case["decided_by"] == "gate"
        gate.ledger()
        assert "Nothing waits" in gate.run("queue", "--config", str(gate.config)).stdout
    finally:
        classifier.stop()


def test_what_has_been_looked_at_is_for_the_reviewers_alone(gate: Gate, tmp_path: Path) -> None:
    alias_of(gate, HITS[0])
    alias_of(gate, pictures.png(seed=next(SEEDS)))
    own = read_identities(gate.folder / "gate.key")
    files = list((gate.folder / "cases").glob("*.age"))
    for path in files:  # as long as nobody has looked, the gate can
        assert hashlib.sha256(open_sealed(path, own).original).hexdigest() in {
            case["sha256"] for case in gate.cases()
        }
    assert (gate.folder / "gate.key").stat().st_mode & 0o077 == 0
    classifier = back(gate, tmp_path / "classifier")
    try:
        until(lambda: "deferred" not in states(gate) and "releasing" not in states(gate))
        until(lambda: sum(entry.act == "resealed" for entry in gate.ledger()) == 2)
    finally:
        classifier.stop()
    for case in gate.cases():
        path = gate.folder / "cases" / f"{case['id']}.age"
        with pytest.raises(SealingError):
            open_sealed(path, own)
        opened = open_sealed(path, read_identities(gate.key))
        assert hashlib.sha256(opened.original).hexdigest() == case["sha256"]
        assert opened.facts["signals"] and opened.facts["frames"] and opened.facts["resealed_at"]
    assert len(list((gate.folder / "cases").iterdir())) == 2


def test_what_the_gate_has_let_pass_by_itself_is_no_human_s_word(gate: Gate, tmp_path: Path) -> None:
    content = pictures.png(seed=next(SEEDS))
    alias_of(gate, content)
    classifier = back(gate, tmp_path / "classifier")
    until(lambda: states(gate) == {"released": 1})
    classifier.stop()
    assert gate.upload(content).status == 201
    assert states(gate) == {"released": 1, "deferred": 1}


def test_a_human_may_be_first_and_then_the_gate_keeps_its_hands_off(gate: Gate, tmp_path: Path) -> None:
    alias_of(gate, pictures.png(seed=next(SEEDS)))
    case = gate.decide("confirm")
    until(lambda: any(entry.act == "resealed" for entry in gate.ledger()))
    with pytest.raises(SealingError):
        open_sealed(gate.folder / "cases" / f"{case}.age", read_identities(gate.folder / "gate.key"))
    classifier = back(gate, tmp_path / "classifier")
    try:
        alias_of(gate, pictures.png(seed=next(SEEDS)))
        time.sleep(3)
        assert states(gate) == {"confirmed": 1}
    finally:
        classifier.stop()


def test_a_case_that_cannot_be_opened_holds_up_no_other(gate: Gate, tmp_path: Path) -> None:
    alias_of(gate, pictures.png(seed=next(SEEDS)))
    (damaged,) = (gate.folder / "cases").glob("*.age")
    damaged.write_bytes(damaged.read_bytes()[:-100])
    alias_of(gate, pictures.png(seed=next(SEEDS)))
    classifier = back(gate, tmp_path / "classifier")
    try:
        until(lambda: states(gate) == {"pending": 1, "released": 1})
        (pending,) = [case for case in gate.cases() if case["state"] == "pending"]
        assert pending["id"] == damaged.stem and "damaged" in pending["reason"]
    finally:
        classifier.stop()


def test_what_pict_rs_refuses_waits_for_a_human(gate: Gate, running_pictrs: Pictrs, tmp_path: Path) -> None:
    alias = alias_of(gate, pictures.png(seed=next(SEEDS)))
    content_type, body = form([(alias, pictures.png(seed=next(SEEDS)))])
    headers = {"Content-Type": content_type, "X-Api-Token": running_pictrs.api_key}
    assert send(running_pictrs.url, "POST", "/internal/import", headers=headers, body=body).status == 201
    classifier = back(gate, tmp_path / "classifier")
    try:
        until(lambda: states(gate) == {"pending": 1})
        assert any("duplicate-alias" in json.dumps(entry.facts) for entry in gate.ledger())
    finally:
        classifier.stop()


@pytest.mark.parametrize(
    "point", ["backlog-looked", "imported", "backlog-settled", "case-written", "backlog-resealed"]
)
def test_killed_anywhere_in_the_backlog_nothing_is_lost_or_done_twice(
    gate: Gate, tmp_path: Path, point: str
) -> None:
    harmless = pictures.png(seed=next(SEEDS))
    alias, held = alias_of(gate, harmless), alias_of(gate, HITS[0])
    gate.stop()
    classifier = back(gate, tmp_path / "classifier")
    try:
        gate.start({"PICTRS_GATE_FAULT": point})
        assert gate.program is not None
        gate.program.process.wait(WITHIN_S)
        assert gate.program.process.returncode == -9
        gate.start()
        until(lambda: states(gate) == {"released": 1, "pending": 1})
        until(lambda: sum(entry.act == "resealed" for entry in gate.ledger()) == 2)
        assert get(gate.url, f"/image/original/{alias}").body == harmless
        assert get(gate.url, f"/image/original/{held}").body != HITS[0]
        assert len(list((gate.folder / "cases").glob("*.age"))) == 2
    finally:
        classifier.stop()


@pytest.mark.timeout(240)
def test_two_gates_look_at_each_of_many_deferred_files_once_in_bounded_time(
    quick: Pictrs, tmp_path: Path
) -> None:
    looks: list[str] = []
    here = False

    def answer(asked: Asked) -> Reply:
        if not here:
            return json_reply(503, {})
        if asked.method == "GET":
            return json_reply(200, INFO)
        sha256 = hashlib.sha256(asked.body).hexdigest()
        looks.append(sha256)
        signals = SIGNALS if sha256 in hits else SEEN["signals"]
        return json_reply(200, {**SEEN, "signals": signals, "frames": [{"index": 0, "signals": signals}]})

    contents = [pictures.png((64, 48), seed=next(SEEDS)) for _ in range(UPLOADS)]
    hits = {hashlib.sha256(content).hexdigest() for content in contents[::50]}
    fake = Fake(answer)
    first = Gate(tmp_path / "gate", pictrs_url=quick.url, api_key=quick.api_key, classifier_url=fake.url)
    second = None
    try:

        async def upload_all() -> list[int]:
            limit = asyncio.Semaphore(8)

            async def one(content: bytes) -> int:
                async with limit:
                    return (await asyncio.to_thread(first.upload, content)).status

            return list(await asyncio.gather(*(one(content) for content in contents)))

        assert asyncio.run(upload_all()) == [201] * UPLOADS
        assert states_of_all(first) == {"deferred": UPLOADS}
        second = Twin(first)
        here = True
        until(
            lambda: states_of_all(first) == {"released": UPLOADS - len(hits), "pending": len(hits)},
            within_s=150,
        )
        assert sorted(looks) == sorted(hashlib.sha256(content).hexdigest() for content in contents)
        first.ledger()
    finally:
        if second is not None:
            second.program.stop()
        first.stop()
        fake.close()


def states_of_all(gate: Gate) -> dict[str, int]:
    from sqlalchemy import func, select

    from proxy.database import Case

    with gate.database() as database, database.reading() as session:
        rows = session.execute(select(Case.state, func.count(Case.id)).group_by(Case.state))
        return {state.value: count for state, count in rows}
