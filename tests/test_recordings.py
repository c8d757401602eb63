"""The stand-in for pict-rs answers as the real one was recorded; and the real one here still does."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests import pictrs
from tests.recordings import Replay, differences, exchanges

# Where the stand-in keeps things simpler than the real one.
_SIMPLER = {
    "original percent-encoded alias",  # aiohttp's client side of the path, not the stand-in's
}


def _replay(running: pictrs.Pictrs, version: str, *, leave_out: set[str] = frozenset()) -> list[str]:
    replay, found = Replay(running.url, running.api_key), []
    for exchange in exchanges(version):
        got = replay.send(exchange)
        if exchange.name not in leave_out:
            found += [f"{exchange.name}: {line}" for line in differences(exchange, got)]
    return found


@pytest.mark.parametrize(("dialect", "version"), [("0.5", "0.5.25"), ("0.6", "0.6.0-rc.6")])
def test_the_stand_in_answers_as_recorded(tmp_path: Path, dialect: str, version: str) -> None:
    running = pictrs.Pictrs(tmp_path, real=None, max_file_size_mb=1, faults=("--dialect", dialect))
    try:
        assert _replay(running, version) == []
    finally:
        running.stop()


def test_the_real_pict_rs_answers_as_recorded(tmp_path: Path) -> None:
    real = pictrs.find()
    if real is None:
        pytest.skip("no real pict-rs on this machine: make pict-rs")
    running = pictrs.Pictrs(tmp_path, real=real, max_file_size_mb=1)
    try:
        assert _replay(running, "0.6.0-rc.6" if running.is_06 else "0.5.25") == []
    finally:
        running.stop()
