"""Watch: what comes is looked at, what was there is not listed again. And what people are shown of runs."""

from __future__ import annotations

import csv
import io
import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from proxy.backfill.page import write_csv, write_page
from proxy.backfill.progress import Display, display
from proxy.backfill.report import print_report
from proxy.backfill.sources import Entry, Page, Unreadable
from proxy.backfill.watch import new_pages, newest
from proxy.database import BackfillHit, BackfillRun, BackfillUnreadable
from proxy.policy import Policy, Rule, Verdict
from tests import pictrs, pictures
from tests.client import upload
from tests.conftest import SIGNALS
from tests.gate import Classifier, Gate, scripted
from tests.looker import sha256
from tests.processes import Program

NOW = datetime(2026, 11, 23, 12, tzinfo=UTC)


class Newest:
    """Files 0 … count - 1, one a minute, newest first, in pages of ten."""

    def __init__(self, count: int) -> None:
        self.files = [self.file(number) for number in reversed(range(count))]
        self.asked = 0

    @staticmethod
    def file(number: int) -> Entry:
        return Entry(f"{number}", at=NOW + timedelta(minutes=number))

    def come(self, *numbers: int) -> None:
        self.files = [*(self.file(number) for number in numbers), *self.files]

    async def page(self, at: str | None) -> Page:
        self.asked += 1
        first = int(at or 0)
        rest = str(first + 10) if first + 10 < len(self.files) else None
        return Page(self.files[first : first + 10], rest)

    async def fetch(self, entry: Entry, most: int) -> bytes | Unreadable:
        raise AssertionError("nothing is fetched here")

    async def close(self) -> None:
        """Nothing."""

    async def new(self, before: dict[str, object]) -> list[str]:
        self.asked = 0
        first = await self.page(None)
        return [entry.place async for page in new_pages(self, first, before) for entry in page.entries]


async def test_a_round_that_finds_nothing_new_costs_one_request() -> None:
    source = Newest(1000)
    before = newest((await source.page(None)).entries)
    assert (await source.new(before), source.asked) == ([], 1)


async def test_a_round_goes_down_to_where_the_last_one_was_and_no_further() -> None:
    source = Newest(1000)
    before = newest((await source.page(None)).entries)
    source.come(*reversed(range(1000, 1025)))
    assert await source.new(before) == [str(number) for number in reversed(range(1000, 1025))]
    assert source.asked == 3


async def test_where_all_that_it_remembers_is_deleted_the_time_tells() -> None:
    source = Newest(1000)
    before = newest((await source.page(None)).entries)
    source.files = source.files[30:]
    source.come(1001, 1000)
    assert await source.new(before) == ["1001", "1000"]
    assert source.asked == 1


async def test_what_is_listed_below_a_newer_one_is_not_missed() -> None:
    source = Newest(50)
    before = newest((await source.page(None)).entries)
    late = Entry("late", at=NOW + timedelta(minutes=49) - timedelta(seconds=20))
    source.files.insert(1, late)
    assert await source.new(before) == ["late"]


async def test_in_a_store_that_was_empty_everything_is_new() -> None:
    source = Newest(0)
    before = newest((await source.page(None)).entries)
    source.come(*reversed(range(25)))
    assert len(await source.new(before)) == 25


@pytest.fixture
def store(tmp_path: Path) -> Iterator[pictrs.Pictrs]:
    running = pictrs.Pictrs(tmp_path / "store", real=None)
    yield running
    running.stop()


