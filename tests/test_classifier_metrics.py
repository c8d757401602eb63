"""What an operator sees of the classifier: figures, a line a request, and nothing of a file."""

from __future__ import annotations

import base64
import hashlib

import pytest

from tests import pictures
from tests.client import Answer, metric, send
from tests.gate import TOKEN, Classifier


def classify(classifier: Classifier, content: bytes, **headers: str) -> Answer:
    sent = {"Authorization": f"Bearer {TOKEN}"} | {
        name.replace("_", "-"): value for name, value in headers.items()
    }
    return send(classifier.url, "POST", "/v1/classify", headers=sent, body=content)


def sample(classifier: Classifier, name: str, **labels: str) -> float:
    return metric(classifier.url, f"pictrs_classifier_{name}", **labels)


def lines(classifier: Classifier) -> list[str]:
    """The log's lines about requests."""
    return [line for line in classifier.program.output().splitlines() if "outcome=" in line]


def test_every_look_has_its_time_in_each_stage(classifier: Classifier) -> None:
    stages = ("decode", "queue", "infer")
    before = [sample(classifier, "stage_seconds_count", stage=stage) for stage in stages]
    seen = classify(classifier, pictures.png(seed=800)).json()
    after = [sample(classifier, "stage_seconds_count", stage=stage) for stage in stages]
    assert [one + 1 for one in before] == after
    assert seen["timing_ms"]["decode"] > 0
    assert sample(classifier, "stage_seconds_sum", stage="decode") > 0


def test_batches_are_counted_by_their_frames(classifier: Classifier) -> None:
    names = ("batch_frames_count", "batch_frames_sum")
    batches, frames = (sample(classifier, name) for name in names)
    classify(classifier, pictures.png((121, 79), seed=801))  # nobody else's: it would be remembered
    assert [sample(classifier, name) for name in names] == [batches + 1, frames + 1]
    # a scripted head takes all frames of a file for the same
    classify(classifier, pictures.animation("GIF", frames=5, size=(122, 80)))
    assert sample(classifier, "batch_frames_sum") > frames + 1


def test_frames_that_are_remembered_are_counted_and_in_no_batch(classifier: Classifier) -> None:
    content = pictures.png(seed=802)
    classify(classifier, content)
    remembered, frames = (
        sample(classifier, name) for name in ("remembered_frames_total", "batch_frames_sum")
    )
    assert classify(classifier, content).json()["remembered"] == 1
    assert sample(classifier, "remembered_frames_total") == remembered + 1
    assert sample(classifier, "batch_frames_sum") == frames


@pytest.mark.parametrize(
    ("content", "code", "claimed"),
    [
        (pictures.png(seed=803)[:700], "undecodable", "png"),
        (pictures.jpeg(seed=803)[:200], "undecodable", "jpeg"),
        (pictures.animation("GIF")[:1500], "undecodable", "gif"),
        (pictures.encode(pictures.draw(seed=803), "WEBP")[:200], "undecodable", "webp"),
        (pictures.encode(pictures.draw(seed=803), "AVIF")[:-200], "undecodable", "avif"),
        (pictures.video("mp4")[:3000], "undecodable", "mp4"),
        (pictures.video("webm")[:300], "undecodable", "webm"),
        (pictures.blank_png((9000, 9000)), "too-large", "png"),
        (b"this is no picture", "unsupported-media", "unknown"),
    ],
    ids=["png", "jpeg", "gif", "webp", "avif", "mp4", "webm", "large png", "text"],
)
def test_what_cannot_be_decoded_is_counted_by_the_format_that_it_claims(
    classifier: Classifier, content: bytes, code: str, claimed: str
) -> None:
    labels = {"code": code, "format": claimed}
    before = sample(classifier, "not_decoded_total", **labels)
    assert classify(classifier, content).json()["error"]["code"] == code
    assert sample(classifier, "not_decoded_total", **labels) == before + 1


def test_the_log_has_one_line_a_request(classifier: Classifier) -> None:
    before = lines(classifier)
    classify(classifier, pictures.png((310, 190), 804), X_Priority="backfill")
    classify(classifier, b"this is no picture")
    classify(classifier, pictures.png(), X_Deadline_Ms="soon")
    first, second, third = lines(classifier)[len(before) :]
    assert "outcome=ok priority=backfill" in first and "image/png 310x190 frames=1" in first
    assert "outcome=unsupported-media priority=live" in second
    assert "outcome=bad-request" in third


def test_the_log_and_the_metrics_tell_nothing_of_a_file(classifier: Classifier) -> None:
    marked = pictures.encode(pictures.draw(seed=805), "JPEG", comment=b"a-word-within-the-file")
    broken = b"\x89PNG\r\n\x1a\n" + b"another-word-within-the-file" * 20
    text = b"a-third-word-within-no-picture"
    seen = classify(classifier, marked).json()["hashes"]
    for content in (broken, text):
        assert classify(classifier, content).status in (400, 415)
    told = classifier.program.output() + send(classifier.url, "GET", "/metrics").body.decode()
    assert "-word-within-" not in told and TOKEN not in told
    for content in (marked, broken, text):
        digest = hashlib.sha256(content)
        forms = (digest.hexdigest(), digest.hexdigest().upper(), base64.b64encode(digest.digest()).decode())
        assert not any(form[:16] in told for form in forms)
    assert seen["pdq"][:16] not in told
