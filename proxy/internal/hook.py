"""pict-rs's validation hook: every file that it is about to keep, whichever way it came, in rewritten bytes.

The only files that pass against the verdict are those that a human has released: while the release is under
way, or while the same upload is being stored again.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
from datetime import UTC, datetime, timedelta

from sqlalchemy.exc import SQLAlchemyError

from proxy.cases.clearances import Clearances
from proxy.cases.keeping import Keeper, Origin
from proxy.cases.life import RELEASE_S
from proxy.channels.looks import Look, Priority, Seen, Unseen
from proxy.database import Case, Database, cases, ledger
from proxy.errors import Refusal, SealingError
from proxy.intake.uploads import Upload, upload_of
from proxy.internal.server import HookAnswer
from proxy.judging import Judge
from proxy.pdq import SAME_FLAT_PICTURE, SAME_PICTURE, distance, tells
from proxy.policy import Decision, Verdict
from proxy.server.fetches import HookWatch

log = logging.getLogger(__name__)


class ValidationHook:
    """Answers pict-rs."""

    def __init__(
        self,
        *,
        judge: Judge,
        keeper: Keeper,
        clearances: Clearances,
        watch: HookWatch,
        database: Database,
        verdict_s: float,
    ) -> None:
        """
        Args:
            verdict_s: seconds that the looking may take.
        """
        self._judge, self._keeper, self._clearances = judge, keeper, clearances
        self._watch, self._database, self._verdict_s = watch, database, verdict_s
        self._sealing = asyncio.Lock()

    async def validate(self, content: bytes) -> HookAnswer:
        """See `Hook.validate`."""
        self._watch.called()
        sha256 = await asyncio.to_thread(lambda: hashlib.sha256(content).hexdigest())
        try:
            upload = upload_of(content, sha256, file_name="", declared_type=None)
        except Refusal:
            return HookAnswer.REFUSE
        try:
            return await self._answer(upload)
        except (SealingError, SQLAlchemyError) as error:
            log.error("a file of the validation hook could not be decided: %s", type(error).__name__)
            return HookAnswer.UNSEEN

    async def _answer(self, upload: Upload) -> HookAnswer:
        look, decision = await self._judge.judge(
            *(upload.content, upload.media, upload.sha256),
            priority=Priority.LIVE,
            within_s=self._verdict_s,
        )
        match decision.verdict:
            case Verdict.ALLOW:
                if isinstance(look, Unseen):
                    await self._note("allowed unseen", upload, decision)
                return HookAnswer.KEEP
            case Verdict.BLOCK if not _is_by_looks(decision):
                await self._note("blocked", upload, decision)
                return HookAnswer.UNSEEN if isinstance(look, Unseen) else HookAnswer.REFUSE
        if await self._is_released(upload, look):
            await self._note("allowed as released", upload, decision)
            return HookAnswer.KEEP
        if decision.verdict is Verdict.BLOCK:
            await self._note("blocked", upload, decision)
            return HookAnswer.REFUSE
        if decision.verdict is Verdict.DEFER:  # whoever asked may ask again; nobody waits for an alias here
            await self._note("refused unseen", upload, decision)
            return HookAnswer.UNSEEN
        async with self._sealing:  # once, however often it comes
            case = await self._database.run(cases.of_file, upload.sha256)
            if case is None:
                origin = Origin("pict-rs's validation hook", [], {})
                await self._keeper.keep(upload, decision, look, origin, None)
            else:
                await self._note("held again", upload, decision, case_id=case.id)
        return HookAnswer.REFUSE

    async def _is_released(self, upload: Upload, look: Look | None) -> bool:
        """Whether this is what a human has released, being stored right now."""
        since = datetime.now(UTC) - timedelta(seconds=RELEASE_S)
        released = await self._database.run(cases.under_release, since=since)
        released += await self._database.run(cases.released_files, self._clearances.now)
        return any(case.sha256 == upload.sha256 or _is_same_picture(case, look) for case in released)

    async def _note(
        self, act: str, upload: Upload, decision: Decision, *, case_id: str | None = None
    ) -> None:
        facts = {
            "sha256": upload.sha256,
            "verdict": decision.verdict.value,
            "reason": decision.reason,
            "by": "validation hook",
        }
        await self._database.run(ledger.record, act, actor="gate", facts=facts, case_id=case_id)


def _is_by_looks(decision: Decision) -> bool:
    """Whether it blocks because of a picture that looks alike, which a human who releases it knows."""
    return decision.earlier is not None and decision.earlier.kind == "pdq" and decision.rule is None


def _is_same_picture(case: Case, look: Look | None) -> bool:
    if not isinstance(look, Seen) or look.pdq is None or case.pdq is None:
        return False
    both_tell = tells(look.pdq, look.pdq_quality) and tells(case.pdq, case.pdq_quality)
    return distance(look.pdq, case.pdq) <= (SAME_PICTURE if both_tell else SAME_FLAT_PICTURE)
