"""Review at the terminal: what is listed and shown, what is noted, and many cases at once."""

from __future__ import annotations

import hashlib
import json
import os
import pty
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from proxy import cli
from proxy.cases import opening
from proxy.cases.sealing import Opened, write_new_identity
from proxy.database import Case, CaseState, notes
from proxy.errors import CaseError
from tests import pictures
from tests.gate import Gate
from tests.kept import held, still_gate


class Ran:
    """What a command said."""

    def __init__(self, status: int, out: str, err: str) -> None:
        self.status, self.out, self.err = status, out, err

    def json(self) -> Any:
        return json.loads(self.out)


Review = Callable[..., Ran]


@pytest.fixture
def gate(tmp_path: Path) -> Gate:
    """In place of the one that runs."""
    return still_gate(tmp_path / "gate")


@pytest.fixture
def review(
    gate: Gate, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Iterator[Review]:
    """`pictrs-gate review …` as ann, in this process."""
    monkeypatch.setenv("COLUMNS", "400")
    before = os.umask(0o022)

    def run(*words: str, reviewer: str | None = "ann") -> Ran:
        capsys.readouterr()
        who = [] if words[0] == "list" or reviewer is None else ["--reviewer", reviewer]
        config = ["--config", str(gate.config)]
        try:
            status = cli.main(["--log-level", "error", "review", *words, *config, *who])
        except SystemExit as error:  # argparse's
            status = int(str(error.code))
        said = capsys.readouterr()
        return Ran(status, said.out, said.err)

    yield run
    os.umask(before)


def ids(ran: Ran) -> list[str]:
    return [one["id"] for one in ran.json()]


def acts(gate: Gate, case: str) -> list[tuple[str, str]]:
    return [(entry.act, entry.actor) for entry in gate.ledger() if entry.case_id == case]


def test_a_list_is_filtered_sorted_and_paged(gate: Gate, review: Review) -> None:
    now = datetime.now(UTC)
    old = held(gate, pictures.png(seed=1), created_at=now - timedelta(days=5), rule="nudity: 1")
    high = held(gate, pictures.png(seed=2), signals={"sexual": 0.99, "minor": 0.1})
    kept = held(gate, pictures.png(seed=3), hold_at=now, hold_by="bo", hold_reason="a court")
    done = held(gate, pictures.png((900, 900), seed=4), state=CaseState.CONFIRMED, decided_at=now)
    rows = {one["id"]: one for one in review("list", "--json").json()}
    assert list(rows) == [done, kept, high, old]

    def found(*words: str) -> list[str]:
        return ids(review("list", "--json", *words))

    assert found("--state", "confirmed") == [done]
    assert found("--state", "confirmed", "--state", "pending", "--since", "1d") == [done, kept, high]
    assert found("--until", f"{now - timedelta(days=1):%Y-%m-%d}") == [old]
    assert found("--rule", "nudity: 1") == [old]
    assert found("--signal-at-least", "sexual=0.95") == [high]
    assert found("--signal-at-least", "sexual=0.5", "--signal-at-least", "minor=0.5") == [done, kept, old]
    assert found("--signal-at-least", "nobody=0") == []
    assert found("--alias", str(rows[kept]["alias"])) == [kept]
    assert found("--sha256", str(rows[high]["sha256"]).upper()) == [high]
    assert found("--legal-hold") == [kept]
    assert found("--sort", "oldest") == [old, high, kept, done]
    assert found("--sort", "largest")[0] == done
    assert found("--sort", "signal:sexual")[0] == high
    assert found("--sort", "decided")[0] == done
    assert found("--limit", "3", "--page", "2") == [old]
    table = review("list", "--limit", "3").out
    assert "--page 2" in table and old not in table and "pending, legal hold" in table
    assert "--page" not in review("list").out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--since", "yesterday"], "how long ago"),
        (["--signal-at-least", "minor=2"], "NAME=X"),
        (["--signal-at-least", 'a"b=0.5'], "NAME=X"),
        (["--sha256", "12"], "64 hexadecimal"),
        (["--sort", "colour"], "signal:NAME"),
        (["--limit", "0"], "1 to 100000"),
        (["--since", "999999w"], "at most ten years"),
    ],
)
def test_a_filter_that_makes_no_sense_says_what_would(review: Review, words: list[str], said: str) -> None:
    ran = review("list", *words)
    assert ran.status == 2 and said in ran.err


