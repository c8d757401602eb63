"""Uploads through the gate: what passes, what is refused and how, and that a refusal stores nothing."""

from __future__ import annotations

import http.client
import socket
import time
from collections.abc import Callable

import pytest

from tests import pictures
from tests.client import BOUNDARY, Answer, form, get, send, upload
from tests.fake import SEEN, Asked, Fake, Reply, classifier, json_reply, pictrs_0_5
from tests.gate import Gate
from tests.pictrs import Pictrs

NewGate = Callable[..., Gate]

FORMATS = {
    "apng": pictures.animation("PNG", frames=3),
    "gif": pictures.animation(frames=3),
    "jpeg": pictures.jpeg(),
    "jpeg, turned": pictures.turned_jpeg(),
    "mp4": pictures.video("mp4"),
    "webm": pictures.video("webm"),
    "png": pictures.png(),
    "webp": pictures.encode(pictures.draw(), "WEBP"),
    "webp, animated": pictures.animation("WEBP", frames=3),
}


@pytest.mark.parametrize("name", FORMATS)
def test_pictures_of_every_format_pass(gate: Gate, name: str) -> None:
    answer = gate.upload(FORMATS[name])
    assert answer.status == 201
    alias = answer.json()["files"][0]["file"]
    assert alias.endswith("." + name.partition(",")[0])
    assert get(gate.url, f"/image/original/{alias}").status == 200


def test_a_held_video_is_promised_with_its_details(new_gate: NewGate) -> None:
    gate = new_gate(rules=[{"name": "everything", "at_least": {"sexual": 0.0}}])
    answer = gate.upload(pictures.video())
    entry = answer.json()["files"][0]
    assert entry["file"].endswith(".mp4")
    assert {key: entry["details"][key] for key in ("width", "height", "frames", "format")} == {
        "width": 160,
        "height": 120,
        "frames": 20,
        "format": "Video",
    }
    (case,) = gate.cases()
    assert case["reason"] == "rule: everything"


def body_of(*parts: bytes) -> bytes:
    return (
        b"".join(f"--{BOUNDARY}\r\n".encode() + part + b"\r\n" for part in parts) + f"--{BOUNDARY}--".encode()
    )


NAMED = b'Content-Disposition: form-data; name="images[]"; filename="a.png"\r\n\r\n'
MULTIPART = f"multipart/form-data; boundary={BOUNDARY}"
PNG = pictures.png(seed=700)


@pytest.mark.parametrize(
    ("content_type", "body", "status", "code", "msg"),
    [
        (None, body_of(NAMED + PNG), 400, "file-upload-error", "No Content-Type `form-data` header"),
        ("image/png", PNG, 400, "file-upload-error", "top-level media type"),
        ("application/json", b"{}", 400, "file-upload-error", "top-level media type"),
        ("multipart/form-data", body_of(NAMED + PNG), 400, "file-upload-error", "boundary is missing"),
        (f"{MULTIPART}x", body_of(NAMED + PNG), 400, "file-upload-error", "boundary"),
        (MULTIPART, b"", 400, "file-upload-error", "Multipart stream is incomplete"),
        (MULTIPART, body_of(NAMED + PNG)[:-60], 400, "file-upload-error", "Multipart stream is incomplete"),
        (MULTIPART, body_of(), 400, "file-upload-error", "no parts"),
        (
            MULTIPART,
            body_of(NAMED.replace(b"images[]", b"file") + PNG),
            400,
            "file-upload-error",
            "unexpected name",
        ),
        (
            MULTIPART,
            body_of(NAMED.replace(b"images[]", b"images[0]") + PNG),
            400,
            "file-upload-error",
            "unexpected",
        ),
        (
            MULTIPART,
            body_of(NAMED.replace(b'; filename="a.png"', b"") + PNG),
            400,
            "file-upload-error",
            "Filename",
        ),
        (MULTIPART, body_of(*[NAMED + PNG] * 5), 400, "file-upload-error", "Too many files"),
        (MULTIPART, body_of(NAMED), 400, "validate-file-empty", "empty"),
        (MULTIPART, body_of(NAMED + b"this is no picture"), 400, "command-failure", "Invalid media file"),
        (MULTIPART, body_of(NAMED + b"<svg/>"), 400, "command-failure", "Invalid media file"),
        (MULTIPART, body_of(NAMED + PNG, NAMED + b"junk"), 400, "command-failure", "Invalid media file"),
        (MULTIPART, body_of(NAMED + bytes(2 * 1024 * 1024)), 413, "validate-file-size", "too large"),
    ],
)
def test_a_bad_upload_is_refused_in_pict_rs_s_words_and_nothing_is_stored(
    small_gate: tuple[Gate, Fake], content_type: str | None, body: bytes, status: int, code: str, msg: str
) -> None:
    gate, upstream = small_gate
    headers = {} if content_type is None else {"Content-Type": content_type}
    answer = send(gate.url, "POST", "/image", headers=headers, body=body)
    assert (answer.status, answer.json()["code"]) == (status, code)
    assert msg in answer.json()["msg"]
    assert answer.headers["content-type"] == "application/json"
    assert [asked for asked in upstream.asked if asked.method == "POST"] == []
    assert gate.cases() == []


