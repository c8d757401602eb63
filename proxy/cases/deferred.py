"""Deferred cases: what is harmless is stored under its alias without a human, everything else waits for one.

Either way the gate loses the means to open the case as soon as it has looked.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

import pyrage

from proxy.cases.backlog import NotNow
from proxy.cases.clearances import Clearances
from proxy.cases.deciding import Decider
from proxy.cases.evidence import file_sha256
from proxy.cases.keeping import name_and_version
from proxy.cases.life import RELEASE_S
from proxy.cases.quarantine import Quarantine
from proxy.cases.sealing import Opened, is_as_uploaded, open_sealed
from proxy.channels.lookout import Lookout
from proxy.channels.looks import Look, Priority, Seen, Unseen
from proxy.database import Case, CaseState, Database, cases, decisions, ledger
from proxy.database import backlog as rows
from proxy.database.backlog import Lease, Looked
from proxy.database.evidence import SEALED
from proxy.errors import PictrsError, SealingError, Unreadable
from proxy.faults import FaultPoint
from proxy.intake.budget import Budget
from proxy.judging import Judge
from proxy.known_hashes import KnownHashes
from proxy.media import recognise
from proxy.metrics import Metrics
from proxy.policy import Decision, Verdict

log = logging.getLogger(__name__)

_LOOK_S = 30.0
# After which a release that pict-rs gave no answer to is begun again: a human who wants to confirm the case
# instead has a minute of it, see `life.RELEASE_S`.
_NO_ANSWER_S = 180.0
_REFUSED_S = 30.0
_DAMAGED_S = 3600.0
_MEMORY = 2  # times a sealed file's size; see `open_sealed`


class Opener:
    """Opens cases with the gate's own key, within a bound on memory."""

    def __init__(
        self, quarantine: Quarantine, identities: Sequence[pyrage.x25519.Identity], memory: Budget
    ) -> None:
        self._quarantine, self._identities, self._memory = quarantine, identities, memory

    @asynccontextmanager
    async def opened(self, case: Case) -> AsyncIterator[Opened]:
        """What is in a case, as long as the block lasts.

        Raises:
            Unreadable: it is damaged, sealed to others, or not what was uploaded.
            SealingError: it cannot be read now.
        """
        size = await asyncio.to_thread(self._quarantine.size, case.file)
        if size is None:
            raise SealingError(f"{case.id}: its file is not there")
        async with self._memory.lend(min(size * _MEMORY, self._memory.total)):
            yield await asyncio.to_thread(self._open, case)

    def _open(self, case: Case) -> Opened:
        opened = open_sealed(self._quarantine.path(case.file), self._identities)
        if not is_as_uploaded(opened, case.sha256):
            raise Unreadable(
                f"{case.id}: the sealed bytes are not those that were uploaded", is_for_others=False
            )
        return opened


