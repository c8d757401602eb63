"""One run over a source: every file looked at, hits noted, nothing touched, durable page by page."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence

from proxy.backfill.sources import Entry, Source, Unreadable
from proxy.channels.lookout import Lookout
from proxy.channels.looks import File, Priority, Seen, Undecodable, Unseen
from proxy.database import BackfillHit, BackfillRun, Database
from proxy.database import backfill as runs
from proxy.database.models import BackfillUnreadable
from proxy.errors import GateError
from proxy.known_hashes import KnownHashes
from proxy.media import recognise
from proxy.policy import Policy, Verdict, decide

log = logging.getLogger(__name__)

_AT_ONCE = 4
_LOOK_S = 120.0  # nobody waits for a backfill; live uploads go first at the classifier


_Finding = BackfillHit | BackfillUnreadable | None  # None: it may stay


class BackfillError(GateError):
    """A run had to stop. What it has done is kept, and the next one goes on from there."""


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
        run = await self._database.run(runs.open_run)
        while run.finished_at is None:
            page = await self._source.page(run.slug)
            findings = await self._look_at_all(run.id, page.entries)
            run = await self._database.run(
                runs.page_done,
                run.id,
                next_slug=page.next,
                looked_at=sum(not isinstance(finding, BackfillUnreadable) for finding in findings),
                findings=[finding for finding in findings if finding is not None],
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
        def unreadable(reason: str) -> BackfillUnreadable:
            return BackfillUnreadable(
                run_id=run_id, hex=entry.hex, aliases=list(entry.aliases), reason=reason[:500]
            )

        async with at_once:
            decision = await self._known.find(entry.sha256)
            signals: dict[str, float] = {}
            if decision is None:
                content = await self._source.fetch(entry)
                if isinstance(content, Unreadable):
                    return unreadable(content.reason)
                media = recognise(content)
                if media is None:
                    return unreadable("no format of pict-rs's")
                look = await self._lookout.look(
                    File(content, media), priority=Priority.BACKFILL, within_s=_LOOK_S
                )
                if isinstance(look, Unseen):
                    raise BackfillError(f"nobody could look: {look.reason}; start it again to go on")
                if isinstance(look, Undecodable):
                    return unreadable(f"undecodable: {look.reason}")
                if isinstance(look, Seen):
                    signals = dict(look.signals)
                decision = decide(self._policy, look, media, await self._known.find_near(look))
        if decision.verdict is Verdict.ALLOW:
            return None
        return BackfillHit(
            run_id=run_id,
            hex=entry.hex,
            verdict=decision.verdict.value,
            reason=decision.reason[:500],
            aliases=list(entry.aliases),
            signals=signals,
        )
