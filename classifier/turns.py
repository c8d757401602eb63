"""Whose turn it is: live files before backfill, always; among equals, who came first."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterable
from enum import StrEnum
from itertools import chain
from typing import Generic, TypeVar

from classifier.errors import deadline_exceeded

Thing = TypeVar("Thing")


class Priority(StrEnum):
    """Who waits for a file, the most urgent first."""

    LIVE = "live"  # an uploader
    BACKFILL = "backfill"  # nobody


class Turns(Generic[Thing]):
    """Things that serve one file at a time, and the files that wait for one of them.

    Whoever takes a thing puts it back, or another one in its place. How many wait is for the caller to bound.
    """

    def __init__(self, things: Iterable[Thing] = ()) -> None:
        self._free = deque(things)  # nobody waits while there is one
        self._waiting: dict[Priority, list[asyncio.Future[Thing]]] = {priority: [] for priority in Priority}

    async def take(self, priority: Priority, deadline: float) -> Thing:
        """Waits for a thing. Who is cancelled while it waits takes none.

        Args:
            deadline: on the event loop's clock.

        Raises:
            Rejection: the deadline came first.
        """
        loop = asyncio.get_running_loop()
        if loop.time() >= deadline:
            raise deadline_exceeded()
        if self._free:
            return self._free.popleft()
        turn: asyncio.Future[Thing] = loop.create_future()
        self._waiting[priority].append(turn)
        try:
            async with asyncio.timeout_at(deadline):
                return await turn
        except (TimeoutError, asyncio.CancelledError) as end:
            if not turn.cancelled():  # the thing and the end of the wait came together
                self.put(turn.result())
            if isinstance(end, TimeoutError):
                raise deadline_exceeded() from None
            raise
        finally:
            self._waiting[priority].remove(turn)

    def put(self, thing: Thing) -> None:
        """Hands a thing to whose turn it is, or keeps it until somebody comes."""
        for turn in chain.from_iterable(self._waiting.values()):
            if not turn.done():
                turn.set_result(thing)
                return
        self._free.append(thing)
