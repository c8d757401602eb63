"""The stand-in for pict-rs answers as the real one was recorded.

That the real one here still does is shown through the gate, in `test_gate_reads.py`.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests import pictrs
from tests.recordings import Replay, differences, exchanges


def _replay(running: pictrs.Pictrs, version: str) -> list[str]:
    replay, found = Replay(running.url, running.api_key), []
    for exchange in exchanges(version):
        found += [f"{exchange.name}: {line}" for line in differences(exchange, replay.send(exchange))]
    return found


@pytest.mark.parametrize(("dialect", "version"), [("0.5", "0.5.25"), ("0.6", "0.6.0-rc.6")])
def test_the_stand_in_answers_as_recorded(tmp_path: Path, dialect: str, version: str) -> None:
    running = pictrs.Pictrs(tmp_path, real=None, max_file_size_mb=1, faults=("--dialect", dialect))
    try:
        assert _replay(running, version) == []
    finally:
        running.stop()
