"""Whatever brings bytes: request → files → verdicts → effects → answer."""

from __future__ import annotations

import asyncio
import functools
import logging
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

from aiohttp import web
from sqlalchemy.exc import SQLAlchemyError

from proxy import refusals
from proxy.aliases import alias_key
from proxy.cases.clearances import Clearances, Sent
from proxy.cases.keeping import Keeper, Origin, Wanted
from proxy.cases.life import RELEASE_S
from proxy.cases.unseen import Noting
from proxy.channels.looks import Look, Priority, Seen, Unseen
from proxy.database import Database, Promise, ledger, promising
from proxy.errors import AliasTaken, PictrsError, Refusal, SealingError
from proxy.faults import FaultPoint
from proxy.intake.budget import Budget, Room
from proxy.intake.multipart import OutgoingFile, can_be_sent
from proxy.intake.uploads import Upload, UploadLimits, largest_body, read_uploads
from proxy.judging import Judge
from proxy.media import Measure, Size, measure
from proxy.metrics import Metrics
from proxy.pictrs import Entrance, Pictrs
from proxy.policy import Decision, Verdict
from proxy.saying import said
from proxy.server import answers
from proxy.server.arguments import Arguments
from proxy.server.deadlines import Deadline, read_deadline
from proxy.server.uploaders import Uploaders

log = logging.getLogger(__name__)

