"""The picture that a pending alias shows: always one, of the right shape, at a bounded cost."""

from __future__ import annotations

import asyncio
import io

import av
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from proxy.cases import clips, placeholder
from proxy.errors import Refusal
from proxy.media import Size, processed_size, recognise
from proxy.media.signatures import MP4, PNG, WEBM


@given(
    size=st.tuples(st.integers(1, 65_535), st.integers(1, 65_535)),
    steps=st.lists(
        st.sampled_from(
            [
                ("crop", "1x20"),
                ("crop", "20x1"),
                ("resize", "1"),
                ("resize", "x.a1"),
                ("resize", "300"),
                ("thumbnail", "64"),
            ]
        ),
        max_size=4,
    ),
)
@settings(deadline=None, max_examples=60)
def test_every_size_has_a_placeholder_s_details(size: tuple[int, int], steps: list[tuple[str, str]]) -> None:
    after = processed_size(Size(*size), steps)
    assert min(after) >= 1 and placeholder.details(PNG, after, None)["blurhash"]


async def test_a_placeholder_is_drawn_once_and_in_proportion_however_large_it_is() -> None:
    placeholders = placeholder.Placeholders()
    for size, extension in (
        (Size(9000, 6000), "webp"),
        (Size(30_000, 400), "webp"),
        (Size(65_535, 9), "jpeg"),
    ):
        answers = await asyncio.gather(*(placeholders.picture(size, extension) for _ in range(5)))
        assert len({id(content) for _, content in answers}) == 1
        picture = Image.open(io.BytesIO(answers[0][1]))
        assert picture.width / picture.height == pytest.approx(size.width / size.height, rel=0.2)
        assert picture.width * picture.height <= 12_000_000
    placeholders.close()


async def test_too_many_placeholders_at_once_are_refused_rather_than_queued() -> None:
    placeholders = placeholder.Placeholders()
    drawings = [placeholders.picture(Size(1000 + number, 1000), "png") for number in range(100)]
    answers = await asyncio.gather(*drawings, return_exceptions=True)
    refused = [answer for answer in answers if isinstance(answer, Refusal)]
    drawn = [answer for answer in answers if isinstance(answer, tuple)]
    assert len(refused) + len(drawn) == 100 and drawn
    assert refused and all(error.status == 503 and error.retry_after_s for error in refused)
    placeholders.close()


@pytest.mark.parametrize("extension", ["mp4", "webm"])
@pytest.mark.parametrize("size", [(2, 2), (161, 121), (640, 480), (1080, 1920), (5000, 3000)])
async def test_a_held_video_shows_a_short_silent_clip_of_its_size(
    size: tuple[int, int], extension: str
) -> None:
    placeholders = placeholder.Placeholders()
    content_type, content = await placeholders.picture(Size(*size), extension)
    placeholders.close()
    assert (
        content_type == f"video/{extension}" and recognise(content) == {"mp4": MP4, "webm": WEBM}[extension]
    )
    with av.open(io.BytesIO(content)) as clip:
        assert not clip.streams.audio and clip.duration == av.time_base
        clip.streams.video[0].codec_context.options = {"err_detect": "explode"}
        frames = [frame.to_ndarray(format="gray") for frame in clip.decode(video=0)]
    assert len(frames) == 2 and (frames[0] == frames[1]).all()
    high, wide = frames[0].shape
    assert wide / high == pytest.approx(size[0] / size[1], rel=0.01)
    assert size > (4000, 2500) or (abs(wide - size[0]) <= 1 and abs(high - size[1]) <= 1)


def test_no_unit_of_a_clip_looks_like_the_start_of_another() -> None:
    """Two zero bytes before one of 0 to 3 are escaped (ITU-T H.264, 7.4.1)."""
    unit = clips._Bits().u(0x0000010000030000, 64).unit(0x65)
    assert unit == bytes.fromhex("65 0000 03 01 0000 03 03 0000 80")