def test_a_watch_looks_at_what_has_come_since_the_run_and_says_what_it_finds(
    new_gate: Callable[..., Gate], store: pictrs.Pictrs, tmp_path: Path
) -> None:
    planted = [pictures.png((60, 40), seed=4000 + number) for number in range(4)]
    recipe = scripted(tmp_path / "looking", dict.fromkeys(planted, SIGNALS))
    looking = Classifier(tmp_path / "looking", ensemble=recipe)
    gate = new_gate(pictrs_url=store.url, api_key=store.api_key, classifier_url=looking.url, start=False)
    assert upload(store.url, planted[0], pictures.png(seed=5)).status == 201
    here = ("--config", str(gate.config))
    gate.run("backfill", "run", *here, "--report", "r.html")
    for name in ("r.html", "r.csv", "r.json"):
        assert (gate.folder / name).stat().st_size > 100
    alias = upload(store.url, planted[1]).json()["files"][0]["file"]

    command = [Path(sys.executable).parent / "pictrs-gate", "backfill", "watch", "--every", "1s", *here]
    program = Program(command, tmp_path / "watch.log")
    program.wait_until(lambda: f"hold: {alias}" in program.output())
    later = upload(store.url, planted[2]).json()["files"][0]["file"]
    program.wait_until(lambda: f"hold: {later}" in program.output())
    program.process.send_signal(signal.SIGINT)
    assert program.process.wait(20) == 0

    listed = json.loads(gate.run("backfill", "status", *here, "--json").stdout)
    assert [(one["kind"], one["state"], one["looked_at"], one["hit_count"]) for one in listed] == [
        ("watch", "open", 2, 2),
        ("run", "finished", 2, 1),
    ]
    assert "watch pictrs" in gate.run("backfill", "status", *here, env={"COLUMNS": "120"}).stdout
    report = json.loads(gate.run("backfill", "report", "2", *here, "--json").stdout)
    assert {name for hit in report["hits"] for name in hit["aliases"]} == {alias, later}
    unknown = gate.run("backfill", "report", "77", *here, check=False)
    assert unknown.returncode == 1 and "no run 77" in unknown.stderr
    assert gate.cases() == []

    last = upload(store.url, planted[3]).json()["files"][0]["file"]
    told = tmp_path / "events"
    with told.open("w") as into:  # its standard output alone
        watch = subprocess.Popen([*command, "--json", "--rate", "50"], stdout=into)
    try:
        events = until_told(told, lambda event: "hit" in event)
    finally:
        watch.send_signal(signal.SIGTERM)
        assert watch.wait(20) == 0
    assert "watching" in events[0]["message"]
    (found,) = [event for event in events if "hit" in event]
    hit = found["hit"]
    assert found["run"] == 2 and hit["aliases"] == [last] and hit["signals"] == SIGNALS
    assert (hit["sha256"], hit["verdict"], hit["case"]) == (sha256(planted[3]), "hold", None)
    looking.stop()


def until_told(told: Path, wanted: Callable[[Any], bool]) -> list[Any]:
    """The JSON lines of a file, once there is a wanted one among them."""
    for _ in range(600):
        events = [json.loads(line) for line in told.read_text().splitlines(keepends=True) if line[-1] == "\n"]
        if any(wanted(event) for event in events):
            return events
        time.sleep(0.05)
    raise AssertionError(told.read_text())


def test_a_watch_that_begins_before_pict_rs_does_waits_for_it(
    new_gate: Callable[..., Gate], tmp_path: Path
) -> None:
    looking = Classifier(tmp_path / "looking", ensemble=scripted(tmp_path / "looking", {}))
    gate = new_gate(pictrs_url="http://127.0.0.1:9", classifier_url=looking.url, start=False)
    command = [Path(sys.executable).parent / "pictrs-gate", "backfill", "watch", "--every", "1s"]
    program = Program([*command, "--config", str(gate.config)], tmp_path / "watch.log")
    program.wait_until(lambda: program.output().count("trying again in 1 s") > 1)
    program.process.send_signal(signal.SIGINT)
    assert program.process.wait(20) == 0
    looking.stop()


def test_in_quiet_hours_a_watch_looks_at_nothing_and_can_be_stopped(
    new_gate: Callable[..., Gate], store: pictrs.Pictrs, tmp_path: Path
) -> None:
    planted = pictures.png((60, 40), seed=4010)
    recipe = scripted(tmp_path / "looking", {planted: SIGNALS})
    looking = Classifier(tmp_path / "looking", ensemble=recipe)
    gate = new_gate(pictrs_url=store.url, api_key=store.api_key, classifier_url=looking.url, start=False)
    command = [Path(sys.executable).parent / "pictrs-gate", "backfill", "watch", "--every", "1s"]
    hour = datetime.now().astimezone().hour
    hours = ("--quiet-hours", f"{hour:02}:00-{(hour + 2) % 24:02}:00")
    quiet = Program([*command, "--config", str(gate.config), *hours], tmp_path / "quiet.log")
    quiet.wait_until(lambda: "watching" in quiet.output())
    alias = upload(store.url, planted).json()["files"][0]["file"]
    time.sleep(2.5)  # two rounds
    quiet.process.send_signal(signal.SIGTERM)
    assert quiet.process.wait(20) == 0 and alias not in quiet.output()
    loud = Program([*command, "--config", str(gate.config)], tmp_path / "loud.log")
    loud.wait_until(lambda: f"hold: {alias}" in loud.output())
    loud.process.send_signal(signal.SIGTERM)
    assert loud.process.wait(20) == 0
    looking.stop()


