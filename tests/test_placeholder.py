"""The picture that a pending alias shows: always one, of the right shape, at a bounded cost."""

from __future__ import annotations

import asyncio
import io

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from proxy.cases import placeholder
from proxy.errors import Refusal
from proxy.media import Size, processed_size
from proxy.media.signatures import PNG


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
