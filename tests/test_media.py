"""Signatures and headers: what a file claims to be, how large it says it is, and no crash whatever it is."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.media import Format, Kind, Size, measure, processed_size, recognise, sizes
from tests import pictures
from tests.client import upload
from tests.pictrs import Pictrs

FILES = {
    "apng": (pictures.animation("PNG"), Kind.ANIMATION, (120, 80), 5),
    "avif": (pictures.encode(pictures.draw((64, 48)), "AVIF"), Kind.IMAGE, (64, 48), None),
    "avif, animated": (pictures.animation("AVIF"), Kind.ANIMATION, (120, 80), 5),
    "gif": (pictures.animation(), Kind.ANIMATION, (120, 80), 5),
    "gif, one frame": (pictures.encode(pictures.draw(), "GIF"), Kind.ANIMATION, (320, 200), None),
    "jpeg": (pictures.jpeg((321, 123)), Kind.IMAGE, (321, 123), None),
    "jpeg, progressive": (pictures.jpeg((321, 123), progressive=True), Kind.IMAGE, (321, 123), None),
    "jpeg, turned": (pictures.turned_jpeg((320, 100)), Kind.IMAGE, (100, 320), None),
    "mov": (pictures.video("mov"), Kind.VIDEO, (160, 120), 20),
    "mp4": (pictures.video("mp4"), Kind.VIDEO, (160, 120), 20),
    "png": (pictures.png(), Kind.IMAGE, (320, 200), None),
    "webm": (pictures.video("webm"), Kind.VIDEO, (160, 120), 20),
    "webp": (pictures.encode(pictures.draw(), "WEBP"), Kind.IMAGE, (320, 200), None),
    "webp, lossless": (pictures.encode(pictures.draw(), "WEBP", lossless=True), Kind.IMAGE, (320, 200), None),
    "webp, animated": (pictures.animation("WEBP"), Kind.ANIMATION, (120, 80), 5),
}


@pytest.mark.parametrize("name", FILES)
def test_a_file_is_recognised_and_measured_without_decoding(name: str) -> None:
    content, kind, size, frames = FILES[name]
    media = recognise(content)
    assert media is not None
    assert (media.name, media.kind) == (name.partition(",")[0], kind)
    assert measure(content, media) == (Size(*size), frames)


# From the specification (ISO 18181-1): bare code streams of 8×8 and of 1000×600 pixels.
@pytest.mark.parametrize(
    ("header", "size"),
    [
        (bytes([0xFF, 0x0A, 0b0100_0001]), (8, 8)),
        (
            b"\xff\x0a" + (0 | 1 << 1 | 599 << 3 | 0 << 16 | 1 << 19 | 999 << 21).to_bytes(6, "little"),
            (1000, 600),
        ),
    ],
)
def test_a_jpeg_xl_header_is_measured(header: bytes, size: tuple[int, int]) -> None:
    media = recognise(header)
    assert media is not None and media.name == "jxl"
    assert measure(header + bytes(32), media) == (Size(*size), None)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"x",
        b"this is no picture",
        b"<svg xmlns='http://www.w3.org/2000/svg'/>",
        b"%PDF-1.7",
        b"BM" + bytes(60),
        b"II*\0" + bytes(60),
        b"\0\0\0\x18ftypheic\0\0\0\0mif1heic",
        b"RIFF\0\0\0\0WAVE",
    ],
)
def test_what_pict_rs_does_not_take_is_nothing(content: bytes) -> None:
    assert recognise(content) is None


whole = st.sampled_from([content for content, *_ in FILES.values()])


@given(whole, st.data())
def test_a_damaged_file_is_measured_or_not_and_never_crashes(content: bytes, data: st.DataObject) -> None:
    damaged = bytearray(content[: data.draw(st.integers(0, len(content)))])
    for _ in range(data.draw(st.integers(0, 8))):
        if damaged:
            damaged[data.draw(st.integers(0, min(len(damaged), 600) - 1))] = data.draw(st.integers(0, 255))
    media = recognise(bytes(damaged))
    if media is not None:
        measure(bytes(damaged), media)


STEPS = [
    "resize=50",
    "resize=1000",
    "resize=lanczos.33",
    "resize=mitchell.a5000",
    "resize=.a5000",
    "thumbnail=41",
    "crop=1x1",
    "crop=16x9",
    "crop=2x3",
    "identity=",
    "blur=1.5",
    "resize=99&crop=3x2",
    "crop=7x5&resize=31",
]


@pytest.mark.parametrize(("size", "every"), [((320, 200), 1), ((201, 333), 3)])
def test_the_size_after_pict_rs_s_steps_is_foretold(
    running_pictrs: Pictrs, size: tuple[int, int], every: int
) -> None:
    if not running_pictrs.is_real:
        pytest.skip("the stand-in takes these sizes from the gate itself")
    content = pictures.png(size, seed=17)
    for query in STEPS[::every]:
        answer = upload(running_pictrs.url, content, query=query)
        assert answer.status == 201, (query, answer.body)
        details = answer.json()["files"][0]["details"]
        steps = [tuple(step.split("=")) for step in query.split("&")]
        assert processed_size(Size(*size), steps) == (details["width"], details["height"]), query


@pytest.mark.parametrize(
    "step", ["bogus=1", "resize=abc", "resize=", "resize=a5", "crop=0x1", "crop=21x1", "blur=x"]
)
def test_a_step_that_pict_rs_refuses_is_an_error(running_pictrs: Pictrs, step: str) -> None:
    with pytest.raises(ValueError):
        processed_size(Size(10, 10), [tuple(step.split("="))])
    answer = upload(running_pictrs.url, pictures.png((40, 40)), query=step)
    assert answer.json()["code"] == "invalid-process-path"


@pytest.mark.parametrize(
    ("media", "content"),
    [
        ("jpeg", b"\xff\xd8" + b"\xff" * 3_000_000),
        ("gif", b"GIF89a" + bytes(7) + b"\x21\xf9\x01\x00\x00" * 600_000),
        ("mp4", b"\0\0\0\x08free" * 400_000),
        ("png", b"\x89PNG\r\n\x1a\n" + b"\0\0\0\0abcd\0\0\0\0" * 250_000),
        ("webp", b"RIFF\0\0\0\0WEBP" + b"ANMF\0\0\0\0" * 400_000),
        ("webm", b"\xec\x80" * 1_000_000),
    ],
)
def test_measuring_takes_a_bounded_number_of_steps(
    media: str, content: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken = []
    take = sizes._Steps.take
    monkeypatch.setattr(sizes._Steps, "take", lambda steps: (taken.append(1), take(steps)))
    assert measure(content, Format(media, Kind.IMAGE, "", "", "")) is None
    assert len(taken) == sizes._MOST_STEPS + 1
