"""Backfill: everything that is stored is looked at, hits are reported, nothing is touched."""

from __future__ import annotations

import io
import json
import subprocess
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path

import pytest
from rich.console import Console

from proxy.backfill.report import print_report, write_json
from proxy.database import BackfillHit, BackfillRun
from proxy.database.models import BackfillUnreadable
from tests import pictrs, pictures
from tests.client import Answer, form, send, upload
from tests.conftest import SIGNALS
from tests.fake import SEEN, Asked, Fake, Reply, classifier, json_reply
from tests.gate import Classifier, Gate, scripted

NewGate = Callable[..., Gate]

HIT = pictures.png((90, 60), seed=761)  # a PNG without metadata, which pict-rs keeps as it is
# Larger than the classifier here takes.
LARGE = pictures.encode(pictures.draw((700, 700), seed=779), "PNG", compress_level=0)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[pictrs.Pictrs]:
    """A pict-rs of its own, with a known store."""
    running = pictrs.Pictrs(tmp_path_factory.mktemp("store"), real=pictrs.find())
    for seed in range(3):
        assert upload(running.url, pictures.png((80, 50), seed=770 + seed)).status == 201
    for name in ("first-name.png", "second-name.png"):
        assert _import(running, name, HIT).status == 201
    assert upload(running.url, LARGE).status == 201
    yield running
    running.stop()


def _import(running: pictrs.Pictrs, name: str, content: bytes) -> Answer:
    content_type, body = form([(name, content)])
    headers = {"Content-Type": content_type, "X-Api-Token": running.api_key}
    return send(running.url, "POST", "/internal/import", headers=headers, body=body)


@pytest.fixture(scope="module")
def looking(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Classifier]:
    folder = tmp_path_factory.mktemp("looking")
    recipe = scripted(folder, {HIT: SIGNALS})
    running = Classifier(folder, ensemble=recipe, options=["--max-body-mb", "1"])
    yield running
    running.stop()


