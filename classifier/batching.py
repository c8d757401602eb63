"""Batches: the frames of many requests, computed together by whichever card is free.

A batch leaves when it is full, when its oldest frame has waited long enough, or when nothing is on its way
that could still join it. Live frames go first, and backfill gets the places that they leave. Each card has at
most two batches: one is computed while the other is put together and uploaded.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import chain

from classifier.decoding import Prepared
from classifier.ensembles import Ensemble
from classifier.errors import Rejection, deadline_exceeded, error_place, models_failed, overloaded
from classifier.heads import Finish, Signals
from classifier.turns import Priority

log = logging.getLogger(__name__)

_BATCHES_A_REPLICA = 2
_LONGEST_PAUSE_S = 30.0


@dataclass(frozen=True, slots=True)
class Scored:
    """What the models said of a file's frames, and when, on the event loop's clock.

    Attributes:
        signals: one for each frame, in their order.
        began: when the models began with the first of them.
    """

    signals: Sequence[Signals]
    began: float


@dataclass(slots=True, eq=False)
class _File:
    """The frames of one request, of which a part may be in one batch and the rest in the next."""

    frames: Sequence[Prepared]
    since: float
    done: asyncio.Future[None]
    taken: int = 0
    began: float | None = None
    signals: dict[int, Signals] = field(default_factory=dict)

    def fail(self, rejection: Rejection) -> None:
        """Tells whoever waits, if somebody still does, that there will be no signals."""
        if not self.done.done():
            self.done.set_exception(rejection)


@dataclass(frozen=True, slots=True)
class _Part:
    """Some frames of one file."""

    file: _File
    start: int
    stop: int

    @property
    def frames(self) -> Sequence[Prepared]:
        return self.file.frames[self.start : self.stop]

    def halves(self) -> list[_Part]:
        """The same frames in two parts; none where there is one frame."""
        middle = (self.start + self.stop) // 2
        if middle == self.start:
            return []
        return [_Part(self.file, self.start, middle), _Part(self.file, middle, self.stop)]

    def give(self, signals: Sequence[Signals]) -> None:
        """Hands the file its frames' signals."""
        file = self.file
        file.signals.update(zip(range(self.start, self.stop), signals, strict=True))
        if len(file.signals) == len(file.frames) and not file.done.done():
            file.done.set_result(None)


class _Replica:
    """The ensemble on one card, and the two threads that wait for it."""

    def __init__(self, ensemble: Ensemble) -> None:
        self.ensemble = ensemble
        self.beginning = ThreadPoolExecutor(1, thread_name_prefix="models")
        self.finishing = ThreadPoolExecutor(1, thread_name_prefix="results")
        self.room = asyncio.Semaphore(_BATCHES_A_REPLICA)
        self.failures = 0  # of batches, one after the other

    def shutdown(self) -> None:
        """Waits for what the card is doing. Blocks."""
        self.beginning.shutdown()
        self.finishing.shutdown()


