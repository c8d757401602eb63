"""Pictures of other sites: `download?url=` and `proxy=`, by which pict-rs would fetch bytes itself."""

from __future__ import annotations

import asyncio
import enum
import hashlib
import logging
from collections.abc import Sequence
from contextlib import AsyncExitStack
from typing import Any

from aiohttp import web
from sqlalchemy.exc import SQLAlchemyError

from proxy import refusals
from proxy.cases import placeholder
from proxy.cases.keeping import Wanted, make_promise
from proxy.database import Database, Promise, ledger, promising
from proxy.errors import PictrsError, Refusal
from proxy.intake.budget import Budget
from proxy.intake.fetching import USER_AGENT, Fetcher, alias_in
from proxy.intake.target import write_target
from proxy.intake.uploads import upload_of
from proxy.media import Format, Kind, Measure, Size
from proxy.media.geometry import STEPS
from proxy.metrics import Metrics
from proxy.pictrs import Entrance, Pictrs
from proxy.saying import said
from proxy.server import answers
from proxy.server.arguments import Arguments
from proxy.server.passing import Passing
from proxy.server.pending import Pending
from proxy.server.uploads import Uploads

log = logging.getLogger(__name__)

Query = Sequence[tuple[str, str]]

_OWN_KEYS = frozenset({"url", "backgrounded"})
# Lemmy waits 10 s for everything but an upload; half of what the fetching leaves is for looking.
_DOWNLOAD_S, _FETCH_S = 9.5, 5.0
_DOWNLOAD = ("image", "download")


class Downloads(enum.StrEnum):
    """Who fetches what `download?url=` names."""

    FETCH = "fetch"  # the gate, which then looks
    VALIDATE = "validate"  # pict-rs, whose validation hook asks the gate
    REFUSE = "refuse"


class Proxied(enum.StrEnum):
    """Who fetches what `proxy=` names."""

    VALIDATE = "validate"
    REFUSE = "refuse"


class HookWatch:
    """Whether pict-rs's validation hook calls, as the operator has stated that it does."""

    def __init__(self) -> None:
        self.calls = 0
        self.is_missing = False

    def called(self) -> None:
        """The hook has asked about a file."""
        self.calls += 1
        self.is_missing = False


