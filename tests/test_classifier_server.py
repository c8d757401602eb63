"""Protocol v1 over HTTP, as a gate meets it; and the command line."""

from __future__ import annotations

import hashlib
import json
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from tests import pictures, processes
from tests.client import Answer, get, send
from tests.conftest import SIGNALS
from tests.gate import TOKEN, Classifier, scripted
from tests.processes import free_port

COMMAND = Path(sys.executable).parent / "pictrs-classifier"


def classify(classifier: Classifier, content: bytes, **headers: str) -> Answer:
    sent = {"Authorization": f"Bearer {TOKEN}", "Content-Type": "image/png"}
    sent |= {name.replace("_", "-"): value for name, value in headers.items()}
    return send(classifier.url, "POST", "/v1/classify", headers=sent, body=content)


def test_a_file_is_looked_at(classifier: Classifier) -> None:
    content = pictures.png(seed=500)
    answer = classify(classifier, content, X_Priority="backfill", X_Deadline_Ms="5000")
    assert answer.status == 200
    seen = answer.json()
    assert seen["ensemble"] == "scripted" and len(seen["version"]) == 16
    assert seen["media"] == {
        "kind": "image",
        "format": "png",
        "width": 320,
        "height": 200,
        "frames": 1,
        "frames_scored": 1,
    }
    assert seen["signals"] == {"sexual": 0.01, "minor": 0.02}
    assert seen["frames"] == [{"index": 0, "signals": seen["signals"]}]
    assert seen["hashes"]["sha256"] == hashlib.sha256(content).hexdigest()
    assert len(seen["hashes"]["pdq"]) == 64
    assert seen["timing_ms"].keys() == {"decode", "queue", "infer"}


def test_the_script_is_followed(classifier: Classifier, hit: bytes) -> None:
    assert classify(classifier, hit).json()["signals"] == SIGNALS


def test_the_scripted_head_says_loudly_that_it_looks_at_nothing(classifier: Classifier) -> None:
    assert "LOOKS AT NOTHING" in classifier.program.output()


def test_it_introduces_itself(classifier: Classifier) -> None:
    info = get(classifier.url, "/v1/info", Authorization=f"Bearer {TOKEN}").json()
    assert (info["protocol"], info["ensemble"], info["signals"]) == (1, "scripted", ["minor", "sexual"])
    assert {"jpeg", "png", "gif", "webp", "apng", "avif"} <= set(info["formats"])
    assert info["limits"]["body_bytes"] == 64 * 1024 * 1024


@pytest.mark.parametrize("path", ["/healthz", "/readyz"])
def test_health_needs_no_token(classifier: Classifier, path: str) -> None:
    assert get(classifier.url, path).status == 200


def test_metrics_count_what_was_looked_at(classifier: Classifier) -> None:
    classify(classifier, pictures.png(seed=501))
    classify(classifier, b"no picture")
    text = get(classifier.url, "/metrics").body.decode()
    assert 'pictrs_classifier_requests_total{outcome="ok",priority="live"}' in text
    assert 'pictrs_classifier_requests_total{outcome="unsupported-media",priority="live"}' in text
    assert 'pictrs_classifier_stage_seconds_count{stage="decode"}' in text


@pytest.mark.parametrize(
    "authorization",
    [None, "", "Bearer", "Bearer wrong", f"Basic {TOKEN}", TOKEN, "Bearer \xff\xfe", f"Bearer {TOKEN}\xe9"],
)
@pytest.mark.parametrize("path", ["/v1/classify", "/v1/info", "/v1/anything"])
def test_without_the_token_nothing_is_told(
    classifier: Classifier, authorization: str | None, path: str
) -> None:
    headers = {} if authorization is None else {"Authorization": authorization}
    method = "POST" if path.endswith("classify") else "GET"
    answer = send(classifier.url, method, path, headers=headers, body=b"x" if method == "POST" else b"")
    assert (answer.status, answer.json()["error"]["code"]) == (401, "unauthorized")


@pytest.mark.parametrize(
    ("content", "headers", "status", "code"),
    [
        (b"", {}, 400, "undecodable"),
        (b"this is no picture", {}, 415, "unsupported-media"),
        (pictures.png()[:1500], {}, 400, "undecodable"),
        (pictures.png(), {"X_Priority": "urgent"}, 400, "bad-request"),
        (pictures.png(), {"X_Deadline_Ms": "0"}, 400, "bad-request"),
        (pictures.png(), {"X_Deadline_Ms": "-1"}, 400, "bad-request"),
        (pictures.png(), {"X_Deadline_Ms": "1e3"}, 400, "bad-request"),
        (pictures.png(), {"X_Deadline_Ms": "soon"}, 400, "bad-request"),
        (pictures.png(), {"X_Deadline_Ms": "\xb2"}, 400, "bad-request"),
        (pictures.png(), {"X_Deadline_Ms": ""}, 400, "bad-request"),
        (pictures.png((2000, 2000)), {"X_Deadline_Ms": "1"}, 504, "deadline-exceeded"),
    ],
)
def test_what_cannot_be_looked_at_has_its_code(
    classifier: Classifier, content: bytes, headers: dict[str, str], status: int, code: str
) -> None:
    answer = classify(classifier, content, **headers)
    assert (answer.status, answer.json()["error"]["code"]) == (status, code)
    assert answer.json()["error"]["message"]


