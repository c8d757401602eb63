"""What the gate writes down about itself: settings at a start, plain allows, and how both are shown."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from pydantic import BaseModel
from sqlalchemy import func, select, update
from sqlalchemy.exc import SQLAlchemyError

from proxy.channels.looks import Seen
from proxy.cli import main
from proxy.config import Config
from proxy.database import Database, LedgerEntry, allows, ledger
from proxy.database.allows import Allowed
from proxy.database.models import Allow
from proxy.ledger import allows as recording
from proxy.ledger.allows import AllowRecorder
from proxy.ledger.chain import FIRST, Entry, entry_hash
from proxy.ledger.settings import flat
from proxy.ledger.statistics import count
from proxy.metrics import Metrics
from tests import pictures
from tests.client import get
from tests.gate import TOKEN, Gate
from tests.pictrs import Pictrs

RECIPIENT = "age1v7lhese5qhy2pn544ww5yl53w2qvvrvs3pg7nu8ewsnxew7stpmq4yldn5"


# --- settings ---


def test_a_change_of_the_settings_is_an_entry_and_a_start_without_one_is_none(database: Database) -> None:
    def start(gate: str, **settings: Any) -> list[dict[str, Any]]:
        before = len(ledger.entries(database))
        ledger.started(database, gate, settings, key="k")
        return [entry.facts for entry in ledger.entries(database)[before:]]

    assert start("a", x=1, y=[1]) == [
        {"gate": "a", "settings": {"x": 1, "y": [1]}},
        {"gate": "a", "key": "k"},
    ]
    assert start("a", x=1, y=[1]) == []
    assert start("b", x=2) == [{"gate": "b", "settings": {"x": 2}}]
    assert start("a", x=1, y=[1]) == []  # another gate's settings are not its own
    (facts,) = start("a", x=3, z=None)
    assert facts["changed"] == {
        "x": {"from": 1, "to": 3},
        "y": {"from": [1], "to": None},
        "z": {"from": None, "to": None},
    }


def test_no_secret_is_among_the_settings() -> None:
    class Postgres(BaseModel):
        url: str = "postgresql+psycopg://gate:h?u/s#h@db/gate?password=hush"

    config = Config(
        pictrs={"url": "http://p", "api_key": "hush"},  # type: ignore[arg-type]
        classifiers=[{"url": "http://c", "token": "hush"}, {"url": "http://d"}],  # type: ignore[list-item]
        internal={"scan_ids": ["hush"]},  # type: ignore[arg-type]
        policy={"rules": [{"name": "a", "at_least": {"sexual": 0.5}}]},  # type: ignore[arg-type]
        cases={"folder": "cases", "recipients": [RECIPIENT]},  # type: ignore[arg-type]
    )
    settings = flat(config)
    assert "hush" not in json.dumps(settings)
    assert settings["pictrs.api_key"] == settings["classifiers.0.token"] == "(set)"
    assert settings["internal.scan_ids"] == "(set)" and settings["classifiers.1.token"] == "(not set)"
    assert settings["policy.rules.0.at_least.sexual"] == 0.5
    assert settings["cases.recipients"] == [RECIPIENT] and settings["cases.folder"] == "cases"
    assert settings["gate.version"]
    assert json.loads(json.dumps(settings)) == settings  # or every start would find a change
    assert flat(Postgres())["url"] == "postgresql+psycopg://…@db/gate?…"


# --- plain allows ---


def seen(**signals: float) -> Seen:
    return Seen(signals, [], "test 1", "png", 10, 10)


async def test_plain_allows_are_written_in_batches_with_what_was_seen(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recording, "_BATCH", 2)
    async with AllowRecorder(database, Metrics()) as recorder:
        for number in range(5):
            recorder.note(f"{number:064x}", seen(sexual=0.123456) if number else None)
        assert list(allows.since(database, datetime.now(UTC) - timedelta(hours=1))) == []
    found = list(allows.since(database, datetime.now(UTC) - timedelta(hours=1)))[::-1]
    assert [int.from_bytes(row.sha256) for row in found] == list(range(5))
    assert (found[0].signals, found[0].ensemble) == (None, None)
    assert (found[1].signals, found[1].ensemble) == ({"sexual": 0.1235}, "test 1")


async def test_what_the_database_does_not_take_in_time_is_dropped_and_counted(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise SQLAlchemyError

    metrics = Metrics()
    monkeypatch.setattr(recording, "_MOST_WAITING", 3)
    recorder = AllowRecorder(database, metrics)
    for number in range(5):
        recorder.note(f"{number:064x}", None)
    assert metrics.registry.get_sample_value("pictrs_gate_allows_dropped_total") == 2
    with monkeypatch.context() as patch:
        patch.setattr(allows, "add", fail)
        with pytest.raises(SQLAlchemyError):
            await recorder.flush()
    await recorder.flush()  # nothing of what waited is lost by a failure
    assert len(list(allows.since(database, datetime.now(UTC) - timedelta(hours=1)))) == 3
    monkeypatch.setattr(allows, "add", fail)
    async with recorder:
        recorder.note("0" * 64, None)
    assert metrics.registry.get_sample_value("pictrs_gate_allows_dropped_total") == 3


def test_old_plain_allows_go_in_bounded_batches(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(allows, "_ROWS", 2)
    now = datetime.now(UTC)
    ages = [40, 35, 31, 29, 1]
    allows.add(database, [Allowed(now - timedelta(days=age), bytes(32), None, None) for age in ages])

    def left() -> int:
        with database.reading() as session:
            return session.scalar(select(func.count()).select_from(Allow)) or 0

    before = now - timedelta(days=30)
    assert allows.prune(database, before=before) and left() == 3
    assert not allows.prune(database, before=before) and left() == 2
    assert not allows.prune(database, before=before) and left() == 2


def test_statistics_count_verdicts_once_and_tell_how_the_signals_lie() -> None:
    day = datetime(2026, 11, 22, 12, tzinfo=UTC)
    rows = [Allowed(day, bytes(32), {"sexual": step / 1000}, "test 1") for step in range(1000)]

    def entry(act: str, **facts: Any) -> Entry:
        return Entry(1, "2026-11-23T00:00:00.000000+00:00", act, "gate", None, facts, FIRST)

    entries = [
        entry("pending", verdict="hold", signals={"sexual": 1.0}),
        entry("pending", aliases=[]),  # a release that pict-rs has refused: no verdict
        entry("deferred", verdict="defer", signals=None),
        entry("blocked", verdict="block"),
        entry("allowed unseen"),
        entry("held again", verdict="hold"),
        replace(entry("pending"), facts=None),
    ]
    counted = count(rows, entries)
    assert dict(counted.days["2026-11-22"]) == {"allow": 1000}
    assert dict(counted.days["2026-11-23"]) == {"hold": 2, "defer": 1, "block": 1, "allowed unseen": 1}
    spread = counted.json()["signals"]["sexual"]
    assert spread["count"] == 1001
    assert spread["quantiles"] == {"0.5": 0.5, "0.9": 0.9, "0.99": 0.99, "0.999": 0.999, "1.0": 1.0}


# --- a gate ---


def test_a_gate_keeps_its_books_and_the_commands_read_them(
    new_gate: Callable[..., Gate],
    running_pictrs: Pictrs,
    hit: bytes,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    gate = new_gate()
    monkeypatch.setattr(os, "umask", lambda _: 0)  # the commands run in this very process, for speed

    def run(*words: str, status: int = 0) -> str:
        assert main(["ledger", *words, "--config", str(gate.config)]) == status
        return capsys.readouterr().out

    acts = [entry.act for entry in gate.ledger(about_itself=True)]
    assert acts == ["settings", "checkpoint key", "checkpoint"]
    age = get(gate.internal_url, "/metrics").body.decode().split("ledger_checkpoint_age_seconds ")[-1]
    assert 0 <= float(age.split()[0]) < 120
    assert gate.upload(pictures.png(seed=4711)).status == 201
    assert gate.upload(hit).status == 201
    gate.stop()  # writes what waits
    case = gate.cases()[0]["id"]
    verified = run("verify")
    assert verified.splitlines()[-1] == "the ledger holds"
    assert "4 entries, 1 of 1 checkpoints hold" in verified
    shown = [json.loads(line) for line in run("show", "--case", case, "--json").splitlines()]
    assert [(entry["act"], entry["case"]) for entry in shown] == [("pending", case)]
    assert shown[0]["hash"] == entry_hash(Entry(**shown[0]))
    table = run("show", "--since", "1h", "--limit", "2")
    assert "pending" in table and "checkpoint" in table and "settings" not in table
    (day,) = json.loads(run("stats", "--json"))["days"].values()
    assert day == {"allow": 1, "hold": 1}
    assert "sexual" in run("stats")
    gate.config.write_text(gate.config.read_text().replace("[policy]", "[policy]\nverdict_s = 9.5"))
    gate.start()
    *_, last = gate.ledger(about_itself=True)
    changed = {"policy.verdict_s": {"from": 10.0, "to": 9.5}}
    assert (last.act, last.facts["changed"]) == ("settings", changed)
    assert TOKEN not in json.dumps(last.facts) and running_pictrs.api_key not in json.dumps(last.facts)
    gate.stop()
    with gate.database() as database, database.writing() as session:
        session.execute(update(LedgerEntry).where(LedgerEntry.number == 2).values(actor="ann"))
    said = json.loads(run("verify", "--json", status=3))
    assert not said["holds"]
    assert (said["findings"][0]["kind"], said["findings"][0]["number"]) == ("altered", 2)
    assert "ALTERED: entry 2" in run("verify", status=3)


def test_without_days_no_plain_allow_is_kept(new_gate: Callable[..., Gate], running_pictrs: Pictrs) -> None:
    gate = new_gate(start=False)
    gate.config.write_text(gate.config.read_text() + "\n[ledger]\nkeep_allows_days = 0\n")
    with gate.database() as database:  # of a time when they were kept
        allows.add(database, [Allowed(datetime.now(UTC), bytes(32), None, None)])
    gate.start()
    assert gate.upload(pictures.png(seed=4712)).status == 201
    gate.stop()
    with gate.database() as database:
        assert list(allows.since(database, datetime.now(UTC) - timedelta(days=1))) == []


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["show", "--since", "yesterday"], "must be a date"),
        (["show", "--limit", "-1"], "must be a number"),
        (["verify", "--public-key", "abc"], "64 hexadecimal digits"),
    ],
)
def test_what_cannot_be_meant_is_said(
    words: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        main(["ledger", *words])
    assert said in capsys.readouterr().err
