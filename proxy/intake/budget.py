"""One bound on the memory that bodies may take, over all requests.

A request reserves all that its body may be before the first byte of it is read. Those that do not fit wait in
their order, their sockets unread, so that the sender's own buffers hold what the gate does not.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress


class Budget:
    """A number of bytes, lent out first come first served."""

    def __init__(self, total: int) -> None:
        self._free = self.total = total
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
            TimeoutError: the caller's deadline passed; nothing is taken.
        """
        if count > self.total:
            raise ValueError(f"{count} bytes are more than the budget of {self.total}")
        if self._waiting or count > self._free:
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