class Batcher:
    """Has frames computed. How many wait is for the caller to bound."""

    def __init__(
        self,
        replicas: Sequence[Ensemble],
        *,
        most: int,
        max_wait_ms: float,
        mixed: bool = True,
        others_come: Callable[[], bool] = lambda: True,
        observe: Callable[[int], object] = lambda frames: None,
    ) -> None:
        """
        Args:
            replicas: the same ensemble, once a card.
            most: frames of one batch.
            max_wait_ms: milliseconds that a batch waits for more frames.
            mixed: whether backfill gets the places that live frames leave in a batch. Where every frame costs
                a batch its time, as on a CPU, an upload would wait for strangers; they go after it there.
            others_come: whether frames are on their way that could join a batch.
            observe: is told the number of frames of each batch.
        """
        self._replicas = [_Replica(ensemble) for ensemble in replicas]
        self._most, self._wait_s, self._mixed = most, max_wait_ms / 1000, mixed
        self._others_come, self._observe = others_come, observe
        self._waiting: dict[Priority, dict[_File, None]] = {priority: {} for priority in Priority}
        self._here: set[_File] = set()  # those that somebody waits for, taken or not
        self._closed = False
        self._came = asyncio.Event()
        self._collecting = asyncio.Lock()
        self._tasks: set[asyncio.Task[None]] = set()

    def start(self) -> None:
        """Lets the replicas take frames."""
        for replica in self._replicas:
            self._spawn(self._serve(replica))

    async def close(self) -> None:
        """Lets nothing wait any longer, and waits for what the cards are doing."""
        self._closed = True
        for file in self._here:
            file.fail(_stopping())
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for replica in self._replicas:
            await asyncio.to_thread(replica.shutdown)

    async def score(self, frames: Sequence[Prepared], *, priority: Priority, deadline: float) -> Scored:
        """The signals of some frames of one file.

        Args:
            frames: at least one.
            deadline: on the event loop's clock.

        Raises:
            Rejection: the deadline came first, the models fail, or it is closed.
        """
        if self._closed:
            raise _stopping()
        loop = asyncio.get_running_loop()
        file = _File(frames, loop.time(), loop.create_future())
        queue = self._waiting[priority]
        queue[file] = None
        self._here.add(file)
        self._came.set()
        try:
            async with asyncio.timeout_at(deadline):
                await file.done
        except TimeoutError:
            raise deadline_exceeded() from None
        finally:
            queue.pop(file, None)  # nobody waits for what is left of it
            self._here.discard(file)
        return Scored([file.signals[place] for place in range(len(frames))], file.began or file.since)

    def no_more_come(self) -> None:
        """Says that a file which was on its way does not come; a batch may have been waiting for it."""
        self._came.set()

    async def _serve(self, replica: _Replica) -> None:
        """Takes batch after batch for one replica."""
        loop = asyncio.get_running_loop()
        while True:
            await replica.room.acquire()
            async with self._collecting:
                batch = await self._collect()
            self._observe(sum(len(part.frames) for part in batch))
            try:
                finish = await loop.run_in_executor(replica.beginning, _begin, replica.ensemble, batch)
            except Exception as error:  # noqa: BLE001 — the border: whatever a model raises is its files' end
                finish = None
                log.error("the models fail: %s", error_place(error))
            self._spawn(self._finish(replica, batch, finish))
            await self._rest(replica)

    async def _finish(self, replica: _Replica, batch: Sequence[_Part], finish: Finish | None) -> None:
        try:
            if finish is None or not await self._give(replica, batch, finish):
                await self._give_apart(replica, batch)
        finally:
            replica.room.release()

    async def _give(self, replica: _Replica, batch: Sequence[_Part], finish: Finish) -> bool:
        """Hands every file of a batch its signals; False where the models failed."""
        loop = asyncio.get_running_loop()
        try:
            signals = iter(await loop.run_in_executor(replica.finishing, finish))
        except Exception as error:  # noqa: BLE001 — as above
            log.error("the models fail: %s", error_place(error))
            return False
        for part in batch:
            part.give([next(signals) for _ in part.frames])
        replica.failures = 0
        return True

    async def _give_apart(self, replica: _Replica, batch: Sequence[_Part]) -> None:
        """After a failure each file by itself, so that one of them does not cost the others their answer."""
        replica.failures += 1
        for part in batch:
            if len(batch) == 1 or not await self._give_again(replica, part):
                await self._give_halves(replica, part)

    async def _give_halves(self, replica: _Replica, part: _Part) -> None:
        """Fewer and fewer frames at once, for which a card may have memory. One that fails is the end."""
        halves = part.halves()
        if not halves:
            part.file.fail(models_failed())
        for half in halves:
            if not part.file.done.done() and not await self._give_again(replica, half):
                await self._give_halves(replica, half)

    async def _give_again(self, replica: _Replica, part: _Part) -> bool:
        loop = asyncio.get_running_loop()
        try:
            finish = await loop.run_in_executor(replica.beginning, _begin, replica.ensemble, [part])
        except Exception as error:  # noqa: BLE001 — as above
            log.error("the models fail: %s", error_place(error))
            return False
        return await self._give(replica, [part], finish)

    async def _rest(self, replica: _Replica) -> None:
        """A replica that fails again and again lets the others go first, or it would take all the work."""
        if replica.failures > 1 and len(self._replicas) > 1:
            await asyncio.sleep(min(_LONGEST_PAUSE_S, 2.0**replica.failures / 4))

    async def _collect(self) -> list[_Part]:
        """The next batch, as soon as it may leave."""
        loop = asyncio.get_running_loop()
        while True:
            oldest = min((file.since for file in self._queue()), default=None)
            if oldest is not None:
                wait_s = oldest + self._wait_s - loop.time()
                if self._is_full() or wait_s <= 0 or not self._others_come():
                    return self._take()
            self._came.clear()
            try:
                async with asyncio.timeout(None if oldest is None else wait_s):
                    await self._came.wait()
            except TimeoutError:
                pass

    def _queue(self) -> Iterator[_File]:
        """All files with frames that nobody has taken, whose turn it is first."""
        return chain.from_iterable(self._waiting.values())

    def _is_full(self) -> bool:
        return sum(len(file.frames) - file.taken for file in self._queue()) >= self._most

    def _take(self) -> list[_Part]:
        now = asyncio.get_running_loop().time()
        batch: list[_Part] = []
        room = self._most
        for queue in self._waiting.values():
            if batch and not self._mixed:
                return batch
            for file in list(queue):
                part = _Part(file, file.taken, min(len(file.frames), file.taken + room))
                file.taken, file.began = part.stop, file.began or now
                if file.taken == len(file.frames):
                    del queue[file]
                batch.append(part)
                room -= part.stop - part.start
                if room == 0:
                    return batch
        return batch

    def _spawn(self, coroutine: Coroutine[object, object, None]) -> None:
        task = asyncio.create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def _begin(ensemble: Ensemble, batch: Sequence[_Part]) -> Finish:
    return ensemble.begin([frame for part in batch for frame in part.frames])


def _stopping() -> Rejection:
    return overloaded("the classifier is stopping")
