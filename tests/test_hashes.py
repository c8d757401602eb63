"""`pictrs-gate hashes`: lists come in, are counted, go out again, and act on every gate at once."""

from __future__ import annotations

import hashlib
import io
import json
import os
from collections.abc import Callable
from contextlib import chdir, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path

import pytest
from rich.console import Console

from proxy import hash_files
from proxy.cli import main
from proxy.commands.hashes import _progress
from proxy.errors import HashesError
from tests import pictures
from tests.gate import Gate

NewGate = Callable[..., Gate]
ONE, TWO, THREE = (f"{number:064x}" for number in (1, 2, 3))


@dataclass(frozen=True)
class Done:
    """What a command has printed, and its exit status."""

    returncode: int
    stdout: str
    stderr: str


def hashes(gate: Gate, *words: str) -> Done:
    """`pictrs-gate hashes …` beside the gate, in this process, for speed."""
    out, err, before = io.StringIO(), io.StringIO(), os.umask(0o077)
    try:
        with chdir(gate.folder), redirect_stdout(out), redirect_stderr(err):
            status = main(["--log-level", "warning", "hashes", *words, "--config", str(gate.config)])
    finally:
        os.umask(before)
    return Done(status, out.getvalue(), err.getvalue())


def lists(gate: Gate) -> list[dict[str, object]]:
    found: list[dict[str, object]] = json.loads(hashes(gate, "list", "--json").stdout)["lists"]
    return found


def test_a_list_acts_on_a_running_gate_from_its_import_to_its_removal(new_gate: NewGate) -> None:
    gate = new_gate()
    listed = pictures.png(seed=3200)
    sha256 = hashlib.sha256(listed).hexdigest()
    file = gate.folder / "list.txt"
    file.write_text(f"# ours\n{sha256.upper()}  # one\n{ONE}\n{ONE}\n\n")
    told = hashes(gate, "import", "list.txt", "--reviewer", "ann").stdout
    assert told == ("list.txt: 2 new (2 sha256, 0 pdq), 0 were on it already, 1 stood twice in the file\n")
    assert "2 were on it already" in hashes(gate, "import", "list.txt").stdout
    refused = gate.upload(listed)
    assert (refused.status, refused.json()["code"]) == (400, "failed-external-validation")
    begun, done = gate.ledger()[:2]
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    assert (begun.act, done.act, done.actor) == ("hashes import begun", "hashes imported", "ann")
    assert done.facts == {
        "list": "list.txt",
        "verdict": "block",
        "file_sha256": digest,
        "sha256": 2,
        "pdq": 0,
        "new": {"sha256": 2, "pdq": 0},
        "repeated": 1,
        "flat": 0,
    }
    assert [(one["name"], one["sha256"], one["pdq"]) for one in lists(gate)] == [("list.txt", 2, 0)]
    assert "list.txt" in hashes(gate, "list").stdout
    again = hashes(gate, "import", "list.txt", "--verdict", "hold")
    assert again.returncode == 1 and "is there with the verdict block" in again.stderr
    hashes(gate, "remove", "--name", "list.txt", "--reviewer", "ann")
    assert (gate.ledger()[-1].act, gate.ledger()[-1].actor) == ("hashes removed", "ann")
    assert gate.upload(listed).status == 201 and lists(gate) == []
    gone = hashes(gate, "export", "--name", "list.txt", "--output", "out.csv")
    assert gone.returncode == 1 and "no such list" in gone.stderr
    assert not (gate.folder / "out.csv").exists()


def test_what_is_exported_is_imported_elsewhere_as_it_was(new_gate: NewGate, hit: bytes) -> None:
    gate, other = new_gate(), new_gate(start=False)
    gate.upload(hit)
    case = gate.decide("confirm")
    exported = hashes(gate, "export", "--reviewer", "ann").stdout
    header, sha256, pdq = exported.splitlines()
    assert (header, sha256) == ("sha256,pdq", f"{hashlib.sha256(hit).hexdigest()},")
    assert pdq.startswith(",") and len(pdq) == 65
    assert (gate.ledger()[-1].act, gate.ledger()[-1].facts["hashes"]) == ("hashes exported", 2)
    (other.folder / "in.csv").write_text(exported)
    hashes(other, "import", "in.csv", "--name", "from a friend", "--verdict", "hold")
    assert [(one["name"], one["verdict"], one["pdq"]) for one in lists(other)] == [
        ("from a friend", "hold", 1)
    ]
    hashes(other, "export", "--name", "from a friend", "--output", "out.csv")
    assert (other.folder / "out.csv").read_text() == exported
    other.start()
    assert other.upload(hit).status == 201
    found = other.cases()[0]
    assert (found["state"], found["earlier"]["list"], found["earlier"]["kind"]) == (
        *("pending", "from a friend"),
        "sha256",
    )
    assert case not in found["reason"]