@pytest.mark.parametrize("deadline_ms", ["600001", "999999999999", "9" * 5000])
def test_a_deadline_beyond_the_longest_is_the_longest(classifier: Classifier, deadline_ms: str) -> None:
    assert classify(classifier, pictures.png(seed=502), X_Deadline_Ms=deadline_ms).status == 200


def test_a_body_that_is_too_large_is_refused_before_it_is_read(classifier: Classifier) -> None:
    with socket.create_connection(("127.0.0.1", classifier.port), timeout=10) as connection:
        head = (
            f"POST /v1/classify HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {TOKEN}\r\n"
            f"Content-Length: {65 * 1024 * 1024}\r\n\r\n"
        )
        connection.sendall(head.encode())
        assert connection.recv(100).startswith(b"HTTP/1.1 413")


@pytest.mark.parametrize("path", ["/", "/v2/classify", "/v1/classify/"])
def test_other_paths_are_nothing(classifier: Classifier, path: str) -> None:
    answer = get(classifier.url, path, Authorization=f"Bearer {TOKEN}")
    assert (answer.status, answer.json()["error"]["code"]) == (404, "no-such-thing")


def test_many_at_once_are_all_answered(classifier: Classifier) -> None:
    answers: list[Answer] = []
    contents = [pictures.png(seed=600 + number) for number in range(24)]
    threads = [
        threading.Thread(target=lambda content=content: answers.append(classify(classifier, content)))
        for content in contents
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [answer.status for answer in answers] == [200] * 24
    told = {answer.json()["hashes"]["sha256"] for answer in answers}
    assert told == {hashlib.sha256(content).hexdigest() for content in contents}


def test_past_the_bound_it_says_overloaded_at_once(tmp_path: Path) -> None:
    recipe = scripted(tmp_path, {})
    running = Classifier(tmp_path, ensemble=recipe, options=["--most-waiting", "1", "--workers", "1"])
    try:
        answers: list[Answer] = []
        content = pictures.png((3000, 3000))
        threads = [
            threading.Thread(target=lambda: answers.append(classify(running, content))) for _ in range(6)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        refused = [answer for answer in answers if answer.status == 429]
        assert refused and all(answer.headers["retry-after"] == "1" for answer in refused)
        assert any(answer.status == 200 for answer in answers)
    finally:
        running.stop()


def run(*words: str | Path) -> subprocess.CompletedProcess[str]:
    return processes.run([COMMAND, *words], within_s=60, check=False)


def test_score_prints_a_table_and_json(tmp_path: Path) -> None:
    paths = [tmp_path / "astronaut.jpg", tmp_path / "rocket.jpg"]
    for path in paths:
        path.write_bytes(pictures.photograph(path.stem))
    table = run("score", *paths)
    assert table.returncode == 0
    head, first, second = table.stdout.splitlines()
    assert head.split()[:4] == ["file", "faces", "minor", "sexual"]
    assert first.split()[:2] == [str(paths[0]), "1.0000"] and second.split()[:2] == [str(paths[1]), "0.0000"]
    entries = json.loads(run("score", "--json", *paths).stdout)
    assert [entry["signals"]["faces"] for entry in entries] == [1, 0]


def test_as_many_frames_are_scored_as_the_operator_says(tmp_path: Path) -> None:
    (tmp_path / "long.gif").write_bytes(pictures.animation(frames=12))
    (told,) = json.loads(run("score", "--json", "--frames", "4", tmp_path / "long.gif").stdout)
    assert (told["media"]["frames"], told["media"]["frames_scored"]) == (12, 4)
    refused = run("score", "--frames", "1", tmp_path / "long.gif")
    assert refused.returncode == 2 and "has to be 2 to 256" in refused.stderr


def test_score_of_what_is_no_picture_says_so_and_fails(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("hello")
    result = run("score", tmp_path / "text")
    assert result.returncode == 1 and "unsupported-media" in result.stdout


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["serve", "--ensemble", "nothing"], "starter"),
        (["serve", "--listen", "nowhere"], "host:port"),
        (["serve", "--listen", "0.0.0.0:0"], "--token-file"),
        (["serve", "--listen", "127.0.0.1:99999"], "host:port"),
        (["serve", "--token-file", "/nowhere"], "/nowhere"),
        (["serve", "--token-file", sys.executable], "is no text"),
        (["score", "/nowhere.png"], "/nowhere.png"),
    ],
)
def test_what_it_cannot_start_with_is_said_in_one_line(words: list[str], said: str) -> None:
    result = run(*words)
    assert result.returncode == 1
    assert said in result.stderr and len(result.stderr.splitlines()) == 1


def test_a_port_that_is_taken_is_said_in_one_line(tmp_path: Path, classifier: Classifier) -> None:
    result = run(
        "--log-level",
        "error",
        "serve",
        "--ensemble",
        scripted(tmp_path, {}),
        "--listen",
        f"127.0.0.1:{classifier.port}",
    )
    assert result.returncode == 1 and "choose another address" in result.stderr


def test_it_ends_when_it_is_told_to(tmp_path: Path) -> None:
    running = Classifier(tmp_path, ensemble=scripted(tmp_path, {}), port=free_port())
    assert running.program.stop() == 0
