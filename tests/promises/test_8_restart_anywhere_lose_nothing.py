"""Promise 8: restart anywhere, lose nothing: kill -9 at any point leaves nothing promised and lost."""

from __future__ import annotations

import http.client
import os
import random
import threading
import time
from collections.abc import Callable

import pytest

from proxy.cases.sealing import open_sealed, read_identities
from tests import pictures
from tests.client import get
from tests.gate import Gate
from tests.pictrs import Pictrs

NewGate = Callable[..., Gate]
DIES = (http.client.HTTPException, OSError)


def whole_cases(gate: Gate) -> dict[str, bytes]:
    """Every case by its id with its original bytes; each has a file, and each file a case."""
    folder = gate.folder / "cases"
    listed = [case["id"] for case in gate.cases()]
    files = sorted(path.name for path in folder.iterdir())
    assert files == sorted(f"{case}.age" for case in listed)
    keys = read_identities(gate.key)
    return {case: open_sealed(folder / f"{case}.age", keys).original for case in listed}


def age_files(gate: Gate) -> None:
    """Makes every file look old enough to belong to no upload that is still under way."""
    long_ago = time.time() - 600
    for path in (gate.folder / "cases").iterdir():
        os.utime(path, (long_ago, long_ago))


@pytest.mark.parametrize("point", ["case-sealed", "case-recorded", "kept"])
def test_killed_between_sealing_and_answering_the_evidence_is_there_and_nothing_was_promised(
    new_gate: NewGate, running_pictrs: Pictrs, hit: bytes, point: str
) -> None:
    gate = new_gate(start=False)
    gate.start({"PICTRS_GATE_FAULT": point})
    stored = len(running_pictrs.stored_files())
    with pytest.raises(DIES):
        gate.upload(hit)
    assert gate.program is not None and gate.program.process.wait(10) == -9
    age_files(gate)

    gate.start()
    for _ in range(100):  # adopting runs in the background
        if gate.cases():
            break
        time.sleep(0.05)
    ((case, content),) = whole_cases(gate).items()
    assert content == hit
    (shown,) = gate.cases()
    assert shown["state"] == "pending"
    assert (shown["alias"] is None) == (point == "case-sealed")
    assert len(running_pictrs.stored_files()) == stored
    # One that was adopted may be noted a second time: that the gate's own key does not open it.
    assert [entry.case_id for entry in gate.ledger() if entry.act != "resealed"] == [case]
    # A moderator can decide it like any other; the same bytes pass from then on.
    gate.decide("release", case)
    assert gate.upload(hit).status == 201
    assert len(gate.cases()) == 1


def test_killed_before_the_file_is_whole_there_is_no_case(new_gate: NewGate, hit: bytes) -> None:
    gate = new_gate(start=False)
    gate.start({"PICTRS_GATE_FAULT": "case-written"})
    with pytest.raises(DIES):
        gate.upload(hit)
    (left,) = (gate.folder / "cases").iterdir()
    assert left.suffix == ".unfinished"
    age_files(gate)
    gate.start()
    for _ in range(100):
        if not left.exists():
            break
        time.sleep(0.05)
    assert whole_cases(gate) == {}


def test_a_release_that_was_killed_half_way_can_be_repeated(new_gate: NewGate, hit: bytes) -> None:
    gate = new_gate()
    alias = gate.upload(hit).json()["files"][0]["file"]
    case = gate.cases()[0]["id"]
    killed = gate.review("release", case, check=False, env={"PICTRS_GATE_FAULT": "imported"})
    assert killed.returncode == -9
    assert gate.cases()[0]["state"] == "releasing"
    assert get(gate.url, f"/image/original/{alias}").headers["cache-control"] == "no-store"

    gate.decide("release", case)
    assert gate.cases()[0]["state"] == "released"
    assert get(gate.url, f"/image/original/{alias}").headers["cache-control"].startswith("public")


def test_killed_at_random_moments_every_promise_is_kept(
    new_gate: NewGate, running_pictrs: Pictrs, hits: list[bytes]
) -> None:
    gate = new_gate()
    promised: dict[str, bytes] = {}
    chance = random.Random(8)
    for kill in range(4):
        uploads = [(hits.pop(), True), (pictures.png(seed=800 + kill), False), (hits.pop(), True)]

        def send(content: bytes, held: bool) -> None:
            try:
                answer = gate.upload(content)
            except DIES:
                return
            assert answer.status == 201
            alias = answer.json()["files"][0]["file"]
            promised[alias] = content if held else b""

        threads = [threading.Thread(target=send, args=upload) for upload in uploads]
        for thread in threads:
            thread.start()
        time.sleep(chance.uniform(0.01, 0.25))
        assert gate.program is not None
        gate.program.kill()
        for thread in threads:
            thread.join()
        age_files(gate)
        gate.start()
        time.sleep(0.5)

    kept = whole_cases(gate)
    by_alias = {case["alias"]: kept[case["id"]] for case in gate.cases()}
    for alias, content in promised.items():
        shown = get(gate.url, f"/image/original/{alias}")
        assert shown.status == 200
        if content:
            assert by_alias[alias] == content and shown.headers["cache-control"] == "no-store"
    for alias in filter(None, by_alias):
        assert get(running_pictrs.url, f"/image/original/{alias}").status == 404


def test_told_to_stop_it_ends_what_it_has_begun(new_gate: NewGate) -> None:
    gate = new_gate()
    answers = []
    sending = threading.Thread(
        target=lambda: answers.append(gate.upload(pictures.jpeg((1600, 1200), seed=850)))
    )
    sending.start()
    for _ in range(500):
        if b"uploads_in_progress 1.0" in get(gate.internal_url, "/metrics").body:
            break
        time.sleep(0.005)
    assert answers == []  # it is under way, and told to stop now
    assert gate.stop() == 0
    sending.join(20)
    assert [answer.status for answer in answers] == [201]
