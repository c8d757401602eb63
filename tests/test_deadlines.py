"""`X-Request-Deadline`, as pict-rs reads it. A client may hurry the gate, and keeps nobody from looking."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

import pytest

from proxy.database import cases, decisions, promising
from tests import pictures
from tests.client import Answer, form, send
from tests.fake import SEEN, Asked, Fake, Reply, classifier, json_reply
from tests.gate import Gate
from tests.pictrs import Pictrs

NewGate = Callable[..., Gate]
SECOND = 10**9


def post(url: str, deadline: object, content: bytes, path: str = "/image") -> Answer:
    content_type, body = form([("a.png", content)])
    headers = {"Content-Type": content_type, "X-Request-Deadline": str(deadline)}
    return send(url, "POST", path, headers=headers, body=body)


@pytest.fixture
def slow() -> Iterator[Fake]:
    """A classifier that takes two seconds, and finds nothing."""

    def look(asked: Asked) -> Reply:
        time.sleep(2)
        media = {**SEEN["media"], "format": "png" if asked.body.startswith(b"\x89PNG") else "jpeg"}
        return json_reply(200, {**SEEN, "media": media})

    fake = classifier(look)
    yield fake
    fake.close()


@pytest.mark.parametrize(
    ("deadline", "code"),
    [
        (0, "request-timeout"),
        (-5, "request-timeout"),
        ("+1", "request-timeout"),
        ("soon", "parse-deadline"),
        ("1.5", "parse-deadline"),
        ("", "parse-deadline"),
        (10**30, "parse-deadline"),
        (10**45, "parse-deadline"),
        ("2026-11-23T00:00:00Z", "parse-deadline"),
    ],
)
def test_a_deadline_is_read_as_pict_rs_reads_it(
    gate: Gate, running_pictrs: Pictrs, deadline: object, code: str
) -> None:
    content = pictures.png(seed=9500)
    through, direct = (post(url, deadline, content) for url in (gate.url, running_pictrs.url))
    assert (through.status, through.json()) == (direct.status, direct.json())
    assert through.json()["code"] == code


def test_a_deadline_far_away_changes_nothing(gate: Gate) -> None:
    assert post(gate.url, time.time_ns() + 60 * SECOND, pictures.png(seed=9501)).status == 201


def test_nothing_is_stored_for_a_client_who_waits_no_more(
    new_gate: NewGate, running_pictrs: Pictrs, slow: Fake
) -> None:
    gate = new_gate(classifier_url=slow.url)
    before = len(running_pictrs.stored_files())
    answer = post(gate.url, time.time_ns() + SECOND, pictures.png(seed=9502))
    assert (answer.status, answer.json()["code"]) == (408, "request-timeout")
    assert len(running_pictrs.stored_files()) == before and gate.cases() == []


@pytest.mark.parametrize("on_unavailable", ["allow", "defer"])
def test_a_client_in_a_hurry_does_not_make_it_pass_unseen(
    new_gate: NewGate, running_pictrs: Pictrs, slow: Fake, on_unavailable: str
) -> None:
    gate = new_gate(classifier_url=slow.url, policy={"on_unavailable": on_unavailable})
    before = len(running_pictrs.stored_files())
    answer = post(gate.url, time.time_ns() + SECOND, pictures.png(seed=9503))
    assert answer.status == 408
    assert len(running_pictrs.stored_files()) == before and gate.cases() == []
    assert "nobody could look" not in gate.log()


def test_a_hit_is_kept_and_not_promised_to_a_client_who_waits_no_more(
    new_gate: NewGate, slow: Fake, hit: bytes
) -> None:
    gate = new_gate(classifier_url=slow.url, rules=[{"name": "everything", "at_least": {"sexual": 0.0}}])
    assert post(gate.url, time.time_ns() + SECOND, hit).status == 408
    (case,) = gate.cases()
    assert case["state"] == "pending" and case["alias"] is None


def test_where_an_upload_fails_nothing_of_it_is_promised(new_gate: NewGate, hit: bytes) -> None:
    """pict-rs gives up on the one file, so the other one's alias is nobody's."""
    calls: list[Asked] = []

    def refuse(asked: Asked) -> Reply:
        calls.append(asked)
        return json_reply(408, {"code": "request-timeout", "msg": "Deadline exceeded"})

    store = Fake(refuse)
    gate = new_gate(pictrs_url=store.url)
    answer = gate.upload(hit, pictures.png(seed=9504))
    assert answer.status == 408 and calls
    (case,) = gate.cases()
    assert case["state"] == "pending"
    with gate.database() as database:
        (promise,) = cases.get(database, case["id"]).promises
        assert promise.removed_at is not None
    acts = [entry.act for entry in gate.ledger() if entry.case_id == case["id"]]
    assert acts == ["pending", "alias withdrawn"]
    store.close()


def test_where_an_upload_fails_after_its_other_file_was_released_pict_rs_is_told_to_delete_that(
    new_gate: NewGate, hit: bytes
) -> None:
    deleted: list[str] = []

    def answer(asked: Asked) -> Reply:
        if asked.target.startswith("/internal/delete"):
            deleted.append(asked.target.partition("alias=")[2])
            return json_reply(200, {"msg": "ok"})
        if asked.method == "POST":
            with gate.database() as database:  # as a reviewer or the backlog does meanwhile
                (case,) = cases.listed(database)
                decisions.releasing(database, case.id, by="ann", sha256=str(case.sha256))
                for promise in promising.to_store(database, case.id):
                    assert promising.storing(database, promise)
                    assert promising.stored(database, promise, token="t")
                decisions.released(database, case.id, by="ann", stored_as=[])
        return json_reply(408, {"code": "request-timeout", "msg": "Deadline exceeded"})

    store = Fake(answer)
    gate = new_gate(pictrs_url=store.url)
    assert gate.upload(hit, pictures.png(seed=9505)).status == 408
    (case,) = gate.cases()
    assert case["state"] == "released" and deleted == [case["alias"]]
    store.close()
