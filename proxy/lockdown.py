"""Under attack an admin holds every upload, at once and on every gate that shares the database.

What is held is deferred and not looked at: the classifier may be what is being flooded. Where the database
cannot say whether there is a lockdown, nothing passes.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Collection

from sqlalchemy.exc import SQLAlchemyError

from proxy.database import Database, lockdowns
from proxy.metrics import Metrics
from proxy.policy import Decision, Verdict
from proxy.saying import said

log = logging.getLogger(__name__)

_WATCH_EVERY_S = 2.0


class Lockdowns:
    """Says whether uploads are looked at now, or held as they come."""

    def __init__(self, database: Database, allow_users: Collection[int], metrics: Metrics) -> None:
        """
        Args:
            allow_users: Lemmy's local user ids whose uploads are looked at as ever.
        """
        self._database, self._metrics = database, metrics
        self._allow_users = frozenset(map(str, allow_users))

    async def decision(self, uploader_id: str | None) -> Decision | None:
        """What becomes of every file of an uploader now; None where it is looked at. Asks the database.

        Args:
            uploader_id: Lemmy's local user id, where somebody who checks logins has passed it on.

        Raises:
            SQLAlchemyError: the database cannot be asked.
        """
        found = await self._database.run(lockdowns.in_force)
        self._metrics.lockdown.set(found is not None)
        if found is None or uploader_id in self._allow_users:
            return None
        return Decision(Verdict.DEFER, f"lockdown: {found.reason or 'no reason was given'}", by_lockdown=True)

    async def is_on(self) -> bool:
        """Whether there is a lockdown now: what was deferred waits until it is over.

        Raises:
            SQLAlchemyError: the database cannot be asked.
        """
        return await self._database.run(lockdowns.in_force) is not None

    async def watch(self) -> None:
        """Shows it on the metrics, and writes down its end where its time is over; for ever."""
        while True:
            try:
                ended = await self._database.run(lockdowns.end_due)
                if ended is not None:
                    log.warning("the lockdown of %s is over: its time has passed", ended.by)
                self._metrics.lockdown.set(await self.is_on())
            except SQLAlchemyError as error:
                log.error("the database cannot be asked for a lockdown: %s", said(error))
            await asyncio.sleep(_WATCH_EVERY_S)
