"""Backfill: everything that is stored is looked at, hits are reported, nothing is touched."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests import pictrs, pictures
from tests.client import Answer, form, send, upload
from tests.conftest import SIGNALS
from tests.gate import Classifier, Gate, scripted

NewGate = Callable[..., Gate]

HIT = pictures.png((90, 60), seed=761)  # a PNG without metadata, which pict-rs keeps as it is


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[pictrs.Pictrs]:
    """A pict-rs of its own, with a known store."""
    running = pictrs.Pictrs(tmp_path_factory.mktemp("store"), real=pictrs.find())
    for seed in range(3):
        assert upload(running.url, pictures.png((80, 50), seed=770 + seed)).status == 201
    for name in ("first-name.png", "second-name.png"):
        assert _import(running, name, HIT).status == 201
    assert upload(running.url, pictures.video()).status == 201
    yield running
    running.stop()


def _import(running: pictrs.Pictrs, name: str, content: bytes) -> Answer:
    content_type, body = form([(name, content)])
    headers = {"Content-Type": content_type, "X-Api-Token": running.api_key}
    return send(running.url, "POST", "/internal/import", headers=headers, body=body)


@pytest.fixture(scope="module")
def looking(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Classifier]:
    folder = tmp_path_factory.mktemp("looking")
    running = Classifier(folder, ensemble=scripted(folder, {HIT: SIGNALS}))
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
    assert (report["looked_at"], report["unreadable"]) == (5, 1)  # the video is not looked at yet
    (hit,) = report["hits"]
    assert hit["aliases"] == ["first-name.png", "second-name.png"]
    assert (hit["signals"], hit["verdict"], hit["reason"]) == (SIGNALS, "hold", "rule: a suspicion")
    assert report["finished_at"]
    assert {path: path.stat().st_mtime_ns for path in store.stored_files()} == before
    assert gate.cases() == []


def test_the_report_is_readable(gate: Gate) -> None:
    shown = run(gate).stdout
    assert "5 files looked at, 1 hits, 1 unreadable. Nothing was touched." in shown
    assert "first-name.png" in shown


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
    from proxy.database import backfill as table

    gate.config.write_text(gate.config.read_text().replace(looking.url, "http://127.0.0.1:9"))
    stopped = run(gate, check=False)
    assert stopped.returncode == 1 and "nobody could look" in stopped.stderr
    gate.config.write_text(gate.config.read_text().replace("http://127.0.0.1:9", looking.url))
    with gate.database() as database:
        run_id = table.open_run(database).id
    report = json.loads(run(gate, "--json").stdout)
    assert (report["run"], report["looked_at"], len(report["hits"])) == (run_id, 5, 1)
    assert json.loads(run(gate, "--json").stdout)["run"] == run_id + 1


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
    program.wait_until(lambda: "100 files looked at" in program.output())
    time.sleep(0.05)
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