@pytest.fixture(scope="module")
def small_gate(tmp_path_factory: pytest.TempPathFactory):
    """A gate that takes a megabyte a file, before a pict-rs that remembers."""
    upstream, looking = Fake(pictrs_0_5), classifier(lambda _: json_reply(200, SEEN))
    gate = Gate(
        tmp_path_factory.mktemp("small"),
        pictrs_url=upstream.url,
        api_key="k",
        classifier_url=looking.url,
        pictrs={"max_file_size_mb": 1},
        server={"upload_s": 3.0},
    )
    yield gate, upstream
    gate.stop()
    upstream.close()
    looking.close()


def test_too_large_is_said_before_it_is_sent(small_gate: tuple[Gate, Fake]) -> None:
    gate, _ = small_gate
    with socket.create_connection(("127.0.0.1", gate.port), timeout=10) as connection:
        head = f"POST /image HTTP/1.1\r\nHost: x\r\nContent-Type: {MULTIPART}\r\n"
        connection.sendall(f"{head}Content-Length: 99999999\r\n\r\n".encode())
        assert connection.recv(4096).startswith(b"HTTP/1.1 413")


def test_a_client_that_waits_for_100_continue_gets_it(small_gate: tuple[Gate, Fake]) -> None:
    gate, _ = small_gate
    body = body_of(NAMED + PNG)
    with socket.create_connection(("127.0.0.1", gate.port), timeout=10) as connection:
        head = f"POST /image HTTP/1.1\r\nHost: x\r\nContent-Type: {MULTIPART}\r\nExpect: 100-continue\r\n"
        connection.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode())
        assert connection.recv(4096) == b"HTTP/1.1 100 Continue\r\n\r\n"
        connection.sendall(body)
        assert connection.recv(4096).startswith(b"HTTP/1.1 201")


def test_a_sender_that_stalls_is_told_that_it_took_too_long(small_gate: tuple[Gate, Fake]) -> None:
    gate, upstream = small_gate
    upstream.asked.clear()
    with socket.create_connection(("127.0.0.1", gate.port), timeout=10) as connection:
        head = f"POST /image HTTP/1.1\r\nHost: x\r\nContent-Type: {MULTIPART}\r\nContent-Length: 5000\r\n\r\n"
        connection.sendall(head.encode() + body_of(NAMED + PNG)[:1000])
        assert connection.recv(4096).startswith(b"HTTP/1.1 408")
    assert upstream.asked == []


def test_a_client_that_leaves_in_the_middle_stores_nothing(small_gate: tuple[Gate, Fake]) -> None:
    gate, upstream = small_gate
    upstream.asked.clear()
    with socket.create_connection(("127.0.0.1", gate.port), timeout=10) as connection:
        head = f"POST /image HTTP/1.1\r\nHost: x\r\nContent-Type: {MULTIPART}\r\nContent-Length: 5000\r\n\r\n"
        connection.sendall(head.encode() + body_of(NAMED + PNG)[:1000])
    time.sleep(0.3)
    assert upstream.asked == []
    assert get(gate.url, "/healthz").status == 404  # it still answers, with what its pict-rs says


# --- what is told to whose upload is held ---


