"""Review at the terminal: cases in words, released and confirmed, never shown by accident."""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from PIL import Image, ImageChops
from rich.console import Console

from proxy import cli
from proxy.cases.sealing import write_new_identity
from proxy.database import Case, CaseState, Promise
from proxy.review.terminal import Shown, print_case, print_list
from tests import pictures
from tests.client import form, get, send
from tests.gate import Gate
from tests.pictrs import Pictrs

NewGate = Callable[..., Gate]


def held(gate: Gate, content: bytes, query: str = "") -> tuple[str, str]:
    """Uploads a hit; its case and the alias that was promised."""
    alias = gate.upload(content, query=query).json()["files"][0]["file"]
    case = gate.cases()[0]
    assert case["alias"] == alias
    return case["id"], alias


def pixels(content: bytes) -> Image.Image:
    return Image.open(io.BytesIO(content)).convert("RGB")


def test_a_released_alias_shows_the_picture_processed_as_the_upload_asked(
    gate: Gate, running_pictrs: Pictrs, hit: bytes
) -> None:
    case, alias = held(gate, hit, "resize=160")
    gate.decide("release", case)
    shown = get(gate.url, f"/image/original/{alias}")
    assert shown.status == 200 and shown.headers["cache-control"].startswith("public")
    expected = pixels(hit).resize((160, 120))
    assert pixels(shown.body).size == (160, 120)
    difference = ImageChops.difference(pixels(shown.body), expected).convert("L").histogram()
    assert sum(value * count for value, count in enumerate(difference)) / (160 * 120) < 12
    assert get(gate.url, f"/image/process.webp?src={alias}&thumbnail=64").status == 200
    assert get(running_pictrs.url, f"/image/original/{alias}").body == shown.body


def test_after_a_release_the_same_bytes_pass_without_a_case(gate: Gate, hit: bytes) -> None:
    case, _ = held(gate, hit)
    gate.decide("release", case)
    before = len(gate.cases())
    assert gate.upload(hit).status == 201
    assert len(gate.cases()) == before


def test_a_release_says_that_the_same_file_waits_in_other_cases(gate: Gate, hit: bytes) -> None:
    cases = [held(gate, hit)[0] for _ in range(3)]
    said = gate.review("release", cases[0], "--reviewer", "ann").stdout
    (words,) = re.findall(r"2 more of the same file wait: `(release --all --sha256 [0-9a-f]{64})`", said)
    ended = gate.review(*words.split(), "--yes", "--reviewer", "ann").stdout
    assert "2 of 2 done" in ended and "wait" not in ended
    assert {case["state"] for case in gate.cases() if case["id"] in cases} == {"released"}


@pytest.mark.parametrize("words", [["review", "list", "--json"], ["ledger", "show"]])
def test_whoever_has_read_enough_of_a_list_is_shown_no_traceback(gate: Gate, words: list[str]) -> None:
    command = [Path(sys.executable).parent / "pictrs-gate", *words, "--config", gate.config]
    ran = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert ran.stdout is not None and ran.stderr is not None
    ran.stdout.close()  # before it has begun to write
    assert (ran.stderr.read(), ran.wait(30)) in (("", 141), ("", 1))  # 1 is rich's


def test_a_decision_is_made_once(gate: Gate, hits: list[bytes]) -> None:
    for first, second in (("release", "confirm"), ("confirm", "release"), ("confirm", "confirm")):
        case, _ = held(gate, hits.pop())
        gate.review(first, case, "--reviewer", "ann")
        refused = gate.review(second, case, check=False)
        assert refused.returncode == 1
        assert "already, by ann" in refused.stderr and len(refused.stderr.splitlines()) == 1


def test_what_pict_rs_refuses_at_a_release_is_shown_and_the_case_stays(
    new_gate: NewGate, running_pictrs: Pictrs, hit: bytes
) -> None:
    gate = new_gate()
    case, alias = held(gate, hit)
    gate.stop()
    with gate.database() as database, database.writing() as session:
        session.get_one(Case, case).promises[0].arguments = [["max_width", "10"]]
    refused = gate.review("release", case, check=False)
    assert refused.returncode == 1 and "validate-width" in refused.stderr
    assert gate.cases()[0]["state"] == "pending"
    gate.start()
    assert get(gate.url, f"/image/original/{alias}").headers["cache-control"] == "no-store"


def test_where_somebody_else_has_taken_the_name_a_release_says_so_and_leaves_both_as_they_were(
    gate: Gate, running_pictrs: Pictrs, hit: bytes
) -> None:
    case, alias = held(gate, hit)
    content_type, body = form([(alias, pictures.jpeg(seed=760))])
    headers = {"Content-Type": content_type, "X-Api-Token": running_pictrs.api_key}
    assert send(running_pictrs.url, "POST", "/internal/import", headers=headers, body=body).status in (
        200,
        201,
    )
    others = get(running_pictrs.url, f"/image/original/{alias}").body
    refused = gate.review("release", case, check=False)
    assert refused.returncode == 1 and "duplicate-alias" in refused.stderr
    assert gate.cases()[0]["state"] == "pending"
    assert get(running_pictrs.url, f"/image/original/{alias}").body == others


