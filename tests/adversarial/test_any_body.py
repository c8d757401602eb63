"""Any body whatsoever: nothing is stored, or every stored file was looked at, byte for byte.

`GATE_FUZZ_EXAMPLES=20000 .venv/bin/pytest tests/adversarial/test_any_body.py --timeout 0` goes deeper: so
many bodies straight to the gate, and a third of them through nginx; some 50 a second.
"""

from __future__ import annotations

import os
from collections.abc import Callable

from hypothesis import HealthCheck, Phase, event, given, settings
from hypothesis import strategies as st

from tests.adversarial.case import NAMED, fill, part, request, tiny
from tests.adversarial.rig import Rig, wait_until_idle
from tests.gate import Gate

EXAMPLES = int(os.environ.get("GATE_FUZZ_EXAMPLES", "150"))

# --- a grammar: bodies as clients write them, but for one thing or another ---

_LINE_ENDS = st.sampled_from([b"\r\n"] * 12 + [b"\n", b"\r", b"\n\n", b"\r\r\n", b"", b"\r\n "])
_BOUNDARIES = [b"B", b"BB", b"B-", b"--B", b"----WebKitFormBoundary7MA4YWxkTrZu0gW", b"B.C_D+E"]
_TYPES = [
    *[b"multipart/form-data; boundary=%b"] * 12,
    b'multipart/form-data; boundary="%b"',
    b"multipart/form-data; charset=utf-8; boundary=%b",
    b"Multipart/Form-Data;boundary=%b",
    b"multipart/form-data; boundary=%b; boundary=B",
    b"multipart/form-data; boundary=%b;",
    b"multipart/mixed; boundary=%b",
]
_FILE_NAMES = st.one_of(
    *[st.just(b'"a.png"')] * 4,
    st.sampled_from([b"a.png", b'"a\\"b.png"', b'"a\\"', b'"a"b"', b'"\xff"', b'"', b'""', b"a b", b'"--B"']),
    st.binary(max_size=12),
)
_HEADERS = st.one_of(
    st.sampled_from(
        [
            b"Content-Type: image/png",
            b"content-type: application/octet-stream",
            b"Content-Type: multipart/mixed; boundary=B",
            b"Content-Transfer-Encoding: binary",
            b"Content-Transfer-Encoding: base64",
            b"Content-Transfer-Encoding: quoted-printable",
            b"Content-Encoding: gzip",
            b"Content-Length: <1:length>",
            b"Content-Length: <1:length-1>",
            b"Content-Length: <1:length+30>",
            b"Content-Length: 7",
            NAMED,
            b"X: y",
            b" folded",
            b"X : y",
            b"X: --B",
            b"",
        ]
    ),
    st.binary(max_size=20),
)
_CONTENTS = st.one_of(
    *[st.sampled_from([b"<1>", b"<2>", b"GIF89a"])] * 3,
    st.sampled_from([b"<1:base64>", b"<1:gzip>", b"<1:first-half>", b"", b"<1>\r", b"<1>\r\n", b"<1>\r\n--"]),
    st.binary(max_size=30).map(lambda tail: b"<1>" + tail),
    st.sampled_from([b"\r\n--B\r\n", b"\n--B--", b"\r--B\r\n", b"--B--\r\n", b"\r\n--C\r\n"]).map(
        lambda within: b"<1>" + within + NAMED + b"\r\n\r\n<2>"
    ),
    st.binary(max_size=60),
)


@st.composite
def _grammatical(draw: st.DrawFn) -> tuple[bytes, bytes]:
    """A content type and the template of a body."""
    boundary = draw(st.sampled_from([b"B"] * 4 + _BOUNDARIES))
    mostly = draw(st.integers(0, 3)) > 0  # most bodies have line ends of one kind

    def line_end() -> bytes:
        return b"\r\n" if mostly else draw(_LINE_ENDS)

    body = draw(st.sampled_from([b""] * 8 + [b"\r\n", b"prologue\r\n", b"<2>\r\n"]))
    for _ in range(draw(st.integers(0, 3))):
        body += b"--" + draw(st.sampled_from([boundary] * 12 + _BOUNDARIES)) + line_end()
        name = draw(st.sampled_from([b'"images[]"'] * 8 + [b"images[]", b'"x"', b'"images[]']))
        disposition = b"Content-Disposition: form-data; name=" + name + b"; filename=" + draw(_FILE_NAMES)
        lines = [disposition, *draw(st.lists(_HEADERS, max_size=2))]
        body += b"".join(line + line_end() for line in draw(st.permutations(lines)))
        body += line_end() + draw(_CONTENTS) + line_end()
    body += draw(st.sampled_from([b"--%b--\r\n"] * 10 + [b"--%b--", b"--%b-", b"", b"--%b\r\n"])).replace(
        b"%b", boundary
    )
    body += draw(st.sampled_from([b""] * 10 + [b"epilogue", b"\r\n", b"<2>"]))
    return draw(st.sampled_from(_TYPES)).replace(b"%b", boundary), body


# --- mutations of what is right ---

