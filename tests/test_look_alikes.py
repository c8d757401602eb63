"""What looks like a confirmed picture is held, whatever the model thinks; a released one excuses none."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable

from PIL import Image

from proxy.database import decisions
from tests import pictures
from tests.client import Answer, get, send
from tests.gate import Gate
from tests.pictrs import Pictrs

NewGate = Callable[..., Gate]
AWAY = {"GATE__CLASSIFIERS": '[{"url": "http://127.0.0.1:9"}]'}


def smaller(content: bytes, size: tuple[int, int] = (200, 150), quality: int = 55) -> bytes:
    """The same picture as somebody else has saved it: other size, other format, other bytes."""
    return pictures.encode(Image.open(io.BytesIO(content)).resize(size), "WEBP", quality=quality)


def held(gate: Gate, content: bytes) -> str:
    """Uploads what the model holds; its case."""
    assert gate.upload(content).status == 201
    case: str = gate.cases()[0]["id"]
    assert gate.cases()[0]["state"] == "pending"
    return case


def is_shown(gate: Gate, answer: Answer) -> bool:
    """Whether an upload went through to pict-rs."""
    alias = answer.json()["files"][0]["file"]
    return get(gate.url, f"/image/original/{alias}").headers["cache-control"] != "no-store"


def test_what_looks_like_a_confirmed_picture_is_held_and_the_case_says_why(gate: Gate, hit: bytes) -> None:
    assert is_shown(gate, gate.upload(smaller(hit, (220, 165))))  # the model sees nothing in it
    first = held(gate, hit)
    gate.decide("confirm", first)
    before = len(gate.cases())
    for other in (smaller(hit), pictures.jpeg((320, 240), seed=31), pictures.blank_png((200, 150))):
        assert gate.upload(other).status == 201
    (found,) = gate.cases()[: len(gate.cases()) - before]
    assert found["signals"]["sexual"] < 0.1 and found["state"] == "pending"
    distance = found["earlier"]["distance"]
    assert found["earlier"] == {
        "kind": "pdq",
        "verdict": "block",
        "case": first,
        "list": None,
        "by": "test",
        "distance": distance,
    }
    assert 0 <= distance <= 31 and first in found["reason"]
    shown = gate.review("show", found["id"]).stdout
    assert f"looks like what was refused (perceptual hash, {distance} of 256 bits apart)" in " ".join(
        shown.split()
    )
    (entry,) = [one for one in gate.ledger() if one.act == "pending" and one.case_id == found["id"]]
    assert entry.facts["earlier"]["case"] == first
    # A human who releases it is not overruled, and only these bytes pass from then on.
    gate.decide("release", found["id"])
    assert is_shown(gate, gate.upload(smaller(hit)))
    assert not is_shown(gate, gate.upload(smaller(hit, (240, 180))))


def test_a_released_picture_excuses_no_other_and_a_rule_as_stern_gives_the_verdict(
    new_gate: NewGate,
) -> None:
    gate = new_gate(rules=[{"name": "everything", "at_least": {"sexual": 0.0}}])
    good, bad = (pictures.jpeg((320, 240), seed=seed) for seed in (3000, 3001))
    gate.decide("release", held(gate, good))
    assert is_shown(gate, gate.upload(good))
    held(gate, smaller(good))
    case = gate.cases()[0]
    assert (case["rule"], case["earlier"]) == ("everything", None)
    first = held(gate, bad)
    gate.decide("confirm", first)
    held(gate, smaller(bad))
    case = gate.cases()[0]
    assert (case["rule"], case["earlier"]["case"]) == ("everything", first)


def test_the_admin_may_block_what_looks_alike_but_not_what_a_human_releases(
    new_gate: NewGate, hit: bytes
) -> None:
    gate = new_gate()
    gate.decide("confirm", held(gate, hit))
    second = held(gate, smaller(hit))
    gate.stop()
    gate.start({"GATE__POLICY__NEAR_VERDICT": "block"})
    before = len(gate.cases())
    refused = gate.upload(smaller(hit, (240, 180)))
    assert (refused.status, refused.json()["code"]) == (400, "failed-external-validation")
    assert len(gate.cases()) == before
    assert gate.ledger()[-1].act == "blocked" and "looks like" in gate.ledger()[-1].facts["reason"]

    def hook_says(content: bytes) -> int:
        headers = {"Content-Type": "image/webp"}
        return send(gate.internal_url, "POST", "/validate", headers=headers, body=content).status

    rewritten = smaller(hit, (200, 150), quality=80)
    assert hook_says(rewritten) == 406
    with gate.database() as database:  # a release has begun, and pict-rs asks about it in its own rewriting
        sha256 = hashlib.sha256(smaller(hit)).hexdigest()
        decisions.releasing(database, second, by="ann", sha256=sha256)
    assert hook_says(rewritten) == 200
    assert hook_says(hit) == 406  # the very bytes that were confirmed


def test_without_a_classifier_the_same_bytes_are_known_and_a_look_alike_waits_for_a_look(
    new_gate: NewGate, running_pictrs: Pictrs, hits: list[bytes]
) -> None:
    gate = new_gate()
    bad, good = hits.pop(), hits.pop()
    gate.decide("confirm", held(gate, bad))
    gate.decide("release", held(gate, good))
    stored = get(running_pictrs.url, f"/image/original/{gate.cases()[0]['alias']}").body
    assert stored
    gate.stop()
    gate.start(AWAY)
    refused = gate.upload(bad)
    assert (refused.status, refused.json()["code"]) == (400, "failed-external-validation")
    before = len(gate.cases())
    for content in (good, stored):  # as it was uploaded, and as pict-rs has written it
        assert is_shown(gate, gate.upload(content))
    assert len(gate.cases()) == before
    assert gate.upload(smaller(bad)).status == 201
    assert gate.cases()[0]["state"] == "deferred"


def test_a_case_that_nobody_saw_before_it_was_confirmed_is_looked_at_then(new_gate: NewGate) -> None:
    gate = new_gate(start=False)
    gate.start(AWAY)
    content = pictures.jpeg((320, 240), seed=3100)
    assert gate.upload(content).status == 201
    assert gate.cases()[0]["state"] == "deferred"
    first = gate.decide("confirm")  # beside the gate, whose configuration has a classifier
    gate.stop()
    gate.start()
    assert gate.upload(smaller(content)).status == 201
    assert gate.cases()[0]["earlier"]["case"] == first
