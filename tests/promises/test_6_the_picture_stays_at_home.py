"""Promise 6: the picture stays at home: no bytes, no tokens, no keys in files, logs, metrics or errors."""

from __future__ import annotations

import base64
import contextlib
import socket
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL.PngImagePlugin import PngInfo

from proxy.cases.sealing import open_sealed, read_identities
from proxy.errors import SealingError
from tests import pictures
from tests.client import form, get, send
from tests.fake import Asked, Fake, Reply, classifier, json_reply, pictrs_0_5
from tests.gate import TOKEN, Classifier, Gate, scripted
from tests.pictrs import API_KEY, Pictrs

NewGate = Callable[..., Gate]

MARK = "a-mark-that-stands-in-the-picture-and-nowhere-else"
LOGIN = "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxIn0.clients-login-of-lemmy"


def marked(seed: int) -> bytes:
    """A picture in whose bytes `MARK` stands."""
    text = PngInfo()
    text.add_text("comment", MARK)
    return pictures.encode(pictures.draw(seed=seed), "PNG", pnginfo=text)


def places_of(needle: str, *folders: Path) -> list[str]:
    """The files in which `needle` stands, plainly, in hexadecimal or in base64."""
    raw = needle.encode()
    spellings = [raw, raw.hex().encode(), *(base64.b64encode(raw[at:])[:-4] for at in range(3))]
    return [
        path.name
        for folder in folders
        for path in folder.rglob("*")
        if path.is_file() and any(spelling in path.read_bytes() for spelling in spellings)
    ]


@pytest.fixture
def classifier_of_our_own(tmp_path: Path) -> Classifier:
    held = {marked(seed): {"sexual": 0.9, "minor": 0.9} for seed in (60, 61)}
    return Classifier(tmp_path / "classifier", ensemble=scripted(tmp_path / "classifier", held))


def test_held_and_passed_pictures_leave_nothing_readable_behind(
    tmp_path: Path, new_gate: NewGate, running_pictrs: Pictrs, classifier_of_our_own: Classifier
) -> None:
    running = classifier_of_our_own
    gate = new_gate(classifier_url=running.url)
    headers = {"Authorization": f"Bearer {LOGIN}", "Cookie": f"jwt={LOGIN}"}
    for content in (marked(60), marked(61), marked(62)):
        content_type, body = form([("a.png", content)])
        sent = {**headers, "Content-Type": content_type}
        assert send(gate.url, "POST", "/image", headers=sent, body=body).status == 201
    held = gate.cases()
    assert len(held) == 2
    gate.decide("confirm", held[0]["id"])
    gate.review("show", held[1]["id"])
    gate.upload(marked(60))
    shown = get(gate.internal_url, "/metrics").body + get(running.url, "/metrics").body
    running.stop()
    gate.upload(marked(63))  # deferred
    assert gate.cases()[0]["state"] == "deferred"

    assert places_of(MARK, gate.folder, running.program.log.parent) == []
    assert places_of(LOGIN, gate.folder, running.program.log.parent) == []
    assert places_of(API_KEY, gate.folder) == ["gate.toml"]
    assert places_of(TOKEN, gate.folder) == ["classifier-token"]
    assert MARK.encode() not in shown
    assert sorted(places_of("AGE-SECRET-KEY", gate.folder)) == ["gate.key", "reviewer.key"]
    assert opened_by_the_gate(gate) == {gate.cases()[0]["id"]}  # what it has still to look at, and no more


def opened_by_the_gate(gate: Gate) -> set[str]:
    """The cases that the gate's own key opens."""
    own, opened = read_identities(gate.folder / "gate.key"), set()
    for path in (gate.folder / "cases").glob("*.age"):
        with contextlib.suppress(SealingError):
            open_sealed(path, own)
            opened.add(path.stem)
    return opened