_RIGHT = [
    part(NAMED) + b"--B--\r\n",
    part(NAMED, b"Content-Type: image/png", b"Content-Length: <1:length>") + b"--B--\r\n",
    part(NAMED) + part(NAMED.replace(b"a.png", b"b.png"), content=b"<2>\r\n-") + b"--B--\r\n",
]
_PIECES = [
    b"\r\n",
    b"\r",
    b"\n",
    b"--B",
    b"--B--",
    b"\r\n--B\r\n",
    b"\0",
    b'"',
    b"\\",
    b";",
    b":",
    b" ",
    b"-",
]
_Edit = Callable[[bytes, int, int, bytes], bytes]
_OF_BYTES: list[_Edit] = [
    lambda body, at, to, piece: body[:at] + piece + body[at:],
    lambda body, at, to, piece: body[:at] + body[at + 1 :],
    lambda body, at, to, piece: body[:at] + piece + body[at + len(piece) :],
    lambda body, at, to, piece: body[: min(at, to)] + body[max(at, to) :],
    lambda body, at, to, piece: body + body[min(at, to) : max(at, to)],
    lambda body, at, to, piece: body[:at],
]


def _swap(body: bytes, at: int, to: int, _piece: bytes) -> bytes:
    lines = body.split(b"\r\n")
    one, other = at % len(lines), to % len(lines)
    lines[one], lines[other] = lines[other], lines[one]
    return b"\r\n".join(lines)


def _duplicate(body: bytes, at: int, to: int, _piece: bytes) -> bytes:
    lines = body.split(b"\r\n")
    lines.insert(to % len(lines), lines[at % len(lines)])
    return b"\r\n".join(lines)


def _drop(body: bytes, at: int, _to: int, _piece: bytes) -> bytes:
    lines = body.split(b"\r\n")
    del lines[at % len(lines)]
    return b"\r\n".join(lines)


def _insert(body: bytes, at: int, _to: int, piece: bytes) -> bytes:
    lines = body.split(b"\r\n")
    lines.insert(at % len(lines), piece)
    return b"\r\n".join(lines)


@st.composite
def _mutated(draw: st.DrawFn) -> tuple[bytes, bytes]:
    body = draw(st.sampled_from(_RIGHT))
    for _ in range(draw(st.integers(0, 4))):
        edit = draw(st.sampled_from([*_OF_BYTES, _swap, _duplicate, _drop, _insert]))
        piece = draw(st.one_of(st.sampled_from(_PIECES), st.binary(min_size=1, max_size=4)))
        body = edit(body, draw(st.integers(0, len(body))), draw(st.integers(0, len(body))), piece)
    return b"multipart/form-data; boundary=B", body


_RAW = st.tuples(
    st.just(b"multipart/form-data; boundary=B"), st.binary(max_size=300).map(lambda tail: b"--B" + tail)
)
_BODIES = st.one_of(_grammatical(), _mutated(), _mutated(), _RAW)
# The body in one piece, or in chunks of so many bytes.
_CHUNKS = st.one_of(st.none(), st.none(), st.integers(1, 200))


class _Sender:
    """Sends bodies and remembers what became of them, so that no run passes by storing nothing."""

    def __init__(self, rig: Rig) -> None:
        self._rig = rig
        self._number = 0
        self.outcomes: dict[int, int] = {}

    def send(self, content_type: bytes, template: bytes, chunk: int | None) -> None:
        """Sends a body. Its pictures are new each time: what pict-rs has already it does not store again."""
        self._number += 1
        pictures = [tiny(f"{id(self)} {self._number} {number}") for number in range(4)]
        body = fill(template, pictures)
        head = [b"POST /image HTTP/1.1", b"Host: x", b"Content-Type: " + content_type]
        if chunk is None:
            sent = request(*head, b"Content-Length: %d" % len(body), body=body)
        else:
            pieces = [body[at : at + chunk] for at in range(0, len(body), chunk)]
            chunks = b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces)
            sent = request(*head, b"Transfer-Encoding: chunked", body=chunks + b"0\r\n\r\n")
        outcome = self._rig.send(sent)
        self.outcomes[outcome.status] = self.outcomes.get(outcome.status, 0) + 1
        event(f"answered with {outcome.status}")
        assert outcome.unseen == []
        assert outcome.status in (201, 400, 413)
        assert bool(outcome.stored) == (outcome.status == 201) or b"<1>" not in template


def _attack(rig: Rig, examples: int) -> None:
    sender = _Sender(rig)

    @settings(
        max_examples=examples,
        # The short version is the same every time; the long one looks for what nobody has thought of.
        derandomize="GATE_FUZZ_EXAMPLES" not in os.environ,
        deadline=None,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
        phases=[Phase.explicit, Phase.reuse, Phase.generate, Phase.shrink],
    )
    @given(_BODIES, _CHUNKS)
    def any_body(body: tuple[bytes, bytes], chunk: int | None) -> None:
        sender.send(*body, chunk)

    any_body()
    assert min(sender.outcomes.get(status, 0) for status in (201, 400)) >= examples // 20, sender.outcomes


def test_any_body_through_the_gate(rig: Rig, attacked_gate: Gate) -> None:
    _attack(rig, EXAMPLES)
    wait_until_idle(attacked_gate)
    assert rig.send(b"", ends=True).unseen == []


def test_any_body_through_nginx_and_the_gate(behind_nginx: Rig, attacked_gate: Gate) -> None:
    _attack(behind_nginx, EXAMPLES // 3)
    wait_until_idle(attacked_gate)
    assert behind_nginx.send(b"", ends=True).unseen == []