def test_show_tells_everything_in_words_and_what_may_be_done(gate: Gate, review: Review) -> None:
    earlier = {"kind": "pdq", "verdict": "block", "case": "case-7", "list": None, "distance": 12, "by": "bo"}
    case = held(gate, pictures.png(seed=5), file_name="beach\x1b[2J.png", earlier=earlier)
    assert review("note", case, "ask the \x1b[2Jadmin", reviewer="bo").status == 0
    assert review("hold-legal", case, "--reason", "court 12", reviewer="bo").status == 0
    shown = review("show", case)
    for words in (
        "very likely",
        "looks like what was refused (perceptual hash, 12 of 256 bits apart) by bo in case case-7",
        "by bo at",
        "court 12",
        r"bo: ask the \x1b[2Jadmin",
        "pending by gate",
        "legal hold by bo",
        "sealed md5",
        "sealed uploader address",
        "192.0.2.7",
        r"beach\x1b[2J.png",
        "1 looked at; highest: minor 0.800 in frame 0, sexual 0.900 in frame 0",
        "sealed ensemble_version",
    ):
        assert words in shown.out, words
    assert "\x1b" not in shown.out
    lines = [line.rstrip() for line in shown.out.splitlines()]
    assert any(line.startswith("may release") and line.endswith("yes") for line in lines)
    assert any(line.startswith("may report") and "no: is pending already" in line for line in lines)
    as_json = review("show", case, "--json").json()
    assert as_json["possible"]["confirm"] is None and as_json["sealed"]["format"] == 1
    assert as_json["notes"][0]["text"] == "ask the \x1b[2Jadmin"
    assert [entry["act"] for entry in as_json["history"]][-2:] == ["viewed", "viewed"]
    assert gate.ledger()[-1].facts == {"sealed facts": True}


def test_without_a_key_show_opens_nothing(gate: Gate, review: Review) -> None:
    case = held(gate, pictures.png(seed=6))
    gate.config.write_text(gate.config.read_text().replace('identity_file = "reviewer.key"', ""))
    shown = review("show", case)
    assert shown.status == 0 and "sealed md5" not in shown.out and gate.ledger()[-1].facts == {}
    refused = review("show", case, "--save-to", str(gate.folder / "seen.png"))
    assert refused.status == 1 and "--identity" in refused.err
    assert not (gate.folder / "seen.png").exists()
    assert "sealed md5" in review("show", case, "--identity", str(gate.key)).out
    write_new_identity(gate.folder / "stranger.key")
    refused = review("show", case, "--identity", str(gate.folder / "stranger.key"))
    assert refused.status == 1 and "not sealed to this key" in refused.err


