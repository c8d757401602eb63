"""One run over a source: every file looked at, hits noted, nothing touched, durable page by page."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from proxy.backfill.sources import Entry, Source
from proxy.channels.lookout import Lookout
from proxy.channels.looks import File, Priority, Seen, Undecodable, Unseen
from proxy.database import BackfillHit, BackfillRun, Database
from proxy.database import backfill as table
from proxy.errors import GateError
from proxy.known_hashes import KnownHashes
from proxy.media import recognise
from proxy.policy import Policy, Verdict, decide

log = logging.getLogger(__name__)

_AT_ONCE = 4
_LOOK_S = 120.0  # nobody waits for a backfill; live uploads go first at the classifier


class BackfillError(GateError):
    """A run had to stop. What it has done is kept, and the next one goes on from there."""


@dataclass(frozen=True, slots=True)
class _Finding:
    unreadable: bool = False
    hit: BackfillHit | None = None


class Backfill:
    """Looks at everything that a source lists."""

    def __init__(
        self, database: Database, source: Source, lookout: Lookout, policy: Policy, known: KnownHashes
    ) -> None:
        self._database, self._source = database, source
        self._lookout, self._policy, self._known = lookout, policy, known

    async def run(self, on_page: Callable[[BackfillRun], None]) -> BackfillRun:
        """Goes on with the unfinished run, or begins one; returns it finished.

        Args:
            on_page: told after every page that has become durable.

        Raises:
            BackfillError: nobody could look any more; the run can be gone on with.
            PictrsError: the source cannot be reached any more; likewise.
        """
        run = await self._database.run(table.open_run)
        while run.finished_at is None:
            page = await self._source.page(run.slug)
            findings = await self._look_at_all(run.id, page.entries)
            run = await self._database.run(
                table.page_done,
                run.id,
                next_slug=page.next,
                looked_at=len(findings),
                unreadable=sum(finding.unreadable for finding in findings),
                hits=[finding.hit for finding in findings if finding.hit is not None],
            )
            on_page(run)
        return run

    async def _look_at_all(self, run_id: int, entries: Sequence[Entry]) -> list[_Finding]:
        at_once = asyncio.Semaphore(_AT_ONCE)
        try:
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(self._look(run_id, entry, at_once)) for entry in entries]
        except ExceptionGroup as errors:
            raise errors.exceptions[0] from None  # the others fail for the same reason
        return [task.result() for task in tasks]

    async def _look(self, run_id: int, entry: Entry, at_once: asyncio.Semaphore) -> _Finding:
        async with at_once:
            decision = await self._known.find(entry.sha256)
            signals: dict[str, float] = {}
            if decision is None:
                content = await self._source.fetch(entry)
                media = recognise(content) if content is not None else None
                if content is None or media is None:
                    return _Finding(unreadable=True)
                look = await self._lookout.look(
                    File(content, media), priority=Priority.BACKFILL, within_s=_LOOK_S
                )
                if isinstance(look, Unseen):
                    raise BackfillError(f"nobody could look: {look.reason}; start it again to go on")
                if isinstance(look, Undecodable):
                    return _Finding(unreadable=True)
                if isinstance(look, Seen):
                    signals = dict(look.signals)
                decision = decide(self._policy, look, media)
        if decision.verdict is Verdict.ALLOW:
            return _Finding()
        hit = BackfillHit(
            run_id=run_id,
            hex=entry.hex,
            verdict=decision.verdict.value,
            reason=decision.reason[:500],
            aliases=list(entry.aliases),
            signals=signals,
        )
        return _Finding(hit=hit)
