"""Promise 1: the bytes that were looked at are the bytes that are stored.

The gate takes the body apart, and sends one of its own making from the very buffers that were classified,
under a request line that it wrote. Nothing of the client's framing gets through.
"""

from __future__ import annotations

import hashlib
import socket
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from proxy.intake.multipart import Limits, Parser, Part, boundary_of
from tests import pictrs, pictures
from tests.client import form, send, upload
from tests.fake import SEEN, Asked, Fake, Reply, classifier, json_reply, pictrs_0_5
from tests.gate import Gate

NewGate = Callable[..., Gate]


def files_in(asked: Asked) -> list[bytes]:
    """What a body of the gate's holds."""
    parser = Parser(boundary_of(asked.header("Content-Type") or ""), Limits(10, 10**8))
    found: list[bytes] = []
    for event in parser.feed(asked.body):
        if isinstance(event, Part):
            found.append(b"")
        elif event is not None:
            found[-1] += event
    parser.close()
    return found


@dataclass(frozen=True)
class Between:
    """A gate between a pict-rs and a classifier that remember what they were sent."""

    gate: Gate
    pictrs: Fake
    classifier: Fake

    def stored(self) -> list[Asked]:
        """The uploads that pict-rs was sent since the last call."""
        asked = [one for one in self.pictrs.asked if one.method == "POST"]
        self.pictrs.asked.clear()
        return asked


@pytest.fixture(scope="module")
def between(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Between]:
    upstream, looking = Fake(pictrs_0_5), classifier(lambda _: json_reply(200, SEEN))
    folder = tmp_path_factory.mktemp("between")
    gate = Gate(folder, pictrs_url=upstream.url, api_key="k", classifier_url=looking.url)
    yield Between(gate, upstream, looking)
    gate.stop()
    upstream.close()
    looking.close()


def test_what_the_classifier_saw_is_what_pict_rs_gets(between: Between) -> None:
    # Bytes that look like framing, and a file that goes on behind its end.
    tails = [b"", b"\r\n--other--\r\n", b"\r\n\r\n--gate-", bytes(range(256)) * 300]
    contents = [pictures.png(seed=seed) + tail for seed, tail in enumerate(tails)]
    answer = between.gate.upload(*contents)
    assert answer.status == 201
    looked_at = [asked.body for asked in between.classifier.asked if asked.method == "POST"]
    seen = {hashlib.sha256(content).hexdigest() for content in looked_at}
    (stored,) = between.stored()
    assert files_in(stored) == contents
    assert {hashlib.sha256(content).hexdigest() for content in files_in(stored)} == seen


def test_nothing_of_the_client_s_framing_gets_through(between: Between) -> None:
    content = pictures.png(seed=3)
    body = (
        b"--clients-boundary\r\nX-Clients: header\r\n"
        b'content-disposition: form-data; name="images[]"; filename="clients name.png"\r\n'
        b"Content-Transfer-Encoding: binary\r\nContent-Type: text/html\r\n\r\n"
        + content
        + b"\r\n--clients-boundary--\r\n"
    )
    headers = {
        "Content-Type": "multipart/form-data; boundary=clients-boundary",
        "Authorization": "Bearer clients-login",
        "Cookie": "jwt=clients-login",
        "X-Forwarded-For": "203.0.113.9",
        "User-Agent": "clients agent",
        "X-Clients": "header",
    }
    target = "/im%61ge?resize=5&resize=7&allow_video=tru%65"
    assert send(between.gate.url, "POST", target, headers=headers, body=body).status == 201
    (stored,) = between.stored()
    assert stored.target == "/image?resize=5&resize=7&allow_video=true"
    assert files_in(stored) == [content]
    everything = stored.body.replace(content, b"") + repr(stored.headers).encode()
    assert b"lients" not in everything and b"text/html" not in everything and b"203.0.113.9" not in everything
    assert b"Content-Type: image/png" in stored.body


