"""Aliases that stand for cases: what they show until a human has decided, and for ever where he confirmed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from aiohttp import web

from proxy import refusals
from proxy.aliases import alias_key
from proxy.cases.placeholder import Placeholders
from proxy.database import Database, Promise, promising
from proxy.errors import Refusal
from proxy.intake.fetching import USER_AGENT
from proxy.media import Size, processed_size
from proxy.media.geometry import STEPS
from proxy.pictrs import Pictrs
from proxy.routes import Match
from proxy.server import answers

_VARIANTS = frozenset({"apng", "avif", "gif", "jpeg", "jpg", "jxl", "png", "webp"})

Query = list[tuple[str, str]]


class Pending:
    """Answers reads of aliases whose pictures pict-rs does not have."""

    def __init__(self, database: Database, pictrs: Pictrs, placeholders: Placeholders) -> None:
        self._database, self._pictrs, self._placeholders = database, pictrs, placeholders

    async def find(self, alias: str) -> Promise | None:
        """What was promised under an alias that shows a placeholder now; None where pict-rs is to be asked.

        Args:
            alias: in any spelling that pict-rs takes for the same.
        """
        promise = await self._database.run(promising.promise_of, alias_key(alias))
        if promise is None or promise.removed_at is not None or promise.is_in_pictrs:
            return None
        return promise

    async def answer(
        self, match: Match, query: Query, promise: Promise, headers: Mapping[str, str]
    ) -> web.Response | None:
        """The answer for a promised alias; None on a route that has nothing to say of it.

        Args:
            query: of the route's own keys.
            headers: of the request. Whoever keeps copies gets none.

        Raises:
            Refusal: pict-rs would refuse it, or it is asked for by somebody who would keep it.
        """
        details = promise.details
        size = Size(details["width"], details["height"])
        user_agent, wanted = headers.get("User-Agent", ""), headers.get("Range")
        match match.route.name:
            case "original" | "original-query":
                _refuse_keepers(user_agent)
                return await self._picture(size, promise.alias.rpartition(".")[2], wanted)
            case "process":
                extension = _writable(match.captured["ext"])
                _refuse_keepers(user_agent)
                return await self._picture(_processed(size, query), extension, wanted)
            case "process-later":
                _writable(match.captured["ext"])
                if await self._pictrs.is_06():
                    return _fresh(answers.json_answer(202, {"msg": "ok"}))
                return _fresh(web.Response(status=202))
            case "details" | "details-query":
                return await self._told(details)
            case "details-process":
                width, height = _processed(size, query)
                return await self._told({**details, "width": width, "height": height})
            case "blurhash":
                return await self._told({"blurhash": details["blurhash"], "msg": "ok"})
        return None

    async def _picture(self, size: Size, extension: str, wanted: str | None) -> web.Response:
        content_type, content = await self._placeholders.picture(size, extension)
        return _fresh(answers.picture_answer(content_type, content, wanted))

    async def _told(self, content: Mapping[str, Any]) -> web.Response:
        return _fresh(answers.read_answer(content, is_06=await self._pictrs.is_06()))


def _refuse_keepers(user_agent: str) -> None:
    """pict-rs fetches pictures to keep them, and so does a gate; a placeholder would stay there for ever."""
    if user_agent.startswith(("pict-rs", USER_AGENT)):
        raise Refusal(503, "busy", "The picture is not ready yet", retry_after_s=3600)


def _writable(extension: str) -> str:
    """`extension`, where pict-rs makes variants with it."""
    if extension not in _VARIANTS:
        raise refusals.unknown_extension(extension)
    return extension


def _processed(size: Size, query: Query) -> Size:
    """The size of a variant."""
    try:
        return processed_size(size, [(key, value) for key, value in query if key in STEPS])
    except ValueError:
        raise refusals.STEP_UNKNOWN() from None


def _fresh(response: web.Response) -> web.Response:
    """A placeholder is never to be kept by anybody."""
    response.headers["Cache-Control"] = answers.NO_STORE
    return response
