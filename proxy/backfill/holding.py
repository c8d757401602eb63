"""A hit that is held: sealed, a placeholder at all its aliases, and only then taken away from pict-rs.

Nothing is deleted that is not sealed, and nothing but what was looked at is sealed.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from proxy.backfill.looking import Result
from proxy.backfill.sources import Entry
from proxy.cases.keeping import Keeper, Origin
from proxy.cases.stored import stored_promises, take_away, take_rest
from proxy.channels.looks import Look, Seen
from proxy.database import BackfillHit, Case, CaseState, Database, taking
from proxy.database import backfill as runs
from proxy.database.backfill import AGAIN, Batch, Looked
from proxy.errors import CaseError, GateError, PictrsError, Refusal
from proxy.faults import FaultPoint
from proxy.intake.budget import Budget
from proxy.intake.uploads import Upload, upload_of
from proxy.pictrs import Pictrs, StoredFile
from proxy.policy import Decision, Verdict
from proxy.stored import stored_under

log = logging.getLogger(__name__)

_KEY_HEX = 78  # of a file that pict-rs knows as an original
_LEAST_LENT = 64 * 1024


class _NotHeld(GateError):
    """A hit stays as it is; the message says why."""


@dataclass(frozen=True, slots=True)
class Holding:
    """Holds the hits of one run.

    Attributes:
        budget: of the memory for files, which a hit is fetched into once more.
        largest: bytes of a file.
        by: who takes pictures away; the same after a restart.
    """

    database: Database
    keeper: Keeper
    pictrs: Pictrs
    budget: Budget
    largest: int
    fault: FaultPoint
    run_id: int
    by: str

    async def hold(self, entry: Entry, earlier: Looked | None, result: Result) -> Result:
        """Makes a case of a hit; what comes of the file is durable then, in one transaction with the case.

        Args:
            earlier: the look that it rests on, where nobody looked now.
            result: whose finding is a hit.

        Returns:
            What is left to be recorded: nothing, or `result`, whose hit says why it was not held.

        Raises:
            PictrsError: pict-rs cannot be reached any more; nothing was changed.
            SealingError: it could not be written; nothing was taken away.
        """
        hit = result.finding
        assert isinstance(hit, BackfillHit)
        looked = result.looked or ((earlier,) if earlier is not None else ())
        try:
            file, aliases = await self._standing(hit)
            case_id = await self._keep(entry, file, aliases, looked, result, hit)
        except _NotHeld as error:
            hit.not_held = str(error)[:500]
            return result
        self.fault("hit-held")
        try:
            await take_away(self.database, self.pictrs, self.fault, case_id, by=self.by)
        except (PictrsError, CaseError) as error:  # its placeholders stand; a gate, or the next run, goes on
            log.warning("case %s is sealed; pict-rs has it still: %s", case_id, error)
        return Result(finding=hit, is_recorded=True)

    async def take_rest(self) -> int:
        """Takes away what earlier attempts have not; of how many cases pict-rs has the picture still."""
        return await take_rest(self.database, self.pictrs, self.fault, by=self.by)

    async def _standing(self, hit: BackfillHit) -> tuple[StoredFile, list[str]]:
        """What pict-rs has now, and the aliases of it for which a new case may stand."""
        file = await stored_under(self.pictrs, bytes.fromhex(hit.hex)) if len(hit.hex) == _KEY_HEX else None
        if file is None or not file.aliases:
            raise _NotHeld("pict-rs has no original with these bytes")
        there = await self.database.run(taking.promised, file.aliases)
        taken = {promise.alias for promise in there if not taking.may_take_over(promise)}
        for promise in there:
            if promise.alias in taken and promise.case.state is CaseState.RELEASED:
                raise _NotHeld(f"{promise.case.decided_by} has released it in case {promise.case_id}")
        free = [alias for alias in file.aliases if alias not in taken]
        if not free:
            hit.case_id = there[0].case_id
            raise _NotHeld(f"it is case {there[0].case_id} already")
        hit.aliases = list(file.aliases)
        return file, free

    async def _keep(
        self,
        entry: Entry,
        file: StoredFile,
        aliases: Sequence[str],
        looked: Sequence[Looked],
        result: Result,
        hit: BackfillHit,
    ) -> str:
        async with self.budget.lend(max(min(entry.size or self.largest, self.largest), _LEAST_LENT)):
            upload = await self._fetched(file)
            look: Look | None = result.look
            promises = await stored_promises(upload, look, aliases)
            if look is None and hit.signals:
                ensemble = next((one.ensemble for one in looked if one.ensemble), "")
                look = Seen(hit.signals, (), ensemble or "", upload.media.name, 0, 0)
            batch = Batch(
                looked_at=1,
                looked=list(looked),
                findings=[hit],
                signals=[hit.signals] if hit.signals else [],
                fetched_bytes=len(upload.content),
            )
            found = {
                "run": self.run_id,
                "place": entry.place,
                "stored_at": entry.at and entry.at.isoformat(),
                "aliases": list(file.aliases),
            }

            def record(case: Case, facts: dict[str, Any]) -> None:
                hit.case_id = case.id
                facts = {**facts, "found_by_backfill": found}
                runs.held(self.database, self.run_id, batch, case, facts=facts)

            return await self.keeper.keep_stored(
                upload,
                Decision(Verdict.HOLD, hit.reason, result.rule),
                look,
                Origin(f"backfill run {self.run_id}", [], {}),
                promises=promises,
                facts={"found_by_backfill": found},
                record=record,
            )

    async def _fetched(self, file: StoredFile) -> Upload:
        """The stored bytes once more: those that were looked at, or none."""
        content, reason = None, "it has no alias"
        for alias in file.aliases:
            try:
                content = await self.pictrs.original(alias, largest=self.largest)
                break
            except PictrsError as error:
                if error.status is None:
                    await self.pictrs.stored(limit=1)  # it is gone, which this raises, or it is this one file
                reason = str(error) + (AGAIN if error.may_pass else "")
                if error.status is None:
                    break  # every other alias leads to the same bytes
        if content is None:
            raise _NotHeld(reason)
        fetched = content
        sha256 = await asyncio.to_thread(lambda: hashlib.sha256(fetched).hexdigest())
        if sha256 != file.hex[:64].lower():
            raise _NotHeld("pict-rs gives other bytes than were looked at")
        try:
            return upload_of(fetched, sha256, file_name=file.aliases[0], declared_type=None)
        except Refusal:
            raise _NotHeld("no format of pict-rs's") from None