def test_the_placeholder_and_its_details_tell_nothing_of_the_picture(gate: Gate, hits: list[bytes]) -> None:
    entries = [gate.upload(hits.pop()).json()["files"][0] for _ in range(2)]
    assert entries[0]["details"]["blurhash"] == entries[1]["details"]["blurhash"]
    shown = [get(gate.url, f"/image/original/{entry['file']}").body for entry in entries]
    assert shown[0] == shown[1]


@pytest.mark.parametrize(
    "request_",
    [
        f"{MARK} / HTTP/1.1\r\n\r\n",
        f"GET /{MARK} HTTP/9.9\r\n\r\n",
        f"GET / HTTP/1.1\r\nHost: x\r\n{MARK} : x\r\n\r\n",
        f"POST /image HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n{MARK}\r\n",
        f"POST /image HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\nxxx{MARK} {MARK}\r\n\r\n",
        f"POST /image HTTP/1.1\r\nHost: x\r\nContent-Type: multipart/form-data; boundary=B\r\n"
        f"Content-Length: {len(MARK)}\r\n\r\n{MARK}",
    ],
)
def test_what_cannot_be_read_is_quoted_neither_in_the_answer_nor_in_the_log(
    gate: Gate, classifier: Classifier, request_: str
) -> None:
    for port in (gate.port, gate.internal_port, classifier.port):
        with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
            connection.sendall(request_.encode())
            connection.shutdown(socket.SHUT_WR)
            answer = b"".join(iter(lambda: connection.recv(4096), b""))
        if port != classifier.port:
            assert MARK.encode() not in answer
    assert MARK not in gate.log()
    assert MARK not in classifier.program.output()


def test_a_token_in_a_path_is_not_logged(gate: Gate) -> None:
    secret = "9eae417e-8f20-4ef2-9ad5-55fdf6771df5"
    assert send(gate.url, "DELETE", f"/image/delete/{secret}/a.png").status == 204
    assert secret not in gate.log()


def test_a_classifier_that_quotes_the_file_in_its_errors_is_not_quoted(new_gate: NewGate) -> None:
    def quote(asked: Asked) -> Reply:
        return json_reply(asked_status.pop(), {"error": {"code": asked_code.pop(), "message": MARK}})

    asked_status, asked_code = [500, 400, 400], [MARK, "undecodable", MARK]

    looking, upstream = classifier(quote), Fake(pictrs_0_5)
    gate = new_gate(pictrs_url=upstream.url, classifier_url=looking.url)
    for seed in (64, 65, 66):
        assert gate.upload(pictures.png(seed=seed)).status == 201
    assert MARK not in gate.log()
    assert places_of(MARK, gate.folder) == []
    looking.close()
    upstream.close()


def test_the_classifier_writes_no_file(tmp_path: Path) -> None:
    (tmp_path / "tmp").mkdir()
    recipe = scripted(tmp_path / "recipe", {})
    running = Classifier(tmp_path / "c", ensemble=recipe, env={"TMPDIR": str(tmp_path / "tmp")})
    before = set(tmp_path.rglob("*"))
    headers = {"Authorization": f"Bearer {TOKEN}"}
    for content in (marked(65), b"no picture", pictures.png()[:900]):
        send(running.url, "POST", "/v1/classify", headers=headers, body=content)
    assert set(tmp_path.rglob("*")) == before
    running.stop()
    assert places_of(MARK, tmp_path) == []


def test_pict_rs_is_told_nothing_of_who_uploads(new_gate: NewGate) -> None:
    upstream = Fake(pictrs_0_5)
    gate = new_gate(pictrs_url=upstream.url)
    for target in ("/image/original/a.png", "/image/details/original/a.png"):
        headers = {
            "Authorization": f"Bearer {LOGIN}",
            "Cookie": f"jwt={LOGIN}",
            "X-Forwarded-For": "203.0.113.9",
        }
        send(gate.url, "GET", target, headers=headers)
    told = repr([asked.headers for asked in upstream.asked])
    assert [asked.target for asked in upstream.asked if "a.png" in asked.target] != []
    assert LOGIN not in told and "203.0.113.9" not in told
    upstream.close()
