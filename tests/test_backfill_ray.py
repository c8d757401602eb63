"""`--engine ray`: a real Ray of two workers looks as a configuration's classifiers do, and leaves nothing."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from proxy.backfill import cluster
from proxy.errors import ConfigError
from tests import pictrs, pictures
from tests.client import form, send, upload
from tests.conftest import SIGNALS
from tests.gate import Classifier, Gate, scripted
from tests.processes import Program

NewGate = Callable[..., Gate]

PLAIN = [pictures.png((80, 50), seed=2000 + number) for number in range(26)]
HITS = [pictures.png((90, 60), seed=2100), pictures.jpeg((120, 90), seed=2101), pictures.animation("GIF")]
AGENTS = ("ray::DashboardAgent", "ray::RuntimeEnvAgent")
BROKEN = [pictures.png((300, 200), seed=2200)[:900], b"no picture at all, but plain words"]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[pictrs.Pictrs]:
    """A pict-rs that keeps everything as it comes: hits with two aliases each, and broken files."""
    running = pictrs.Pictrs(tmp_path_factory.mktemp("store"), real=None, max_files=100, dummy=True)
    assert upload(running.url, *PLAIN, *BROKEN).status == 201
    for at, content in enumerate([*HITS, *HITS]):
        content_type, body = form([(f"hit-{at}.png", content)])
        headers = {"Content-Type": content_type, "X-Api-Token": running.api_key}
        assert send(running.url, "POST", "/internal/import", headers=headers, body=body).status == 201
    yield running
    running.stop()


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return scripted(tmp_path_factory.mktemp("looking"), dict.fromkeys(HITS, SIGNALS))


@pytest.fixture
def short() -> Iterator[Path]:
    """A folder for Ray, whose sockets' paths have to be short."""
    with tempfile.TemporaryDirectory(prefix="gr", dir="/tmp") as folder:
        yield Path(folder)


def using(folder: Path) -> list[int]:
    """Processes that have a file open in `folder`, or it in their environment, from who has started them."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            links = [str(link.readlink()) for link in (path / "fd").glob("*")]
            named = [*links, (path / "environ").read_text(errors="replace")]
        except OSError:
            continue
        if any(str(folder) in one for one in named):
            found.append(int(path.name))
    return found


def listening_elsewhere(pids: list[int]) -> list[str]:
    """Addresses other than loopback's on which one of the processes listens."""
    sockets = set()
    for pid in pids:
        for link in Path(f"/proc/{pid}/fd").glob("*"):
            try:
                sockets.add(str(link.readlink()))
            except OSError:
                continue
    tables = [Path("/proc/net/tcp").read_text(), Path("/proc/net/tcp6").read_text()]
    lines = [line.split() for table in tables for line in table.splitlines()]
    addresses = [line[1] for line in lines if line[3] == "0A" and f"socket:[{line[9]}]" in sockets]
    return [one for one in addresses if not one.split(":")[0].endswith("0100007F")]


def what_matters(report: dict[str, Any]) -> dict[str, Any]:
    """Of a report: all but when and how fast."""
    kept = ("looked_at", "unreadable", "skipped", "hit_count", "fetched_bytes", "histogram")
    hits = [{name: hit[name] for name in ("place", "aliases", "signals", "reason")} for hit in report["hits"]]
    lost = [(one["place"], one["reason"], one["aliases"]) for one in report["unreadable_files"]]
    return {"hits": hits, "lost": lost, **{name: report[name] for name in kept if name in report}}


def left_of(folder: Path, but: tuple[str, ...] = ()) -> list[int]:
    """Who is left of a run that has ended, once all have had time to end, other than those of these names."""
    end = time.monotonic() + 20
    while (left := [pid for pid in using(folder) if name_of(pid) not in but]) and time.monotonic() < end:
        time.sleep(0.2)
    return left


