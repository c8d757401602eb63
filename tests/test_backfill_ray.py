"""`--engine ray`: a real Ray of two workers looks as a configuration's classifiers do, and leaves nothing."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import json
import os
import pickle
import re
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from proxy.backfill import cluster
from proxy.backfill.belt import Belt
from proxy.backfill.sources import Entry, Unreadable
from proxy.backfill.viewing import BackfillError
from proxy.channels.looks import Seen
from proxy.errors import ConfigError
from proxy.media.signatures import PNG
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


@pytest.mark.kills
@pytest.mark.timeout(300)  # a start of Ray takes half a minute where others are busy
@pytest.mark.parametrize("killed", ["nobody", "driver", "worker"])
def test_two_workers_report_what_a_classifier_reports(
    new_gate: NewGate, store: pictrs.Pictrs, recipe: Path, tmp_path: Path, short: Path, killed: str
) -> None:
    """With `make kills`: also though the driver, or a worker, is killed in the middle."""
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
    if killed == "driver":
        os.kill(first.process.pid, signal.SIGKILL)
        first.process.wait()
        assert left_of(short, AGENTS) == []
        for pid in using(short):  # they would look for their parent for a minute
            os.kill(pid, signal.SIGKILL)
        assert 5 <= looked_at(other) < 29
        second = other.run(*words[1:], env=env)
        assert second.stderr.splitlines() and all(json.loads(line) for line in second.stderr.splitlines())
    else:
        if killed == "worker":
            workers = [pid for pid in using(short) if re.match("ray::.*Worker", name_of(pid))]
            os.kill(workers[0], signal.SIGKILL)
        assert first.process.wait(120) == 0
    told = other.run("backfill", "report", "--json", "--config", str(other.config)).stdout
    assert what_matters(json.loads(told)) == what_matters(expected)
    assert left_of(short) == []
    assert other.cases() == []
    # The one that was killed has left its folder; one that has ended removes it.
    assert len(list(short.glob("gate-ray-*"))) == (killed == "driver")
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
        (("--ray-ensemble", "starter", "--ray-address", ""), "on a machine of the cluster"),
        (("--ray-ensemble", "starter", "--ray-address", "local"), "on a machine of the cluster"),
        (("--ray-ensemble", "starter", "--via-thumbnails", "256"), "looks at originals alone"),
        (("--engine", "classifiers", "--ray-workers", "3"), "--ray-workers: is for --engine ray"),
    ],
)
def test_what_cannot_be_is_said_before_a_run_is_begun(
    new_gate: NewGate, words: tuple[str, ...], said: str
) -> None:
    gate = new_gate(start=False)
    config = ("--config", str(gate.config))
    told = gate.run("backfill", "run", "--engine", "ray", *words, *config, check=False)
    assert told.returncode == 1 and said in told.stderr and len(told.stderr.splitlines()) == 1
    from proxy.database import backfill as runs

    with gate.database() as database:
        assert runs.open_run(database) is None


def test_without_ray_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    for name in ("RAY_USAGE_STATS_ENABLED", "RAY_BACKEND_LOG_LEVEL"):
        monkeypatch.setenv(name, "0")
    with pytest.raises(ConfigError, match=r"pip install 'pictrs-gate\[ray\]'"):
        cluster.import_ray(is_local=False)


class Died(BaseException):
    """A worker's process has."""


class At:
    """An actor in this process, as far as a worker asks one."""

    def __init__(self, actor: object) -> None:
        self._actor = actor

    def __getattr__(self, name: str) -> Any:
        def remote(*args: Any, **more: Any) -> Any:
            return asyncio.run(getattr(self._actor, name)(*args, **more))

        return type("Method", (), {"remote": staticmethod(remote)})


