"""Deleting and purging: passed on, but for aliases that stand for cases, whose evidence stays."""

from __future__ import annotations

import hmac
import uuid

from aiohttp import web

from proxy import refusals
from proxy.aliases import alias_key
from proxy.database import Database, Promise, cases, promising
from proxy.intake.target import write_target
from proxy.pictrs import Pictrs
from proxy.routes import Match, segments_of
from proxy.server import answers
from proxy.server.passing import Passing
from proxy.server.reads import subject

Query = list[tuple[str, str]]


class Removals:
    """Answers what removes pictures. A placeholder goes away for everyone; the case stays as it is."""

    def __init__(self, database: Database, pictrs: Pictrs, passing: Passing) -> None:
        self._database, self._pictrs, self._passing = database, pictrs, passing

    async def answer(
        self, request: web.BaseRequest, match: Match, query: Query, *, has_key: bool
    ) -> web.StreamResponse:
        """Answers one removal.

        Args:
            query: of the route's own keys.
            has_key: whether the request bears pict-rs's API key.

        Raises:
            Refusal: a wrong token or key.
            PictrsError: pict-rs gave no answer.
        """
        key, value = subject(match, query)
        promise = None
        if value and key != "proxy":
            promise = await self._database.run(promising.promise_of, alias_key(value))
        if promise is None or (promise.removed_at is not None and match.route.name != "delete"):
            named = [(key, value)] if key else []
            return await self._passing.pass_on(request, write_target(segments_of(match), named))
        if match.route.name == "delete":
            return await self._by_token(request, match, promise)
        if not has_key:
            raise refusals.NO_API_KEY()
        if promise.is_in_pictrs:
            return await self._passing.pass_on(request, write_target(segments_of(match), [(key, value)]))
        if match.route.name == "delete-by-key":
            await self._remove([promise], "alias deleted by key")
            return answers.json_answer(200, {"msg": "ok"})
        case = await self._database.run(cases.get, promise.case_id)
        standing = [one for one in case.promises if one.removed_at is None]
        await self._remove(standing, "alias purged")
        return answers.json_answer(200, {"aliases": [one.alias for one in standing], "msg": "ok"})

    async def _by_token(self, request: web.BaseRequest, match: Match, promise: Promise) -> web.StreamResponse:
        is_promised = hmac.compare_digest(_token(match.captured["token"]), _token(promise.delete_token))
        is_open = promise.removed_at is None and not promise.is_in_pictrs
        if not is_open and not is_promised:
            return await self._passing.pass_on(request, write_target(segments_of(match)))
        if not is_promised:
            raise refusals.DELETE_TOKEN_WRONG()
        await self._remove([promise], "alias deleted by its token")
        return web.Response(status=204)

    async def _remove(self, promises: list[Promise], act: str) -> None:
        """Takes aliases away, from pict-rs too where a release has brought them there, or may just do so."""
        for alias in await self._database.run(promising.remove, promises, act=act):
            await self._pictrs.delete(alias)  # again, where an earlier attempt did not get so far


def _token(text: str) -> bytes:
    """A delete token as pict-rs compares it: a UUID in any spelling, or its own bytes."""
    try:
        return uuid.UUID(text).bytes
    except ValueError:
        return text.encode()
