"""Files with two readings: what another program would show is looked at, or the file is refused."""

from __future__ import annotations

import io
import zlib
from collections.abc import Iterator

import numpy as np
import pytest
from PIL import Image, ImageCms

from classifier.decoding import Decoded, Limits
from classifier.decoding.worker import prepare
from classifier.errors import Rejection
from tests import pictures
from tests.preparations import Pixels, indices_of, pixels_of


def decoded(content: bytes, limits: Limits | None = None) -> Decoded:
    return prepare(content, [Pixels()], limits or Limits())


def refused(content: bytes, limits: Limits | None = None) -> str:
    with pytest.raises(Rejection) as rejected:
        decoded(content, limits)
    return rejected.value.code


def chunks_of(png: bytes) -> Iterator[tuple[bytes, bytes]]:
    at = 8
    while at < len(png):
        end = at + 8 + int.from_bytes(png[at : at + 4])
        yield png[at + 4 : at + 8], png[at + 8 : end]
        at = end + 4


def png_of(chunks: list[tuple[bytes, bytes]]) -> bytes:
    parts = [
        len(data).to_bytes(4) + name + data + zlib.crc32(name + data).to_bytes(4) for name, data in chunks
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


@pytest.mark.filterwarnings("ignore:Invalid APNG")
def test_an_animated_png_that_pillow_would_show_as_one_picture_is_refused() -> None:
    chunks = list(chunks_of(pictures.animation("PNG", frames=3)))
    control = next(chunk for chunk in chunks if chunk[0] == b"acTL")
    bare = [chunk for chunk in chunks if chunk is not control]
    doubled = [*bare[:1], control, control, *bare[1:]]
    late = [*bare[:-1], control, bare[-1]]
    none, one, four = (
        [*bare[:1], (b"acTL", count.to_bytes(4) + bytes(4)), *bare[1:]] for count in (0, 1, 4)
    )
    for wrong in (doubled, late, none, one, four, [*bare[:1], (b"acTL", bytes(9)), *bare[1:]]):
        assert refused(png_of(wrong)) in ("undecodable", "unsupported-media")
    assert decoded(png_of([bare[0], control, *bare[1:]])).media.frames == 3


@pytest.mark.parametrize("apart", [False, True])
def test_an_animated_png_of_one_frame_is_called_one(apart: bool) -> None:
    """`apart`: with a first picture that is not part of the animation."""
    header, *rest = chunks_of(pictures.png((40, 30)))
    controls = [(b"acTL", (1).to_bytes(4) + bytes(4))]
    area = (40).to_bytes(4) + (30).to_bytes(4) + bytes(8) + bytes((0, 1, 0, 10, 0, 0))
    frame = (b"fcTL", bytes(4) + area)
    if apart:
        pixels = b"".join(data for name, data in chunks_of(pictures.png((40, 30), 7)) if name == b"IDAT")
        rest[-1:-1] = [frame, (b"fdAT", (1).to_bytes(4) + pixels)]
    else:
        controls.append(frame)
    seen = decoded(png_of([header, *controls, *rest]))
    assert (seen.media.format, seen.media.frames) == ("apng", 1 + apart)
