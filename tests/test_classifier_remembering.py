"""Frames are remembered by their pixels: the same picture in another file costs a decode and no inference."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator

import numpy as np
import pytest

from classifier.decoding import Limits
from classifier.decoding.pool import DecodingPool
from classifier.engine import Batching, Engine, Result
from classifier.ensembles import Ensemble
from classifier.heads import Finish, Inputs
from classifier.metrics import Metrics
from classifier.remembering import Memory
from classifier.turns import Priority
from tests import pictures
from tests.preparations import Pixels


class Counting:
    """A head whose signal is how bright a frame is; counts those that it has scored."""

    signals, warning, preparation = ("s",), None, Pixels()

    def __init__(self) -> None:
        self.scored = 0

    def begin(self, inputs: Inputs) -> Finish:
        self.scored += len(inputs.arrays)
        means = [float(pixels.mean()) / 255 for pixels in inputs.arrays]  # type: ignore[arg-type]
        return lambda: [{"s": mean} for mean in means]

    def fingerprints(self) -> Iterator[bytes]:
        yield b""


@pytest.fixture
async def engine() -> AsyncIterator[tuple[Engine, Counting]]:
    head = Counting()
    limits = Limits(memory_bytes=2 * 1024**3)
    pool = DecodingPool(1, [Pixels()], limits)
    running = Engine([Ensemble("counting", "", [head], "0")], pool, Batching(), Metrics())
    await running.start()
    head.scored = 0
    yield running, head
    await running.close()


async def look(engine: Engine, content: bytes) -> Result:
    deadline = asyncio.get_running_loop().time() + 30
    return await engine.look(content, priority=Priority.LIVE, deadline=deadline)


async def test_a_file_written_anew_with_the_same_pixels_is_not_scored_again(
    engine: tuple[Engine, Counting],
) -> None:
    running, head = engine
    picture = pictures.draw((90, 60), 41)
    first = await look(running, pictures.encode(picture, "PNG"))
    again = await look(running, pictures.encode(picture, "PNG", compress_level=1))
    other = await look(running, pictures.png((90, 60), 42))
    assert head.scored == 2
    assert [one.remembered for one in (first, again, other)] == [0, 1, 0]
    assert again.signals == first.signals != other.signals
    assert again.hashes.sha256 != first.hashes.sha256


async def test_of_an_animation_only_the_new_frames_are_scored(engine: tuple[Engine, Counting]) -> None:
    running, head = engine
    frames = [pictures.draw((90, 60), seed) for seed in (50, 51, 52)]
    await look(running, pictures.encode(frames[1], "PNG"))
    content = pictures.encode(frames[0], "PNG", save_all=True, append_images=frames[1:], duration=50)
    seen = await look(running, content)
    assert (seen.remembered, head.scored) == (1, 3)
    assert [frame.index for frame in seen.frames] == [0, 1, 2]
    means = [float(np.asarray(frame).mean()) / 255 for frame in frames]
    assert [frame.signals["s"] for frame in seen.frames] == pytest.approx(means, abs=1e-3)


def test_what_is_remembered_is_bounded_in_number_and_time() -> None:
    now = 0.0
    memory = Memory(most=2, for_s=10, clock=lambda: now)
    for digest in (b"a", b"b", b"c"):
        memory.remember(digest, {"s": 0.5})
    assert memory.recall(b"a") is None and memory.recall(b"b") == memory.recall(b"c") == {"s": 0.5}
    now = 11.0
    assert memory.recall(b"c") is None
