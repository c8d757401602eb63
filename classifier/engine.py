"""From bytes to signals: decoding in processes, the models in a thread, a bound on how many wait."""

from __future__ import annotations

import asyncio
import io
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from PIL import Image

from classifier.decoding import Decoded, Hashes, Media
from classifier.decoding.pool import DecodingPool
from classifier.ensembles import Ensemble, FrameSignals, strongest
from classifier.errors import Rejection, SetupError, deadline_exceeded, overloaded
from classifier.heads import Signals
from classifier.remembering import Memory
from classifier.turns import Priority, Turns

_WARM_UP_S = 120.0


@dataclass(frozen=True, slots=True)
class Result:
    """What was seen of one file.

    Attributes:
        timing_ms: milliseconds of each stage: `decode`, `queue` (for the models), `infer`.
        remembered: how many of the frames were known from their pixels.
    """

    media: Media
    hashes: Hashes
    signals: Signals
    frames: Sequence[FrameSignals]
    timing_ms: dict[str, float]
    remembered: int = 0


class Engine:
    """Looks at files, several at once."""

    def __init__(self, ensemble: Ensemble, pool: DecodingPool, most_waiting: int) -> None:
        """
        Args:
            ensemble: what looks.
            pool: what decodes; started and closed with the engine.
            most_waiting: files of each priority under way or waiting; one more is refused at once. Counted
                apart, or else a backfill that has filled the house would turn uploads away.
        """
        self.ensemble = ensemble
        self._pool = pool
        self._most_waiting = most_waiting
        self._waiting: Counter[Priority] = Counter()
        self._models = ThreadPoolExecutor(1, thread_name_prefix="models")
        self._turns = Turns([self._models])
        self._memory = Memory()

    @property
    def waiting(self) -> int:
        """Files under way or waiting."""
        return self._waiting.total()

    async def start(self) -> None:
        """Starts the decoders, and has everything look once, so that the first real file finds it warm.

        Raises:
            SetupError: the decoders do not start, or the models fail on a blank picture.
        """
        await self._pool.start()
        blank = io.BytesIO()
        Image.new("RGB", (64, 64)).save(blank, "PNG")
        deadline = asyncio.get_running_loop().time() + _WARM_UP_S
        try:
            await self.look(blank.getvalue(), priority=Priority.LIVE, deadline=deadline)
        except Rejection as rejection:
            raise SetupError(f"the ensemble fails on a blank picture: {rejection}") from None

    async def close(self) -> None:
        """Ends the decoders, and waits for what the models are doing."""
        await self._pool.close()
        await asyncio.to_thread(self._models.shutdown)

    async def look(self, content: bytes, *, priority: Priority, deadline: float) -> Result:
        """Looks at one file.

        Args:
            content: its bytes.
            deadline: on the event loop's clock.

        Raises:
            Rejection: it cannot be looked at, not in time, or not now.
        """
        if self._waiting[priority] >= self._most_waiting:
            raise overloaded(f"{self._waiting[priority]} {priority} files are waiting already")
        self._waiting[priority] += 1
        try:
            return await self._look(content, priority, deadline)
        finally:
            self._waiting[priority] -= 1

    async def _look(self, content: bytes, priority: Priority, deadline: float) -> Result:
        loop = asyncio.get_running_loop()
        began = loop.time()
        decoded = await self._pool.decode(content, priority=priority, deadline=deadline)
        queued = loop.time()
        signals = [self._memory.recall(digest) for digest in decoded.digests]
        unknown = [place for place, known in enumerate(signals) if known is None]
        started = queued
        if unknown:
            scored, started = await self._score(decoded.only(unknown), priority, deadline)
            for place, frame in zip(unknown, scored, strict=True):
                signals[place] = frame.signals
                self._memory.remember(decoded.digests[place], frame.signals)
        frames = [
            FrameSignals(index, known)
            for index, known in zip(decoded.indices, signals, strict=True)
            if known is not None
        ]
        ended = loop.time()
        stages = {"decode": queued - began, "queue": started - queued, "infer": ended - started}
        timing_ms = {stage: round(seconds * 1000, 2) for stage, seconds in stages.items()}
        remembered = len(frames) - len(unknown)
        return Result(decoded.media, decoded.hashes, strongest(frames), frames, timing_ms, remembered)

    async def _score(
        self, decoded: Decoded, priority: Priority, deadline: float
    ) -> tuple[list[FrameSignals], float]:
        """The models' signals of a file, and when they began with it, on the event loop's clock."""
        loop = asyncio.get_running_loop()
        models = await self._turns.take(priority, deadline)
        started = loop.time()
        scoring = loop.run_in_executor(models, self.ensemble.score, decoded)
        scoring.add_done_callback(self._end_turn)
        try:
            async with asyncio.timeout_at(deadline):
                # Shielded: where nobody waits any more, the models are still at it, and the turn is not over.
                return await asyncio.shield(scoring), started
        except TimeoutError:
            raise deadline_exceeded() from None

    def _end_turn(self, scoring: asyncio.Future[list[FrameSignals]]) -> None:
        self._turns.put(self._models)
        if not scoring.cancelled():
            scoring.exception()  # read, or asyncio complains where the client was gone
