"""Promise 3: no silent pass. When nobody could look, the configured choice decides, and the ledger tells."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pytest

from tests import pictures
from tests.client import get, send
from tests.fake import SEEN, Asked, Fake, Reply, classifier, json_reply, pictrs_0_5
from tests.gate import Classifier, Gate

NewGate = Callable[..., Gate]


@dataclass
class Between:
    gate: Gate
    pictrs: Fake
    classifier: Fake
    answer: Callable[[Asked], Reply]

    def stored(self) -> int:
        asked = [one for one in self.pictrs.asked if one.method == "POST"]
        self.pictrs.asked.clear()
        return len(asked)


@pytest.fixture(scope="module")
def between(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Between]:
    made: list[Between] = []
    upstream, looking = Fake(pictrs_0_5), classifier(lambda asked: made[0].answer(asked))
    gate = Gate(
        tmp_path_factory.mktemp("between"),
        pictrs_url=upstream.url,
        api_key="k",
        classifier_url=looking.url,
        policy={"verdict_s": 1.0},
    )
    made.append(Between(gate, upstream, looking, lambda _: json_reply(200, SEEN)))
    yield made[0]
    gate.stop()
    upstream.close()
    looking.close()


def error(status: int, code: str) -> Callable[[Asked], Reply]:
    return lambda _: json_reply(status, {"error": {"code": code, "message": "…"}})


def hang(_: Asked) -> Reply:
    time.sleep(2.5)
    return json_reply(503, {})  # were it an answer, the queue of deferred files would come by it


@pytest.mark.parametrize(
    "failure",
    [
        hang,
        error(429, "overloaded"),
        error(500, "internal-error"),
        error(504, "deadline-exceeded"),
        error(401, "unauthorized"),
        lambda _: Reply(200, b"OK"),
        lambda _: Reply(200, b'{"signals": {}}', cut=True),
        lambda _: json_reply(
            200,
            {**SEEN, "signals": {"sexual": 0.0}, "frames": [{"index": 0, "signals": {"sexual": 0.0}}]},
        ),
    ],
    ids=[
        "hangs",
        "full queue",
        "fails",
        "too late",
        "wrong token",
        "says OK",
        "dies in the middle",
        "lacks a signal",
    ],
)
def test_whatever_keeps_a_classifier_from_looking_the_upload_is_deferred(
    between: Between, failure: Callable[[Asked], Reply]
) -> None:
    between.answer = failure
    content = pictures.png(seed=int(time.time() * 1000) % 10**9)
    answer = between.gate.upload(content)
    assert answer.status == 201
    alias = answer.json()["files"][0]["file"]
    assert between.stored() == 0
    case = between.gate.cases()[0]
    assert (case["alias"], case["state"]) == (alias, "deferred")
    assert case["reason"].startswith("unavailable: ")
    last = between.gate.ledger()[-1]
    assert (last.act, last.case_id, last.actor) == ("deferred", case["id"], "gate")


CHOICES = [
    ("defer", 201, None, "deferred", 0),
    ("hold", 201, None, "pending", 0),
    ("block", 503, "scan-unavailable", "blocked", 0),
    ("allow", 201, None, "allowed unseen", 1),
]


@pytest.mark.parametrize(("choice", "status", "code", "act", "stored"), CHOICES)
def test_with_nobody_listening_the_configured_choice_decides(
    new_gate: NewGate, choice: str, status: int, code: str | None, act: str, stored: int
) -> None:
    upstream = Fake(pictrs_0_5)
    gate = new_gate(
        pictrs_url=upstream.url, classifier_url="http://127.0.0.1:9", policy={"on_unavailable": choice}
    )
    answer = gate.upload(pictures.png(seed=31))
    assert answer.status == status
    if code is not None:
        assert answer.json()["code"] == code and int(answer.headers["retry-after"]) > 0
    assert len([asked for asked in upstream.asked if asked.method == "POST"]) == stored
    (entry,) = gate.ledger()
    assert entry.act == act and "unavailable" in entry.facts["reason"]
    upstream.close()


@pytest.mark.parametrize(
    ("choice", "status", "stored"), [("hold", 201, 0), ("block", 400, 0), ("allow", 201, 1)]
)
def test_what_cannot_be_decoded_is_not_passed_silently_either(
    new_gate: NewGate, choice: str, status: int, stored: int
) -> None:
    upstream, looking = Fake(pictrs_0_5), classifier(error(400, "undecodable"))
    gate = new_gate(pictrs_url=upstream.url, classifier_url=looking.url, policy={"on_undecodable": choice})
    assert gate.upload(pictures.png(seed=32)).status == status
    assert len([asked for asked in upstream.asked if asked.method == "POST"]) == stored
    assert len(gate.ledger()) == 1
    upstream.close()
    looking.close()


def test_a_classifier_that_was_killed_lets_nothing_through(
    new_gate: NewGate, tmp_path_factory: pytest.TempPathFactory
) -> None:
    real = Classifier(tmp_path_factory.mktemp("starter"))
    upstream = Fake(pictrs_0_5)
    gate = new_gate(pictrs_url=upstream.url, classifier_url=real.url)
    assert gate.upload(pictures.png(seed=33)).status == 201
    real.program.kill()
    assert gate.upload(pictures.png(seed=34)).status == 201
    assert len([asked for asked in upstream.asked if asked.method == "POST"]) == 1
    assert gate.cases()[0]["state"] == "deferred"
    upstream.close()


def test_an_upload_ends_within_its_time_whatever_hangs(new_gate: NewGate) -> None:
    looking, upstream = classifier(hang), Fake(pictrs_0_5)
    gate = new_gate(
        pictrs_url=upstream.url,
        classifier_url=looking.url,
        policy={"verdict_s": 10.0},
        server={"upload_s": 2.0},
    )
    began = time.monotonic()
    assert gate.upload(pictures.png(seed=35)).status == 201
    assert time.monotonic() - began < 2.5
    assert gate.cases()[0]["state"] == "deferred"
    looking.close()
    upstream.close()


def test_the_gate_starts_without_a_classifier_and_says_so_of_each_file_that_it_is_asked_about(
    new_gate: NewGate,
) -> None:
    gate = new_gate(classifier_url="http://127.0.0.1:9")
    assert get(gate.internal_url, "/readyz").status == 200
    assert "classifier not usable yet" in gate.log()
    asked = send(
        gate.internal_url,
        "POST",
        "/validate",
        headers={"Content-Type": "image/png"},
        body=pictures.png(seed=37),
    )
    assert asked.status == 503
    (entry,) = gate.ledger()
    assert (entry.act, entry.facts["verdict"]) == ("refused unseen", "defer")


def test_a_plain_allow_is_no_entry(gate: Gate) -> None:
    before = len(gate.ledger())
    assert gate.upload(pictures.png(seed=36)).status == 201
    assert len(gate.ledger()) == before
