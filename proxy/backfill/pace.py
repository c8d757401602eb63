"""How many files may be with the classifiers at once: as many as bring something.

More are tried as long as more come back a second. Where that only makes answers slower, or a classifier says
that it is overloaded, there are fewer at once.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

_FIRST = 4
_MORE, _FEWER, _OVERLOADED = 1.25, 0.9, 0.7
_WORTH = 0.25  # of throughput, for as much more at once: 25 % more have to bring 6 %
_COST = 0.1  # likewise, for as much less: 10 % less may cost 1 %, so that a few always wait
_ROUND_S = 0.5
_PATIENCE_S = 0.2


class Pace:
    """A bound that finds itself. Of one event loop."""

    def __init__(self, most: int, first: int = _FIRST) -> None:
        """
        Args:
            most: files at once, whatever comes of it.
            first: files at once to begin with.
        """
        self._most = most
        self._limit = float(min(first, most))
        self._busy = 0
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._was_full = self._was_overloaded = False
        self._began: float | None = None
        self._done = 0
        self._is_rising = True
        self._before: tuple[float, float] | None = None  # bound and throughput of the last round

    @property
    def limit(self) -> int:
        """Files at once, now."""
        return int(self._limit)

    @asynccontextmanager
    async def turn(self) -> AsyncIterator[None]:
        """Waits until one more file may go, and counts how long it takes."""
        loop = asyncio.get_running_loop()
        while self._busy >= self.limit:
            self._was_full = True
            turn = loop.create_future()
            self._waiting.append(turn)
            try:
                await turn
            except BaseException:
                if turn in self._waiting:
                    self._waiting.remove(turn)
                else:  # it came together with the cancelling; another one takes it
                    self._wake()
                raise
        self._busy += 1
        began = loop.time()
        try:
            yield
            self._answered(began, loop.time())
        finally:
            self._busy -= 1
            self._wake()

    def overloaded(self) -> None:
        """A classifier has said so."""
        self._was_overloaded = True

    def _answered(self, began: float, now: float) -> None:
        if self._began is None:
            self._began = began
        self._was_full |= bool(self._waiting)
        self._done += 1
        elapsed = now - self._began
        # One "overloaded" comes seldom alone: all that are under way hear it.
        is_over = elapsed >= (_PATIENCE_S if self._was_overloaded else _ROUND_S)
        if is_over and (self._was_overloaded or self._done >= self.limit):
            self._end_round(self._done / max(elapsed, 1e-3), now)

    def _end_round(self, rate: float, now: float) -> None:
        before, limit = self._before, self._limit
        self._before = limit, rate
        if self._was_overloaded:
            self._limit, self._is_rising = limit * _OVERLOADED, True
            self._before = self._limit, rate * _OVERLOADED
        elif self._was_full:  # otherwise it is the source that is slow
            step = limit / before[0] - 1 if before else 0.0
            gain = rate / before[1] - 1 if before else 0.0
            # Upwards as long as it brings something, downwards as long as it costs next to nothing.
            if step and gain < step * (_WORTH if step > 0 else _COST):
                self._is_rising = not self._is_rising
            self._limit = max(limit + 1, limit * _MORE) if self._is_rising else limit * _FEWER
        if not 1 <= self._limit <= self._most:
            self._limit = min(max(self._limit, 1.0), float(self._most))
            self._is_rising = self._limit == 1
        self._was_full = self._was_overloaded = False
        self._began, self._done = now, 0
        for _ in range(self.limit - self._busy):
            self._wake()

    def _wake(self) -> None:
        if self._waiting and self._busy < self.limit:
            turn = self._waiting.popleft()
            if not turn.done():
                turn.set_result(None)