class DeferredCases:
    """The queue of what was deferred."""

    def __init__(
        self,
        *,
        database: Database,
        opener: Opener,
        resealer: Resealer,
        judge: Judge,
        known: KnownHashes,
        lookout: Lookout,
        decider: Decider,
        clearances: Clearances,
        fault: FaultPoint,
    ) -> None:
        self._database, self._opener, self._resealer = database, opener, resealer
        self._judge, self._known, self._lookout = judge, known, lookout
        self._decider, self._clearances, self._fault = decider, clearances, fault
        self._stored = 0

    async def lease(self, lease: Lease, *, looking: bool) -> Case | None:
        """See `Queue.lease`."""
        return await self._database.run(rows.lease_case, lease, looking=looking)

    async def give_up(self, item: Case, reason: str) -> None:
        """See `Queue.give_up`."""
        if item.state is CaseState.RELEASING:
            await self._take_back(item, reason)
        else:
            await self._database.run(rows.suspected, item, Looked(reason))

    async def settle(self, item: Case) -> None:
        """See `Queue.settle`."""
        try:
            async with self._opener.opened(item) as opened:
                seen: Mapping[str, Any] = row_facts(item)
                if item.state is CaseState.RELEASING:  # somebody has looked already
                    case = await self._release_again(item, opened)
                else:
                    case, seen = await self._look(item, opened)
                self._fault("backlog-settled")
                await self._resealer.reseal(case, opened, seen)
        except Unreadable as error:
            log.error("%s", error)
            await self.give_up(item, f"nobody has looked: {error}")

    async def _look(self, item: Case, opened: Opened) -> tuple[Case, Mapping[str, Any]]:
        sha256, media = str(opened.facts["sha256"]), recognise(opened.original)
        if media is None:
            reason = "nobody has looked: no media"
            return await self._database.run(rows.suspected, item, Looked(reason)), {"reason": reason}
        look, decision = await self._judge.judge(
            *(opened.original, media, sha256),
            priority=Priority.BACKFILL,
            within_s=_LOOK_S,
            despite_lockdown=True,  # which would only defer it again; while there is one, nothing is begun
        )
        if isinstance(look, Unseen):
            raise not_seen(look, self._lookout)
        self._fault("backlog-looked")
        log.info("case %s: verdict=%s reason=%r", item.id, decision.verdict, decision.reason)
        looked, seen = _looked(decision, look), look_facts(decision, look)
        if decision.verdict is not Verdict.ALLOW:
            return await self._database.run(rows.suspected, item, looked), seen
        case, is_repeated = await self._database.run(rows.releasing, item, sha256=sha256, looked=looked)
        return await self._store(item, case, opened, is_repeated=is_repeated, is_known=look is None), seen

    async def _release_again(self, item: Case, opened: Opened) -> Case:
        sha256 = str(opened.facts["sha256"])
        decision = await self._known.find(sha256)
        if decision is not None and decision.verdict is not Verdict.ALLOW:
            await self._take_back(item, decision.reason)
            return await self._database.run(cases.get, item.id)
        case, is_repeated = await self._database.run(rows.releasing, item, sha256=sha256, looked=None)
        return await self._store(item, case, opened, is_repeated=is_repeated, is_known=decision is not None)

    async def _store(
        self, item: Case, case: Case, opened: Opened, *, is_repeated: bool, is_known: bool
    ) -> Case:
        try:
            # What a human has released before passes the validation hook as that.
            with self._clearances.of([str(case.sha256)] if is_known else [], []):
                case = await self._decider.store_unaided(case, opened, is_repeated=is_repeated)
        except PictrsError as error:
            case = await self._database.run(cases.get, case.id)
            if case.state is CaseState.PENDING:
                log.warning("case %s is harmless, but pict-rs refuses it: %s", case.id, error.code)
                return case
            raise self._not_stored(item, error) from None
        self._stored += 1
        return case

    def _not_stored(self, item: Case, error: PictrsError) -> NotNow:
        # An answer ends this attempt. What a killed gate sent may still be under way for as long as any.
        young = datetime.now(UTC) - timedelta(seconds=RELEASE_S)
        is_over = error.status is not None and (item.decided_at is None or item.decided_at < young)
        if error.code == "failed-external-validation":
            # The hook says no, or could not look. It could, where others were looked at since.
            return NotNow(str(error), progress=("hook", self._lookout.looked), is_over=is_over)
        return NotNow(
            str(error),
            again_s=_NO_ANSWER_S if error.status is None else _REFUSED_S,
            progress=("store", self._stored),
            is_over=is_over,
        )

    async def _take_back(self, item: Case, reason: str) -> None:
        await self._database.run(rows.taking_back, item)
        try:
            await self._decider.take_back_unaided(item.id, reason)
        except PictrsError as error:
            # Without an answer it may be done at any later moment: not after a human has stored it anew.
            raise NotNow(str(error), again_s=_REFUSED_S, is_over=error.status is not None) from None