def test_the_original_is_saved_for_its_owner_alone_after_the_ledger_says_so(
    gate: Gate, review: Review, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = pictures.png(seed=7)
    case, file = held(gate, content), gate.folder / "seen.png"
    assert review("show", case, "--save-to", str(file)).status == 0
    assert file.read_bytes() == content and stat.S_IMODE(file.stat().st_mode) == 0o600
    assert gate.ledger()[-1].facts == {"sealed facts": True, "saved": True}

    count = len(gate.ledger())
    refused = review("show", case, "--save-to", str(file))
    assert refused.status == 1 and "is there already" in refused.err and len(gate.ledger()) == count
    (gate.folder / "link.png").symlink_to(gate.folder / "elsewhere.png")
    assert review("show", case, "--save-to", str(gate.folder / "link.png")).status == 1
    assert not (gate.folder / "elsewhere.png").exists()

    def failing(*_: object, **__: object) -> None:
        raise OSError("the ledger cannot be written")

    monkeypatch.setattr(notes, "viewed", failing)
    with pytest.raises(OSError, match="ledger"):
        review("show", case, "--save-to", str(gate.folder / "unseen.png"))
    assert not (gate.folder / "unseen.png").exists()


def test_a_file_that_appears_meanwhile_is_not_written_over(tmp_path: Path) -> None:
    file = tmp_path / "seen.png"
    opening.check_new(file)
    file.write_bytes(b"mine")
    with pytest.raises(CaseError, match="File exists"):
        opening.save(Opened({}, b"theirs"), file)
    assert file.read_bytes() == b"mine"


def test_only_a_confirmed_case_is_reported_with_a_reference(gate: Gate, review: Review) -> None:
    case = held(gate, pictures.png(seed=8))
    early = review("report", case, "--reference", "NCMEC 77")
    assert early.status == 1 and "is pending already" in early.err
    assert review("confirm", case, reviewer="bo").status == 0
    said = review("report", case, "--reference", "NCMEC 77")
    assert said.status == 0 and "told nobody" in said.out
    row = gate.cases()[0]
    assert (row["state"], row["reported_by"], row["reported_as"]) == ("reported", "ann", "NCMEC 77")
    assert row["decided_by"] == "bo" and row["reported_at"] > row["decided_at"]
    assert acts(gate, case)[-1] == ("reported", "ann")
    assert gate.ledger()[-1].facts["reference"] == "NCMEC 77"
    twice = review("report", case, "--reference", "again")
    assert twice.status == 1 and "is reported already" in twice.err
    assert gate.cases()[0]["reported_as"] == "NCMEC 77"


def test_a_legal_hold_has_a_reason_and_a_person_and_is_lifted_by_one(gate: Gate, review: Review) -> None:
    case = held(gate, pictures.png(seed=9))
    assert review("hold-legal", case).status == 2
    assert review("hold-legal", case, "--reason", "  ").status == 2
    assert review("hold-legal", case, "--off", "--reason", "x").status == 1
    assert review("hold-legal", case, "--reason", "court 12").status == 0
    hold = gate.cases()[0]["legal_hold"]
    assert (hold["by"], hold["reason"]) == ("ann", "court 12")
    twice = review("hold-legal", case, "--reason", "another", reviewer="bo")
    assert twice.status == 1 and "by ann" in twice.err
    assert gate.cases()[0]["legal_hold"]["reason"] == "court 12"
    assert review("hold-legal", case, "--off", "--reason", "the court is done", reviewer="bo").status == 0
    assert gate.cases()[0]["legal_hold"] is None
    assert acts(gate, case)[-2:] == [("legal hold", "ann"), ("legal hold lifted", "bo")]
    assert gate.ledger()[-1].facts == {
        "reason": "the court is done",
        "held by": "ann",
        "held for": "court 12",
    }
    gone = held(gate, pictures.png(seed=10), state=CaseState.EXPIRED)
    (gate.folder / "cases" / f"{gone}.age").unlink()
    assert "no bytes left" in review("hold-legal", gone, "--reason", "late").err


def test_a_note_that_is_changed_later_is_told_by_the_ledger(gate: Gate, review: Review) -> None:
    case = held(gate, pictures.png(seed=11))
    assert review("note", case, "seen before").status == 0
    assert gate.ledger()[-1].facts == {"sha256 of the note": hashlib.sha256(b"seen before").hexdigest()}
    assert review("note", case, "x" * 2001).status == 2
    assert review("note", "20200101-000000-00000000", "x").status == 1
    assert len(review("show", case, "--json").json()["notes"]) == 1


def test_of_several_cases_one_that_fails_keeps_the_others_from_nothing(gate: Gate, review: Review) -> None:
    cases = [held(gate, pictures.png(seed=20 + number)) for number in range(3)]
    review("confirm", cases[1])
    ran = review("confirm", *cases, "20200101-000000-00000000", cases[0], "--yes")
    assert ran.status == 1
    assert len(ran.err.splitlines()) == 2 and f"{cases[1]}: is confirmed already" in ran.err
    assert "20200101-000000-00000000: no such case" in ran.err
    assert "2 of 4 done, 2 failed" in ran.out
    assert {case["state"] for case in gate.cases()} == {"confirmed"}


def test_all_means_what_the_filters_leave_and_can_be_decided(gate: Gate, review: Review) -> None:
    low = held(gate, pictures.png(seed=30), signals={"sexual": 0.5, "minor": 0.4})
    high = held(gate, pictures.png(seed=31))
    released = held(gate, pictures.png(seed=32), state=CaseState.RELEASED, decided_by="gate")
    asked = review("confirm", "--all", "--signal-at-least", "sexual=0.8")
    assert asked.status == 1 and "confirm 1 case (1 pending) as ann: that needs a terminal" in asked.err
    assert {case["state"] for case in gate.cases()} == {"pending", "released"}
    assert review("confirm", "--all", "--signal-at-least", "sexual=0.8", "--yes").status == 0
    states = {case["id"]: case["state"] for case in gate.cases()}
    assert states == {low: "pending", high: "confirmed", released: "released"}
    assert review("hold-legal", "--all", "--state", "pending", "--reason", "court", "--yes").status == 0
    assert [case["id"] for case in gate.cases() if case["legal_hold"]] == [low]
    assert review("hold-legal", "--all", "--off", "--reason", "over", "--yes").status == 0
    assert not any(case["legal_hold"] for case in gate.cases())
    assert review("report", "--all", "--state", "deferred", "--reference", "x", "--yes").out == "No cases.\n"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "name a case"),
        (["case-1", "--all"], "not both"),
        (["case-1", "--state", "pending"], "filters are for --all"),
        (["case-1", "case-2"], "needs a terminal"),
    ],
)
def test_what_is_meant_has_to_be_said(review: Review, words: list[str], said: str) -> None:
    ran = review("confirm", *words)
    assert ran.status == 1 and said in ran.err and len(ran.err.splitlines()) == 1


