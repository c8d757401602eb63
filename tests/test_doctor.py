"""`doctor`: each thing that can be wrong is said in a line, with what to do; and it changes nothing."""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from sqlalchemy import text

from proxy import cli, doctor
from proxy.cases.sealing import write_new_identity
from proxy.database.engine import HEAD
from proxy.doctor import Level
from tests import pictures
from tests.gate import Gate
from tests.kept import NOWHERE, held, keep, still_gate

Doctor = Callable[..., tuple[int, dict[str, list[str]]]]


@pytest.fixture
def examine(capsys: pytest.CaptureFixture[str]) -> Iterator[Doctor]:
    """`pictrs-gate doctor --json`: exit status, and for each thing what was found, level first."""
    before = os.umask(0o022)

    def run(gate: Gate, *words: str) -> tuple[int, dict[str, list[str]]]:
        capsys.readouterr()
        status = cli.main(["--log-level", "error", "doctor", "--json", "--config", str(gate.config), *words])
        found: dict[str, list[str]] = {}
        for one in json.loads(capsys.readouterr().out):
            found.setdefault(one["about"], []).append(f"{one['level']}: {one['says']}")
        return status, found

    yield run
    os.umask(before)


@pytest.fixture
def still(tmp_path: Path) -> Gate:
    """A gate that does not run, whose neighbours are nowhere."""
    return still_gate(tmp_path / "gate")


def change(gate: Gate, old: str, new: str) -> None:
    assert old in gate.config.read_text()
    gate.config.write_text(gate.config.read_text().replace(old, new))


def only(found: dict[str, list[str]], about: str) -> str:
    (line,) = found[about]
    return line


