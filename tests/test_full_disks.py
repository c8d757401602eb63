"""Promise 8 where a disk is full: `make crash` plays all of `tests/full_disks.py`, `.ci/run` a few rounds.

Whatever cannot be written: nothing that was promised is lost, nothing is both stored and held, whoever has
asked is told why not, and with room again everything goes on.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from proxy.database import CaseState
from tests import full_disks, pictrs
from tests.cramped import REFUSED, Cramped, Round
from tests.disks import small_disk

KILLS = int(os.environ.get("GATE_CRASH_KILLS", "6"))
SEED = int(os.environ.get("GATE_CRASH_SEED", "8"))


@pytest.fixture
def scene(tmp_path: Path) -> Iterator[Cramped]:
    with small_disk(tmp_path / "a", 16, 1000) as cases, small_disk(tmp_path / "b", 16) as database:
        store = pictrs.Pictrs(tmp_path / "pictrs", real=pictrs.find())
        disks = {"cases": cases, "database": database}
        made = Cramped(tmp_path / "gate", store, disks, seed=SEED)
        yield made
        made.close()
        store.stop()


@pytest.mark.kills
@pytest.mark.timeout(120 + 30 * KILLS)
def test_where_a_disk_is_full_nothing_is_lost_and_with_room_again_everything_goes_on(
    scene: Cramped,
) -> None:
    print(f"\nseed {SEED}", flush=True)
    began = time.monotonic()
    for done in full_disks.run(scene, KILLS):
        print(f"{time.monotonic() - began:6.1f} s  {done}", flush=True)


def test_of_several_decisions_the_rest_is_not_tried_and_goes_on_when_it_is_repeated(
    scene: Cramped,
) -> None:
    scene.start()
    first, second = scene.held(), scene.held()
    full = Round(lambda *_: None, "database", "release-begun", REFUSED)
    told = scene.does(full, "review", "release", first, second, "--yes")
    assert f"pictrs-gate: {first}: the database: database or disk is full" in told
    assert "then repeat it; cases that were not tried: 1" in told
    scene.check_while_full()
    scene.make_room()
    assert scene.state(second) is CaseState.PENDING
    assert [scene.review("release", case_id) for case_id in (first, second)] == [0, 0]
    scene.check(everything=True)