def test_where_pict_rs_is_away_not_every_case_is_left_half_way(gate: Gate, review: Review) -> None:
    for number in range(5):
        held(gate, pictures.png(seed=40 + number))
    ran = review("release", "--all", "--yes")
    assert ran.status == 1 and "2 cases were not tried" in ran.err
    states = [case["state"] for case in gate.cases()]
    assert (states.count("releasing"), states.count("pending")) == (3, 2)


@pytest.mark.parametrize("name", ["gate", "Retention", " ", "a\nb"])
def test_nobody_reviews_under_a_name_that_the_gate_acts_under(review: Review, name: str) -> None:
    assert review("show", "x", reviewer=name).status == 2


def test_without_a_name_it_is_the_login_s(
    gate: Gate, review: Review, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = held(gate, pictures.png(seed=50))
    monkeypatch.setattr("getpass.getuser", lambda: "cleo")
    assert review("note", case, "x", reviewer=None).status == 0
    assert acts(gate, case)[-1] == ("noted", "cleo")
    monkeypatch.setattr("getpass.getuser", lambda: "gate")
    ran = review("note", case, "x", reviewer=None)
    assert ran.status == 1 and "give your name" in ran.err


@pytest.mark.parametrize(("answer", "status", "states"), [("n", 1, {"pending"}), ("y", 0, {"confirmed"})])
def test_at_a_terminal_the_name_is_asked_for_and_several_are_confirmed(
    gate: Gate, answer: str, status: int, states: set[str]
) -> None:
    cases = [held(gate, pictures.png(seed=60 + number)) for number in range(2)]
    outer, inner = pty.openpty()
    program = [sys.executable, "-c", "import sys; from proxy.cli import main; sys.exit(main())"]
    command = [*program, "review", "confirm", *cases, "--config", str(gate.config)]
    ran = subprocess.Popen(command, stdin=inner, stdout=subprocess.PIPE, stderr=inner)
    os.close(inner)
    said = b""
    for asked, typed in ((b"Your name", "dora"), (b"? [y/N] ", answer)):
        while asked not in said:
            said += os.read(outer, 1024)
        os.write(outer, f"{typed}\n".encode())
    ran.communicate(timeout=60)
    os.close(outer)
    assert b"confirm 2 cases (2 pending) as dora" in said
    assert ran.returncode == status
    assert {case["state"] for case in gate.cases()} == states
    if states == {"confirmed"}:
        assert {case["decided_by"] for case in gate.cases()} == {"dora"}


def test_a_reviewer_sees_each_state_s_way_on(gate: Gate, review: Review) -> None:
    case = held(gate, pictures.png(seed=70))
    ways = {}
    for state in CaseState:
        with gate.database() as database, database.writing() as session:
            session.get_one(Case, case).state = state
        ways[state.value] = {
            name for name, why in review("show", case, "--json").json()["possible"].items() if why is None
        }
    assert ways == {
        "deferred": {"release", "confirm"},
        "pending": {"release", "confirm"},
        "releasing": {"release", "confirm"},
        "released": set(),
        "confirmed": {"report"},
        "reported": set(),
        "expired": set(),
    }
