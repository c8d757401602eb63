"""The body of pict-rs's validation hook: the two shapes that pict-rs sends, and nothing that is like them."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.errors import Refusal
from proxy.intake.multipart import Limits, MultipartError, Parser
from proxy.internal.hook_body import media_of

RECORDINGS = Path(__file__).parent / "recordings"
PATH = "01/a2/04/52/00/5c/74/1e/a4/1c/03d2324eb5b9"
CONTENT = b"\xff\xd8\xff content\r\n-- of a \0 picture\r\n"
MEDIA = ("content-type", "image/jpeg")
FORM = ("content-type", "multipart/form-data; boundary=B")
NAME = "Content-Disposition: form-data; name*=utf-8''01%2Fa2%2F03d2324eb5b9.png"


def form(content: bytes = CONTENT, head: str = NAME, boundary: str = "B") -> bytes:
    return f"--{boundary}\r\n{head}\r\n\r\n".encode() + content + f"\r\n--{boundary}--\r\n".encode()


def recorded(version: str) -> dict[str, list[dict[str, Any]]]:
    """The validation calls of the real pict-rs, by the name of what was done."""
    text = (RECORDINGS / f"pict-rs-{version}.json").read_text()
    calls = [one for one in json.loads(text)["recordings"] if one.get("validation_calls")]
    return {one["name"]: one["validation_calls"] for one in calls}


def pairs() -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """What 0.5 and 0.6 sent of the same file."""
    old, new = recorded("0.5.25"), recorded("0.6.0-rc.6")
    for name in old.keys() & new.keys():
        yield from zip(old[name], new[name], strict=True)


def test_what_was_recorded_of_either_version_is_read() -> None:
    compared = 0
    for old, new in pairs():
        content = random.Random(compared).randbytes(old["bytes"])
        assert media_of([tuple(pair) for pair in old["headers"]], content) == content
        media_type, form_type = (value for name, value in new["headers"] if name == "content-type")
        # The store's path, with the extension that pict-rs gives it; so is a body of the recorded length.
        name = f"{PATH}.{media_type.partition('/')[2]}".replace("/", "%2F")
        head = f"Content-Disposition: form-data; name*=utf-8''{name}"
        body = form(content, head, form_type.partition("boundary=")[2])
        assert len(body) == new["bytes"]
        assert media_of([tuple(pair) for pair in new["headers"]], body) == content
        compared += 1
    assert compared > 10


@pytest.mark.parametrize(
    "headers",
    [
        [MEDIA, FORM],
        [FORM, MEDIA],
        [("content-type", "video/mp4"), FORM],
        [("content-type", "IMAGE/PNG"), ("content-type", "Multipart/Form-Data; boundary=B")],
        [("host", "x"), MEDIA, ("accept", "*/*"), FORM, ("content-encoding", "identity")],
    ],
)
@pytest.mark.parametrize(
    "head",
    [
        NAME,
        'Content-Disposition: form-data; name="01%2Fa2.png"',
        f"{NAME}\r\nContent-Type: image/jpeg",
        f"{NAME}\r\nContent-Length: {len(CONTENT)}",
        f'{NAME}; filename="a.jpg"',
    ],
)
def test_a_form_gives_its_part_byte_for_byte(headers: list[tuple[str, str]], head: str) -> None:
    assert media_of(headers, form(head=head)) == CONTENT


def test_a_raw_body_is_the_file_whatever_it_looks_like() -> None:
    assert media_of([MEDIA], form()) == form()


@pytest.mark.parametrize(
    "types",
    [
        [],
        ["multipart/form-data; boundary=B"],
        ["image/jpeg", "image/jpeg"],
        ["image/jpeg", "image/png"],
        ["image/jpeg", "text/plain"],
        ["text/plain", "multipart/form-data; boundary=B"],
        ["multipart/form-data; boundary=B", "multipart/form-data; boundary=B"],
        ["image/jpeg", "multipart/form-data; boundary=B", "multipart/form-data; boundary=C"],
        ["image/jpeg", "image/jpeg", "multipart/form-data; boundary=B"],
        ["image/jpeg", "multipart/mixed; boundary=B"],
        ["image/jpeg", "multipart/form-data"],
        ["image/jpeg", "multipart/form-data; boundary=B; boundary=C"],
        ["image/jpeg", "multipart/form-database; boundary=B"],
        ["image/jpeg, multipart/form-data; boundary=B"],
        ["image/jpeg; x=y"],
        ["image/"],
        ["image"],
        [""],
        ["application/octet-stream"],
        ["text/html"],
    ],
)
def test_other_content_types_are_refused(types: list[str]) -> None:
    with pytest.raises(Refusal) as refused:
        media_of([("content-type", value) for value in types], form())
    assert refused.value.status == 400


@pytest.mark.parametrize(
    "body",
    [
        b"",
        form(b""),
        CONTENT,
        form()[:-4],
        form()[:-2] + b"xx",
        form() + form(),
        form().removesuffix(b"--B--\r\n") + form(),
        b"preamble\r\n" + form(),
        form() + b"epilogue",
        form(b"first\r\n--B\r\nContent-Disposition: form-data; name=b\r\n\r\nsecond"),
        form(b"first\n--B--second"),
        form(head="Content-Type: image/jpeg"),
        form(head="Content-Disposition: form-data"),
        form(head="Content-Disposition: attachment; name*=utf-8''a"),
        form(head=f'{NAME}; name="a"'),
        form(head=f"{NAME}; name*=utf-8''a"),
        form(head=f"{NAME}\r\n{NAME}"),
        form(head="Content-Disposition: form-data; name*=latin-1''a"),
        form(head="Content-Disposition: form-data; name*0=a"),
        form(head=f"{NAME}\r\nContent-Length: 3"),
        form(head=f"{NAME}\r\nContent-Transfer-Encoding: base64"),
        form(head=f"{NAME}\r\nContent-Encoding: gzip"),
        form(head=f"{NAME}\r\nContent-Type: multipart/mixed; boundary=C"),
        form().replace(b"\r\n", b"\n"),
    ],
)
def test_other_forms_are_refused_and_not_quoted(body: bytes) -> None:
    with pytest.raises(Refusal) as refused:
        media_of([MEDIA, FORM], body)
    assert refused.value.status == 400
    assert "03d2324eb5b9" not in str(refused.value) and "picture" not in str(refused.value)


def test_an_empty_file_and_an_encoded_one_are_refused() -> None:
    for headers, body in (
        ([MEDIA], b""),
        ([MEDIA, ("content-encoding", "gzip")], CONTENT),
        ([MEDIA, FORM, ("content-encoding", "br")], form()),
    ):
        with pytest.raises(Refusal):
            media_of(headers, body)


def test_an_upload_may_not_have_such_a_name() -> None:
    parser = Parser(b"B", Limits(parts=1, part_bytes=1000))
    with pytest.raises(MultipartError):
        list(parser.feed(form(head=f'{NAME}; filename="a.png"')))


@given(
    st.binary(min_size=1, max_size=2000).filter(lambda content: b"--B" not in content + content),
    st.integers(0, 150_000),
)
def test_any_file_comes_out_as_it_went_in(content: bytes, zeros: int) -> None:
    content = content + bytes(zeros) + content
    assert media_of([MEDIA, FORM], form(content)) == content


@given(st.binary(max_size=300))
def test_any_bytes_whatsoever_are_a_file_or_refused(body: bytes) -> None:
    for raw in (body, b"--B\r\n" + body, form(head=body.decode("latin-1"))):
        try:
            media_of([MEDIA, FORM], raw)
        except Refusal as error:
            assert error.status == 400
