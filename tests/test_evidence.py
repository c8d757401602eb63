"""A sealed file that somebody has exchanged or taken away is found, and nobody's key is needed for it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from proxy import cli
from proxy.cases.sealing import Sealer, open_sealed, read_identities
from tests.gate import Gate

NewGate = Callable[..., Gate]


def files_of(gate: Gate, capsys: pytest.CaptureFixture[str]) -> tuple[int, dict[str, Any]]:
    capsys.readouterr()
    status = cli.main(["ledger", "verify", "--files", "--json", "--config", str(gate.config)])
    found: dict[str, Any] = json.loads(capsys.readouterr().out)["files"]
    return status, found


def test_what_was_exchanged_or_taken_away_is_named_and_what_the_gate_sealed_anew_is_not(
    new_gate: NewGate, hits: list[bytes], capsys: pytest.CaptureFixture[str]
) -> None:
    gate = new_gate()
    for hit in (hits.pop(), hits.pop()):
        assert gate.upload(hit).status == 201
    held = [case["id"] for case in gate.cases()]
    assert files_of(gate, capsys) == (0, {"held": len(held), "unknown": [], "missing": [], "other": []})
    assert len(held) == 2

    gate.run("keys", "rotate", "--config", str(gate.config), "--identity", str(gate.key))
    assert files_of(gate, capsys)[1]["held"] == len(held)

    first, second = (gate.folder / "cases" / f"{case_id}.age" for case_id in held[:2])
    opened = open_sealed(first, read_identities(gate.key))
    forged = {**opened.facts, "uploader": {"address": "198.51.100.7"}}
    with first.open("wb") as file:  # whoever writes to the disk knows the reviewers' public key
        Sealer([gate.recipient]).seal(file, forged, opened.original)
    second.rename(Path(f"{second}.away"))
    status, found = files_of(gate, capsys)
    assert (status, found["other"], found["missing"]) == (3, [held[0]], [held[1]])
    assert cli.main(["ledger", "verify", "--files", "--config", str(gate.config)]) == 3
    said = capsys.readouterr().out
    assert f"ALTERED: the sealed file of case {held[0]} is none that the gate has written" in said
    assert f"MISSING: the sealed file of case {held[1]} is not there" in said
    assert cli.main(["ledger", "verify", "--config", str(gate.config)]) == 0  # the ledger itself holds
