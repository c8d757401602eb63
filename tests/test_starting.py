"""Starting the gate: what it needs, what it does without, and one line where something is missing."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.client import get
from tests.fake import Fake, json_reply
from tests.gate import Gate
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


def test_metrics_and_health_are_on_a_listener_of_their_own(gate: Gate) -> None:
    assert get(gate.internal_url, "/healthz").body == b"ok\n"
    assert get(gate.internal_url, "/readyz").body == b"ready\n"
    text = get(gate.internal_url, "/metrics").body.decode()
    assert "pictrs_gate_requests_total" in text
    for path in ("/metrics", "/readyz"):
        assert get(gate.url, path).status == 404
    assert get(gate.internal_url, "/image").status == 404


def test_the_gate_runs_where_there_is_no_torch_and_nothing_else_of_the_classifier(tmp_path: Path) -> None:
    """`pip install .` in a fresh environment, and a gate that starts in it."""
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "venv"], check=True)
    python = tmp_path / "venv" / "bin" / "python"
    constraints = ROOT / ".ci" / "constraints.txt"
    subprocess.run(
        [python, "-m", "pip", "install", "-q", "--disable-pip-version-check", "-c", constraints, ROOT],
        check=True,
        timeout=600,
    )
    listed = subprocess.run([python, "-m", "pip", "list"], capture_output=True, text=True, check=True).stdout
    for package in ("torch", "timm", "onnxruntime", "numpy", "dlib", "scikit"):
        assert not re.search(rf"^{package}", listed, re.MULTILINE), package

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
        resident = Path(f"/proc/{program.process.pid}/status").read_text()
        kilobytes = int(re.search(r"VmRSS:\s+(\d+)", resident)[1])  # type: ignore[index]
        assert kilobytes < 150_000  # of the 256 MB that a small VPS has for it
    finally:
        program.stop()


@pytest.mark.parametrize("package", ["torch", "timm", "onnxruntime", "numpy", "dlib"])
def test_the_gate_s_code_imports_nothing_of_the_classifier_s(package: str) -> None:
    code = f"import sys; sys.modules['{package}'] = None; sys.modules['classifier'] = None; import proxy.cli"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


def test_the_classifier_imports_with_little_more_than_its_models() -> None:
    missing = ["pdqhash", "pydantic", "pydantic_settings", "sqlalchemy", "alembic", "pyrage", "rich", "proxy"]
    code = f"import sys; sys.modules.update(dict.fromkeys({missing})); import classifier.cli, classifier.app"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


def test_the_demo_shows_every_step(tmp_path: Path) -> None:
    import json

    result = subprocess.run(
        [sys.executable, "-m", "tests.demo", "--json"], capture_output=True, text=True, cwd=ROOT, timeout=110
    )
    account = json.loads(result.stdout)
    assert result.returncode == 0, account
    assert account["pictrs"]
    assert [step["ok"] for step in account["steps"]] == [True] * 9
    assert all(step["name"] and step["ms"] > 0 for step in account["steps"])
