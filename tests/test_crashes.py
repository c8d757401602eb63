"""Promise 8, by many kills: `make crash KILLS=200`; `.ci/run` runs a few of them.

Whatever point a gate or a reviewer's command dies at: what was promised is durable, nothing is both stored
and held, no file is without its case, no case is half, and the ledger is whole.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from proxy import faults
from proxy.errors import ConfigError
from tests import crashes, pictrs
from tests.postgresql import Postgresql

KILLS = int(os.environ.get("GATE_CRASH_KILLS", "7"))
SEED = int(os.environ.get("GATE_CRASH_SEED", "8"))


@pytest.fixture
def store(tmp_path: Path) -> Iterator[pictrs.Pictrs]:
    running = pictrs.Pictrs(tmp_path / "pictrs", real=pictrs.find())
    yield running
    running.stop()


@pytest.mark.kills
@pytest.mark.timeout(120 + 30 * KILLS)
@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
def test_killed_at_every_point_it_loses_nothing(
    tmp_path: Path, store: pictrs.Pictrs, request: pytest.FixtureRequest, kind: str
) -> None:
    url = None
    kills = KILLS
    if kind == "postgresql":
        running: Postgresql = request.getfixturevalue("postgresql")
        url, kills = running.new_database(), max(4, KILLS // 3)
    scene = crashes.Scene(tmp_path / "gate", store, seed=SEED, database_url=url)
    print(f"\n{kind}, seed {SEED}", flush=True)
    began = time.monotonic()
    try:
        for number, done in enumerate(crashes.run(scene, kills), start=1):
            print(f"{time.monotonic() - began:6.1f} s  kill {number}: {done}", flush=True)
    finally:
        scene.close()


def test_every_point_that_there_is_has_a_name_and_is_died_at() -> None:
    proxy = Path(faults.__file__).parent
    reached = {
        point
        for file in proxy.rglob("*.py")
        for point in re.findall(r"(?<![a-z])fault\(\s*\"([^\"]+)\"", file.read_text())
    }
    assert reached == set(faults.POINTS)
    died_at = {fault.rpartition(">")[2] for _, fault in crashes.ROUNDS if fault}
    died_at |= set(faults.BACKFILLING + faults.TAKING_AWAY)  # in tests/test_backfill_hold.py
    assert died_at == set(faults.POINTS)


def test_a_point_that_does_not_exist_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PICTRS_GATE_FAULT", "case-sealed>nowhere")
    with pytest.raises(ConfigError, match="nowhere: there is no such point"):
        faults.from_environment()
