"""Notes plain allows without making anybody wait: they are statistics, and no promise rests on them."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from contextlib import suppress
from datetime import UTC, datetime
from itertools import islice
from typing import Protocol, Self

from sqlalchemy.exc import SQLAlchemyError

from proxy.channels.looks import Seen
from proxy.database import Database, allows
from proxy.database.allows import Allowed
from proxy.metrics import Metrics
from proxy.saying import said

log = logging.getLogger(__name__)

# Rows that wait (some MB), that are written in one transaction, and seconds between two of these: one commit
# in that time, whatever comes.
_MOST_WAITING, _BATCH, _EVERY_S = 10_000, 500, 5.0
_FLUSH_S = 5.0  # at the end


class Allows(Protocol):
    """Is told of every file that was plainly allowed."""

    def note(self, sha256: str, seen: Seen | None) -> None:
        """Returns at once.

        Args:
            sha256: lower-case hexadecimal.
            seen: what a classifier saw; None where a human's decision let the file pass.
        """
        ...


class NoAllows:
    """Keeps nothing."""

    def note(self, sha256: str, seen: Seen | None) -> None:
        """See `Allows.note`."""


class AllowRecorder:
    """Keeps them until they are written, a bounded number; what is too much is dropped and counted."""

    def __init__(self, database: Database, metrics: Metrics) -> None:
        self._database, self._metrics = database, metrics
        self._waiting: deque[Allowed] = deque()
        self._ending = asyncio.Event()
        self._writing: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        """Begins to write what comes."""
        self._writing = asyncio.create_task(self._write())
        return self

    async def __aexit__(self, *_: object) -> None:
        """Writes what waits, within a few seconds; nothing more may be noted."""
        assert self._writing is not None
        self._ending.set()
        await asyncio.wait({self._writing}, timeout=_FLUSH_S)
        self._writing.cancel()
        if self._waiting:
            self._metrics.allows_dropped.inc(len(self._waiting))
            log.error("%s plain allows were not written", len(self._waiting))

    def note(self, sha256: str, seen: Seen | None) -> None:
        """See `Allows.note`."""
        if len(self._waiting) >= _MOST_WAITING:
            self._metrics.allows_dropped.inc()
            return
        signals, ensemble = None, None
        if seen is not None:
            signals = {name: round(value, 4) for name, value in seen.signals.items()}
            ensemble = seen.ensemble[:200]
        self._waiting.append(Allowed(datetime.now(UTC), bytes.fromhex(sha256), signals, ensemble))

    async def flush(self) -> None:
        """Writes what waits.

        Raises:
            SQLAlchemyError: the rest waits on.
        """
        while self._waiting:
            batch = list(islice(self._waiting, _BATCH))
            await self._database.run(allows.add, batch)
            for _ in batch:
                self._waiting.popleft()

    async def _write(self) -> None:
        # Asked to end rather than cancelled: a batch that is being written would be written twice.
        is_last = False
        while not is_last:
            with suppress(TimeoutError):
                await asyncio.wait_for(self._ending.wait(), _EVERY_S)
            is_last = self._ending.is_set()
            try:
                await self.flush()
            except SQLAlchemyError as error:
                log.error("plain allows could not be written yet: %s", said(error))
