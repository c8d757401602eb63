"""`POST /image`: request → files → verdicts → effects → answer."""

from __future__ import annotations

import asyncio
import functools
import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace

from aiohttp import web
from sqlalchemy.exc import SQLAlchemyError

from proxy import refusals
from proxy.cases.keeping import Keeper, Promise
from proxy.channels.lookout import Lookout
from proxy.channels.looks import File, Look, Priority, Seen, Unseen
from proxy.database import Database, ledger
from proxy.errors import PictrsError, Refusal, SealingError
from proxy.faults import FaultPoint
from proxy.intake.multipart import OutgoingFile
from proxy.intake.uploads import Upload, UploadLimits, read_uploads
from proxy.known_hashes import KnownHashes
from proxy.media import Measure, Size, measure
from proxy.metrics import Metrics
from proxy.pictrs import Pictrs
from proxy.policy import Decision, Policy, Verdict, decide
from proxy.server import answers
from proxy.server.arguments import Arguments

log = logging.getLogger(__name__)

Query = Sequence[tuple[str, str]]

_RETRY_AFTER_S = 60


@dataclass(frozen=True, slots=True)
class UploadSettings:
    """
    Attributes:
        limits: of a request.
        upload_s: seconds from a request's first byte to its answer.
        verdict_s: seconds of them that the looking may take.
        placeholders: whether a held upload is answered with a placeholder's alias.
    """

    limits: UploadLimits
    upload_s: float
    verdict_s: float
    placeholders: bool


@dataclass(frozen=True, slots=True)
class _Judged:
    """An upload and what was decided about it.

    Attributes:
        look: what was seen; None where its hash was known.
        headers_say: the size that its headers claim; read only of what is held.
    """

    upload: Upload
    look: Look | None
    decision: Decision
    headers_say: Measure | None = None

    @property
    def is_held(self) -> bool:
        """Whether it becomes a case."""
        return self.decision.verdict in (Verdict.HOLD, Verdict.DEFER)


