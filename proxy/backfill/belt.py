"""What stands between a run and its Ray cluster: questions go out over it, and a death loses none of them.

It holds no picture and no fact of one; the job that it tells has keys in it and is shown nowhere.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any


class Belt:
    """Carries questions from here into the pipeline, and knows which of them a worker has died over.

    Ray asks again for as long as workers die. That ends: once over all questions that went together, and then
    once over each of them alone, which is unreadable from then on.
    """

    def __init__(self) -> None:
        # All of this is bounded by the run's files under way.
        self._questions: asyncio.Queue[Any] = asyncio.Queue()
        self._begun: set[int] = set()
        self._alone: set[int] = set()
        self._job: Any = None
        self._taker: str | None = None

    async def tell(self, job: Any) -> None:
        """What workers are told; see `job`."""
        self._job = job

    async def job(self) -> Any:
        """What was told."""
        return self._job

    async def put(self, question: Any) -> None:
        """Sends a question on its way; None is the last one."""
        self._questions.put_nowait(question)

    async def take(self, taker: str, most: int) -> list[Any]:
        """The next questions, at least one."""
        if self._taker not in (None, taker):
            raise RuntimeError("what the first one took is lost")  # so the run stops
        self._taker = taker
        taken = [await self._questions.get()]
        while taken[-1] is not None and len(taken) < most and not self._questions.empty():
            taken.append(self._questions.get_nowait())
        return taken

    async def begin(self, numbers: Sequence[int]) -> bool:
        """Notes that a worker begins with them; whether one has before, and has died of it."""
        is_again = not self._begun.isdisjoint(numbers)
        self._begun.update(numbers)
        return is_again

    async def begin_alone(self, number: int) -> bool:
        """The same for one that a worker looks at with no other beside it."""
        is_again = number in self._alone
        self._alone.add(number)
        return is_again

    async def end(self, numbers: Sequence[int], *, alone: bool) -> None:
        """A worker has lived through them."""
        self._alone.difference_update(numbers)
        if not alone:
            self._begun.difference_update(numbers)
