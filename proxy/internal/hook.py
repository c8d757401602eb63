"""pict-rs's validation hook: every file that it is about to keep, whichever way it came, in rewritten bytes.

The only files that pass against the verdict are those that a human has released: while the release is under
way, or while the same upload is being stored again, and then not what merely looks alike. What the gate has
looked at and is storing by itself passes where nobody can look a second time. Under a lockdown nothing passes
but what the gate itself is just sending: what pict-rs has fetched is not kept.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
from datetime import UTC, datetime, timedelta

from sqlalchemy.exc import SQLAlchemyError

from proxy.cases.clearances import Clearances, Sent
from proxy.cases.keeping import Keeper, Origin
from proxy.cases.life import RELEASE_S
from proxy.channels.looks import Look, Priority, Seen, Unseen
from proxy.database import Case, Database, cases, decisions, ledger
from proxy.errors import Refusal, SealingError
from proxy.intake.uploads import Upload, upload_of
from proxy.internal.server import HookAnswer
from proxy.judging import Judge
from proxy.pdq import SAME_FLAT_PICTURE, SAME_PICTURE, distance, tells
from proxy.policy import Decision, Verdict
from proxy.saying import said
from proxy.server.fetches import HookWatch

log = logging.getLogger(__name__)

# Bits of 256 by which pict-rs's rewriting may differ from what was released: 0 to 2 were measured in the same
# size, 8 with a mild `resize=`. Whoever may upload what was released can have it stored again at any moment,
# so this stays far below what counts as looking alike.
REWRITTEN = 8
_TAG = "validation hook"  # nobody is known who sent it; together they have one uploader's share


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
            log.error("a file of the validation hook could not be decided: %s", said(error))
            return HookAnswer.UNSEEN

    async def _answer(self, upload: Upload) -> HookAnswer:
        look, decision = await self._judged(upload)
        if decision.by_lockdown:
            if not self._clearances.sent and not await self._under_release():
                return HookAnswer.UNSEEN
            look, decision = await self._judged(upload, despite_lockdown=True)
            if decision.verdict is Verdict.ALLOW and not await self._is_sent(upload, look):
                return HookAnswer.UNSEEN
        match decision.verdict:
            case Verdict.ALLOW:
                if isinstance(look, Unseen):
                    await self._note("allowed unseen", upload, decision)
                return HookAnswer.KEEP
            case Verdict.BLOCK if not _is_by_looks(decision):
                await self._note("blocked", upload, decision)
                return HookAnswer.UNSEEN if isinstance(look, Unseen) else HookAnswer.REFUSE
        if await self._is_released(upload, look, decision):
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
                origin = Origin("pict-rs's validation hook", [], {}, _TAG)
                await self._keeper.keep(upload, decision, look, origin, None)
            else:
                await self._note("held again", upload, decision, case_id=case.id)
        return HookAnswer.REFUSE

    async def _judged(
        self, upload: Upload, *, despite_lockdown: bool = False
    ) -> tuple[Look | None, Decision]:
        return await self._judge.judge(
            *(upload.content, upload.media, upload.sha256),
            priority=Priority.LIVE,
            within_s=self._verdict_s,
            despite_lockdown=despite_lockdown,
        )

    async def _is_released(self, upload: Upload, look: Look | None, decision: Decision) -> bool:
        """Whether this is what a human has released, being stored right now; or the gate, where nobody can
        look: it has released nothing that is suspicious now.
        """
        released = [
            case
            for case in await self._under_release()
            if case.decided_by != decisions.GATE or decision.verdict is Verdict.DEFER
        ]
        # What is known or held for itself is another file than the one that was released.
        is_exact = decision.earlier is not None and decision.earlier.kind == "sha256"
        is_own = is_exact or await self._database.run(cases.of_file, upload.sha256) is not None
        if any(_is_same(case, upload, look, REWRITTEN if is_own else SAME_PICTURE) for case in released):
            return True
        if is_own or decision.earlier is not None:
            return False
        again = await self._database.run(cases.released_files, self._clearances.now)
        return any(_is_same(case, upload, look, REWRITTEN) for case in again)

    async def _is_sent(self, upload: Upload, look: Look | None) -> bool:
        """Whether this is what the gate itself is having stored right now, for whatever reason."""
        sent: list[Case | Sent] = [*self._clearances.sent, *await self._under_release()]
        sent += await self._database.run(cases.released_files, self._clearances.now)
        return any(_is_same(one, upload, look) for one in sent)

    async def _under_release(self) -> list[Case]:
        since = datetime.now(UTC) - timedelta(seconds=RELEASE_S)
        return await self._database.run(cases.under_release, since=since)

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


def _is_same(known: Case | Sent, upload: Upload, look: Look | None, within: int = SAME_PICTURE) -> bool:
    """Whether it is the very file, or a picture that differs by no more than so many bits."""
    if known.sha256 == upload.sha256:
        return True
    if not isinstance(look, Seen) or look.pdq is None or known.pdq is None:
        return False
    both_tell = tells(look.pdq, look.pdq_quality) and tells(known.pdq, known.pdq_quality)
    return distance(look.pdq, known.pdq) <= (within if both_tell else min(within, SAME_FLAT_PICTURE))