def name_of(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text().strip("\0 ")
    except OSError:
        return ""


@pytest.mark.timeout(300)  # a start of Ray takes half a minute where others are busy
@pytest.mark.parametrize("is_killed", [True] if "GATE_KILLS" in os.environ else [False])
def test_two_workers_report_what_a_classifier_reports(
    new_gate: NewGate, store: pictrs.Pictrs, recipe: Path, tmp_path: Path, short: Path, is_killed: bool
) -> None:
    """With `make kills`: also though the driver is killed in the middle."""
    looking = Classifier(tmp_path / "classifier", ensemble=recipe)
    gate = new_gate(pictrs_url=store.url, api_key=store.api_key, classifier_url=looking.url, start=False)
    other = new_gate(pictrs_url=store.url, api_key=store.api_key, classifier_url=None, start=False)
    words = ["backfill", "run", "--json", "--config", str(gate.config)]
    expected = json.loads(gate.run(*words).stdout)
    looking.stop()
    assert (expected["looked_at"], expected["unreadable"], expected["hit_count"]) == (29, 2, 3)

    program = Path(sys.executable).parent / "pictrs-gate"
    words = [str(program), "backfill", "run", "--json", "--config", str(other.config)]
    words += ["--engine", "ray", "--ray-ensemble", str(recipe)]
    env = {"TMPDIR": str(short)}
    # Slowly, so that there is a middle; the options are kept with the run, but for who looks.
    first = Program([*words, "--rate", "6"], tmp_path / "first.log", env=env)
    first.wait_until(lambda: '"looked_at": ' in first.output() and looked_at(other) >= 5, within_s=120)
    processes = using(short)
    assert len(processes) > 4 and listening_elsewhere(processes) == []
    assert_nowhere_in(short, store.api_key.encode())
    if is_killed:
        os.kill(first.process.pid, signal.SIGKILL)
        first.process.wait()
        assert left_of(short, AGENTS) == []
        for pid in using(short):  # they would look for their parent for a minute
            os.kill(pid, signal.SIGKILL)
        assert 5 <= looked_at(other) < 29
        second = other.run(*words[1:], env=env)
        assert second.stderr.splitlines() and all(json.loads(line) for line in second.stderr.splitlines())
    else:
        assert first.process.wait(120) == 0
    told = other.run("backfill", "report", "--json", "--config", str(other.config)).stdout
    assert what_matters(json.loads(told)) == what_matters(expected)
    assert left_of(short) == []
    assert other.cases() == []
    # The one that was killed has left its folder; one that has ended removes it.
    assert len(list(short.glob("gate-ray-*"))) == is_killed
    assert_nowhere_in(short, store.api_key.encode())


def assert_nowhere_in(folder: Path, secret: bytes) -> None:
    for path in folder.rglob("*"):
        if path.is_file() and not path.is_symlink():
            with contextlib.suppress(FileNotFoundError):
                assert secret not in path.read_bytes()


def looked_at(gate: Gate) -> int:
    """By the newest run, durably."""
    from proxy.database import backfill as runs

    with gate.database() as database:
        run = runs.open_run(database)
    return run.looked_at if run else 0


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ((), "--engine ray: needs --ray-ensemble"),
        (
            ("--ray-ensemble", "starter", "--ray-address", "ray://10.0.0.1:1"),
            "on a machine of the cluster",
        ),
    ],
)
def test_what_cannot_be_is_said_before_a_run_is_begun(
    new_gate: NewGate, words: tuple[str, ...], said: str
) -> None:
    gate = new_gate(start=False)
    config = ("--config", str(gate.config))
    told = gate.run("backfill", "run", "--engine", "ray", *words, *config, check=False)
    assert told.returncode == 1 and said in told.stderr and len(told.stderr.splitlines()) == 1
    assert looked_at(gate) == 0


def test_without_ray_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    for name in ("RAY_USAGE_STATS_ENABLED", "RAY_BACKEND_LOG_LEVEL"):
        monkeypatch.setenv(name, "0")
    with pytest.raises(ConfigError, match=r"pip install 'pictrs-gate\[ray\]'"):
        cluster.import_ray(is_local=False)
