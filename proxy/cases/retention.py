"""Deletes the bytes of cases whose period is over: because somebody runs it, or daily where that is set.

Never of what is not decided, never under a legal hold, never anything in the folder that no case owns.
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass, field

from sqlalchemy.exc import SQLAlchemyError

from proxy.cases.quarantine import Quarantine
from proxy.database import Database, retention
from proxy.database.retention import Due, Periods
from proxy.errors import CaseError, SealingError
from proxy.faults import FaultPoint
from proxy.saying import said

log = logging.getLogger(__name__)

_EVERY_S = 24 * 3600.0
_AGAIN_S = 600.0  # where the database could not be asked


@dataclass(slots=True)
class Run:
    """What came of one run.

    Attributes:
        expired: cases that have expired now.
        deleted: cases whose bytes are gone now; those of an earlier run that was cut off are among them.
        kept: why cases whose period is over were kept, by their ids.
    """

    expired: list[Due] = field(default_factory=list)
    deleted: list[str] = field(default_factory=list)
    kept: dict[str, str] = field(default_factory=dict)


class Retention:
    """Carries out the periods that the admin has set."""

    def __init__(
        self, database: Database, quarantine: Quarantine, periods: Periods, fault: FaultPoint
    ) -> None:
        self._database, self._quarantine, self._periods, self._fault = database, quarantine, periods, fault

    async def due(self) -> list[Due]:
        """Cases that a run would let expire now; it does nothing."""
        return await self._database.run(retention.due, self._periods)

    async def left(self) -> list[Due]:
        """Expired cases whose bytes a run would delete now: they came back, or a run was cut off."""

        def work(database: Database) -> list[Due]:
            sizes = {name: self._quarantine.size(name) for name in self._quarantine.names()}
            return retention.to_delete(database, sizes)

        return await self._database.run(work)

    async def run(self, *, on_behalf_of: str | None) -> Run:
        """Expires what is due and deletes its bytes. What cannot be deleted is left for the next run.

        Args:
            on_behalf_of: who has run it; None for the gate, which the admin has told to.

        Raises:
            SQLAlchemyError: the database cannot be asked or written; the next run goes on.
        """
        done = Run()
        for one in await self.due():
            if one.on_hold:
                done.kept[one.case] = "is under legal hold"
                continue
            try:
                await self._database.run(retention.expire, one.case, self._periods, on_behalf_of=on_behalf_of)
            except CaseError as error:
                done.kept[one.case] = str(error)
                continue
            done.expired.append(one)
            self._fault("expired")
        for case_id in [one.case for one in await self.left()]:
            try:
                is_gone = await self._database.run(
                    retention.delete_bytes, case_id, self._delete, on_behalf_of=on_behalf_of
                )
            except SealingError as error:
                done.kept[case_id] = str(error)
                continue
            if is_gone:
                done.deleted.append(case_id)
            else:
                done.kept[case_id] = "is under legal hold"
        return done

    async def daily(self) -> None:
        """Runs once a day, for ever, and now."""
        while True:
            pause_s = _EVERY_S
            try:
                done = await self.run(on_behalf_of=None)
                if done.expired or done.deleted or done.kept:
                    counts = len(done.expired), len(done.deleted), len(done.kept)
                    log.info("retention: %d cases expired, bytes of %d deleted, %d kept", *counts)
            except (OSError, SQLAlchemyError) as error:
                log.error("retention: cut off, goes on later: %s", said(error))
                pause_s = _AGAIN_S
            await asyncio.sleep(pause_s)

    def _delete(self, name: str) -> bool:
        was_there = self._quarantine.delete(name)
        self._fault("bytes-deleted")
        return was_there