def test_a_release_that_pict_rs_did_not_answer_is_said_and_can_be_repeated(
    new_gate: NewGate, running_pictrs: Pictrs, hit: bytes
) -> None:
    gate = new_gate()
    case, alias = held(gate, hit)
    away = {"GATE__PICTRS__URL": "http://127.0.0.1:9"}
    refused = gate.review("release", case, "--reviewer", "ann", check=False, env=away)
    assert refused.returncode == 1
    assert "pict-rs cannot be reached" in refused.stderr and "repeat it" in refused.stderr
    assert gate.cases()[0]["state"] == "releasing"
    # It may have arrived there, for all that anybody knows.
    refused = gate.review("confirm", case, check=False)
    assert refused.returncode == 1 and "under way; look again in two minutes, by ann" in refused.stderr
    assert get(gate.url, f"/image/original/{alias}").headers["cache-control"] == "no-store"
    gate.review("release", case)
    assert get(gate.url, f"/image/original/{alias}").headers["cache-control"].startswith("public")


def test_a_confirmation_takes_back_a_release_that_did_not_end(
    gate: Gate, running_pictrs: Pictrs, hit: bytes
) -> None:
    case, alias = held(gate, hit)
    killed = gate.review("release", case, check=False, env={"PICTRS_GATE_FAULT": "imported"})
    assert killed.returncode == -9
    assert get(running_pictrs.url, f"/image/original/{alias}").status == 200
    with gate.database() as database, database.writing() as session:
        begun = session.get_one(Case, case)
        assert begun.decided_at is not None
        begun.decided_at -= timedelta(minutes=5)
    gate.review("confirm", case)
    assert get(running_pictrs.url, f"/image/original/{alias}").status == 404
    assert get(gate.url, f"/image/original/{alias}").headers["cache-control"] == "no-store"
    assert gate.upload(hit).json()["code"] == "failed-external-validation"


def test_what_was_confirmed_in_one_case_is_not_released_by_another(gate: Gate, hit: bytes) -> None:
    first, _ = held(gate, hit)
    second, alias = held(gate, hit)
    gate.review("confirm", first, "--reviewer", "ann")
    refused = gate.review("release", second, check=False)
    assert refused.returncode == 1 and "decided by ann" in refused.stderr
    assert get(gate.url, f"/image/original/{alias}").headers["cache-control"] == "no-store"
    assert gate.upload(hit).json()["code"] == "failed-external-validation"


def test_a_confirmation_names_another_case_that_shows_the_same_file_which_may_then_be_confirmed(
    gate: Gate, running_pictrs: Pictrs, hit: bytes
) -> None:
    first, alias = held(gate, hit)
    second, _ = held(gate, hit)
    gate.decide("release", first)
    as_stored = get(running_pictrs.url, f"/image/original/{alias}").body
    said = gate.review("confirm", second).stdout
    assert "STILL SHOWN" in said and f"{first} (released, by test)" in said
    assert json.loads(gate.review("show", first, "--json").stdout)["possible"]["confirm"] is None
    assert "STILL SHOWN" not in gate.review("confirm", first).stdout
    assert get(running_pictrs.url, f"/image/original/{alias}").status == 404
    for content in (hit, as_stored):
        assert gate.upload(content).json()["code"] == "failed-external-validation"


def test_what_stands_on_a_block_list_is_not_released(new_gate: NewGate, hit: bytes) -> None:
    gate = new_gate()
    case, _ = held(gate, hit)
    (gate.folder / "list.txt").write_text(hashlib.sha256(hit).hexdigest())
    listed = {"GATE__POLICY__BLOCK_LISTS": '["list.txt"]'}
    refused = gate.review("release", case, check=False, env=listed)
    assert refused.returncode == 1 and "on a list" in refused.stderr
    assert gate.cases()[0]["state"] == "pending"


def test_the_wrong_key_releases_nothing(gate: Gate, hit: bytes) -> None:
    case, _ = held(gate, hit)
    stranger = gate.folder / f"stranger-{case}.key"
    write_new_identity(stranger)
    refused = gate.review("release", case, "--identity", str(stranger), check=False)
    assert refused.returncode == 1 and "not sealed to this key" in refused.stderr
    assert gate.cases()[0]["state"] == "pending"


def test_a_case_file_that_was_altered_is_not_released(gate: Gate, hits: list[bytes]) -> None:
    case, _ = held(gate, hits.pop())
    other, _ = held(gate, hits.pop())
    folder = gate.folder / "cases"
    (folder / f"{other}.age").replace(folder / f"{case}.age")
    refused = gate.review("release", case, check=False)
    assert refused.returncode == 1 and "not those that were uploaded" in refused.stderr
    (folder / f"{case}.age").rename(folder / f"{other}.age")
    with gate.database() as database, database.writing() as session:
        gone = session.get_one(Case, case)  # its file is gone for good
        session.delete(gone.promises[0])
        session.delete(gone)


