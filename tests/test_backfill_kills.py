"""A backfill that is killed -9 at random moments: every file is looked at, none is purged that is not sealed.

`make kills` kills it often, over many files; `.ci/run` runs a short version.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import random
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

from proxy.cases.sealing import open_sealed, read_identities
from proxy.database import Database, cases
from proxy.database import backfill as runs
from tests import pictrs
from tests.backfill import content
from tests.client import get, send, upload
from tests.fake import SEEN, Asked, Reply, classifier, json_reply
from tests.gate import Gate
from tests.processes import Program

FILES = int(os.environ.get("GATE_KILL_FILES", "1000"))
KILLS = int(os.environ.get("GATE_KILLS", "8"))
BATCH = 64 + 2 * 64  # files that a kill may cost: a batch, and what is under way while it is written


@pytest.mark.kills
async def test_killed_at_any_moment_it_misses_none_and_looks_again_at_the_last_batch_alone(
    tmp_path: Path,
) -> None:
    command = [sys.executable, "-m", "tests.backfill", str(tmp_path), str(FILES), str(KILLS)]
    await asyncio.to_thread(subprocess.run, command, check=True, timeout=300)
    looks = Counter(map(int, (tmp_path / "looks").read_text().split()))
    assert len(looks) == FILES
    assert sum(looks.values()) - FILES <= KILLS * BATCH
    database = Database(f"sqlite:///{tmp_path}/gate.db")
    run = runs.get(database, None)
    assert (run.id, run.state, run.looked_at, run.hits) == (1, "finished", FILES, FILES // 50)
    assert sum(run.histogram["sexual"]) == FILES
    database.close()


@pytest.mark.kills
def test_killed_at_any_moment_while_it_holds_no_file_is_purged_that_is_not_sealed(tmp_path: Path) -> None:
    files = FILES // 5 * 5
    store = pictrs.Pictrs(tmp_path / "store", real=None, max_files=200, dummy=True)
    contents = [content(number) for number in range(files)]
    names: list[str] = []
    for at in range(0, files, 200):
        stored = upload(store.url, *contents[at : at + 200]).json()["files"]
        names += [entry["file"] for entry in stored]
    hits = dict(zip(names[::25], contents[::25], strict=True))
    seen = set(hits.values())
    looks: Counter[bytes] = Counter()

    def look(asked: Asked) -> Reply:
        looks[asked.body] += 1
        found = {"sexual": 0.9, "minor": 0.9} if asked.body in seen else SEEN["signals"]
        time.sleep(0.002)
        return json_reply(200, {**SEEN, "signals": found, "frames": [{"index": 0, "signals": found}]})

    looking = classifier(look)
    gate = Gate(
        tmp_path / "gate",
        pictrs_url=store.url,
        api_key=store.api_key,
        classifier_url=looking.url,
        log_level="warning",
    )
    command = [Path(sys.executable).parent / "pictrs-gate", "backfill", "run", "--action", "hold"]
    chance, kills = random.Random(11), KILLS
    while True:
        program = Program([*command, "--config", gate.config], tmp_path / "run.log")
        before = sum(looks.values())
        while kills and program.process.poll() is None and sum(looks.values()) == before:
            time.sleep(0.005)  # it is starting
        if kills and program.process.poll() is None:
            time.sleep(chance.uniform(0.0, 0.6))
            program.kill()
            kills -= 1
            none_is_lost(gate, store, hits)
            continue
        if program.process.wait(280) == 0:
            break

    assert set(looks) == set(contents)
    assert sum(looks.values()) - files <= KILLS * BATCH
    sealed = none_is_lost(gate, store, hits)
    assert sealed == set(hits)  # each is a case, and none of them is in pict-rs any more
    with gate.database() as database:
        run = runs.get(database, None)
        assert (run.id, run.state, run.looked_at, run.hits, run.held) == (
            *(1, "finished", files),
            *(len(hits), len(hits)),
        )
        assert len(cases.listed(database, limit=10_000)) == len(hits)
    for name in list(hits)[:3]:
        assert get(gate.url, f"/image/original/{name}").body != hits[name]
    others = names[1::25]
    assert all(get(store.url, f"/image/original/{name}").status == 200 for name in others)
    gate.stop()
    looking.close()
    store.stop()


def none_is_lost(gate: Gate, store: pictrs.Pictrs, hits: dict[str, bytes]) -> set[str]:
    """The hits that pict-rs has no more; each is sealed, byte for byte, and stands for its alias."""
    headers = {"X-Api-Token": store.api_key}
    gone = set()
    keys = read_identities(gate.key)
    with gate.database() as database:
        made = {
            promise.alias: case for case in cases.listed(database, limit=10_000) for promise in case.promises
        }
    for name, original in hits.items():
        if send(store.url, "GET", f"/internal/aliases?alias={name}", headers=headers).status == 200:
            continue
        gone.add(name)
        opened = open_sealed(gate.folder / "cases" / made[name].file, keys)
        assert hashlib.sha256(opened.original).digest() == hashlib.sha256(original).digest()
    return gone