def test_a_held_upload_is_answered_as_if_it_were_stored(
    gate: Gate, running_pictrs: Pictrs, hits: list[bytes]
) -> None:
    passed = gate.upload(pictures.jpeg((320, 240), seed=701)).json()
    held = gate.upload(hits.pop()).json()

    def shape(value: object) -> object:
        if isinstance(value, dict):
            return [(key, shape(inner)) for key, inner in value.items()]
        if isinstance(value, list):
            return [shape(inner) for inner in value]
        return type(value)

    assert shape(held) == shape(passed)
    entries = passed["files"][0], held["files"][0]
    for key in ("content_type", "format", "frames", "width", "height"):
        assert entries[0]["details"][key] == entries[1]["details"][key]


@pytest.mark.parametrize(
    ("query", "size"),
    [
        ("", (320, 240)),
        ("resize=100", (100, 75)),
        ("allow_video=true&resize=33", (33, 25)),
        ("crop=1x1", (240, 240)),
    ],
)
def test_a_placeholder_has_the_size_that_the_picture_will_have(
    gate: Gate, running_pictrs: Pictrs, hits: list[bytes], query: str, size: tuple[int, int]
) -> None:
    entry = gate.upload(hits.pop(), query=query).json()["files"][0]
    assert (entry["details"]["width"], entry["details"]["height"]) == size
    gate.decide("release")
    details = get(gate.url, f"/image/details/original/{entry['file']}").json()
    assert (details["width"], details["height"]) == size


@pytest.mark.parametrize(
    ("query", "code"),
    [
        ("max_width=10", "validate-width"),
        ("max_height=10", "validate-height"),
        ("max_area=10", "validate-area"),
        ("allow_image=false", "media-disallowed"),
        ("max_file_size=0", "validate-file-size"),
        ("bogus=1", "invalid-process-path"),
        ("resize=abc", "invalid-process-path"),
        ("max_width=abc", "invalid-query"),
    ],
)
def test_a_held_upload_that_pict_rs_would_refuse_is_refused_as_pict_rs_does_and_kept(
    gate: Gate, running_pictrs: Pictrs, hits: list[bytes], query: str, code: str
) -> None:
    hit = hits.pop()
    refused = gate.upload(hit, query=query)
    direct = send_to(running_pictrs, pictures.jpeg((320, 240), seed=702), query)
    assert refused.json()["code"] == direct.json()["code"] == code
    if not running_pictrs.is_06:
        assert refused.status == direct.status
    case = gate.cases()[0]
    assert case["alias"] is None and case["state"] == "pending"


def send_to(running: Pictrs, content: bytes, query: str) -> Answer:
    content_type, body = form([("a", content)])
    return send(running.url, "POST", f"/image?{query}", headers={"Content-Type": content_type}, body=body)


@pytest.mark.parametrize("query", ["crop=1x20&resize=x.a100", "crop=20x1", "thumbnail=0", "resize=x.a0"])
def test_a_held_upload_is_kept_and_answered_whatever_odd_size_it_asks_for(
    gate: Gate, hits: list[bytes], query: str
) -> None:
    thin = pictures.encode(pictures.draw((1, 700), seed=len(hits)), "PNG")
    for content in (hits.pop(), thin):
        answer = gate.upload(content, query=query)
        assert answer.status in (201, 400, 500), answer.body
        assert answer.json().get("code") != "internal-error"
    assert gate.cases()[0]["arguments"] == [pair.split("=") for pair in query.split("&")]


def test_what_the_gate_refuses_itself_reads_like_pict_rs_s_own_refusal(
    gate: Gate, running_pictrs: Pictrs, hits: list[bytes]
) -> None:
    """Status, code and words, whichever version it is."""
    plain = pictures.jpeg((320, 240), seed=9_000)  # as large as a hit
    requests = [
        ("", b"this is no picture", b"this is no picture"),
        ("max_width=10", plain, hits.pop()),
        ("max_height=10", plain, hits.pop()),
        ("max_area=10", plain, hits.pop()),
        ("max_file_size=0", plain, hits.pop()),
        ("max_width=x", plain, hits.pop()),
        ("allow_image=false", plain, hits.pop()),
        ("allow_image=no", plain, hits.pop()),
        ("resize=x", plain, hits.pop()),
        ("bogus=1", plain, hits.pop()),
    ]
    for query, direct, held in requests:
        expected = upload(running_pictrs.url, direct, query=query)
        answer = gate.upload(held, query=query)
        assert (answer.status, answer.json()) == (expected.status, expected.json()), query
    for target in ("/internal/nothing", "/internal/hashes"):
        expected = get(running_pictrs.url, target)
        answer = get(gate.url, target)
        assert (answer.status, answer.json()) == (expected.status, expected.json())