def test_a_deferred_case_can_be_released_by_a_human(new_gate: NewGate) -> None:
    gate = new_gate(classifier_url="http://127.0.0.1:9")
    content = pictures.png(seed=750)
    case, alias = held(gate, content)
    assert gate.cases()[0]["state"] == "deferred"
    gate.decide("release", case)
    assert pixels(get(gate.url, f"/image/original/{alias}").body).size == (320, 200)


def test_list_is_a_table_and_json_and_filters(gate: Gate, hits: list[bytes]) -> None:
    case, _ = held(gate, hits.pop())
    confirmed, _ = held(gate, hits.pop())
    gate.decide("confirm", confirmed)
    table = gate.review("list").stdout
    assert case in table and "pending" in table and "sexual=0.90" in table
    only = json.loads(gate.review("list", "--json", "--state", "confirmed").stdout)
    assert confirmed in [one["id"] for one in only]
    assert {one["state"] for one in only} == {"confirmed"}
    assert len(json.loads(gate.review("list", "--json", "--limit", "1").stdout)) == 1


def test_show_explains_a_case_in_words_and_is_noted(gate: Gate, hit: bytes) -> None:
    case, alias = held(gate, hit, "resize=50")
    shown = gate.review("show", case, "--reviewer", "ann").stdout
    for words in ("rule: a suspicion", "very likely", alias, "resize=50", f"{case}.age"):
        assert words in shown
    last = gate.ledger()[-1]
    assert (last.act, last.actor, last.case_id) == ("viewed", "ann", case)


@pytest.mark.parametrize("command", ["show", "release", "confirm"])
def test_a_case_that_is_not_there_is_said_in_one_line(gate: Gate, command: str) -> None:
    refused = gate.review(command, "20200101-000000-00000000", check=False)
    assert refused.returncode == 1
    assert "no such case" in refused.stderr and len(refused.stderr.splitlines()) == 1


def test_a_pretty_list_of_nothing_says_so(new_gate: NewGate) -> None:
    assert new_gate(start=False).review("list").stdout == "No cases.\n"


def test_the_terminal_obeys_nothing_that_an_uploader_has_written() -> None:
    evil = "[red]a[/red]\x1b[2J\u202egnp.jpg\r\nb"
    spelled = r"[red]a[/red]\x1b[2J\u202egnp.jpg\r\nb"
    case = Case(
        id="case-1",
        state=CaseState.PENDING,
        created_at=datetime.now(UTC),
        reason=evil,
        file="case-1.age",
        content_type=evil,
        promises=[Promise(alias=evil, arguments=[[evil, evil]])],
        signals={evil: 0.5},
    )

    def shown(write: Callable[[Console], None]) -> str:
        into = io.StringIO()
        write(Console(file=into, width=500, force_terminal=True))
        return into.getvalue()

    table = shown(lambda console: print_list(console, [case], as_json=False))
    words = shown(lambda console: print_case(console, Shown(case), as_json=False))
    assert (table.count(spelled), words.count(spelled)) == (3, 6)
    for text in (table, words):
        assert "\u202e" not in text and "\x1b[2J" not in text and "\r" not in text
    for_programs = io.StringIO()
    print_list(Console(file=for_programs), [case], as_json=True)
    assert json.loads(for_programs.getvalue())[0]["alias"] == evil


def test_no_number_is_torn_apart_where_the_terminal_is_narrow() -> None:
    case = Case(
        id="20260101-000000-00000000",
        state=CaseState.CONFIRMED,
        created_at=datetime.now(UTC) - timedelta(minutes=50),
        reason="rule: sexual content with an apparent minor",
        file="case-1.age",
        content_type="image/jpeg",
        signals={"sexual": 0.9, "minor": 0.8},
    )
    into = io.StringIO()
    print_list(Console(file=into, width=80), [case], as_json=False)
    for word in (case.id, "confirmed", "50 min", "sexual=0.90", "minor=0.80"):
        assert word in into.getvalue()


def test_several_are_released_at_once(
    gate: Gate, hits: list[bytes], capsys: pytest.CaptureFixture[str]
) -> None:
    both = [held(gate, hits.pop()) for _ in range(2)]
    before = os.umask(0o022)
    try:
        words = [*(case for case, _ in both), "--yes", "--reviewer", "ann", "--config", str(gate.config)]
        assert cli.main(["--log-level", "error", "review", "release", *words]) == 0
    finally:
        os.umask(before)
    said = capsys.readouterr().out
    for case, alias in both:
        assert f"{case}: released; {alias} shows the picture" in said
        assert get(gate.url, f"/image/original/{alias}").headers["cache-control"].startswith("public")
    assert "2 of 2 done, 0 failed" in said