def run(gate: Gate, *words: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    return gate.run("backfill", "run", "--config", str(gate.config), *words, check=check)


@pytest.fixture
def gate(new_gate: NewGate, store: pictrs.Pictrs, looking: Classifier) -> Gate:
    return new_gate(pictrs_url=store.url, api_key=store.api_key, classifier_url=looking.url, start=False)


def test_a_run_reports_the_hits_with_all_their_aliases_and_touches_nothing(
    gate: Gate, store: pictrs.Pictrs, tmp_path: Path
) -> None:
    before = {path: path.stat().st_mtime_ns for path in store.stored_files()}
    shown = run(gate, "--json", "--report", str(tmp_path / "report.json")).stdout
    report = json.loads(shown)
    assert json.loads((tmp_path / "report.json").read_text()) == report
    assert (report["looked_at"], report["unreadable"]) == (4, 1)
    (unreadable,) = report["unreadable_files"]  # the large one
    assert len(unreadable["aliases"]) == 1 and "undecodable" in unreadable["reason"]
    (hit,) = report["hits"]
    assert hit["aliases"] == ["first-name.png", "second-name.png"]
    assert (hit["signals"], hit["verdict"], hit["reason"]) == (SIGNALS, "hold", "rule: a suspicion")
    assert report["finished_at"]
    assert {path: path.stat().st_mtime_ns for path in store.stored_files()} == before
    assert gate.cases() == []


def test_the_report_is_readable(gate: Gate) -> None:
    shown = run(gate).stdout
    assert "4 files looked at, 1 hits, 1 unreadable. Nothing was touched." in shown
    assert "first-name.png" in shown
    assert "Nobody could look at these:" in shown and "undecodable" in shown


def test_only_the_files_that_are_asked_for_are_looked_at(gate: Gate) -> None:
    hour = (datetime.now().astimezone().hour + 12) % 24
    words = ("--kind", "image", "--since", "1d", "--limit", "2", "--rate", "1000", "--sample", "100%")
    shown = run(gate, "--json", "--quiet-hours", f"{hour:02}:00-{hour:02}:30", *words)
    report = json.loads(shown.stdout)
    assert report["looked_at"] + report["unreadable"] == 2
    assert (report["options"]["kind"], report["options"]["limit"]) == ("Image", 2)
    report = json.loads(run(gate, "--json", "--kind", "video").stdout)
    assert (report["looked_at"], report["reused"], report["skipped"]) == (0, 0, 5)
    assert json.loads(run(gate, "--json", "--prefix", "first-").stdout)["hit_count"] == 1
    older = json.loads(run(gate, "--json", "--until", "1d").stdout)  # pict-rs need not even list the others
    assert (older["looked_at"], older["reused"]) == (0, 0)
    stale = json.loads(run(gate, "--json", "--stale", "--prefix", "second-").stdout)
    assert (stale["looked_at"], stale["reused"]) == (0, 1)  # the same ensemble has looked at it


def test_it_looks_with_the_priority_of_a_backfill(gate: Gate, looking: Classifier) -> None:
    from tests.client import get

    run(gate)
    assert 'outcome="ok",priority="backfill"' in get(looking.url, "/metrics").body.decode()


def test_what_a_human_has_released_is_no_hit_and_what_is_confirmed_is_one_without_a_look(
    new_gate: NewGate, store: pictrs.Pictrs, tmp_path: Path
) -> None:
    hits = {HIT: SIGNALS, pictures.png((80, 50), seed=770): SIGNALS}
    looking = Classifier(tmp_path / "own", ensemble=scripted(tmp_path / "own", hits))
    gate = new_gate(pictrs_url=store.url, api_key=store.api_key, classifier_url=looking.url)
    for content, decision in zip(hits, ("release", "confirm"), strict=True):
        gate.upload(content)
        gate.decide(decision)
    report = json.loads(run(gate, "--json").stdout)
    assert [hit["verdict"] for hit in report["hits"]] == ["block"]
    looking.stop()


def test_without_a_classifier_it_stops_and_later_goes_on_where_it_was(
    gate: Gate, looking: Classifier, store: pictrs.Pictrs
) -> None:
    from proxy.database import backfill as runs

    gate.config.write_text(gate.config.read_text().replace(looking.url, "http://127.0.0.1:9"))
    stopped = run(gate, check=False)
    assert stopped.returncode == 1 and "nobody could look" in stopped.stderr
    gate.config.write_text(gate.config.read_text().replace("http://127.0.0.1:9", looking.url))
    with gate.database() as database:
        run_id = runs.open_run(database).id
    report = json.loads(run(gate, "--json").stdout)
    assert (report["run"], report["looked_at"], len(report["hits"])) == (run_id, 4, 1)
    assert json.loads(run(gate, "--json").stdout)["run"] == run_id + 1


def test_it_goes_on_by_the_same_words_at_another_rate_and_with_nothing_else(
    gate: Gate, looking: Classifier
) -> None:
    gate.config.write_text(gate.config.read_text().replace(looking.url, "http://127.0.0.1:9"))
    words = ("--json", "--since", "30d", "--kind", "image")
    assert run(gate, *words, "--rate", "900", check=False).returncode == 1
    other = run(gate, "--since", "20d", "--kind", "video", "--rate", "800", check=False)
    assert other.returncode == 1 and "has other options (--since, --kind)" in other.stderr
    gate.config.write_text(gate.config.read_text().replace("http://127.0.0.1:9", looking.url))
    report = json.loads(run(gate, *words, "--rate", "800").stdout)
    assert (report["run"], report["looked_at"], report["options"]["rate"]) == (1, 4, 800)


def test_killed_in_the_middle_it_goes_on_and_reports_everything_once(
    new_gate: NewGate, tmp_path: Path
) -> None:
    import sys

    from tests.processes import Program

    running = pictrs.Pictrs(tmp_path / "many", real=None, max_files=200)
    contents = [pictures.png((24, 16), seed=2000 + number) for number in range(250)]
    for at in range(0, len(contents), 50):
        assert upload(running.url, *contents[at : at + 50]).status == 201
    planted = dict.fromkeys(contents[10:250:40], SIGNALS)
    looking = Classifier(tmp_path / "looking", ensemble=scripted(tmp_path / "looking", planted))
    gate = new_gate(pictrs_url=running.url, api_key=running.api_key, classifier_url=looking.url, start=False)
    command = [Path(sys.executable).parent / "pictrs-gate", "backfill", "run", "--config", gate.config]
    program = Program(command, tmp_path / "backfill.log")
    program.wait_until(lambda: "files looked at" in program.output())  # the first batch is durable
    program.kill()

    report = json.loads(run(gate, "--json").stdout)
    assert (report["run"], report["looked_at"]) == (1, 250)
    assert len(report["hits"]) == len(planted)
    looking.stop()
    running.stop()


def test_the_wrong_key_is_said_in_one_line(
    new_gate: NewGate, store: pictrs.Pictrs, looking: Classifier
) -> None:
    gate = new_gate(pictrs_url=store.url, api_key="wrong", classifier_url=looking.url, start=False)
    refused = run(gate, check=False)
    assert refused.returncode == 1 and "invalid-api-token" in refused.stderr


class Store:
    """A pict-rs whose originals are answered as the test says, alias by alias."""

    def __init__(self, originals: Mapping[str, Callable[[], Reply]]) -> None:
        self.is_there = True

        def reply(asked: Asked) -> Reply:
            if not self.is_there:
                raise ConnectionResetError("not an answer at all")
            if asked.target.startswith("/internal/hashes"):
                hashes = [
                    {"hex": f"{number:064x}{0:014x}", "aliases": [alias], "details": None}
                    for number, alias in enumerate(originals)
                ]
                return json_reply(200, {"page": {"hashes": hashes, "next": None}, "msg": "ok"})
            return originals[asked.target.removeprefix("/image/original/")]()

        self.fake = Fake(reply)


def silence() -> Reply:
    raise ConnectionResetError("not an answer at all")


BAD: Mapping[str, Callable[[], Reply]] = {
    "broken.png": lambda: json_reply(500, {"code": "io-error", "msg": "disk"}),
    "large.png": lambda: Reply(200, bytes(2 * 1024 * 1024 + 1)),
    "cut.png": lambda: Reply(200, bytes(10_000), cut=True),
    "gone.png": lambda: Reply(404),
    "silent.png": silence,
    "text.png": lambda: Reply(200, b"no picture"),
}
GOOD: Mapping[str, Callable[[], Reply]] = {
    f"good-{number}.png": lambda: Reply(200, pictures.png((40, 30))) for number in range(7)
}


@pytest.fixture
def gate_of(new_gate: NewGate) -> Iterator[Callable[[Store], Gate]]:
    """Makes a gate for a store whose uploads are at most 1 MiB, with a classifier that sees nothing."""
    made = [classifier(lambda _: json_reply(200, SEEN))]

    def make(store: Store) -> Gate:
        made.append(store.fake)
        return new_gate(
            pictrs_url=store.fake.url,
            api_key="key",
            classifier_url=made[0].url,
            pictrs={"max_file_size_mb": 1},
            start=False,
        )

    yield make
    for fake in made:
        fake.close()


def test_a_file_that_cannot_be_read_is_listed_and_the_run_goes_on(gate_of: Callable[[Store], Gate]) -> None:
    shown = run(gate_of(Store({**BAD, **GOOD})), "--json")
    report = json.loads(shown.stdout)
    assert (report["looked_at"], report["unreadable"]) == (len(GOOD), len(BAD))
    reasons = {file["aliases"][0]: file["reason"] for file in report["unreadable_files"]}
    assert reasons.keys() == BAD.keys()
    assert "500" in reasons["broken.png"] and "more than" in reasons["large.png"]
    assert "404" in reasons["gone.png"] and "no format" in reasons["text.png"]
    tried_again = {name for name, reason in reasons.items() if "tried again" in reason}
    assert tried_again == {"broken.png", "cut.png", "silent.png"}


def test_a_file_that_could_not_be_read_for_a_moment_is_looked_at_when_the_run_goes_on(
    gate_of: Callable[[Store], Gate],
) -> None:
    asked: list[str] = []

    def flaky() -> Reply:
        asked.append("flaky")
        return Reply(502) if asked.count("flaky") == 1 else GOOD["good-0.png"]()

    def last() -> Reply:
        asked.append("last")
        store.is_there = asked.count("last") > 1
        return GOOD["good-0.png"]() if store.is_there else silence()

    store = Store({"flaky.png": flaky, "last.png": last})
    gate = gate_of(store)
    assert run(gate, "--rate", "2", check=False).returncode == 1
    with gate.database() as database:
        from proxy.database import backfill as runs

        stopped = runs.get(database, None)
        assert (stopped.looked_at, stopped.unreadable) == (0, 1)
        assert len(runs.behind(database, stopped.id, with_hits=False)) == 1
    store.is_there = True
    report = json.loads(run(gate, "--json").stdout)
    assert (report["run"], report["looked_at"], report["unreadable"]) == (1, 2, 0)
    assert report["unreadable_files"] == []


def test_a_stored_file_somewhat_larger_than_an_upload_is_looked_at(
    gate_of: Callable[[Store], Gate],
) -> None:
    padded = pictures.png((40, 30)) + bytes(1024 * 1024)
    report = json.loads(run(gate_of(Store({"padded.png": lambda: Reply(200, padded)})), "--json").stdout)
    assert (report["looked_at"], report["unreadable"]) == (1, 0)


def test_where_most_files_could_not_be_read_the_command_says_so(gate_of: Callable[[Store], Gate]) -> None:
    many = {f"bad-{number:02}.png": BAD["broken.png"] for number in range(30)}
    gate = gate_of(Store({**many, "good.png": GOOD["good-0.png"]}))
    done = run(gate, "--report", "report.json", check=False)
    assert done.returncode == 3
    assert "30 of 31 files could not be looked at" in done.stderr
    assert "bad-19.png" in done.stdout and "bad-20.png" not in done.stdout
    assert "and 10 more" in done.stdout
    report = json.loads((gate.folder / "report.json").read_text())
    assert len(report["unreadable_files"]) == 30


def test_without_pict_rs_it_stops_and_later_goes_on(gate_of: Callable[[Store], Gate]) -> None:
    def leave() -> Reply:
        store.is_there = False
        return silence()

    store = Store({**GOOD, "last.png": leave})
    gate = gate_of(store)
    stopped = run(gate, check=False)
    assert stopped.returncode == 1 and "pict-rs cannot be reached" in stopped.stderr
    store.is_there = True
    with gate.database() as database:
        from proxy.database import backfill as runs

        assert runs.open_run(database).unreadable == 0


def test_a_report_that_cannot_be_written_is_said_before_the_run_begins(
    gate: Gate, store: pictrs.Pictrs
) -> None:
    refused = run(gate, "--report", "nowhere/report.json", check=False)
    assert refused.returncode == 1 and "--report nowhere/report.json: No such file" in refused.stderr
    with gate.database() as database:
        from proxy.database import backfill as runs

        assert runs.open_run(database) is None


def test_an_older_report_stays_until_there_is_a_new_one(gate: Gate, looking: Classifier) -> None:
    report = gate.folder / "report.json"
    report.write_text("an older one")
    config = gate.config.read_text()
    gate.config.write_text(config.replace(looking.url, "http://127.0.0.1:9"))
    assert run(gate, "--report", str(report), check=False).returncode == 1
    assert report.read_text() == "an older one"
    gate.config.write_text(config)
    run(gate, "--report", str(report))
    assert json.loads(report.read_text())["looked_at"] == 4


def test_the_table_obeys_nothing_that_stands_in_an_alias() -> None:
    now = datetime.now(UTC)
    evil = "[red]a[/red]\x1b[2J\u202egnp.jpg\nb"
    one = BackfillRun(id=1, started_at=now, finished_at=now, looked_at=1, unreadable=1, hits=1)
    hit = BackfillHit(hex="0" * 78, verdict="hold", reason=evil, aliases=[evil], signals={"x": 1.0})
    lost = BackfillUnreadable(hex="1" * 78, reason=evil, aliases=[evil])
    into = io.StringIO()
    print_report(Console(file=into, width=200, force_terminal=True), one, [hit], [lost])
    assert into.getvalue().count(r"[red]a[/red]\x1b[2J\u202egnp.jpg\nb") == 4
    assert "\u202e" not in into.getvalue() and "\x1b[2J" not in into.getvalue()


def test_a_report_of_any_length_is_json() -> None:
    now = datetime.now(UTC)
    for count in range(3):
        one = BackfillRun(id=1, started_at=now, finished_at=None, looked_at=count, unreadable=0)
        hits = [
            BackfillHit(hex=f"{number:078x}", verdict="hold", reason='"', aliases=["ü"], signals={})
            for number in range(count)
        ]
        into = io.StringIO()
        write_json(into, one, hits, [])
        report = json.loads(into.getvalue())
        assert (len(report["hits"]), report["unreadable_files"]) == (count, [])


def test_a_backfill_whose_classifiers_only_dial_the_gate_says_what_it_needs(tmp_path: Path) -> None:
    gate = Gate(tmp_path, pictrs_url="http://127.0.0.1:9", api_key="k", classifier_url=None, start=False)
    ended = run(gate, check=False)
    assert ended.returncode == 1
    assert "needs a classifier with a url" in ended.stderr
