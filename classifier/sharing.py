"""Looks that are shared: who asks about a file that is being looked at waits for the same answer."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Hashable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from classifier.errors import Rejection, deadline_exceeded

T = TypeVar("T")


@dataclass(slots=True)
class _Look(Generic[T]):
    task: asyncio.Task[T]
    waiting: int = 0


class Shared(Generic[T]):
    """Concurrent looks at the same thing, each made once."""

    def __init__(self) -> None:
        self._under_way: dict[Hashable, _Look[T]] = {}

    async def look(
        self, key: Hashable, deadline: float, start: Callable[[float], Coroutine[Any, Any, T]]
    ) -> T:
        """The answer about `key`: another's, where one is under way.

        A look ends when nobody waits for it any more. Where it ran out of the time of whoever began it, and
        there is more here, it is begun anew.

        Args:
            deadline: on the event loop's clock.
            start: begins a look that has until the given deadline.

        Raises:
            Rejection: it cannot be looked at, not in time, or not now.
        """
        loop = asyncio.get_running_loop()
        while True:
            look = self._under_way.get(key)
            # One that has just ended may stand there until asyncio comes to `_forget`; to take its answer
            # again and again would keep it from coming.
            is_own = look is None or look.task.done()
            if look is None or is_own:
                look = self._begin(key, start(deadline))
            try:
                return await self._wait(key, look, deadline)
            except Rejection as rejection:
                if is_own or rejection.code != deadline_exceeded().code or loop.time() >= deadline:
                    raise

    def _begin(self, key: Hashable, coroutine: Coroutine[Any, Any, T]) -> _Look[T]:
        look = self._under_way[key] = _Look(asyncio.create_task(coroutine))
        look.task.add_done_callback(lambda _: self._forget(key, look))
        return look

    def _forget(self, key: Hashable, look: _Look[T]) -> None:
        if self._under_way.get(key) is look:
            del self._under_way[key]
        if look.task.done() and not look.task.cancelled():
            look.task.exception()  # read, or asyncio complains where everybody was gone

    async def _wait(self, key: Hashable, look: _Look[T], deadline: float) -> T:
        look.waiting += 1
        try:
            async with asyncio.timeout_at(deadline):
                return await asyncio.shield(look.task)
        except TimeoutError:
            raise deadline_exceeded() from None
        finally:
            look.waiting -= 1
            if not look.waiting:
                look.task.cancel()
                self._forget(key, look)  # at once: nobody is to join what is being cancelled
