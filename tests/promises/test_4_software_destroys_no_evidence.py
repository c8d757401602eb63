"""Promise 4: software destroys no evidence. A case's bytes outlive every decision, deletion and crash."""

from __future__ import annotations

import ast
from collections.abc import Callable
from pathlib import Path

import pytest

from proxy.cases.sealing import open_sealed, read_identities
from tests.client import get, send
from tests.gate import Gate
from tests.pictrs import Pictrs

NewGate = Callable[..., Gate]


def original(gate: Gate, case_id: str) -> bytes:
    return open_sealed(gate.folder / "cases" / f"{case_id}.age", read_identities(gate.key)).original


@pytest.mark.parametrize("decision", ["release", "confirm"])
def test_after_a_decision_the_sealed_bytes_are_still_there(gate: Gate, hit: bytes, decision: str) -> None:
    gate.upload(hit)
    case = gate.cases()[0]["id"]
    gate.decide(decision, case)
    assert original(gate, case) == hit


def test_the_uploader_s_deletion_leaves_the_case(gate: Gate, hit: bytes) -> None:
    entry = gate.upload(hit).json()["files"][0]
    case = gate.cases()[0]["id"]
    target = f"/image/delete/{entry['delete_token']}/{entry['file']}"
    assert send(gate.url, "DELETE", target).status == 204
    assert original(gate, case) == hit
    assert gate.cases()[0]["id"] == case


@pytest.mark.parametrize("route", ["delete", "purge"])
def test_an_admin_s_deletion_leaves_the_case(
    gate: Gate, running_pictrs: Pictrs, hit: bytes, route: str
) -> None:
    alias = gate.upload(hit).json()["files"][0]["file"]
    case = gate.cases()[0]["id"]
    headers = {"X-Api-Token": running_pictrs.api_key}
    assert send(gate.url, "POST", f"/internal/{route}?alias={alias}", headers=headers).status == 200
    assert original(gate, case) == hit


def test_a_confirmed_picture_is_never_shown_again(gate: Gate, hit: bytes) -> None:
    alias = gate.upload(hit).json()["files"][0]["file"]
    gate.decide("confirm")
    assert get(gate.url, f"/image/original/{alias}").headers["cache-control"] == "no-store"


def test_a_hit_is_kept_even_where_its_request_is_refused(gate: Gate, hits: list[bytes]) -> None:
    known, new = hits.pop(), hits.pop()
    gate.upload(known)
    gate.decide("confirm")
    assert gate.upload(known, new).status == 400
    case = gate.cases()[0]
    assert case["alias"] is None and original(gate, case["id"]) == new


def test_a_restart_leaves_every_case(new_gate: NewGate, hits: list[bytes]) -> None:
    gate, kept = new_gate(), {}
    for _ in range(3):
        hit = hits.pop()
        gate.upload(hit)
        kept[gate.cases()[0]["id"]] = hit
    gate.stop()
    gate.start()
    assert {case["id"]: original(gate, case["id"]) for case in gate.cases()} == kept


def test_every_act_on_a_case_is_in_the_ledger(new_gate: NewGate, hit: bytes) -> None:
    gate = new_gate()
    gate.upload(hit)
    case = gate.cases()[0]["id"]
    gate.review("show", case, "--reviewer", "ann")
    gate.review("release", case, "--reviewer", "bob")
    told = [(entry.act, entry.actor) for entry in gate.ledger() if entry.case_id == case]
    assert told == [("pending", "gate"), ("viewed", "ann"), ("releasing", "bob"), ("released", "bob")]


def test_nothing_in_the_gate_deletes_a_sealed_file() -> None:
    """The one place that removes files removes what was never finished, and what has expired; and it puts one
    in the place of another only where that holds the same original, sealed anew.
    """
    removing = {"unlink", "remove", "rmtree", "rmdir", "removedirs", "truncate"}
    replacing = {"rename", "renames", "write_bytes", "write_text", "copyfile", "move"}
    found = []
    for path in sorted((Path(__file__).parents[2] / "proxy" / "cases").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Attribute) and node.attr in removing | replacing:
                found.append(f"{path.name}: {ast.unparse(node)}")
            if isinstance(node, ast.Call) and ast.unparse(node.func).endswith("open"):
                modes = [word.value for word in node.args[1:2] if isinstance(word, ast.Constant)]
                found += [f"{path.name}: open {mode}" for mode in modes if set(str(mode)) & set("wa+")]
    assert sorted(found) == sorted(
        [
            "quarantine.py: new.rename",
            "quarantine.py: new.unlink",  # what could not be written or given its name, or is not needed
            "quarantine.py: path.unlink",  # what nobody has written to its end
            # A case that is sealed anew: what takes the place of a file holds the same,
            # and what was there before goes when that is noted.
            "quarantine.py: new.rename",
            "quarantine.py: path.with_suffix(_BEFORE).rename",
            "quarantine.py: path.with_suffix(_BEFORE).unlink",
            # The picture in the clear that a reviewer has asked for, in a new file that could not be written.
            "opening.py: open wb",
            "opening.py: path.unlink",
            # What a run of retention deletes.
            "quarantine.py: os.unlink",
        ]
    )
    asking = [
        path.name
        for path in sorted((Path(__file__).parents[2] / "proxy").rglob("*.py"))
        if "quarantine.delete(" in path.read_text()
    ]
    assert asking == ["retention.py"]