def test_a_body_sent_in_chunks_is_the_same_body(between: Between) -> None:
    content = pictures.png(seed=4)
    content_type, body = form([("a.png", content)])
    chunked = b"".join(
        f"{len(piece):x}\r\n".encode() + piece + b"\r\n" for piece in (body[:10], body[10:700], body[700:])
    )
    headers = f"Host: x\r\nContent-Type: {content_type}\r\nTransfer-Encoding: chunked"
    head = f"POST /image HTTP/1.1\r\n{headers}\r\n\r\n"
    assert raw(between.gate, head.encode() + chunked + b"0\r\n\r\n").startswith(b"HTTP/1.1 201")
    (stored,) = between.stored()
    assert files_in(stored) == [content]


def raw(gate: Gate, request: bytes) -> bytes:
    """The first bytes of an answer to bytes that are sent as they are."""
    with socket.create_connection(("127.0.0.1", gate.port), timeout=20) as connection:
        connection.sendall(request)
        return connection.recv(4096)


PART = b'--B\r\nContent-Disposition: form-data; name="images[]"; filename="a"\r\n\r\nx\r\n--B--\r\n'
FORM = "Content-Type: multipart/form-data; boundary=B"
LENGTH = f"Content-Length: {len(PART)}"


@pytest.mark.parametrize(
    ("headers", "body"),
    [
        ([FORM, "Content-Length: 5", "Transfer-Encoding: chunked"], b"0\r\n\r\n"),
        ([FORM, "Content-Length: 5", LENGTH], PART),
        ([FORM, FORM, LENGTH], PART),
        ([FORM, "Content-Encoding: gzip", LENGTH], PART),
        ([FORM, "Transfer-Encoding: gzip, chunked"], b"0\r\n\r\n"),
        ([FORM, "X: a\r\n folded", LENGTH], PART),
        ([FORM, "X : a", LENGTH], PART),
        ([FORM, "Transfer-Encoding: chunked"], b"zz\r\n"),
        ([FORM, "Transfer-Encoding: chunked"], b"-1\r\n"),
        ([FORM, "Content-Length: +80"], PART),
    ],
)
def test_framing_that_two_servers_read_differently_is_refused(
    between: Between, headers: list[str], body: bytes
) -> None:
    head = "\r\n".join(["POST /image HTTP/1.1", "Host: x", *headers, "", ""])
    assert raw(between.gate, head.encode() + body).split(b" ", 2)[1] == b"400"
    assert between.stored() == []


def test_the_real_pict_rs_stores_exactly_what_was_uploaded(tmp_path: Path, new_gate: NewGate) -> None:
    real = pictrs.find()
    if real is None:
        pytest.skip("no real pict-rs on this machine: make pict-rs")
    # In its dummy mode it stores what it parsed, byte for byte.
    running = pictrs.Pictrs(tmp_path / "dummy", real=real, settings={"SERVER__DANGER_DUMMY_MODE": "true"})
    try:
        gate = new_gate(pictrs_url=running.url)
        contents = [pictures.png(seed=seed) + b"\r\n--" + bytes([seed]) * 5000 for seed in range(4)]
        assert gate.upload(*contents).status == 201
        stored = {hashlib.sha256(path.read_bytes()).hexdigest() for path in running.stored_files()}
        assert stored == {hashlib.sha256(content).hexdigest() for content in contents}
    finally:
        running.stop()


def test_an_allowed_upload_is_answered_with_pict_rs_s_own_bytes(new_gate: NewGate) -> None:
    odd = b'{"msg" :"ok",\n "files":[ ], "more": 1.50}'
    upstream = Fake(lambda _: Reply(201, odd, {"Content-Type": "application/json; odd=1"}))
    gate = new_gate(pictrs_url=upstream.url)
    answer = gate.upload(pictures.png(seed=5))
    assert (answer.status, answer.body, answer.headers["content-type"]) == (
        201,
        odd,
        "application/json; odd=1",
    )


def test_directly_and_through_the_gate_the_same_is_stored(gate: Gate, running_pictrs: pictrs.Pictrs) -> None:
    content = pictures.jpeg(seed=6)
    etags = []
    for url in (running_pictrs.url, gate.url):
        alias = upload(url, content).json()["files"][0]["file"]
        etags.append(send(running_pictrs.url, "HEAD", f"/image/original/{alias}").headers["etag"])
    assert etags[0] == etags[1]