class Fetches:
    """Answers what would make pict-rs fetch."""

    def __init__(
        self,
        *,
        downloads: Downloads,
        proxied: Proxied,
        fetcher: Fetcher,
        largest_bytes: int,
        budget: Budget,
        watch: HookWatch,
        pending: Pending,
        uploads: Uploads,
        passing: Passing,
        database: Database,
        pictrs: Pictrs,
        metrics: Metrics,
    ) -> None:
        self._downloads, self._proxied = downloads, proxied
        self._fetcher, self._largest_bytes, self._budget = fetcher, largest_bytes, budget
        self._watch, self._pending, self._uploads, self._passing = watch, pending, uploads, passing
        self._database, self._pictrs, self._metrics = database, pictrs, metrics

    async def downloaded(self, request: web.BaseRequest, query: Query) -> web.StreamResponse:
        """Answers `GET /image/download`.

        Args:
            query: of the route's own keys.

        Raises:
            Refusal: nothing was stored.
            PictrsError: pict-rs gave no answer.
        """
        if request.headers.get("User-Agent", "").startswith(USER_AGENT):
            raise Refusal(403, "not-gated", "A gate does not fetch for a gate")  # or they might for ever
        own = dict(query)
        url = own.get("url")
        if url is None:
            raise Refusal(400, "invalid-query", "missing field `url`")
        arguments = [pair for pair in query if pair[0] not in _OWN_KEYS]
        is_backgrounded = own.get("backgrounded", "false") == "true"
        entrance = Entrance.BACKGROUNDED if is_backgrounded else Entrance.UPLOAD
        alias = alias_in(url)
        promise = await self._pending.find(alias) if alias else None
        if promise is not None:
            return await self._further(promise, arguments, is_backgrounded=is_backgrounded)
        match self._downloads:
            case Downloads.FETCH:
                return await self._fetched(request, entrance, url, arguments)
            case Downloads.VALIDATE:
                return await self._validated(request, query)
            case Downloads.REFUSE:
                raise _refused()

    async def proxied(self, request: web.BaseRequest, target: str, url: str) -> web.StreamResponse:
        """Answers a read of another site's picture, which pict-rs fetches and keeps for a while.

        Args:
            target: the request's, as the gate has written it.
            url: that it names.

        Raises:
            Refusal: pict-rs was asked nothing.
            PictrsError: pict-rs gave no answer.
        """
        if self._proxied is Proxied.REFUSE or self._watch.is_missing:
            raise _refused()
        # As long as the hook has never called, each new address is a test of it.
        is_test = self._watch.calls == 0 and not await self._pictrs.has_proxied(url)
        try:
            return await self._passing.pass_on(request, target)
        finally:  # whatever became of the answer
            if is_test and self._watch.calls == 0:
                await self._check_proxied(url)

    async def _further(self, promise: Promise, arguments: Query, *, is_backgrounded: bool) -> web.Response:
        """A thumbnail of a held picture: a further alias of the same case, with arguments of its own."""
        read = Arguments(arguments)
        media = Format(
            "",
            Kind(promise.details["format"]),
            str(promise.case.content_type),
            promise.details["content_type"],
            promise.alias.rpartition(".")[2],
        )
        size = Size(promise.details["width"], promise.details["height"])
        read.check(media, Measure(size, promise.details.get("frames")), promise.case.size or 0)
        after = read.size_after(media, size)
        details = await asyncio.to_thread(placeholder.details, media, after, promise.details.get("frames"))
        wanted = Wanted(lambda: (after, None), backgrounded=is_backgrounded)
        # The first alias was made with arguments of its own; a thumbnail is made of what it shows.
        steps = [(key, value) for key, value in promise.arguments if key in STEPS]
        made = make_promise(details, media, [*steps, *arguments], wanted)
        made.case_id = promise.case_id
        if not await self._database.run(promising.promise_more, made):
            raise Refusal(503, "busy", "The picture is not ready yet", retry_after_s=5)
        is_06 = await self._pictrs.is_06()
        if is_backgrounded:
            return answers.backgrounded_answer([{"upload_id": made.upload_id}])
        return answers.upload_answer([answers.upload_entry(made, is_06=is_06)], is_06=is_06)

    async def _fetched(
        self, request: web.BaseRequest, entrance: Entrance, url: str, arguments: Query
    ) -> web.Response:
        arrival = self._uploads.arrival(
            request, entrance, arguments, route="GET /image/download", within_s=_DOWNLOAD_S
        )
        async with AsyncExitStack() as room:
            try:
                async with asyncio.timeout(_FETCH_S):
                    await room.enter_async_context(self._budget.lend(self._largest_bytes))
                    content = await self._fetcher.fetch(url, within_s=_FETCH_S)
            except TimeoutError:
                raise refusals.DOWNLOAD_TOO_SLOW() from None
            sha256 = await asyncio.to_thread(lambda: hashlib.sha256(content).hexdigest())
            upload = upload_of(content, sha256, file_name="", declared_type=None)
            return await self._uploads.take([upload], arrival)

    async def _validated(self, request: web.BaseRequest, query: Query) -> web.Response:
        """Left to pict-rs; what it has stored without asking the gate is deleted again."""
        is_later = ("backgrounded", "true") in query  # when nobody waits any more to see whether it calls
        if self._watch.is_missing or (is_later and self._watch.calls == 0):
            raise _refused()
        before = self._watch.calls
        answer = await self._pictrs.get(write_target(_DOWNLOAD, query))
        if answer.status == 201 and self._watch.calls == before:
            files = answer.json().get("files") or []
            await self._take_back([entry for entry in files if isinstance(entry, dict)])
            raise _refused()
        return answers.relayed(answer)

    async def _take_back(self, stored: Sequence[dict[str, Any]]) -> None:
        await self._complain("download")
        for entry in stored:
            await self._pictrs.delete(str(entry.get("file")))

    async def _check_proxied(self, url: str) -> None:
        """Takes back what pict-rs keeps without having asked. The answer is out, so nothing is raised."""
        try:
            if await self._pictrs.has_proxied(url):
                await self._complain("proxied picture")
                await self._pictrs.delete_proxied(url)
        except (PictrsError, SQLAlchemyError) as error:
            self._watch.is_missing = True  # until the hook shows that it is there
            log.error("a proxied picture could not be taken back: %s", said(error))

    async def _complain(self, what: str) -> None:
        self._watch.is_missing = True
        self._metrics.unvalidated_fetches.inc()
        log.error(
            "pict-rs has fetched a picture (%s) and not asked the gate about it: media.external_validation "
            "is not set to this gate. Fetching is refused until the hook calls",
            what,
        )
        await self._database.run(ledger.record, "stored unseen", actor="gate", facts={"by": what})


def _refused() -> Refusal:
    return Refusal(403, "not-gated", "Pictures of other sites are not fetched here")
