"""One bound on the memory that bodies may take, over all requests.

Those that do not fit wait in their order, their sockets unread, so that the sender's own buffers hold what
the gate does not. A body has to show that it comes before much is reserved for it: see `Room`.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress


class Crowded(Exception):
    """Too many wait already."""


class Budget:
    """A number of bytes, lent out first come first served."""

    def __init__(self, total: int, most_waiting: int = 1024) -> None:
        """
        Args:
            total: bytes.
            most_waiting: for their turn; whoever comes then is told at once.
        """
        self._free = self.total = total
        self._most_waiting = most_waiting
        self._waiting: deque[tuple[int, asyncio.Future[None]]] = deque()

    @property
    def lent(self) -> int:
        """Bytes that are lent out now."""
        return self.total - self._free

    @asynccontextmanager
    async def lend(self, count: int) -> AsyncIterator[None]:
        """Waits until `count` bytes are free, and gives them back at the end of the block.

        Raises:
            ValueError: there are not that many in all.
            Crowded: as many wait already as may.
            TimeoutError: the caller's deadline passed; nothing is taken.
        """
        if count > self.total:
            raise ValueError(f"{count} bytes are more than the budget of {self.total}")
        if self._waiting or count > self._free:
            if len(self._waiting) >= self._most_waiting:
                raise Crowded
            turn = asyncio.get_running_loop().create_future()
            self._waiting.append((count, turn))
            try:
                await turn
            except BaseException:
                if turn.done() and not turn.cancelled():  # it came together with the deadline
                    self.give_back(count)
                else:
                    with suppress(ValueError):  # passed over already, by somebody who gave back
                        self._waiting.remove((count, turn))
                    self._next()
                raise
        else:
            self._free -= count
        try:
            yield
        finally:
            self.give_back(count)

    def try_lend(self, count: int) -> bool:
        """Takes `count` bytes if they are free and nobody waits; to be given back by `give_back`."""
        if self._waiting or count > self._free:
            return False
        self._free -= count
        return True

    def give_back(self, count: int) -> None:
        """Gives back what `try_lend` took."""
        self._free += count
        self._next()

    def _next(self) -> None:
        while self._waiting and self._waiting[0][0] <= self._free:
            count, turn = self._waiting.popleft()
            if not turn.done():
                self._free -= count
                turn.set_result(None)


class Room:
    """Memory for one body, reserved as it comes.

    Its first bytes need none, so that a head alone takes nothing; a body of up to a MiB, as most are, takes
    its share of memory that large ones cannot fill; and only one that goes on takes all that it may become.
    """

    FREE_BYTES = 64 * 1024
    SMALL_BYTES = 1024 * 1024

    def __init__(self, small: Budget, large: Budget, most: int, deadline: float) -> None:
        """
        Args:
            small, large: what the first MiB and the rest are reserved of.
            most: bytes that the body may have.
            deadline: on the event loop's clock, for the waiting.
        """
        self._small, self._large, self.most, self._deadline = small, large, most, deadline
        self._lent = AsyncExitStack()
        self.granted = self.FREE_BYTES

    async def __aenter__(self) -> Room:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._lent.aclose()

    async def grow(self) -> None:
        """Waits until more may be read, and raises `granted`.

        Raises:
            Crowded, TimeoutError: there is no room, and will not be in time.
        """
        if self.granted < self.SMALL_BYTES:
            budget, to = self._small, min(self.SMALL_BYTES, self.most)
            count = to
        else:
            budget, to = self._large, self.most
            count = to - self.SMALL_BYTES
        async with asyncio.timeout_at(self._deadline):
            await self._lent.enter_async_context(budget.lend(count))
        self.granted = to
