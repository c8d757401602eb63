"""From bytes to signals: files are decoded in processes, their frames computed in batches."""

from __future__ import annotations

import asyncio
import hashlib
import io
from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image

from classifier.batching import Batcher
from classifier.decoding import Decoded, Hashes, Media
from classifier.decoding.pool import DecodingPool
from classifier.ensembles import Ensemble, strongest
from classifier.errors import Rejection, SetupError, deadline_exceeded
from classifier.heads import Signals
from classifier.metrics import Metrics
from classifier.remembering import Memory
from classifier.sharing import Shared
from classifier.turns import Priority, Turns

_WARM_UP_S = 120.0
_HASHED_AT_ONCE = 256 * 1024  # bytes: a fifth of a millisecond; a thread would take as long to be asked


@dataclass(frozen=True, slots=True)
class FrameSignals:
    """The signals of one scored frame; `index` is its place in the file."""

    index: int
    signals: Signals


@dataclass(frozen=True, slots=True)
class Result:
    """What was seen of one file.

    Attributes:
        timing_ms: milliseconds of each stage: `decode`, `queue` (all that it waited), `infer`.
        remembered: how many of the frames were known from their pixels.
    """

    media: Media
    hashes: Hashes
    signals: Signals
    frames: Sequence[FrameSignals]
    timing_ms: dict[str, float]
    remembered: int = 0


@dataclass(frozen=True, slots=True)
class Batching:
    """
    Attributes:
        most: frames of one batch.
        max_wait_ms: milliseconds that a batch waits for more frames.
        mixed: see `Batcher`.
    """

    most: int = 8
    max_wait_ms: float = 2.0
    mixed: bool = True


class Engine:
    """Looks at files, many at once. How many is for the caller to bound."""

    def __init__(
        self, replicas: Sequence[Ensemble], pool: DecodingPool, batching: Batching, metrics: Metrics
    ) -> None:
        """
        Args:
            replicas: what looks, the same once a card.
            pool: what decodes; started and closed with the engine.
            metrics: what to count in.
        """
        self.ensemble = replicas[0]
        self._pool, self._metrics = pool, metrics
        self._memory = Memory()
        self._shared: Shared[Result] = Shared()
        self._decoding = 0
        self._batcher = Batcher(
            replicas,
            most=batching.most,
            max_wait_ms=batching.max_wait_ms,
            mixed=batching.mixed,
            others_come=lambda: self._decoding > 0,
            observe=metrics.batch_frames.observe,
        )
        # Files between the first byte decoded and the last frame computed: enough to fill the next batches
        # while one is computed, and no more, because a decoded file is large. Counted apart, or a live file
        # would wait behind the backfill's.
        ahead = pool.workers + 2 * batching.most * len(replicas)
        self._ahead = {priority: Turns(range(ahead)) for priority in Priority}

    async def start(self) -> None:
        """Starts the decoders, and has everything look once, so that the first real file finds it warm.

        Raises:
            SetupError: the decoders do not start, or the models fail on a blank picture.
        """
        await self._pool.start()
        self._batcher.start()
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
        await self._batcher.close()

    async def look(self, content: bytes, *, priority: Priority, deadline: float) -> Result:
        """Looks at one file; at the same one only once at a time.

        Args:
            content: its bytes.
            deadline: on the event loop's clock.

        Raises:
            Rejection: it cannot be looked at, not in time, or not now.
        """
        if len(content) <= _HASHED_AT_ONCE:
            digest = hashlib.sha256(content).digest()
        else:
            try:
                async with asyncio.timeout_at(deadline):
                    digest = await asyncio.to_thread(_digest, content)
            except TimeoutError:
                raise deadline_exceeded() from None
        return await self._shared.look(
            (digest, priority), deadline, lambda until: self._look(content, priority, until)
        )

    async def _look(self, content: bytes, priority: Priority, deadline: float) -> Result:
        loop = asyncio.get_running_loop()
        came = loop.time()
        turn = await self._ahead[priority].take(priority, deadline)
        try:
            decoded, decode_s = await self._decode(content, priority, deadline)
            signals = [self._memory.recall(frame.digest) for frame in decoded.frames]
            unknown = [place for place, known in enumerate(signals) if known is None]
            began = loop.time()
            if unknown:
                frames = [decoded.frames[place] for place in unknown]
                scored = await self._batcher.score(frames, priority=priority, deadline=deadline)
                began = scored.began
                for place, frame, own in zip(unknown, frames, scored.signals, strict=True):
                    signals[place] = own
                    self._memory.remember(frame.digest, own)
        finally:
            self._ahead[priority].put(turn)
        ended = loop.time()
        stages = {"decode": decode_s, "queue": began - came - decode_s, "infer": ended - began}
        for stage, seconds in stages.items():
            self._metrics.stage_seconds.labels(stage=stage).observe(seconds)
        remembered = len(signals) - len(unknown)
        self._metrics.remembered.inc(remembered)
        known_all = [known for known in signals if known is not None]
        return Result(
            decoded.media,
            decoded.hashes,
            strongest(known_all),
            [FrameSignals(frame.index, own) for frame, own in zip(decoded.frames, known_all, strict=True)],
            {stage: round(seconds * 1000, 2) for stage, seconds in stages.items()},
            remembered,
        )

    async def _decode(self, content: bytes, priority: Priority, deadline: float) -> tuple[Decoded, float]:
        """A file, decoded, and the seconds that a worker had it."""
        self._decoding += 1
        try:
            return await self._pool.decode(content, priority=priority, deadline=deadline)
        finally:
            self._decoding -= 1
            self._batcher.no_more_come()


def _digest(content: bytes) -> bytes:
    return hashlib.sha256(content).digest()