class Uploads:
    """Answers uploads."""

    def __init__(
        self,
        *,
        settings: UploadSettings,
        known: KnownHashes,
        lookout: Lookout,
        policy: Policy,
        keeper: Keeper,
        database: Database,
        pictrs: Pictrs,
        metrics: Metrics,
        fault: FaultPoint,
    ) -> None:
        self._settings = settings
        self._known = known
        self._lookout = lookout
        self._policy = policy
        self._keeper = keeper
        self._database = database
        self._pictrs = pictrs
        self._metrics = metrics
        self._fault = fault

    async def answer(self, request: web.BaseRequest, query: Query) -> web.Response:
        """Answers one upload.

        Raises:
            Refusal: pict-rs was sent nothing of it.
            PictrsError: pict-rs gave no answer.
        """
        deadline = asyncio.get_running_loop().time() + self._settings.upload_s
        with self._metrics.uploads_in_progress.track_inprogress():
            try:
                async with asyncio.timeout_at(deadline):
                    await _continue(request)
                    uploads = await read_uploads(request, self._settings.limits)
            except TimeoutError:
                raise Refusal(408, "request-timeout", "The upload took too long") from None
            judged = await asyncio.gather(*(self._judge(upload, deadline) for upload in uploads))
            arguments, refusal = self._refusal(judged, query)
            try:
                promises = await self._keep(judged, query, arguments if refusal is None else None)
            except (SealingError, SQLAlchemyError) as error:
                self._metrics.sealing_failures.inc()
                # Not the database's own words: they may quote what was to be written.
                why = error if isinstance(error, SealingError) else type(error).__name__
                log.error("an upload was refused because it could not be kept: %s", why)
                raise _unavailable() from None
            if refusal is not None:
                raise refusal
            return await self._store(judged, promises, query, deadline)

    async def _judge(self, upload: Upload, deadline: float) -> _Judged:
        look: Look | None = None
        try:
            decision = await self._known.find(upload.sha256)
        except SQLAlchemyError as error:
            log.error("the database cannot be asked: %s", type(error).__name__)
            raise _unavailable() from None
        if decision is None:
            left = deadline - asyncio.get_running_loop().time()
            look = await self._lookout.look(
                File(upload.content, upload.media, upload.sha256),
                priority=Priority.LIVE,
                # The other half is pict-rs's: it takes its time too, and Lemmy waits no longer.
                within_s=min(self._settings.verdict_s, max(left / 2, 0.1)),
            )
            decision = decide(self._policy, look, upload.media)
        self._metrics.verdicts.labels(verdict=decision.verdict.value).inc()
        log.info("verdict=%s sha256=%s reason=%r", decision.verdict, upload.sha256, decision.reason)
        judged = _Judged(upload, look, decision)
        if judged.is_held:
            found = await asyncio.to_thread(measure, upload.content, upload.media)
            judged = replace(judged, headers_say=found)
        return judged

    def _refusal(self, judged: Sequence[_Judged], query: Query) -> tuple[Arguments | None, Refusal | None]:
        """The query's meaning where a promise needs it; why a request is refused as a whole, or None."""
        for one in judged:
            if one.decision.verdict is Verdict.BLOCK:
                if isinstance(one.look, Unseen):
                    return None, _unavailable()
                return None, refusals.REFUSED_BY_VALIDATION()
        held = [one for one in judged if one.is_held]
        if not held:
            return None, None  # pict-rs reads its query itself
        if not self._settings.placeholders:
            msg = "This upload is held until a moderator has looked at it"
            return None, Refusal(400, "held-for-review", msg)
        try:
            arguments = Arguments(query)
            for one in held:  # what pict-rs would refuse at a release is not promised now
                arguments.check(one.upload.media, one.headers_say, len(one.upload.content))
        except Refusal as refusal:
            return None, refusal
        return arguments, None

    async def _keep(
        self, judged: Sequence[_Judged], query: Query, arguments: Arguments | None
    ) -> list[Promise | None]:
        """Makes cases of what is held, and notes the rest that has to be noted; one entry an upload.

        Args:
            arguments: the query's meaning; None where nobody is promised anything.
        """
        promises: list[Promise | None] = []
        for one in judged:
            if one.is_held:
                size = functools.partial(_size_to_show, one, arguments) if arguments else None
                promises.append(
                    await self._keeper.keep(one.upload, one.decision, one.look, query, size_to_show=size)
                )
                continue
            promises.append(None)
            if one.decision.verdict is Verdict.BLOCK or not isinstance(one.look, Seen | None):
                facts = {"sha256": one.upload.sha256, "reason": one.decision.reason}
                act = "blocked" if one.decision.verdict is Verdict.BLOCK else "allowed unseen"
                await self._database.run(ledger.record, act, actor="gate", facts=facts)
        self._fault("kept")
        return promises

    async def _store(
        self, judged: Sequence[_Judged], promises: Sequence[Promise | None], query: Query, deadline: float
    ) -> web.Response:
        """Sends pict-rs what is allowed, and answers in the order of the files."""
        allowed = [one.upload for one in judged if not one.is_held]
        if not allowed:
            is_06 = await self._pictrs.is_06()
            entries = [answers.upload_entry(promise, is_06=is_06) for promise in promises if promise]
            return answers.upload_answer(entries, is_06=is_06)
        files = [
            OutgoingFile(f"upload.{upload.media.extension}", upload.media.content_type, upload.content)
            for upload in allowed
        ]
        within_s = max(deadline - asyncio.get_running_loop().time(), 0.1)
        answer = await self._pictrs.upload(files, query, within_s=within_s)
        if len(allowed) == len(judged) or answer.status != 201:
            return answers.relayed(answer)
        stored = answer.json().get("files")
        if not isinstance(stored, list) or len(stored) != len(allowed):
            raise PictrsError("pict-rs answered an upload with another number of files")
        is_06 = await self._pictrs.is_06()
        next_stored = iter(stored)
        entries = [
            answers.upload_entry(promise, is_06=is_06) if promise else next(next_stored)
            for promise in promises
        ]
        return answers.upload_answer(entries, is_06=is_06)


def _size_to_show(one: _Judged, arguments: Arguments) -> tuple[Size | None, int | None]:
    """Size and frames that the placeholder of a held upload is to have."""
    size, frames = one.headers_say or (None, None)
    if isinstance(one.look, Seen):  # decoded, so it knows better
        size = Size(one.look.width, one.look.height)
    if size is not None:
        size = arguments.size_after(one.upload.media, size)
    return size, frames


async def _continue(request: web.BaseRequest) -> None:
    """Answers `Expect: 100-continue`, for clients that wait for it before they send."""
    if request.headers.get("Expect", "").lower() == "100-continue":
        await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        request.writer.output_size = 0  # an interim answer is no answer yet


def _unavailable() -> Refusal:
    return Refusal(
        503,
        "scan-unavailable",
        "Pictures cannot be checked right now; please try again in a minute",
        retry_after_s=_RETRY_AFTER_S,
    )
