"""The strict parser: what real clients send passes, what can be read in two ways does not."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.intake.multipart import (
    Limits,
    MultipartError,
    OutgoingFile,
    Parser,
    Part,
    TooLarge,
    TooMany,
    boundary_of,
    can_be_sent,
    write,
)

LIMITS = Limits(parts=3, part_bytes=10_000)


def parse(body: bytes, boundary: bytes = b"B", *, step: int = 10_000_000) -> list[tuple[Part, bytes]]:
    """All parts of a body that is fed in chunks of `step` bytes."""
    parser, found = Parser(boundary, LIMITS), []
    part, content = None, b""
    for at in range(0, len(body), step):
        for event in parser.feed(body[at : at + step]):
            if isinstance(event, Part):
                part, content = event, b""
            elif event is None:
                assert part is not None
                found.append((part, content))
            else:
                content += event
    parser.close()
    return found


def one(headers: str, content: bytes = b"content") -> bytes:
    return b"--B\r\n" + headers.encode() + b"\r\n\r\n" + content + b"\r\n--B--\r\n"


NAMED = 'Content-Disposition: form-data; name="images[]"; filename="a.png"'


@pytest.mark.parametrize(
    ("headers", "file_name"),
    [
        (NAMED, "a.png"),
        (f"{NAMED}\r\nContent-Type: image/png", "a.png"),
        ('Content-Disposition: form-data; name="images[]"; filename="«Noted».jpg"', "«Noted».jpg"),
        ('Content-Disposition: form-data; name="images[]"; filename="a%22b%0D%0A.png"', "a%22b%0D%0A.png"),
        ('Content-Disposition: form-data; name="images[]"; filename="a\\"b.png"', 'a"b.png'),
        ('Content-Disposition: form-data; name="images[]"; filename="C:\\dir\\a.png"', "C:\\dir\\a.png"),
        (f"{NAMED}\r\nContent-Type: image/png\r\nContent-Length: 7", "a.png"),
        (
            'Content-Disposition: form-data; name="images[]"; filename=photo.jpg\r\nContent-Length: 7',
            "photo.jpg",
        ),
        (
            'content-disposition: form-data; name="images[]"; filename="a.png"\r\n'
            "content-type: application/octet-stream",
            "a.png",
        ),
        (f"{NAMED}\r\nContent-Type: image/png\r\nContent-Transfer-Encoding: binary", "a.png"),
        ("Content-Disposition: form-data; name=\"images[]\"; filename*=utf-8''%C2%ABa%C2%BB.jpg", "«a».jpg"),
        (
            'Content-Disposition: form-data; name="images[]"; filename="a.jpg"; filename*=utf-8\'\'b.jpg',
            "a.jpg",
        ),
        (NAMED.replace("; ", ";"), "a.png"),
        ('Content-Disposition: form-data; filename="a.png"; name="images[]"', "a.png"),
    ],
)
def test_what_real_clients_send_passes(headers: str, file_name: str) -> None:
    ((part, content),) = parse(one(headers))
    assert (part.name, part.file_name, content) == ("images[]", file_name, b"content")


def test_a_file_name_that_is_not_utf_8_passes() -> None:
    body = (
        b'--B\r\nContent-Disposition: form-data; name="images[]"; filename="\xff\xfe.png"\r\n\r\nx\r\n--B--'
    )
    assert [content for _, content in parse(body)] == [b"x"]


@pytest.mark.parametrize(
    "boundary",
    [
        "----WebKitFormBoundary7MA4YWxkTrZu0gW",
        "----formdata-undici-007245907882",
        "dart-http-boundary-k_3G+Zx.9Q-aBcDeFgHiJkLmNoPqRsTuVwXyZ0123456789ab",
        "a",
    ],
)
def test_boundaries_of_real_clients_pass(boundary: str) -> None:
    raw = boundary_of(f"multipart/form-data; boundary={boundary}")
    body = one(NAMED).replace(b"--B", b"--" + raw)
    assert [content for _, content in parse(body, raw)] == [b"content"]


@pytest.mark.parametrize(
    "content_type",
    [
        "multipart/form-data",
        "multipart/form-data; boundary=",
        "multipart/form-data; boundary=a; boundary=b",
        "multipart/form-data; boundary=a; BOUNDARY=a",
        "multipart/mixed; boundary=a",
        "multipart/form-data; boundary=" + "a" * 71,
        'multipart/form-data; boundary="a "',
        'multipart/form-data; boundary="a\\b"',
        'multipart/form-data; boundary="a',
        "multipart/form-data; boundary=a b",
        "multipart/form-data; boundary=a, multipart/form-data; boundary=b",
        "multipart/form-data; boundary=a; x=y",
        "multipart/form-data boundary=a",
        "multipart/form-data; boundary*=utf-8''a",
        "multipart/form-data; boundary=ä",
        "image/png",
        "",
    ],
)
def test_a_boundary_that_has_to_be_guessed_is_refused(content_type: str) -> None:
    with pytest.raises(MultipartError):
        boundary_of(content_type)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"--B--\r\n",
        b"preamble\r\n" + one(NAMED),
        b"\r\n" + one(NAMED),
        one(NAMED) + b"epilogue",
        one(NAMED) + b"\r\n",
        one(NAMED)[:-4],
        one(NAMED)[:-10],
        one(NAMED).replace(b"--B\r\n", b"--B \r\n"),
        one(NAMED).replace(b"--B\r\n", b"--B\n"),
        one(NAMED).replace(b"--B\r\n", b"--Bx\r\n"),
        one(NAMED).replace(b"\r\n\r\n", b"\n\n"),
        one(NAMED).replace(b"\r\n--B--", b"\n--B--"),
        one(NAMED).replace(b"\r\n--B--", b"\r--B--"),
        one(NAMED).replace(b"\r\n--B--", b"--B--"),
        one(NAMED, b"first\n--B\r\nsecond"),
        one(NAMED, b"first\r--B\r\nsecond"),
        one(NAMED, b"first--B--second"),
        one(NAMED, b"first\r\n--Bx second"),
        one(f"{NAMED}\r\n X-Folded: yes"),
        one(f"{NAMED}\r\nContent-Type : image/png"),
        one(f"{NAMED}\r\nContent-Type image/png"),
        one(f"{NAMED}\r\n: image/png"),
        one(f"{NAMED}\r\nX: a\nY: b"),
        one(f"{NAMED}\r\nX: a\rY: b"),
        one(f"{NAMED}\r\nX: a\0b"),
        one(f"{NAMED}\r\n{NAMED}"),
        one(f"{NAMED}\r\nContent-Type: image/png\r\nContent-Type: image/gif"),
        one(f"{NAMED}\r\nX: --B"),
        one("Content-Type: image/png"),
        one('Content-Disposition: attachment; name="images[]"; filename="a"'),
        one('Content-Disposition: form-data; filename="a"'),
        one('Content-Disposition: form-data; name="images[]"; name="other"; filename="a"'),
        one('Content-Disposition: form-data; name="images[]"; filename="a"; filename="b"'),
        one('Content-Disposition: form-data; name="images[]"; filename="a'),
        one('Content-Disposition: form-data; name="images[]"; filename="a"b"'),
        one('Content-Disposition: form-data; name="images[]"; filename=a b'),
        one('Content-Disposition: form-data; name="images[]"; filename'),
        one('Content-Disposition: form-data; name="images[]" filename="a"'),
        one("Content-Disposition: form-data; name=images[]; filename=a"),
        one("Content-Disposition: form-data; name=\"images[]\"; filename*=latin-1''a"),
        one(f"{NAMED}\r\nContent-Transfer-Encoding: base64"),
        one(f"{NAMED}\r\nContent-Transfer-Encoding: quoted-printable"),
        one(f"{NAMED}\r\nContent-Encoding: gzip"),
        one(f"{NAMED}\r\nContent-Type: multipart/mixed; boundary=C"),
        one(f"{NAMED}\r\nContent-Length: 6"),
        one(f"{NAMED}\r\nContent-Length: 8"),
        one(f"{NAMED}\r\nContent-Length: -7"),
        one(f"{NAMED}\r\nContent-Length: +7"),
        one(f"{NAMED}\r\nContent-Length: 0x7"),
        one(f"{NAMED}\r\nX: {'y' * 9000}"),
        one(f"{NAMED}" + "".join(f"\r\nX-{n}: y" for n in range(20))),
        b"--B\r\n\r\ncontent\r\n--B--\r\n",
    ],
)
@pytest.mark.parametrize("step", [1, 7, 100_000])
def test_what_can_be_read_in_two_ways_is_refused(body: bytes, step: int) -> None:
    with pytest.raises(MultipartError):
        parse(body, step=step)


def test_limits_hold() -> None:
    part = one(NAMED, b"x" * 10_001)
    with pytest.raises(TooLarge):
        parse(part)
    with pytest.raises(TooMany):
        parse(b"".join(one(NAMED).removesuffix(b"--B--\r\n") for _ in range(4)) + b"--B--\r\n")


contents = st.binary(max_size=300).filter(lambda content: b"--B" not in content)


@given(st.lists(contents, min_size=1, max_size=3), st.integers(1, 40))
def test_the_same_files_come_out_however_they_are_cut_into_chunks(files: list[bytes], step: int) -> None:
    body = b"".join(one(NAMED, content).removesuffix(b"--B--\r\n") for content in files) + b"--B--\r\n"
    assert [content for _, content in parse(body, step=step)] == files


@given(st.binary(max_size=400), st.integers(1, 40))
def test_any_bytes_whatsoever_are_an_error_or_parts_and_never_a_crash(body: bytes, step: int) -> None:
    try:
        parse(b"--B\r\n" + body, step=step)
    except MultipartError:
        return


@given(st.lists(st.binary(max_size=200), min_size=1, max_size=3))
def test_what_the_gate_writes_its_own_parser_reads(files: list[bytes]) -> None:
    name = "ä b-c.png"
    body = write([OutgoingFile(name, "image/png", content) for content in files])
    raw = b"".join(body.pieces)
    assert len(raw) == body.length
    found = parse(raw, boundary_of(body.content_type))
    assert [content for _, content in found] == files
    assert {part.file_name for part, _ in found} == {name}


@pytest.mark.parametrize("name", ['b"c.png', "b\\c.png", "b\r\n.png", "a/b.png", "", "x" * 256, "\0"])
def test_a_name_that_would_need_quoting_is_not_written(name: str) -> None:
    assert not can_be_sent(name)
    with pytest.raises(ValueError, match="one way only"):
        write([OutgoingFile(name, "image/png", b"")])
