"""What the running gate does for its ledger: settings at the start, a checkpoint a day, plain allows.

Nothing of it is in an upload's way. What fails is said in the log and tried again.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from sqlalchemy.exc import SQLAlchemyError

from proxy.config import Config
from proxy.database import Database, allows, checkpoints, ledger
from proxy.errors import LedgerError
from proxy.ledger.allows import AllowRecorder, Allows, NoAllows
from proxy.ledger.checkpoints import append_missing
from proxy.ledger.settings import flat
from proxy.ledger.signing import Signer, signer
from proxy.metrics import Metrics
from proxy.saying import said

log = logging.getLogger(__name__)

_A_DAY = timedelta(days=1)
_EVERY_S = 600.0  # how often it is looked whether something is due
# Transactions that delete old allows in that time, and seconds between two: uploads have to come in between.
_MOST_PRUNED, _PAUSE_S = 60, 0.5


@dataclass(frozen=True, slots=True)
class Books:
    """
    Attributes:
        keep_allows: for how long plain allows are kept.
    """

    database: Database
    signer: Signer
    checkpoints_file: Path
    keep_allows: timedelta
    metrics: Metrics

    async def check(self) -> None:
        """Makes a checkpoint where one is due, and has the file tell all that there are."""
        try:
            await self.database.run(self._checkpoint)
        except (OSError, LedgerError, SQLAlchemyError) as error:
            log.error("no checkpoint of the ledger could be kept: %s", said(error))

    async def prune(self) -> None:
        """Deletes plain allows whose days are over, a bounded number."""
        try:
            for _ in range(_MOST_PRUNED):
                if not await self.database.run(allows.prune, before=datetime.now(UTC) - self.keep_allows):
                    return
                await asyncio.sleep(_PAUSE_S)
        except SQLAlchemyError as error:
            log.error("old plain allows could not be deleted: %s", said(error))

    async def run(self) -> None:
        """Does both again and again, until it is cancelled."""
        while True:
            await self.prune()
            await asyncio.sleep(_EVERY_S)
            await self.check()

    def _checkpoint(self, database: Database) -> None:
        made = checkpoints.make(database, self.signer, every=_A_DAY)
        if made is not None:
            log.info("checkpoint %s of the ledger, at entry %s", made.checkpoint, made.number)
        kept = checkpoints.listed(database)
        append_missing(self.checkpoints_file, kept)
        if kept:  # only now: it counts once it is in the file too
            self.metrics.checkpoint_made_at(kept[-1].moment)


@asynccontextmanager
async def bookkeeping(config: Config, database: Database, metrics: Metrics) -> AsyncIterator[Allows]:
    """Keeps the books as long as the gate runs; what it yields is told of plain allows.

    Raises:
        ConfigError: there is no key to sign with, and none can be made.
        SQLAlchemyError: the settings cannot be noted.
    """
    section = config.ledger
    gate = f"{socket.gethostname()} {config.server.listen}"
    key = await asyncio.to_thread(signer, section.key_file)
    await database.run(ledger.started, gate, flat(config), key=key.key)
    kept = timedelta(days=section.keep_allows_days)
    books = Books(database, key, section.checkpoints_file, kept, metrics)
    await books.check()
    checking = asyncio.create_task(books.run())
    try:
        if kept:
            async with AllowRecorder(database, metrics) as recorder:
                yield recorder
        else:
            yield NoAllows()
    finally:
        checking.cancel()
        with suppress(asyncio.CancelledError):
            await checking
