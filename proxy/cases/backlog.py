"""What nobody could look at, looked at in its order as soon as somebody can again.

This file sees to whose turn it is and how often something is tried; what is done with it is `deferred.py`'s
and `unseen.py`'s. Nothing that matters is kept in memory: a gate that is killed loses its lease, and another
one, or the same, goes on. It must never end by itself, and never look at one thing twice at the same time.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Protocol

from sqlalchemy.exc import SQLAlchemyError

from proxy.channels.lookout import Lookout
from proxy.database import Case, Database, UnseenUpload
from proxy.database import backlog as rows
from proxy.database.backlog import Lease
from proxy.errors import CaseError, PictrsError, SealingError
from proxy.metrics import Metrics
from proxy.saying import said

log = logging.getLogger(__name__)

_MOST_REMEMBERED = 10_000


@dataclass(frozen=True, slots=True)
class Pace:
    """
    Attributes:
        lease_s: longer than any look and release take: after it a gate that had something is taken for dead.
        again_s: after which what nobody could look at is tried again; those behind it have their turn then.
        most_tries: in vain, while others were looked at; then a human decides.
        idle_s: between two looks at an empty queue.
        longest_pause_s: between two tries while nothing succeeds.
    """

    lease_s: float = 120.0
    again_s: float = 5.0
    most_tries: int = 5
    idle_s: float = 1.0
    longest_pause_s: float = 30.0


class NotNow(Exception):
    """Something cannot be settled now, and is tried again.

    Attributes:
        again_s: seconds until then; None for the usual.
        progress: how often others had what this one had not, so far, and what that is; None where this says
            nothing about it, because nobody has it now.
        is_over: whether pict-rs is certainly sent nothing any more.
    """

    def __init__(
        self,
        reason: str,
        *,
        again_s: float | None = None,
        progress: tuple[str, int] | None = None,
        is_over: bool = True,
    ) -> None:
        super().__init__(reason)
        self.again_s, self.progress, self.is_over = again_s, progress, is_over


class Queue(Protocol):
    """One kind of what waits."""

    async def lease(self, lease: Lease, *, looking: bool) -> Any | None:
        """The next one, for the caller alone; None where there is none.

        Args:
            looking: whether it may be one that nobody has looked at yet.
        """
        ...

    async def settle(self, item: Any) -> None:
        """Does all that there is to do about it.

        Raises:
            NotNow: it has to wait.
            CaseError: it is not this gate's any more.
        """
        ...

    async def give_up(self, item: Any, reason: str) -> None:
        """Makes it a human's.

        Raises:
            NotNow, CaseError: as of `settle`.
        """
        ...


class Backlog:
    """Works through the queues."""

    def __init__(
        self,
        database: Database,
        lookout: Lookout,
        metrics: Metrics,
        *,
        workers: Sequence[Sequence[Queue]],
        sweeper: Queue,
        owner: str,
        pause: Callable[[], Awaitable[bool]],
        public: Callable[[], Awaitable[int]],
        pace: Pace | None = None,
    ) -> None:
        """
        Args:
            workers: for each, its queues in the order in which it asks them.
            sweeper: a queue that needs nobody to look.
            owner: a name of this gate, the same after a restart and no other gate's.
            pause: while it says True, nothing is looked at; what needs no look goes on.
            public: how many hits are to be seen by everybody still, for the metrics.
        """
        self._database, self._lookout, self._metrics = database, lookout, metrics
        self._workers, self._sweeper, self._owner, self._pause = workers, sweeper, owner, pause
        self._public = public
        self._pace = pace or Pace()
        # What others had achieved when something was last tried in vain. Lost at a restart, it costs a try.
        self._progress: dict[tuple[str | int, str], int] = {}
        # What the database did not take back: given back before anything else is taken, so that nobody
        # believes this gate to have died of it. One a worker at most.
        self._owed: list[Callable[[], Awaitable[None]]] = []

    async def run(self) -> None:
        """Goes on until it is cancelled; what it has in hand then is given back."""
        while True:
            try:
                await self._run()
            except Exception as error:  # noqa: BLE001 — the border
                log.error("the backlog begins anew: %s", said(error))
                await asyncio.sleep(self._pace.longest_pause_s)

    async def _run(self) -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(self._count())
            await self._forget_leases()
            for queues in self._workers:
                group.create_task(self._work(queues, needs_look=True))
            group.create_task(self._work([self._sweeper], needs_look=False))

    async def _forget_leases(self) -> None:
        """Those of a gate of this name that was killed. Until that can be written nothing else can."""
        pause_s = self._pace.idle_s
        until = datetime.now(UTC) + timedelta(seconds=self._pace.lease_s)
        while datetime.now(UTC) < until:  # by then they have run out by themselves
            try:
                await self._database.run(rows.forget_leases, self._owner, until=until)
                break
            except SQLAlchemyError as error:
                log.error("the backlog has to wait: %s", said(error))
            await asyncio.sleep(pause_s)
            pause_s = min(self._pace.longest_pause_s, pause_s * 2)

    async def _work(self, queues: Sequence[Queue], *, needs_look: bool) -> None:
        pause_s, looked = self._pace.idle_s, self._lookout.looked
        while True:
            done: bool | None = False
            try:
                if self._lookout.is_hopeful or not needs_look:
                    done = await self._next(queues, looking=needs_look and not await self._pause())
            except Exception as error:  # noqa: BLE001 — the border: whatever it is, the backlog goes on
                log.error("the backlog has to wait: %s", said(error))
                done = None
            if done:
                pause_s = self._pace.idle_s
            elif done is False:
                await asyncio.sleep(self._pace.idle_s)
            else:
                # Where others were looked at meanwhile, there is no outage to wait out.
                is_alone, looked = looked == self._lookout.looked, self._lookout.looked
                pause_s = min(self._pace.longest_pause_s, pause_s * 2) if is_alone else self._pace.idle_s
                await asyncio.sleep(pause_s)

    async def _next(self, queues: Sequence[Queue], *, looking: bool) -> bool | None:
        """Settles what is next; False where there is nothing, None where it has to wait."""
        while self._owed:
            give_back = self._owed.pop()
            try:
                await give_back()
            except SQLAlchemyError:
                self._owed.append(give_back)
                raise
        for queue in queues:
            until = datetime.now(UTC) + timedelta(seconds=self._pace.lease_s)
            item = await queue.lease(Lease(self._owner, until), looking=looking)
            if item is not None:
                return await self._settle(queue, item)
        return False

    async def _settle(self, queue: Queue, item: Case | UnseenUpload) -> bool | None:
        key = item.id if isinstance(item, Case) else item.number
        again_s: float | None = self._pace.again_s
        counts, is_over, done = False, False, False
        try:
            async with asyncio.timeout(self._pace.lease_s * 0.9):
                if item.tries >= self._pace.most_tries:
                    await queue.give_up(item, f"{item.tries} tries were in vain")
                else:
                    await queue.settle(item)
            again_s, is_over, done = None, True, True
        except NotNow as error:
            log.warning("%s has to wait: %s", key, error)
            again_s, is_over = error.again_s or again_s, error.is_over
            counts = self._is_alone_in_it(key, error)
        except CaseError as error:
            log.info("%s is not the backlog's any more: %s", key, error)
            again_s, done = self._pace.again_s * 4, True
        except SealingError as error:  # the disk: nothing was begun, or all is done but the last step
            log.error("%s has to wait: %s", key, error)
            again_s = self._pace.longest_pause_s
        except (SQLAlchemyError, PictrsError, OSError) as error:  # TimeoutError is an OSError
            log.warning("%s has to wait: %s", key, said(error))
            again_s = self._pace.lease_s * 1.5  # nobody knows what is still under way
        except asyncio.CancelledError:
            again_s = None
            raise
        except Exception as error:  # noqa: BLE001 — the border: an odd file is a human's in the end
            log.error("%s cannot be settled: %s", key, type(error).__name__)
            counts = True
        finally:
            await asyncio.shield(self._give_back(item, again_s=again_s, counts=counts, is_over=is_over))
        return True if done else None

    def _is_alone_in_it(self, key: str | int, error: NotNow) -> bool:
        """Whether others had, since the last try, what this one had not: then it is its own fault."""
        if error.progress is None:
            return False
        what, now = error.progress
        if len(self._progress) >= _MOST_REMEMBERED:
            self._progress.clear()
        before = self._progress.get((key, what))
        self._progress[key, what] = now
        return before is not None and now > before

    async def _give_back(
        self, item: Case | UnseenUpload, *, again_s: float | None, counts: bool, is_over: bool
    ) -> None:
        async def give_back() -> None:
            await self._database.run(rows.give_back, item, again_s=again_s, counts=counts, is_over=is_over)

        try:
            await give_back()
        except SQLAlchemyError:
            self._owed.append(give_back)

    async def _count(self) -> None:
        while True:
            try:
                waiting = await self._database.run(rows.waiting)
                self._metrics.backlog.labels(kind="deferred").set(waiting.deferred + waiting.releasing)
                self._metrics.backlog.labels(kind="unseen").set(waiting.unseen)
                self._metrics.backlog.labels(kind="pending").set(waiting.pending)
                self._metrics.backlog.labels(kind="cut_off").set(waiting.cut_off)
                since = min(filter(None, (waiting.since, waiting.unseen_since)), default=None)
                waits_s = (datetime.now(UTC) - since).total_seconds() if since else 0
                self._metrics.backlog_oldest_seconds.set(waits_s)
                self._metrics.public_hits.set(await self._public())
            except Exception as error:  # noqa: BLE001 — the border
                log.error("the backlog cannot be counted: %s", said(error))
            await asyncio.sleep(self._pace.idle_s * 5)
