"""pict-rs's validation hook: every file that it is about to keep, whichever way it came, in rewritten bytes.

The only files that pass against the verdict are those that a human has released: while the release is under
way, or while the same upload is being stored again. What the gate has looked at and is storing by itself
passes where nobody can look a second time.
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
from proxy.database import Case, Database, cases, decisions, ledger
from proxy.errors import Refusal, SealingError
from proxy.intake.uploads import Upload, upload_of
from proxy.internal.server import HookAnswer
from proxy.judging import Judge
from proxy.policy import Decision, Verdict
from proxy.server.fetches import HookWatch

log = logging.getLogger(__name__)

# PDQ's own threshold for "the same picture", and the quality from which it holds (Meta, "The TMK+PDQF Video-
# Hashing Algorithm and the PDQ Image-Hashing Algorithm"). Of a flatter picture nearly all bits have to agree.
_SAME_PICTURE, _GOOD_QUALITY, _SAME_FLAT_PICTURE = 31, 50, 8


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
            case Verdict.BLOCK:
                await self._note("blocked", upload, decision)
                return HookAnswer.UNSEEN if isinstance(look, Unseen) else HookAnswer.REFUSE
        if await self._is_released(upload, look, decision):
            return HookAnswer.KEEP
        if decision.verdict is Verdict.DEFER:  # whoever asked may ask again; nobody waits for an alias here
            return HookAnswer.UNSEEN
        async with self._sealing:  # once, however often it comes
            if await self._database.run(cases.of_file, upload.sha256) is None:
                origin = Origin("pict-rs's validation hook", [], {})
                await self._keeper.keep(upload, decision, look, origin, None)
        return HookAnswer.REFUSE

    async def _is_released(self, upload: Upload, look: Look | None, decision: Decision) -> bool:
        """Whether this is what a human has released, being stored right now; or the gate, where nobody can
        look: it has released nothing that is suspicious now.
        """
        since = datetime.now(UTC) - timedelta(seconds=RELEASE_S)
        released = [
            case
            for case in await self._database.run(cases.under_release, since=since)
            if case.decided_by != decisions.GATE or decision.verdict is Verdict.DEFER
        ]
        released += await self._database.run(cases.released_files, self._clearances.now)
        return any(case.sha256 == upload.sha256 or _is_same_picture(case, look) for case in released)

    async def _note(self, act: str, upload: Upload, decision: Decision) -> None:
        facts = {"sha256": upload.sha256, "reason": decision.reason, "by": "validation hook"}
        await self._database.run(ledger.record, act, actor="gate", facts=facts)


def _is_same_picture(case: Case, look: Look | None) -> bool:
    if not isinstance(look, Seen) or look.pdq is None or case.pdq is None:
        return False
    distance = (int(look.pdq, 16) ^ int(case.pdq, 16)).bit_count()
    quality = min(look.pdq_quality or 0, case.pdq_quality or 0)
    return distance <= (_SAME_PICTURE if quality >= _GOOD_QUALITY else _SAME_FLAT_PICTURE)