POLICY = Policy([Rule("<b>rule", Verdict.HOLD, {"sexual": 0.5})], Verdict.DEFER, Verdict.HOLD)
EVIL = '=1+1"><script>alert(1)</script>\u202egnp'


def findings() -> tuple[BackfillRun, list[BackfillHit], list[BackfillUnreadable]]:
    counts = {"looked_at": 40, "reused": 0, "skipped": 0, "unreadable": 1, "hits": 1, "fetched_bytes": 0}
    run = BackfillRun(
        id=1,
        kind="run",
        state="finished",
        source="pictrs",
        options={"prefix": EVIL},
        started_at=NOW,
        finished_at=NOW,
        histogram={"sexual": [30, *[0] * 18, 10]},
        **counts,
    )
    hit = BackfillHit(
        hex="0" * 78,
        place="p",
        verdict="hold",
        reason=EVIL,
        aliases=[EVIL],
        signals={"sexual": 0.91},
        stored_at=datetime.now(UTC) - timedelta(days=12),
    )
    return run, [hit], [BackfillUnreadable(hex="1" * 78, place="lost", aliases=[], reason="gone")]


def test_the_page_needs_nothing_from_elsewhere_and_obeys_no_alias() -> None:
    run, hits, lost = findings()
    into = io.StringIO()
    write_page(into, run, POLICY, hits, lost)
    page = into.getvalue()
    assert "<script" not in page and "\u202e" not in page and "<b>rule" not in page
    assert "&lt;script&gt;" in page
    for outside in ("src=", "href=", "http:", "https:", "url(", "<img", "@import"):
        assert outside not in page
    assert "0.910" in page and "12 d" in page and "lost" in page
    assert "0.95 to 1.00: 10 files" in page and "&lt;b&gt;rule: 0.5" in page
    assert 'x1="220.0"' in page  # the threshold stands in the middle


def test_a_spreadsheet_computes_nothing_that_stands_in_an_alias() -> None:
    _, hits, lost = findings()
    into = io.StringIO()
    write_csv(into, hits, lost)
    rows = list(csv.reader(io.StringIO(into.getvalue())))
    assert [row[0] for row in rows] == ["what", "hit", "unreadable"]
    assert not any(cell.startswith(("=", "+", "-", "@")) for row in rows for cell in row)
    assert "sexual=0.9100" in rows[1]


def test_every_report_says_which_hits_are_cases_and_why_others_are_none() -> None:
    run, (hit,), _ = findings()
    run.options, run.held = {"action": "hold"}, 1
    hit.case_id = "20261123-120000-0123abcd"
    other = BackfillHit(
        hex="2" * 78,
        place="q",
        verdict="hold",
        reason="r",
        aliases=["q.png"],
        signals={},
        not_held="<b>gone",
    )
    page, table, lines = io.StringIO(), io.StringIO(), io.StringIO()
    write_page(page, run, POLICY, [hit, other], [])
    write_csv(lines, [hit, other], [])
    print_report(Console(file=table, width=250), run, [hit, other], [])
    for shown in (page, table, lines):
        assert hit.case_id in shown.getvalue() and "not held: " in shown.getvalue()
    for shown in (page, table):
        assert "1 held as cases" in shown.getvalue() and "Nothing was touched" not in shown.getvalue()
    assert "<b>gone" not in page.getvalue()


def test_a_line_on_a_terminal_obeys_nothing_that_stands_in_an_alias_or_the_name_of_a_list() -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    into = Terminal()
    with display(into, as_json=False) as made:
        made.say("hold: [red]x.png partners[/2026]")
    assert "hold: [red]x.png partners[/2026]" in into.getvalue()


def test_progress_is_json_for_programs_and_plain_lines_elsewhere() -> None:
    run, _, _ = findings()

    def shown(*, as_json: bool) -> str:
        into = io.StringIO()
        with display(into, as_json=as_json) as made:
            assert isinstance(made, Display)
            made.update(run, 9)
            made.pause(120)
        return into.getvalue()

    events = [json.loads(line) for line in shown(as_json=True).splitlines()]
    assert (events[0]["looked_at"], events[0]["at_once"], events[0]["hits"]) == (40, 9, 1)
    assert "quiet hours" in events[1]["message"]
    plain = shown(as_json=False)
    assert "run 1: 40 files looked at, 1 unreadable, 1 hits" in plain and "\x1b" not in plain
