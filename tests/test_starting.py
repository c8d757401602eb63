"""Starting the gate: what it needs, what it does without, and one line where something is missing."""

from __future__ import annotations

import asyncio
import errno
import os
import socket
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from sqlalchemy.exc import TimeoutError as DatabaseTimeout

from proxy import app, parts
from proxy.cases.quarantine import Quarantine
from proxy.cases.sealing import Sealer
from proxy.cli import main
from proxy.config import load
from proxy.database import Case, CaseState, Database, cases, ledger, room, sqlite
from proxy.errors import ConfigError
from proxy.known_hashes import KnownHashes
from proxy.ledger.signing import signer
from proxy.look_alikes import LookAlikes
from proxy.policy import Verdict
from tests import pictures
from tests.client import get
from tests.fake import Fake, json_reply
from tests.gate import Gate
from tests.kept import held, still_gate
from tests.processes import Program, answers

NewGate = Callable[..., Gate]
ROOT = Path(__file__).parents[1]


def refused(gate: Gate, env: dict[str, str] | None = None) -> str:
    """What the gate says instead of starting."""
    result = gate.run("serve", "--config", str(gate.config), check=False, env=env)
    assert result.returncode == 1
    (line,) = [line for line in result.stderr.splitlines() if line.startswith("pictrs-gate:")]
    assert "Traceback" not in result.stderr
    return line


def test_a_port_that_is_taken(new_gate: NewGate, gate: Gate) -> None:
    other = new_gate(start=False, server={"listen": f"127.0.0.1:{gate.port}"})
    line = refused(other)
    assert "server.listen" in line and str(gate.port) in line and "choose another port" in line


def test_a_folder_that_cannot_be_written(new_gate: NewGate) -> None:
    gate = new_gate(start=False)
    (gate.folder / "cases").write_text("a file stands here")
    assert "cases.folder" in refused(gate)


def test_a_folder_that_others_can_look_into_is_taken_from_them(new_gate: NewGate) -> None:
    gate = new_gate(start=False)
    folder = gate.folder / "cases"
    folder.mkdir(mode=0o755)
    assert "others could look into it; it is private now" in gate.review("list").stderr
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert gate.review("list").stderr == ""


def test_what_a_command_writes_is_for_its_user_only(new_gate: NewGate) -> None:
    gate = new_gate(start=False)
    before = os.umask(0)
    try:
        with socket.create_server(("127.0.0.1", 0)) as taken:  # where it ends after it has made the folder
            address = "{}:{}".format(*taken.getsockname())
            refused(gate, {"GATE__CASES__FOLDER": "made/as/needed", "GATE__SERVER__LISTEN": address})
        gate.run("keys", "new", "--output", "other.key")
    finally:
        os.umask(before)
    for name in ("gate.db", "other.key", "made", "made/as", "made/as/needed"):
        assert stat.S_IMODE((gate.folder / name).stat().st_mode) & 0o077 == 0, name


def test_a_folder_that_is_gone_is_not_replaced_by_an_empty_one(new_gate: NewGate, hit: bytes) -> None:
    gate = new_gate()
    folder = gate.folder / "cases"
    assert gate.upload(hit).status == 201
    folder.rename(gate.folder / "unmounted")
    assert gate.upload(hit).status == 503
    gate.run("queue", "--config", str(gate.config))
    assert gate.upload(hit).status == 503
    gate.stop()
    assert f"cases.folder: {folder}: is gone" in refused(gate)
    assert not folder.exists()