def test_with_reject_a_held_upload_is_told_so_and_kept(new_gate: NewGate, hit: bytes) -> None:
    gate = new_gate(policy={"hold_response": "reject"})
    answer = gate.upload(hit)
    assert (answer.status, answer.json()["code"]) == (400, "held-for-review")
    (case,) = gate.cases()
    assert (case["state"], case["alias"]) == ("pending", None)
    gate.decide("release", case["id"])
    assert gate.upload(hit).status == 201


def test_without_an_api_key_nothing_is_promised(new_gate: NewGate, hit: bytes) -> None:
    gate = new_gate(api_key=None)
    assert gate.upload(hit).json()["code"] == "held-for-review"


# --- known hashes ---


def test_a_hash_on_a_list_is_refused_without_a_look(new_gate: NewGate) -> None:
    import hashlib

    listed, other = pictures.png(seed=703), pictures.png(seed=704)
    upstream, looking = Fake(pictrs_0_5), classifier(lambda _: json_reply(200, SEEN))
    gate = new_gate(
        pictrs_url=upstream.url, classifier_url=looking.url, policy={"block_lists": ["list.txt"]}, start=False
    )
    text = f"# known\n{hashlib.sha256(listed).hexdigest().upper()}  # one\n\n"
    (gate.folder / "list.txt").write_text(text)
    gate.start()
    answer = gate.upload(other, listed)
    assert (answer.status, answer.json()["code"]) == (400, "failed-external-validation")
    looked_at = [asked.body for asked in looking.asked if asked.method == "POST"]
    assert listed not in looked_at
    assert [asked for asked in upstream.asked if asked.method == "POST"] == []
    assert [(entry.act, entry.facts["sha256"]) for entry in gate.ledger()] == [
        ("blocked", hashlib.sha256(listed).hexdigest())
    ]


def test_a_confirmed_picture_is_refused_although_the_classifier_is_gone(
    new_gate: NewGate, hit: bytes
) -> None:
    gate = new_gate()
    gate.upload(hit)
    gate.decide("confirm")
    gate.stop()
    gate.start({"GATE__CLASSIFIERS": '[{"url": "http://127.0.0.1:9"}]'})
    assert gate.upload(hit).json()["code"] == "failed-external-validation"


# --- pict-rs misbehaves ---


@pytest.mark.parametrize(
    ("reply", "status"),
    [
        (lambda _: Reply(500, b'{"code":"x","msg":"y"}', {"Content-Type": "application/json"}), 500),
        (lambda _: Reply(201, b'{"files": [', cut=True), 502),
    ],
)
def test_what_pict_rs_says_is_passed_on_and_what_it_breaks_off_is_not(
    new_gate: NewGate, reply: Callable[[Asked], Reply], status: int
) -> None:
    upstream = Fake(reply)
    gate = new_gate(pictrs_url=upstream.url)
    assert gate.upload(pictures.png(seed=705)).status == status
    upstream.close()


def test_without_pict_rs_an_upload_is_an_error_in_its_shape(new_gate: NewGate, hit: bytes) -> None:
    gate = new_gate(pictrs_url="http://127.0.0.1:9")
    answer = gate.upload(pictures.png(seed=706))
    assert (answer.status, answer.json()["code"]) == (502, "pictrs-unavailable")
    assert gate.upload(hit).status == 201  # a held one needs no pict-rs


def test_where_nothing_can_be_sealed_nothing_is_promised(new_gate: NewGate, hit: bytes) -> None:
    gate = new_gate()
    folder = gate.folder / "cases"
    folder.rename(gate.folder / "gone")
    answer = gate.upload(hit)
    assert (answer.status, answer.json()["code"]) == (503, "scan-unavailable")
    assert "pictrs_gate_sealing_failures_total 1.0" in get(gate.internal_url, "/metrics").body.decode()
    (gate.folder / "gone").rename(folder)
    assert gate.upload(hit).status == 201


def test_many_uploads_at_once_are_all_answered(gate: Gate) -> None:
    import threading

    answers: list[Answer] = []

    def send_one(seed: int) -> None:
        try:
            answers.append(gate.upload(pictures.png((64, 64), seed=seed)))
        except (http.client.HTTPException, OSError):
            return

    threads = [threading.Thread(target=send_one, args=(900 + number,)) for number in range(10)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [answer.status for answer in answers] == [201] * 10
