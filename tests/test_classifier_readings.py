"""Files with two readings: what another program would show is looked at, or the file is refused."""

from __future__ import annotations

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
    none, one, four = ([*bare[:1], (b"acTL", count.to_bytes(4) + bytes(4)), *bare[1:]] for count in (0, 1, 4))
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


def with_tags(changes: dict[bytes, bytes]) -> bytes:
    """An sRGB profile with other contents of some tags."""
    profile = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    for entry in range(132, 132 + 12 * int.from_bytes(profile[128:132]), 12):
        content = changes.get(bytes(profile[entry : entry + 4]))
        if content is not None:
            profile[entry + 4 : entry + 12] = len(profile).to_bytes(4) + len(content).to_bytes(4)
            profile += content
    profile[:4] = len(profile).to_bytes(4)
    return bytes(profile)


def xyz(*values: float) -> bytes:
    return b"XYZ " + bytes(4) + b"".join(round(value * 65536).to_bytes(4, signed=True) for value in values)


FLAT = b"curv" + bytes(4) + (2).to_bytes(4) + (30000).to_bytes(2) + (30001).to_bytes(2) + bytes(4)
FLATTENING = with_tags({b"rTRC": FLAT, b"gTRC": FLAT, b"bTRC": FLAT})
DISPLAY_P3 = with_tags(
    {
        b"rXYZ": xyz(0.51512, 0.2412, -0.00105),
        b"gXYZ": xyz(0.29198, 0.69225, 0.04189),
        b"bXYZ": xyz(0.1571, 0.06657, 0.78407),
    }
)


@pytest.mark.parametrize("name", ["PNG", "JPEG", "WEBP"])
def test_what_only_a_profile_hides_is_looked_at_beside_what_it_shows(name: str) -> None:
    drawn = pictures.draw((256, 160), 3)
    seen = decoded(pictures.encode(drawn, name, icc_profile=FLATTENING, quality=95))
    shown, stored = pixels_of(seen)
    assert shown.astype(int).std() < 12
    assert np.abs(stored.astype(int) - np.asarray(drawn, int)).mean() < 8
    assert (seen.media.frames, seen.media.frames_scored, indices_of(seen)) == (1, 1, [0, 0])


@pytest.mark.parametrize("profile", [with_tags({}), DISPLAY_P3])
def test_a_profile_as_cameras_have_it_costs_no_second_look(profile: bytes) -> None:
    from skimage import data

    for photograph in (data.astronaut(), data.chelsea(), data.coffee()):
        picture = pictures.encode(Image.fromarray(photograph), "PNG", icc_profile=profile)
        assert len(pixels_of(decoded(picture))) == 1


def test_of_an_animation_both_readings_of_every_scored_frame_are_looked_at() -> None:
    first, *rest = (pictures.draw((96, 64), seed) for seed in range(40))
    content = pictures.encode(
        first, "PNG", save_all=True, append_images=rest, duration=50, icc_profile=FLATTENING
    )
    seen = decoded(content)
    assert seen.media.frames_scored == len(set(indices_of(seen))) == 32
    assert indices_of(seen) == sorted(2 * sorted(set(indices_of(seen))))
    assert len({stored.tobytes() for stored in pixels_of(seen)[1::2]}) == 32


def test_frames_that_an_edit_list_leaves_out_are_looked_at() -> None:
    whole = pictures.video("mp4")
    at = whole.index(b"elst") + 12
    duration = int.from_bytes(whole[at : at + 4])
    cut = whole[:at] + (duration // 4).to_bytes(4) + whole[at + 4 :]
    assert decoded(cut).media.frames == decoded(whole).media.frames == 20


def jpeg_xl_of(image: Image.Image, **options: object) -> bytes:
    return pictures.encode(image, "JXL", lossless=True, **options)


def test_jpeg_xl_is_not_turned_by_its_exif() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    drawn = pictures.draw((96, 64))
    seen = decoded(jpeg_xl_of(drawn, exif=exif.tobytes(), use_container=True))
    assert (seen.media.width, seen.media.height) == (96, 64)
    assert np.array_equal(pixels_of(seen)[0], np.asarray(drawn))


@pytest.mark.parametrize("size", [(96, 64), (128, 128), (120, 7), (1600, 900), (1999, 3), (3, 700)])
@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA"])
def test_jpeg_xl_of_any_size_is_understood(size: tuple[int, int], mode: str) -> None:
    media = decoded(jpeg_xl_of(Image.new(mode, size))).media
    assert (media.width, media.height) == size


def test_jpeg_xl_of_too_many_pixels_is_refused_before_it_is_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    content = jpeg_xl_of(Image.new("RGB", (300, 200)))

    def opened(*arguments: object, **options: object) -> None:
        raise AssertionError("it is decoded")

    monkeypatch.setattr(Image, "open", opened)
    assert refused(content, Limits(pixels=300 * 200 - 1)) == "too-large"


def test_jpeg_xl_with_samples_that_are_no_integers_is_refused() -> None:
    grey = np.linspace(0, 1, 64 * 64, dtype=np.float32).reshape(64, 64)
    assert refused(jpeg_xl_of(Image.fromarray(grey))) == "undecodable"


def test_an_animated_jpeg_xl_is_refused() -> None:
    # 128×128, three frames: the header that libjxl 0.7 writes, and the beginning of the first frame
    assert refused(bytes.fromhex("ff0a5f044d0020270012500128006c015de51200")) == "undecodable"
    still = jpeg_xl_of(pictures.draw((64, 64)), use_container=True)
    assert refused(still + still[still.index(b"jxl", 32) - 4 :]) == "undecodable"  # a second codestream