def read(folder: Path, text: str | bytes, kind: hash_files.Kind = "sha256") -> hash_files.HashFile:
    path = folder / "list"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return hash_files.read(path, kind)


def in_hex(file: hash_files.HashFile) -> list[list[str]]:
    return [[one.hex() for some in file.batches(kind, 2) for one in some] for kind in hash_files.KINDS]


def test_a_file_is_one_hash_a_line_or_csv_whose_header_names_its_columns(tmp_path: Path) -> None:
    assert in_hex(read(tmp_path, f"\ufeff{TWO}\r\n# x\n\n {ONE} # one\n{TWO}")) == [[ONE, TWO], []]
    assert in_hex(read(tmp_path, f"{TWO}\n{ONE}\n", "pdq")) == [[], [ONE, TWO]]
    assert in_hex(read(tmp_path, f"pdq\n{ONE}\n")) == [[], [ONE]]
    text = f'name,SHA-256,"PDQ",pdq_quality\n"a,\nb",{TWO},{ONE},50\nc,,{THREE},49\n\nd,{ONE},,\ne,{ONE}\n'
    file = read(tmp_path, text)
    assert in_hex(file) == [[ONE, TWO], [ONE]]
    assert (file.repeated, file.flat) == (1, 1)
    assert file.sha256 == hashlib.sha256(text.encode()).hexdigest()


def test_hashes_come_out_in_order_and_each_once_whatever_bytes_they_have(tmp_path: Path) -> None:
    given = [f"{n << shift:064x}" for n in (0, 1, 255, 128, 1) for shift in (0, 8, 120, 200, 248)]
    file = read(tmp_path, "\n".join(given))
    assert in_hex(file)[0] == sorted(set(given))
    assert file.repeated == len(given) - len(set(given))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (f"{ONE}\nnothing\n", "line 2 is no hash"),
        (f"{ONE[:-1]}\n", "line 1 is no hash"),
        (f"{ONE}00\n", "line 1 is no hash"),
        (f"pdq\n{ONE}\nx\n", "line 3 is no hash"),
        (f"name,hash\na,{ONE}\n", "line 1: a CSV begins with a header"),
        (f"pdq,quality\n{ONE},much\n", "line 2: a quality is a number"),
        (b"\xff\xfe\n", "must be UTF-8"),
        (f'pdq\n"{ONE}', "unexpected end of data"),
    ],
)
def test_what_is_no_list_is_said_with_its_line_and_without_its_content(
    tmp_path: Path, text: str | bytes, said: str
) -> None:
    with pytest.raises(HashesError, match=said) as error:
        read(tmp_path, text)
    assert ONE not in str(error.value) and "nothing" not in str(error.value)


def test_an_import_that_fails_changes_nothing(new_gate: NewGate) -> None:
    gate = new_gate(start=False)
    (gate.folder / "bad.txt").write_text(f"{ONE}\nnothing\n")
    for file in ("bad.txt", "nowhere.txt"):
        refused = hashes(gate, "import", file)
        assert refused.returncode == 1
        assert file in refused.stderr and "Traceback" not in refused.stderr
    assert gate.ledger() == [] and lists(gate) == []


def test_progress_is_a_line_now_and_then_where_there_is_no_terminal() -> None:
    into = io.StringIO()
    with _progress(Console(file=into), 500_000) as told:
        for _ in range(25):
            told(20_000)
    assert into.getvalue() == "200000 of 500000 hashes\n400000 of 500000 hashes\n"
    bar = io.StringIO()
    with _progress(Console(file=bar, force_terminal=True), 500_000) as told:
        told(20_000)
    assert "adding" in bar.getvalue()