class Resealer:
    """Sees to it that what has been looked at, or decided by a human, is for the reviewers alone."""

    def __init__(
        self,
        database: Database,
        quarantine: Quarantine,
        opener: Opener,
        metrics: Metrics,
        fault: FaultPoint,
    ) -> None:
        self._database, self._quarantine, self._opener = database, quarantine, opener
        self._metrics, self._fault = metrics, fault

    async def reseal(self, case: Case, opened: Opened, seen: Mapping[str, Any]) -> None:
        """Seals a case anew, with what was seen of it.

        Raises:
            SealingError: it could not be written; the former file stays.
            CaseError: it is not the caller's any more; the former file stays.
        """
        now = datetime.now(UTC).isoformat()
        facts = {**opened.facts, "looked_later": {**seen, "at": now}, "resealed_at": now}
        try:
            new = await asyncio.to_thread(self._quarantine.seal_beside, case.file, facts, opened.original)
        except SealingError:
            self._metrics.sealing_failures.inc()
            raise
        self._fault("backlog-resealed")
        try:
            facts = {SEALED: await asyncio.to_thread(file_sha256, new)}
            # Before it takes its place: a file that no entry names is none of the gate's.
            await self._database.run(
                ledger.record, "resealing", actor=decisions.GATE, case_id=case.id, facts=facts
            )
            await self._database.run(
                rows.resealed,
                case,
                to=self._quarantine.sealed_to(),
                replace=lambda: self._quarantine.replace(case.file, new),
            )
        finally:
            self._quarantine.discard(new)

    async def lease(self, lease: Lease, *, looking: bool) -> Case | None:
        """See `Queue.lease`. Somebody has looked at all of them."""
        return await self._database.run(rows.lease_to_reseal, lease)

    async def settle(self, item: Case) -> None:
        """See `Queue.settle`."""
        try:
            async with self._opener.opened(item) as opened:
                await self.reseal(item, opened, row_facts(item))
        except Unreadable as error:
            if not error.is_for_others:
                raise NotNow(str(error), again_s=_DAMAGED_S) from None
            await self._database.run(rows.resealed, item, to=None, replace=None)

    async def give_up(self, item: Case, reason: str) -> None:
        """See `Queue.give_up`: there is nothing to give up."""
        await self.settle(item)


def not_seen(look: Unseen, lookout: Lookout) -> NotNow:
    """Nobody could look: nobody could look at anything, or not at this."""
    return NotNow(look.reason, progress=("look", lookout.looked) if look.failed else None)


def look_facts(decision: Decision, look: Look | None) -> dict[str, Any]:
    """What a look has shown, to be sealed with the case."""
    facts: dict[str, Any] = {
        "verdict": decision.verdict.value,
        "reason": decision.reason,
        "rule": decision.rule,
        "earlier": decision.earlier and decision.earlier.facts(),
    }
    if isinstance(look, Seen):
        ensemble, version = name_and_version(look.ensemble)
        facts |= {
            "pdq": look.pdq,
            "pdq_quality": look.pdq_quality,
            "signals": dict(look.signals),
            "frames": list(look.frames),
            "ensemble": ensemble,
            "ensemble_version": version,
        }
    return facts


def row_facts(case: Case) -> dict[str, Any]:
    """What the row knows of a look whose own facts a crash has lost."""
    return {"reason": case.reason, "rule": case.rule, "signals": case.signals, "ensemble": case.ensemble}


def _looked(decision: Decision, look: Look | None) -> Looked:
    seen = look if isinstance(look, Seen) else None
    return Looked(
        decision.reason,
        decision.rule,
        earlier=decision.earlier.facts() if decision.earlier else None,
        signals=dict(seen.signals) if seen else None,
        ensemble=seen.ensemble if seen else None,
        pdq=seen.pdq if seen else None,
        pdq_quality=seen.pdq_quality if seen else None,
    )