def test_what_only_reads_needs_no_room_for_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gate = still_gate(tmp_path)
    held(gate, pictures.png(seed=4_712))

    def is_full(**_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("proxy.cases.quarantine.tempfile.TemporaryFile", is_full)
    for words in (["review", "list"], ["queue"], ["retention", "run", "--dry-run"], ["retention", "run"]):
        assert main([*words, "--config", str(gate.config)]) == 0


def test_commands_that_start_at_once_do_not_meet_in_the_folder(tmp_path: Path) -> None:
    wrong: list[Exception] = []

    def start() -> None:
        try:
            for _ in range(200):
                Quarantine(tmp_path / "cases", Sealer([]), lambda _: None)
        except ConfigError as error:
            wrong.append(error)

    threads = [threading.Thread(target=start) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert list((tmp_path / "cases").iterdir()) == []


def test_a_key_file_that_is_missing(new_gate: NewGate) -> None:
    gate = new_gate(start=False, pictrs={"api_key_file": "nowhere"}, api_key=None)
    line = refused(gate)
    assert "pictrs.api_key_file" in line and "nowhere" in line
    (gate.folder / "classifier-token").unlink()
    (gate.folder / "nowhere").write_text("key")
    assert "classifiers.0.token_file" in refused(gate)


def test_a_list_of_hashes_that_is_none(new_gate: NewGate) -> None:
    gate = new_gate(start=False, policy={"block_lists": ["list.txt"]})
    assert "policy.block_lists" in refused(gate)
    (gate.folder / "list.txt").write_text("# fine\nnot a hash\n")
    assert "line 2" in refused(gate)
    (gate.folder / "list.txt").write_bytes(b"# k\xf6nnte Latin-1 sein\n")
    assert "UTF-8" in refused(gate)


def test_a_list_of_hashes_may_have_comments_in_any_language(tmp_path: Path) -> None:
    path = tmp_path / "list.txt"
    path.write_text(f"# für Ämter\x85 und andere\r\n{1:064x} # éin\r\n", "utf-8-sig")
    database = Database(f"sqlite:///{tmp_path}/gate.db")
    found = asyncio.run(KnownHashes(database, [path]).find(f"{1:064x}"))
    database.close()
    assert found is not None and found.verdict is Verdict.BLOCK


def test_a_rule_about_a_signal_that_the_classifier_lacks(new_gate: NewGate) -> None:
    looking = Fake(lambda _: json_reply(200, {"signals": ["sexual", "minor"]}))
    gate = new_gate(
        start=False, classifier_url=looking.url, rules=[{"name": "x", "at_least": {"drawing": 0.5}}]
    )
    line = refused(gate)
    assert "policy.rules" in line and "drawing" in line
    looking.close()


def test_a_database_that_cannot_be_opened(new_gate: NewGate) -> None:
    gate = new_gate(start=False)
    assert "database.url" in refused(gate, {"GATE__DATABASE__URL": "sqlite:////nowhere/gate.db"})


async def test_what_the_start_reads_may_take_longer_than_an_upload_waits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Or a gate with a long memory would never start again."""
    gate, ready = still_gate(tmp_path / "gate"), []
    made: list[Database] = []

    def slowly(work: Callable[..., Any]) -> Callable[..., Any]:
        def slow(*given: Any, **more: Any) -> Any:
            time.sleep(0.3)
            return work(*given, **more)

        return slow

    async def asked() -> None:
        database = made[0]
        with pytest.raises(DatabaseTimeout):
            await database.run(lambda _: time.sleep(0.3))
        ready.append(True)

    def opened(*given: Any, **more: Any) -> Database:
        made.append(Database(*given, **more))
        return made[-1]

    monkeypatch.setattr(app, "_DATABASE_S", 0.1)
    monkeypatch.setattr(parts, "Database", opened)
    monkeypatch.setattr(app, "_told_to_stop", asked)
    for name in ("allow_open_files", "give_back_large_buffers", "keep_what_is_built"):
        monkeypatch.setattr(app.process, name, lambda *_: None)
    monkeypatch.setattr(app, "note_sizes", slowly(app.note_sizes))
    monkeypatch.setattr(LookAlikes, "catch_up", slowly(LookAlikes.catch_up))
    for module, name in ((room, "salt"), (room, "taken"), (ledger, "started")):
        monkeypatch.setattr(module, name, slowly(getattr(module, name)))
    await app.serve(load(gate.config))
    assert ready == [True]


def test_two_gates_on_hosts_of_one_name_do_not_take_each_other_for_themselves(tmp_path: Path) -> None:
    configs = [
        load(still_gate(tmp_path / host, server={"listen": "127.0.0.1:8080"}).config) for host in ("a", "b")
    ]
    for config in configs:
        signer(config.ledger.key_file)  # as the start makes it
    first, second = map(parts.owner_of, configs)
    assert first != second and first == parts.owner_of(configs[0])


def test_a_database_that_is_none(new_gate: NewGate) -> None:
    gate = new_gate(start=False)
    (gate.folder / "gate.db").write_bytes(b"something else " * 100)
    assert "gate.db: file is not a database" in refused(gate)


@pytest.mark.parametrize("listen", ["nowhere.invalid:8080", "a..b:8080"])
def test_a_host_to_listen_on_that_does_not_exist(new_gate: NewGate, listen: str) -> None:
    line = refused(new_gate(start=False), {"GATE__SERVER__LISTEN": listen})
    assert f"server.listen: {listen}: no such host" in line


def test_a_configuration_that_is_not_utf_8(new_gate: NewGate) -> None:
    gate = new_gate(start=False)
    gate.config.write_bytes(b"# k\xf6nnte Latin-1 sein\n" + gate.config.read_bytes())
    assert "gate.toml: not UTF-8" in refused(gate)


def test_a_database_that_fails_in_the_middle_of_a_command_is_said_in_one_line(
    new_gate: NewGate, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    gate = new_gate(start=False)
    hush = {"id": "case-1", "created_at": datetime.now(UTC), "reason": "hush", "file": "case-1.age"}
    with gate.database() as database:
        cases.add(database, Case(state=CaseState.PENDING, **hush), facts={})
        monkeypatch.setattr(sqlite, "_BUSY_S", 0.1)
        monkeypatch.setattr(os, "umask", lambda _: 0)  # the command's own, not that of these tests
        with database.writing() as session:
            session.connection()  # takes the lock
            status = main(["review", "show", "case-1", "--config", str(gate.config)])
    shown = capsys.readouterr()
    assert (status, shown.out) == (1, "")
    assert "pictrs-gate: database.url: database is locked; another process has been writing" in shown.err
    assert "Traceback" not in shown.err and "hush" not in shown.err


def test_metrics_and_health_are_on_a_listener_of_their_own(gate: Gate) -> None:
    assert get(gate.internal_url, "/healthz").body == b"ok\n"
    assert get(gate.internal_url, "/readyz").body == b"ready\n"
    text = get(gate.internal_url, "/metrics").body.decode()
    assert "pictrs_gate_requests_total" in text
    for path in ("/metrics", "/readyz"):
        assert get(gate.url, path).status == 404
    assert get(gate.internal_url, "/image").status == 404


def needed(package: str) -> dict[str, metadata.Distribution]:
    """What it depends on, and what those do, of what is installed here."""
    found: dict[str, metadata.Distribution] = {}
    left = [package]
    while left:
        for line in metadata.requires(left.pop()) or ():
            requirement = Requirement(line)
            applies = requirement.marker is None or requirement.marker.evaluate({"extra": ""})
            if applies and requirement.name not in found:
                found[requirement.name] = metadata.distribution(requirement.name)
                left.append(requirement.name)
    return found


def test_the_gate_runs_where_there_is_no_torch_and_nothing_else_of_the_classifier(tmp_path: Path) -> None:
    """The gate installed, not linked, beside what it says that it needs and nothing else."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", tmp_path / "venv"], check=True)
    python = tmp_path / "venv" / "bin" / "python"
    # What it needs is taken from here: to install it again would be most of what this test takes.
    (site,) = (tmp_path / "venv" / "lib").glob("python*/site-packages")
    parts = needed("pictrs-gate")
    assert "sqlalchemy" in parts
    for package in ("torch", "timm", "onnxruntime", "dlib-bin", "scikit-image", "av"):
        assert package not in parts
    for part in parts.values():
        for name in {file.parts[0] for file in part.files or ()} - {"..", "__pycache__"}:
            if not (site / name).exists():
                (site / name).symlink_to(str(part.locate_file(name)))
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    made = ["wheel", "-q", "--no-deps", "--no-build-isolation", "-w", tmp_path]
    subprocess.run([*pip, *made, ROOT], check=True, timeout=600)
    (wheel,) = tmp_path.glob("*.whl")
    once = ["--python", python, "install", "-q", "--no-deps", "--no-compile"]
    subprocess.run([*pip, *once, wheel], check=True, timeout=600)
    for package in ("torch", "timm", "onnxruntime", "dlib", "skimage", "av"):
        assert subprocess.run([python, "-c", f"import {package}"], capture_output=True).returncode == 1

    gate = Gate(
        tmp_path / "gate",
        pictrs_url="http://127.0.0.1:9",
        api_key="k",
        classifier_url="http://127.0.0.1:9",
        start=False,
    )
    command = [tmp_path / "venv" / "bin" / "pictrs-gate", "serve", "--config", gate.config]
    program = Program(command, tmp_path / "log", cwd=tmp_path)
    try:
        program.wait_until(lambda: answers(f"{gate.internal_url}/healthz"))
        assert get(gate.internal_url, "/readyz").status == 200
        assert program.resident_mb() < 150  # of the 256 MB that a small VPS has for it
    finally:
        program.stop()


def test_the_gate_s_code_imports_nothing_of_the_classifier_s() -> None:
    missing = ["torch", "timm", "onnxruntime", "numpy", "dlib", "classifier"]
    code = f"import sys; sys.modules.update(dict.fromkeys({missing})); import proxy.cli"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


def test_the_classifier_imports_with_little_more_than_its_models() -> None:
    missing = ["pdqhash", "pydantic", "pydantic_settings", "sqlalchemy", "alembic", "pyrage", "rich", "proxy"]
    code = f"import sys; sys.modules.update(dict.fromkeys({missing})); import classifier.commands"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)
