"""Files of a source, many at once, what comes of them durable in small batches. A kill costs the last batch.

How far a run is stands in the database alone: the cursor of the last page that is through, and every file
of the pages after it that was looked at. So none is missed, and none looked at twice.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing, suppress
from dataclasses import dataclass, field
from datetime import datetime

from proxy.backfill.holding import Holding
from proxy.backfill.looking import Looking, Means, Result, hex_of, sha256_of
from proxy.backfill.options import Options, quiet_for
from proxy.backfill.sources import Entry, Page, Source
from proxy.backfill.viewing import BackfillError
from proxy.database import BackfillHit, BackfillRun, BackfillUnreadable
from proxy.database import backfill as runs
from proxy.database.backfill import Batch, Looked

log = logging.getLogger(__name__)

_BATCH = 64  # files that become durable together
_BATCH_S = 1.0  # or what has come in this time
_AHEAD = 8  # files under way beside twice those that the pace allows
_ENDING_S = 30.0  # for what is under way when it is told to stop


@dataclass(slots=True, eq=False)
class _Stretch:
    """A page on its way through: what it will count once all of its files are done."""

    next: str | None
    left: int = 0
    is_listed: bool = False
    reused: int = 0
    skipped: int = 0
    signals: list[dict[str, float]] = field(default_factory=list)
    readable: list[str] = field(default_factory=list)  # that were not, before


class Work:
    """What one run does. To be used once for each pass over pages."""

    def __init__(
        self,
        means: Means,
        run: BackfillRun,
        options: Options,
        *,
        ensembles: frozenset[str],
        stop: asyncio.Event,
        on_batch: Callable[[BackfillRun], None],
        on_pause: Callable[[float], None] = lambda _: None,
        on_hit: Callable[[BackfillHit], None] = lambda _: None,
        holding: Holding | None = None,
    ) -> None:
        """
        Args:
            ensembles: what looks now.
            stop: set when it is to end early.
            on_batch: told after every batch that has become durable.
            on_pause: told when quiet hours begin, and how many seconds they take.
            on_hit: told of each hit, once it is durable.
            holding: what makes cases of hits; None where they are only reported.
        """
        self._means, self.run, self._options = means, run, options
        self._looking = Looking(means, run.id, options, ensembles)
        self._holding = holding
        self._stop, self._on_batch, self._on_pause, self._on_hit = stop, on_batch, on_pause, on_hit
        done = run.looked_at + run.reused + run.unreadable
        self._quota = None if options.limit is None else options.limit - done
        self._stretches: deque[_Stretch] = deque()
        self._results: list[tuple[_Stretch, bytes, Result]] = []
        self._here: set[bytes] = set()  # files under way, or not durable yet
        # A watch has no end: what an earlier round of it has done may be stored anew since.
        self._round: set[bytes] | None = set() if run.kind == "watch" else None
        self._flying = 0
        self._landed, self._worth_it = asyncio.Event(), asyncio.Event()
        self._recording = asyncio.Lock()
        self._is_broken = False  # a batch is lost; nothing after it may become durable
        self._next_at = 0.0
        self._pacing = asyncio.Lock()  # whatever fetches waits here, one after the other
        self._is_cut = False  # a hit was left where it is, because it is to stop

    async def over(self, pages: AsyncIterator[Page]) -> bool:
        """Looks at what the pages list.

        Returns:
            Whether that is done; False where it was told to stop before.

        Raises:
            GateError: it had to stop. What it has done is durable.
        """
        try:
            async with asyncio.TaskGroup() as group:
                recording = group.create_task(self._record_always())
                is_done = await self._dispatch(pages, group)
                await self._land()
                recording.cancel()
        except ExceptionGroup as errors:
            raise errors.exceptions[0] from None  # the others fail for the same reason
        finally:
            await asyncio.shield(self._record())
        return is_done and not self._flying and not self._is_cut

    # --- listing ---

    async def _dispatch(self, pages: AsyncIterator[Page], group: asyncio.TaskGroup) -> bool:
        async with aclosing(_one_ahead(pages, self._stop)) as listed:
            return await self._dispatch_all(listed, group)

    async def _dispatch_all(self, pages: AsyncIterator[Page], group: asyncio.TaskGroup) -> bool:
        async for page in pages:
            stretch = _Stretch(page.next)
            self._stretches.append(stretch)
            wanted = [entry for entry in page.entries if self._options.wants(entry)]
            stretch.skipped = len(page.entries) - len(wanted)
            # What becomes durable from here on may be in neither of the two answers.
            here = set(self._here)
            earlier = await self._means.database.run(runs.files, [entry.key for entry in wanted])
            lost = await self._means.database.run(
                runs.unreadable_among, self.run.id, [hex_of(entry) for entry in wanted]
            )
            hashes = [sha256_of(entry, earlier.get(entry.key)) for entry in wanted]
            known = await self._means.known.among([one for one in hashes if one is not None])
            for entry, sha256 in zip(wanted, hashes, strict=True):
                before = earlier.get(entry.key)
                if self._is_done(entry, before) or lost.get(hex_of(entry)) is False:
                    continue  # done and counted before a restart, or listed twice
                if entry.key in here or entry.key in self._here:
                    continue
                is_counted = hex_of(entry) in lost  # it could not be read then, which may have passed
                if not is_counted and await self._is_used_up():
                    if self._stop.is_set():
                        return False  # of what is under way, some may not count
                    stretch.is_listed, stretch.next = True, None
                    return True
                is_cheap = self._looking.is_enough(before)
                if not await self._may_go(is_cheap=is_cheap):
                    return False
                if self._quota is not None and not is_counted:
                    self._quota -= 1
                stretch.left += 1
                self._flying += 1
                self._here.add(entry.key)
                here.add(entry.key)
                if self._round is not None:
                    self._round.add(entry.key)
                group.create_task(
                    self._look(
                        stretch,
                        entry,
                        before,
                        is_known=sha256 in known,
                        is_cheap=is_cheap,
                        was_lost=is_counted,
                    )
                )
            stretch.is_listed = True
            if self._stop.is_set():
                return False
        return not self._stop.is_set()

    def _is_done(self, entry: Entry, before: Looked | None) -> bool:
        if self._round is not None:
            return entry.key in self._round
        return before is not None and before.run_id == self.run.id

    async def _is_used_up(self) -> bool:
        """Whether no more files may be begun; what is under way may turn out not to count."""
        while self._quota is not None and self._quota <= 0 and self._flying and not self._stop.is_set():
            await self._landed_within(0.5)
        return self._quota is not None and self._quota <= 0

    async def _may_go(self, *, is_cheap: bool) -> bool:
        """Waits until one more file may be begun; False where it is to stop."""
        while self._flying >= 2 * self._means.pace.limit + _AHEAD or len(self._results) > 4 * _BATCH:
            if self._stop.is_set():
                return False
            await self._landed_within(0.5)
        return not self._stop.is_set() and (is_cheap or await self._may_fetch())

    async def _may_fetch(self) -> bool:
        """Waits until quiet hours and rate allow one more file; False where it is to stop."""
        async with self._pacing:
            return await self._paced()

    async def _paced(self) -> bool:
        while (pause_s := quiet_for(self._options.quiet_hours, datetime.now().astimezone())) > 0:
            self._on_pause(pause_s)
            if await self._stopped_within(pause_s):
                return False
        if self._options.rate is not None:
            now = asyncio.get_running_loop().time()
            self._next_at = max(now, self._next_at) + 1 / self._options.rate
            if await self._stopped_within(self._next_at - 1 / self._options.rate - now):
                return False
        return not self._stop.is_set()

    async def _stopped_within(self, seconds: float) -> bool:
        with suppress(TimeoutError):
            async with asyncio.timeout(max(seconds, 0)):
                await self._stop.wait()
        return self._stop.is_set()

    # --- looking ---

    async def _look(
        self,
        stretch: _Stretch,
        entry: Entry,
        earlier: Looked | None,
        *,
        is_known: bool,
        is_cheap: bool,
        was_lost: bool,
    ) -> None:
        result = await self._looking.look(entry, earlier, is_known=is_known)
        if self._holding is not None and isinstance(result.finding, BackfillHit):
            hit = result.finding
            if is_cheap and not await self._may_fetch():
                self._is_cut, self._flying = True, self._flying - 1
                return  # its page is not through, so the run that goes on comes to it again
            result = await self._holding.hold(entry, earlier, result)
            if result.is_recorded:
                self._on_hit(hit)
        if result.is_skipped and self._quota is not None and not was_lost:
            self._quota += 1
        if not isinstance(result.finding, BackfillUnreadable):
            stretch.readable += [hex_of(entry)] if was_lost else []
        self._results.append((stretch, entry.key, result))
        self._flying -= 1
        self._landed.set()
        if len(self._results) >= _BATCH:
            self._worth_it.set()

    async def _land(self) -> None:
        """Waits for what is under way; once it is told to stop, not for long."""
        since: float | None = None
        while self._flying:
            if self._stop.is_set():
                since = since or asyncio.get_running_loop().time()
                if asyncio.get_running_loop().time() - since > _ENDING_S:
                    raise BackfillError("what was under way took too long; start it again to go on")
            await self._landed_within(0.5)

    async def _landed_within(self, seconds: float) -> None:
        self._landed.clear()
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._landed.wait()

    # --- making it durable ---

    async def _record_always(self) -> None:
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(_BATCH_S):
                    await self._worth_it.wait()
            self._worth_it.clear()
            await asyncio.shield(self._record())

    async def _record(self) -> None:
        async with self._recording:  # one after the other: a cursor never comes before what it has passed
            if not self._is_broken:
                self._is_broken = True
                await self._record_batch()
                self._is_broken = False

    async def _record_batch(self) -> None:
        results, self._results = self._results, []
        batch = Batch()
        for stretch, _, result in results:
            stretch.left -= 1
            batch.readable, stretch.readable = batch.readable + stretch.readable, []
            _add(batch, stretch, result)
        while self._stretches and self._stretches[0].is_listed and not self._stretches[0].left:
            stretch = self._stretches.popleft()
            batch.cursor = stretch.next or batch.cursor
            batch.reused += stretch.reused
            batch.skipped += stretch.skipped
            batch.signals += stretch.signals
        if not results and batch == Batch():
            return
        self.run = await self._means.database.run(runs.record, self.run.id, batch)
        self._here.difference_update(key for _, key, _ in results)
        self._landed.set()
        for finding in batch.findings:
            if isinstance(finding, BackfillHit):
                self._on_hit(finding)
        self._on_batch(self.run)


async def pages_of(source: Source, cursor: str | None) -> AsyncIterator[Page]:
    """Every page from `cursor` on."""
    while True:
        page = await source.page(cursor)
        yield page
        if page.next is None:
            return
        cursor = page.next


def _add(batch: Batch, stretch: _Stretch, result: Result) -> None:
    if result.is_recorded:
        return
    if result.finding is not None:
        batch.findings.append(result.finding)
    batch.fetched_bytes += result.fetched_bytes
    if result.is_reused:  # nothing of it is kept, so it counts when its page does
        stretch.reused += 1
        stretch.signals.append(dict(result.signals))
    elif result.is_skipped:
        stretch.skipped += 1
    elif result.looked:
        batch.looked_at += 1
        batch.looked += result.looked
        if result.signals:
            batch.signals.append(result.signals)


async def _one_ahead(pages: AsyncIterator[Page], stop: asyncio.Event) -> AsyncGenerator[Page]:
    """The pages, each asked for while the one before is looked at; no more once it is to stop."""
    coming = asyncio.ensure_future(_next(pages))
    stopping = asyncio.ensure_future(stop.wait())
    try:
        while True:
            await asyncio.wait({coming, stopping}, return_when=asyncio.FIRST_COMPLETED)
            if not coming.done() or (page := coming.result()) is None:
                return
            coming = asyncio.ensure_future(_next(pages))
            yield page
    finally:
        coming.cancel()
        stopping.cancel()
        await asyncio.gather(coming, stopping, return_exceptions=True)


async def _next(pages: AsyncIterator[Page]) -> Page | None:
    return await anext(pages, None)
