"""Deferred cases, looked at in their order as soon as somebody can look again.

What is harmless goes to pict-rs under the alias that was promised, without a human; everything else waits for
one. Either way the gate loses the means to open the case. Nothing here is kept in memory: a gate that is
killed loses its lease of a case, and another one, or the same, goes on.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import pyrage
from sqlalchemy.exc import SQLAlchemyError

from proxy.cases.deciding import Decider
from proxy.cases.quarantine import Quarantine
from proxy.cases.sealing import Opened, open_sealed
from proxy.channels.lookout import Lookout
from proxy.channels.looks import Look, Priority, Seen, Unseen
from proxy.database import Case, CaseState, Database, cases
from proxy.errors import CaseError, PictrsError, SealingError
from proxy.faults import FaultPoint
from proxy.judging import Judge
from proxy.media import recognise
from proxy.metrics import Metrics
from proxy.policy import Decision, Verdict

log = logging.getLogger(__name__)

# Few, because each takes a look that an upload might want; a classifier puts live files first besides.
_AT_ONCE = 2
_LOOK_S = 30.0
# Longer than a look and a release by any chance take: after it a gate that had a case is taken for dead.
_LEASE_S = 120.0
# After which a case that nobody could look at is tried again; those behind it have their turn meanwhile.
_AGAIN_S = 20.0
_IDLE_S = 1.0
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 1.0, 30.0


@dataclass(frozen=True, slots=True)
class _Leased:
    """A case that this gate has to itself, until `lease`."""

    case: Case
    lease: datetime


class Backlog:
    """Works through what was deferred."""

    def __init__(
        self,
        database: Database,
        quarantine: Quarantine,
        identities: Sequence[pyrage.x25519.Identity],
        judge: Judge,
        lookout: Lookout,
        decider: Decider,
        metrics: Metrics,
        fault: FaultPoint,
        *,
        owner: str,
    ) -> None:
        """
        Args:
            identities: the gate's own.
            owner: a name of this gate, the same after a restart and no other gate's.
        """
        self._owner = owner
        self._database, self._quarantine, self._identities = database, quarantine, identities
        self._judge, self._lookout, self._decider = judge, lookout, decider
        self._metrics, self._fault = metrics, fault

    async def run(self) -> None:
        """Goes on until it is cancelled; what it has then is given back."""
        await self._forget_leases()
        async with asyncio.TaskGroup() as group:
            for _ in range(_AT_ONCE):
                group.create_task(self._work())
            group.create_task(self._reseal_all())

    async def _forget_leases(self) -> None:
        with suppress(SQLAlchemyError):  # then they run out
            await self._database.run(cases.forget_leases, self._owner)

    async def _work(self) -> None:
        pause_s = _FIRST_PAUSE_S
        while True:
            try:
                done = self._lookout.is_hopeful and await self._next()
            except (OSError, SQLAlchemyError, SealingError, CaseError, PictrsError) as error:
                log.warning("the backlog has to wait: %s", _said(error))
                done = None
            pause_s = _FIRST_PAUSE_S if done is not None else min(_LONGEST_PAUSE_S, pause_s * 2)
            if not done:
                await asyncio.sleep(_IDLE_S if done is not None else pause_s)

    async def _next(self) -> bool | None:
        """Settles the oldest case; False where there is none, None where nobody could look."""
        now = datetime.now(UTC)
        lease = now + timedelta(seconds=_LEASE_S)
        case = await self._database.run(cases.lease_deferred, self._owner, now=now, until=lease)
        if case is None:
            return False
        leased = _Leased(case, lease)
        again_at: datetime | None = now + timedelta(seconds=_AGAIN_S)
        try:
            async with asyncio.timeout(_LEASE_S - 10):
                settled = await self._settle(leased)
            return True if settled else None
        except TimeoutError:
            log.warning("case %s takes too long, and waits", case.id)
            return None
        except asyncio.CancelledError:
            again_at = None
            raise
        finally:
            await asyncio.shield(self._give_back(leased, again_at))

    async def _settle(self, leased: _Leased) -> bool:
        """Looks at a case and does what follows; False where nobody could look."""
        try:
            opened = await asyncio.to_thread(self._open, leased.case)
        except SealingError as error:
            log.error("%s", error)
            await self._hold(leased, Decision(Verdict.HOLD, f"nobody has looked: {error}"), None)
            return True
        try:
            return await self._settle_opened(leased, opened)
        except (OSError, SQLAlchemyError, SealingError, CaseError, PictrsError):
            raise
        except Exception as error:  # noqa: BLE001 — the border: an odd case is a human's, and holds up none
            reason = f"nobody has looked: {type(error).__name__}"
            log.error("case %s cannot be settled: %s", leased.case.id, reason)
            await self._hold(leased, Decision(Verdict.HOLD, reason), None)
            return True

    async def _settle_opened(self, leased: _Leased, opened: Opened) -> bool:
        case = leased.case
        media = recognise(opened.original)
        if media is None:
            await self._hold(leased, Decision(Verdict.HOLD, "nobody has looked: no media"), None)
            return True
        look, decision = await self._judge.judge(
            opened.original,
            media,
            str(opened.facts["sha256"]),
            priority=Priority.BACKFILL,
            within_s=_LOOK_S,
        )
        if isinstance(look, Unseen):
            return False
        self._fault("backlog-looked")
        if decision.verdict is Verdict.ALLOW:
            if isinstance(look, Seen):  # by which pict-rs's hook knows it again
                await self._database.run(
                    cases.seen_since, case.id, pdq=look.pdq, pdq_quality=look.pdq_quality
                )
            try:
                case = await self._decider.release_unaided(case, opened, lease=leased.lease)
            except PictrsError as error:
                if (await self._database.run(cases.get, case.id)).state is not CaseState.PENDING:
                    raise  # it gave no answer; the release is repeated
                log.warning("case %s is harmless, but pict-rs refuses it: %s", case.id, error.code)
        else:
            case = await self._hold(leased, decision, look)
        self._fault("backlog-settled")
        await self._reseal(case, opened, _seen_facts(decision, look))
        log.info("case %s: verdict=%s reason=%r", case.id, decision.verdict, decision.reason)
        return True

    async def _hold(self, leased: _Leased, decision: Decision, look: Look | None) -> Case:
        seen: dict[str, Any] = {}
        if isinstance(look, Seen):
            seen = {
                "pdq": look.pdq,
                "pdq_quality": look.pdq_quality,
                "signals": dict(look.signals),
                "ensemble": look.ensemble,
            }
        return await self._database.run(
            cases.looked_at,
            leased.case.id,
            lease=leased.lease,
            reason=decision.reason,
            rule=decision.rule,
            seen=seen,
        )

    async def _give_back(self, leased: _Leased, again_at: datetime | None) -> None:
        with suppress(SQLAlchemyError):  # then the lease runs out
            await self._database.run(cases.give_back, leased.case.id, lease=leased.lease, again_at=again_at)

    # --- the gate's key is for what it has to look at, and for nothing else ---

    async def _reseal_all(self) -> None:
        """Sees to it that what has been looked at, or decided by a human, is for the reviewers alone."""
        while True:
            try:
                for case in await self._database.run(cases.to_reseal):
                    try:
                        opened = await asyncio.to_thread(self._open, case)
                    except SealingError:  # it is not for the gate, as it should be; or nobody's
                        await self._database.run(cases.resealed, case.id)
                        continue
                    await self._reseal(case, opened, _row_facts(case))
                count, oldest = await self._database.run(cases.backlog)
                self._metrics.backlog.set(count)
                waits_s = (datetime.now(UTC) - oldest).total_seconds() if oldest else 0
                self._metrics.backlog_oldest_seconds.set(waits_s)
            except (OSError, SQLAlchemyError, SealingError) as error:
                log.error("a case is still open to the gate's own key: %s", _said(error))
            await asyncio.sleep(_IDLE_S * 5)

    async def _reseal(self, case: Case, opened: Opened, seen: Mapping[str, Any]) -> None:
        facts = {**opened.facts, **seen, "resealed_at": datetime.now(UTC).isoformat()}
        await asyncio.to_thread(self._quarantine.reseal, case.file, facts, opened.original)
        self._fault("backlog-resealed")
        await self._database.run(cases.resealed, case.id)

    def _open(self, case: Case) -> Opened:
        """
        Raises:
            SealingError: it cannot be opened, or is not what was sealed.
        """
        opened = open_sealed(self._quarantine.path(case.file), self._identities)
        sha256 = hashlib.sha256(opened.original).hexdigest()
        if sha256 != opened.facts.get("sha256") or case.sha256 not in (None, sha256):
            raise SealingError(f"{case.id}: the sealed bytes are not those that were uploaded")
        return opened


def _seen_facts(decision: Decision, look: Look | None) -> dict[str, Any]:
    facts: dict[str, Any] = {
        "verdict": decision.verdict.value,
        "reason": decision.reason,
        "rule": decision.rule,
    }
    if isinstance(look, Seen):
        facts |= {
            "pdq": look.pdq,
            "signals": dict(look.signals),
            "frames": list(look.frames),
            "ensemble": look.ensemble,
        }
    return facts


def _row_facts(case: Case) -> dict[str, Any]:
    """What the row knows of a look whose own facts a crash has lost."""
    return {"reason": case.reason, "rule": case.rule, "signals": case.signals, "ensemble": case.ensemble}


def _said(error: Exception) -> str:
    """Database errors by their kind alone: they quote what they could not write."""
    return type(error).__name__ if isinstance(error, SQLAlchemyError) else str(error)