def test_a_good_set_up_is_ok_line_by_line(
    gate: Gate, hit: bytes, examine: Doctor, capsys: pytest.CaptureFixture[str]
) -> None:
    gate.upload(hit)
    second = write_new_identity(gate.folder / "second.key")
    change(gate, f'["{gate.recipient}"]', f'["{gate.recipient}", "{second}"]')
    gate.run("keys", "rotate", "--config", str(gate.config))
    before = gate.ledger()[-1].number
    status, found = examine(gate)
    assert (status, {line[:3] for lines in found.values() for line in lines}) == (0, {"ok:"}), found
    for about in ("configuration", "database", "ledger", "cases folder", "recipients", "identity"):
        assert about in found
    assert "opens with" in only(found, "newest case") and "takes the API key" in only(found, "pict-rs")
    assert any(about.startswith("classifier http") for about in found)
    assert cli.main(["doctor", "--config", str(gate.config)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert all(line.startswith("ok   ") for line in lines) and len(lines) == len(found)
    assert gate.ledger()[-1].number == before


def test_a_wrong_api_key_and_a_missing_signal_are_named(gate: Gate, tmp_path: Path, examine: Doctor) -> None:
    other = gate.folder / "other.toml"
    other.write_text(
        gate.config.read_text().replace("test-api-key", "wrong-key").replace("minor = 0.35", "elder = 0.35")
    )
    status, found = examine(SimpleNamespace(config=other))  # type: ignore[arg-type]
    assert status == 1
    assert only(found, "pict-rs").startswith("fail: refuses the API key")
    (classifier,) = (lines[0] for about, lines in found.items() if about.startswith("classifier"))
    assert classifier.startswith("fail: has no signal elder") and "name some of minor, sexual" in classifier


def test_what_is_away_is_said_and_nothing_is_made(still: Gate, examine: Doctor) -> None:
    before = sorted(still.folder.iterdir())
    status, found = examine(still)
    assert status == 1
    assert "fail: pict-rs cannot be reached" in only(found, "pict-rs")
    assert only(found, f"classifier {NOWHERE}").startswith("fail:")
    assert only(found, "gate").startswith("warn: none answers")
    assert only(found, "database").startswith("warn: there is none yet")
    assert only(found, "cases folder").startswith("warn:")
    assert sorted(still.folder.iterdir()) == before


def test_a_configuration_that_cannot_be_used_is_said_and_nothing_else(still: Gate, examine: Doctor) -> None:
    change(still, still.recipient, "age1nobody")
    status, found = examine(still)
    assert (status, list(found)) == (1, ["configuration"])
    assert "cases.recipients.0" in only(found, "configuration")


def test_a_single_recipient_and_a_key_that_others_can_read_are_warned_of(
    still: Gate, examine: Doctor
) -> None:
    still.key.chmod(0o644)
    write_new_identity(still.folder / "gate.key")
    (still.folder / "gate.key").chmod(0o640)
    _, found = examine(still)
    assert only(found, "gate's own key").startswith("warn:")
    assert only(found, "recipients").startswith("warn: there is one only")
    assert only(found, "identity").startswith("warn:") and f"chmod 600 {still.key}" in only(found, "identity")


def test_sealed_files_that_are_away_and_a_key_of_the_gate_that_is_lost_are_named(
    still: Gate, examine: Doctor
) -> None:
    kept, cut, lost = (held(still, pictures.png((8, 8), seed=seed)) for seed in (1, 2, 3))
    key = still.folder / "gate.key"
    recipients = [still.recipient, write_new_identity(key)]
    with still.database() as database:
        sealed = {"gate_reads": True, "sealed_to": "both"}
        waiting = keep(database, still.folder / "cases", recipients, pictures.png((8, 8), seed=4), **sealed)
    _, found = examine(still)
    assert only(found, "sealed files").startswith("ok:")
    assert only(found, "cases for the gate").startswith(f"ok: opens {waiting}")

    (still.folder / "cases" / f"{lost}.age").unlink()
    with (still.folder / "cases" / f"{cut}.age").open("r+b") as file:
        file.truncate(100)
    key.unlink()
    (still.folder / "ledger.key").write_text("x")
    (still.folder / "ledger.key").chmod(0o644)
    _, found = examine(still)
    said = only(found, "sealed files")
    assert said.startswith("fail: 1 are missing, 1 have another size")
    assert lost in said and cut in said and kept not in said
    assert only(found, "cases for the gate").startswith(f"fail: {key} is away, and 1 cases wait")
    assert only(found, "ledger's key").startswith("warn:")

    write_new_identity(key)
    assert "put back the key that it had" in only(examine(still)[1], "cases for the gate")


def test_a_lost_key_is_missed_today(still: Gate, examine: Doctor) -> None:
    held(still, pictures.png((8, 8)))
    status, found = examine(still)
    assert only(found, "newest case").startswith("ok:") and only(found, "sealed cases").startswith("ok:")
    new = still.folder / "new.key"
    change(still, f'["{still.recipient}"]', f'["{write_new_identity(new)}"]')
    status, found = examine(still, "--identity", str(new))
    assert status == 1
    assert only(found, "newest case").startswith("fail:") and "keys rotate" in only(found, "newest case")
    assert only(found, "sealed cases").startswith("warn: 1 are sealed to others")
    own, given = found["identity"]
    assert own.startswith("fail:") and "none of cases.recipients" in own and given.startswith("ok:")
    still.key.unlink()
    _, found = examine(still)
    assert "reviewer's private key" in only(found, "identity")


def test_an_open_folder_and_a_full_disk_are_told(
    still: Gate, examine: Doctor, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = still.folder / "cases"
    folder.mkdir(mode=0o755)
    folder.chmod(0o755)
    assert f"chmod 700 {folder}" in only(examine(still)[1], "cases folder")
    folder.chmod(0o700)
    for free, level in ((10**8, Level.FAIL), (10**9, Level.WARN), (10**11, Level.OK)):
        usage = shutil._ntuple_diskusage(10**12, 0, free)  # type: ignore[attr-defined]
        monkeypatch.setattr(doctor.shutil, "disk_usage", lambda _, usage=usage: usage)
        assert [one.level for one in doctor.check_folder(folder)] == [level]


def test_a_folder_that_cannot_be_written_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(**_: Any) -> None:
        raise OSError(30, "Read-only file system")

    (tmp_path / "cases").mkdir(mode=0o700)
    monkeypatch.setattr(doctor.tempfile, "TemporaryFile", refuse)
    (found,) = doctor.check_folder(tmp_path / "cases")
    assert found.level is Level.FAIL and "Read-only file system" in found.says


def test_a_ledger_that_was_altered_and_another_version_are_told(still: Gate, examine: Doctor) -> None:
    for number in range(3):
        held(still, pictures.png((8 + number, 8)))

    def alter(statement: str) -> None:
        with still.database() as database, database.writing() as session:
            session.execute(text(statement))

    alter("UPDATE ledger SET actor = 'nobody' WHERE number = 2")
    assert only(examine(still)[1], "ledger").startswith("fail: entry 2")
    alter("UPDATE ledger SET actor = 'gate' WHERE number = 2")
    assert only(examine(still)[1], "ledger").startswith("ok:")
    alter("DELETE FROM ledger WHERE number = 2")
    assert only(examine(still)[1], "ledger").startswith("fail: entry 3")
    alter("UPDATE alembic_version SET version_num = '0002'")
    assert f"0002 → {HEAD}; the next start of the gate does it" in only(examine(still)[1], "database")
    with closing(sqlite3.connect(still.folder / "gate.db", isolation_level=None)) as other:
        assert other.execute("SELECT version_num FROM alembic_version").fetchone() == ("0002",)
        other.execute("UPDATE alembic_version SET version_num = '9999'")
    assert only(examine(still)[1], "database").startswith("fail:")


def test_a_file_that_is_no_database_is_told(still: Gate, examine: Doctor) -> None:
    (still.folder / "gate.db").write_bytes(b"no database, but something else of some length " * 200)
    status, found = examine(still)
    assert status == 1 and "file is not a database" in only(found, "database")


def test_what_comes_by_itself_is_not_called(tmp_path: Path, examine: Doctor) -> None:
    gate = still_gate(tmp_path / "gate", classifier_url=None)
    assert "comes by itself" in only(examine(gate)[1], "classifier 0")


def test_no_secret_is_shown(still: Gate, examine: Doctor) -> None:
    held(still, pictures.png((8, 8)))
    found = str(examine(still)[1])
    assert "AGE-SECRET-KEY" not in found and "a-token-for-tests-only" not in found