def test_a_file_that_workers_die_of_is_unreadable_and_those_beside_it_are_looked_at(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import pyarrow as pa

    from proxy.backfill import cluster_worker as there

    class Worker(there.Worker):
        async def _open(self) -> Any:
            return None, None

        async def _facts(self, entry: Entry, most: int) -> there.Facts:
            begun.append(entry.place)
            await asyncio.sleep(0)  # the others begin as well
            if entry.place == "deadly":
                raise Died
            return there.Facts(1, None, "", None)

    async def answered(self: there.Worker, asked: Sequence[there.Question]) -> list[there.Reply]:
        return [await self._reply(one) for one in asked]

    monkeypatch.setattr(there.ray, "get", lambda result, timeout: result)
    monkeypatch.setattr(Worker, "_answered", answered)
    begun: list[str] = []
    belt = At(Belt())
    places = ["a", "deadly", "b"]
    questions = [there.Question(number, Entry(place), 9) for number, place in enumerate(places, start=1)]
    table = pa.table({"questions": pa.array([pickle.dumps(questions)], pa.binary())})

    for expected in (["a", "deadly"], ["a", "deadly"]):  # together, then each alone
        begun.clear()
        with pytest.raises(Died):
            Worker(belt)(table)
        assert begun == expected
    begun.clear()
    (row,) = Worker(belt)(table)["replies"].to_pylist()
    answers = {reply.number: reply.answer for reply in pickle.loads(row)}
    assert begun == ["a", "b"]
    assert answers[2] == Unreadable("workers have died over it, twice")
    assert isinstance(answers[1], there.Facts) and isinstance(answers[3], there.Facts)

    # What a worker has lived through is nobody's death: the next ones go together again.
    begun.clear()
    harmless = pa.table({"questions": pa.array([pickle.dumps(questions[::2])], pa.binary())})
    Worker(belt)(harmless)
    assert not belt.begin.remote([1, 3])


class Silent:
    """A belt and a pipeline of which nothing comes before `replies` are given."""

    def __init__(self) -> None:
        self.put = type("Put", (), {"remote": staticmethod(lambda _: None)})
        self.ended = threading.Event()

    def iter_batches(self, **_: Any) -> Iterator[Any]:
        self.ended.wait(10)
        return iter(())


async def answer_from_a_worker(
    facts: object, *, is_here: Callable[[Entry], bool] | None = None
) -> tuple[Any, BaseException | None]:
    """What a run gets of one file, whose worker says `facts`; and the error, if there is one."""
    from proxy.backfill import cluster_worker as there

    silent = Silent()
    made = cluster.Cluster(silent, silent, is_here)
    try:
        asking = asyncio.create_task(made.about())
        await asyncio.sleep(0)
        made._land([there.Reply(1, there.About("own 1", frozenset()))])
        await asking

        async def brought() -> Any:
            async with made.brought(Entry("a.png"), 9) as file:
                return file if isinstance(file, Unreadable) else await file.look()

        waiting = asyncio.create_task(brought())
        await asyncio.sleep(0)
        made._land([there.Reply(2, facts)])  # type: ignore[arg-type]
        (result,) = await asyncio.gather(waiting, return_exceptions=True)
        return (None, result) if isinstance(result, BaseException) else (result, None)
    finally:
        silent.ended.set()
        await made.close()


async def test_workers_with_another_ensemble_than_the_others_stop_the_run() -> None:
    from proxy.backfill import cluster_worker as there

    def by(ensemble: str) -> there.Facts:
        return there.Facts(1, PNG, "", Seen({}, [], ensemble, "png", 1, 1, None, None))

    look, _ = await answer_from_a_worker(by("own 1"))
    assert look.ensemble == "own 1"
    _, error = await answer_from_a_worker(by("own 2"))
    assert isinstance(error, BackfillError) and "own 2" in str(error) and "own 1" in str(error)


async def test_a_worker_that_does_not_have_the_folder_stops_the_run() -> None:
    gone = Unreadable(os.strerror(errno.ENOENT))
    assert (await answer_from_a_worker(gone, is_here=lambda _: False))[0] == gone  # nobody has it any more
    _, error = await answer_from_a_worker(gone, is_here=lambda _: True)
    assert isinstance(error, BackfillError) and "mount the folder" in str(error)
