"""Notes plain allows without making anybody wait: they are statistics, and no promise rests on them."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from datetime import UTC, datetime
from itertools import islice
from typing import Protocol

from sqlalchemy.exc import SQLAlchemyError

from proxy.channels.looks import Seen
from proxy.database import Database, allows
from proxy.database.allows import Allowed
from proxy.metrics import Metrics

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

    async def run(self) -> None:
        """Writes what comes, until it is cancelled."""
        while True:
            await asyncio.sleep(_EVERY_S)
            try:
                await self.flush()
            except SQLAlchemyError as error:
                log.error("plain allows could not be written yet: %s", type(error).__name__)

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

    async def close(self) -> None:
        """Writes what waits, within a few seconds, once nothing more is noted and `run` has ended."""
        try:
            async with asyncio.timeout(_FLUSH_S):
                await self.flush()
        except (SQLAlchemyError, TimeoutError) as error:
            self._metrics.allows_dropped.inc(len(self._waiting))
            log.error("%s plain allows were not written: %s", len(self._waiting), type(error).__name__)