Query = Sequence[tuple[str, str]]


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
class Arrival:
    """Files on their way in.

    Attributes:
        entrance: of pict-rs, by which they are to be stored.
        arguments: their query.
        origin: where they come from, for a case.
        deadline: of the answer, on the event loop's clock.
        client_deadline: the client's own deadline. It may refuse a file, and never makes anybody look less.
        uploader_id: Lemmy's local user id, where it can be believed.
    """

    entrance: Entrance
    arguments: Arguments
    origin: Origin
    deadline: float
    client_deadline: Deadline | None = None
    uploader_id: str | None = None

    @property
    def is_late(self) -> bool:
        """Whether the client does not wait any more."""
        return self.client_deadline is not None and self.client_deadline.has_passed


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
    """Answers uploads, imports, and files that the gate has fetched itself."""

    def __init__(
        self,
        *,
        settings: UploadSettings,
        small: Budget,
        large: Budget,
        judge: Judge,
        keeper: Keeper,
        noting: Noting,
        uploaders: Uploaders,
        clearances: Clearances,
        database: Database,
        pictrs: Pictrs,
        metrics: Metrics,
        fault: FaultPoint,
    ) -> None:
        self._settings = settings
        self._small, self._large = small, large
        self._judge = judge
        self._keeper = keeper
        self._noting = noting
        self._uploaders = uploaders
        self._clearances = clearances
        self._database = database
        self._pictrs = pictrs
        self._metrics = metrics
        self._fault = fault

    def arrival(
        self,
        request: web.BaseRequest,
        entrance: Entrance,
        query: Query,
        *,
        route: str | None = None,
        within_s: float | None = None,
    ) -> Arrival:
        """What a request's line says about the files that it brings.

        Args:
            entrance: by which pict-rs is to store them.
            query: the arguments of the upload.
            route: method and path for a case's facts, where it is not the entrance's.
            within_s: seconds until the answer, where it is less than an upload's.

        Raises:
            Refusal: pict-rs would not understand the query.
        """
        return Arrival(
            entrance,
            Arguments(query, bad_query_status_06=entrance.bad_query_status_06 if route is None else 400),
            Origin(
                route or f"POST /{'/'.join(entrance.segments)}",
                query,
                self._uploaders.facts(request),
                self._uploaders.tag(request),
            ),
            asyncio.get_running_loop().time() + (within_s or self._settings.upload_s),
            read_deadline(request.headers),
            # Only of uploads: Lemmy checks nobody's login for what it has fetched.
            self._uploaders.user_id(request) if route is None else None,
        )

    async def answer(self, request: web.BaseRequest, entrance: Entrance, query: Query) -> web.Response:
        """Answers a request whose body brings files.

        Raises:
            Refusal: pict-rs was sent nothing of it.
            PictrsError: pict-rs gave no answer.
        """
        arrival = self.arrival(request, entrance, query)
        if arrival.is_late:
            raise refusals.DEADLINE_EXCEEDED()
        most = largest_body(self._settings.limits)
        room = Room(
            *(self._small, self._large),
            most=min(request.content_length or most, most),
            deadline=arrival.deadline - self._settings.upload_s / 2,
        )
        with self._metrics.uploads_in_progress.track_inprogress():
            async with room:
                await _continue(request)
                left = arrival.deadline - asyncio.get_running_loop().time()
                uploads = await read_uploads(request, self._settings.limits, within_s=left, room=room)
                if entrance.names_are_aliases:
                    _check_names([one.alias for one in uploads])
                return await self.take(uploads, arrival)

    async def take(self, uploads: Sequence[Upload], arrival: Arrival) -> web.Response:
        """Has files looked at, does what the verdicts say, and answers.

        Raises:
            Refusal: pict-rs was sent nothing of them.
            PictrsError: pict-rs gave no answer.
        """
        judged = await asyncio.gather(*(self._look(upload, arrival) for upload in uploads))
        refusal = self._refusal(judged, arrival) or await self._taken(judged, arrival)
        if refusal is None and arrival.is_late:
            refusal = refusals.DEADLINE_EXCEEDED()
        try:
            promises = await self._keep(judged, arrival, promise=refusal is None)
        except AliasTaken:
            raise refusals.ALIAS_TAKEN() from None
        except (SealingError, SQLAlchemyError) as error:
            if not isinstance(error, SealingError):  # these are counted already
                self._metrics.sealing_failures.inc()
            log.error("an upload was refused because it could not be kept: %s", said(error))
            raise refusals.unavailable() from None
        if refusal is not None:
            raise refusal
        try:
            answer = await self._store(judged, promises, arrival)
            self._fault("forwarded")
        except (PictrsError, Refusal):
            await self._withdraw(promises)
            raise
        if answer.status != arrival.entrance.success:
            await self._withdraw(promises)
        return answer

    async def _withdraw(self, promises: Sequence[Promise | None]) -> None:
        """Takes back what was promised in a request that has failed after all: nobody is told of it."""
        made = [promise for promise in promises if promise is not None]
        if made:
            self._fault("withdrawing")
            stored = await self._database.run(promising.remove, made, act="alias withdrawn")
            self._fault("withdrawn")
            for alias in stored:  # a release was faster than this request; nobody would ever delete it
                try:
                    await self._pictrs.delete(alias)
                except PictrsError as error:
                    log.warning("a withdrawn alias stays in pict-rs: %s", error)

    async def _look(self, upload: Upload, arrival: Arrival) -> _Judged:
        left = arrival.deadline - asyncio.get_running_loop().time()
        try:
            look, decision = await self._judge.judge(
                *(upload.content, upload.media, upload.sha256),
                priority=Priority.LIVE,
                # The other half is pict-rs's: it takes its time too, and Lemmy waits no longer.
                within_s=min(self._settings.verdict_s, max(left / 2, 0.1)),
                uploader_id=arrival.uploader_id,
            )
        except SQLAlchemyError as error:
            log.error("an upload was refused unseen: %s", said(error))
            raise refusals.unavailable() from None
        is_backgrounded = arrival.entrance.is_backgrounded
        if is_backgrounded and decision.verdict is Verdict.ALLOW and isinstance(look, Unseen):
            # pict-rs tells its alias to nobody but who claims it, so the gate could not look at it later.
            decision = Decision(Verdict.DEFER, decision.reason)
        judged = _Judged(upload, look, decision)
        if judged.is_held:
            found = await asyncio.to_thread(measure, upload.content, upload.media)
            judged = replace(judged, headers_say=found)
        return judged

    def _refusal(self, judged: Sequence[_Judged], arrival: Arrival) -> Refusal | None:
        """Why a request is refused as a whole, or None."""
        for one in judged:
            if one.decision.verdict is Verdict.BLOCK:
                return (
                    refusals.unavailable()
                    if isinstance(one.look, Unseen)
                    else refusals.REFUSED_BY_VALIDATION()
                )
        held = [one for one in judged if one.is_held]
        if held and not self._settings.placeholders:
            if any(one.decision.by_lockdown for one in held):
                return refusals.locked()
            return Refusal(400, "held-for-review", "This upload is held until a moderator has looked at it")
        try:
            for one in held:  # what pict-rs would refuse at a release is not promised now
                arrival.arguments.check(one.upload.media, one.headers_say, len(one.upload.content))
        except Refusal as refusal:
            return refusal
        return None

    async def _taken(self, judged: Sequence[_Judged], arrival: Arrival) -> Refusal | None:
        """Whether a name that a file is to be imported under stands for another picture."""
        if not arrival.entrance.names_are_aliases:
            return None
        for one in judged:
            alias = one.upload.alias
            if await self._database.run(promising.promise_of, alias_key(alias)) is not None:
                return refusals.ALIAS_TAKEN()
            if one.is_held and await self._pictrs.has(alias):
                return refusals.ALIAS_TAKEN()
        return None

    async def _keep(
        self, judged: Sequence[_Judged], arrival: Arrival, *, promise: bool
    ) -> list[Promise | None]:
        """Makes cases of what is held, and notes the rest that has to be noted; one entry an upload.

        Where one of them cannot be kept, nobody is told of the others either.
        """
        promises: list[Promise | None] = []
        try:
            for one in judged:
                promises.append(await self._kept(one, arrival, promise=promise))
        except (AliasTaken, SealingError, SQLAlchemyError):
            with suppress(SQLAlchemyError):
                await self._withdraw(promises)
            raise
        self._fault("kept")
        return promises

    async def _kept(self, one: _Judged, arrival: Arrival, *, promise: bool) -> Promise | None:
        if one.is_held and (self._settings.placeholders or not one.decision.by_lockdown):
            wanted = Wanted(
                functools.partial(_size_to_show, one, arrival.arguments),
                one.upload.alias if arrival.entrance.names_are_aliases else None,
                arrival.entrance.is_backgrounded,
            )
            return await self._keeper.keep(
                *(one.upload, one.decision, one.look, arrival.origin), wanted if promise else None
            )
        act = _to_note(one)
        if act is not None:
            verdict, reason = one.decision.verdict.value, one.decision.reason
            facts = {"sha256": one.upload.sha256, "verdict": verdict, "reason": reason}
            await self._database.run(ledger.record, act, actor="gate", facts=facts)
        return None

    async def _store(
        self, judged: Sequence[_Judged], promises: Sequence[Promise | None], arrival: Arrival
    ) -> web.Response:
        """Sends pict-rs what is allowed, and answers in the order of the files."""
        allowed = [one.upload for one in judged if not one.is_held]
        stored: list[Any] = []
        if allowed:
            files = [_outgoing(upload, arrival.entrance) for upload in allowed]
            within_s = max(arrival.deadline - asyncio.get_running_loop().time(), 0.1)
            known = [one.upload.sha256 for one in judged if one.look is None and not one.is_held]
            sent = [Sent.of(one.upload.sha256, one.look) for one in judged if not one.is_held]
            # What is backgrounded comes to the hook when the answer is long given.
            lingering_s = RELEASE_S if arrival.entrance.is_backgrounded else 0
            with self._clearances.of(known, sent, lingering_s=lingering_s):
                answer = await self._pictrs.upload(
                    arrival.entrance,
                    files,
                    arrival.arguments.query,
                    within_s=within_s,
                    deadline=arrival.client_deadline.header if arrival.client_deadline else None,
                )
            if answer.status != arrival.entrance.success:
                return answers.relayed(answer)
            stored = answer.json().get(arrival.entrance.listed_as) or []
            await self._note_unseen([one for one in judged if not one.is_held], stored, arrival.origin)
            if len(allowed) == len(judged):
                return answers.relayed(answer)
            if len(stored) != len(allowed):
                raise PictrsError("pict-rs answered an upload with another number of files")
        is_06 = await self._pictrs.is_06()
        if not allowed and arrival.is_late:  # as pict-rs would have said
            raise refusals.DEADLINE_EXCEEDED()
        next_stored = iter(stored)
        if arrival.entrance.is_backgrounded:
            return answers.backgrounded_answer(
                [{"upload_id": promise.upload_id} if promise else next(next_stored) for promise in promises]
            )
        return answers.upload_answer(
            [
                answers.upload_entry(promise, is_06=is_06) if promise else next(next_stored)
                for promise in promises
            ],
            is_06=is_06,
        )

    async def _note_unseen(self, allowed: Sequence[_Judged], stored: Sequence[Any], origin: Origin) -> None:
        """Before anybody hears of it."""
        unseen = [one.upload if isinstance(one.look, Unseen) else None for one in allowed]
        if any(unseen):
            self._fault("unseen-stored")
            try:
                await self._noting.note(unseen, stored, origin)
            except SealingError as error:
                log.error("%s", error)
                raise refusals.unavailable() from None


def _check_names(aliases: Sequence[str]) -> None:
    if not all(map(can_be_sent, aliases)):
        raise refusals.malformed("a file's name cannot be an alias")
    if len(set(map(alias_key, aliases))) < len(aliases):
        raise refusals.ALIAS_TAKEN()


def _outgoing(upload: Upload, entrance: Entrance) -> OutgoingFile:
    name = upload.alias if entrance.names_are_aliases else f"upload.{upload.media.extension}"
    return OutgoingFile(name, upload.media.content_type, upload.content)


def _to_note(one: _Judged) -> str | None:
    """What the ledger calls a verdict of which no case is made; None for a plain allow."""
    if one.is_held:
        return "refused: lockdown"
    if one.decision.verdict is Verdict.BLOCK:
        return "blocked"
    return None if isinstance(one.look, Seen | None) else "allowed unseen"


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
