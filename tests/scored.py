"""A head that says what it was given: for tests of what happens around the models."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from classifier.decoding import Decoded, Prepared
from classifier.decoding.pool import DecodingPool
from classifier.ensembles import Ensemble
from classifier.heads import Finish, Inputs
from classifier.turns import Priority
from tests.preparations import Width


class Naming:
    """Its signal is the frame's name in thousandths.

    Attributes:
        batches: the frames of each batch, as they came.
        goes: cleared, it keeps every batch until it is set again.
        fails_at_first, fails_at_last: whether it raises on these frames, when it begins or when it ends.
    """

    signals, warning, preparation = ("s",), None, Width()

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.goes = threading.Event()
        self.goes.set()
        self.fails_at_first: Callable[[Sequence[int]], bool] = lambda names: False
        self.fails_at_last: Callable[[Sequence[int]], bool] = lambda names: False

    def begin(self, inputs: Inputs) -> Finish:
        names = [int(array[0]) for array in inputs.arrays]
        self.batches.append(names)
        self.goes.wait(60)
        if self.fails_at_first(names):
            raise RuntimeError("as a test wants it")

        def finish() -> list[dict[str, float]]:
            if self.fails_at_last(names):
                raise RuntimeError("as a test wants it")
            return [{"s": name / 1000} for name in names]

        return finish

    def fingerprints(self) -> Iterator[bytes]:
        yield b""

    @property
    def seen(self) -> list[int]:
        """Every frame that it was given, in their order."""
        return [name for batch in self.batches for name in batch]

    async def until_busy(self) -> None:
        """Waits until it has its first batch."""
        await until(lambda: bool(self.batches))


class Counting(DecodingPool):
    """Counts the files that have come out, and those that have gone in."""

    asked = decoded = 0

    async def decode(self, content: bytes, *, priority: Priority, deadline: float) -> tuple[Decoded, float]:
        self.asked += 1
        answer = await super().decode(content, priority=priority, deadline=deadline)
        self.decoded += 1
        return answer


def ensemble(head: Naming) -> Ensemble:
    """An ensemble of that head alone."""
    return Ensemble("naming", "for tests", [head], "0")


def frames(*names: int) -> list[Prepared]:
    """Frames as decoders hand them over."""
    return [Prepared(index, {Width(): np.array([name])}, b"") for index, name in enumerate(names)]


def in_s(seconds: float) -> float:
    """A deadline."""
    return asyncio.get_running_loop().time() + seconds


async def until(holds: Callable[[], bool], within_s: float = 30) -> None:
    """Waits until something holds."""
    async with asyncio.timeout(within_s):
        while not holds():
            await asyncio.sleep(0.005)
