"""Reads: passed on, but for aliases that stand for cases and addresses that pict-rs would fetch."""

from __future__ import annotations

from aiohttp import web

from proxy.intake.fetching import alias_in
from proxy.intake.target import write_target
from proxy.routes import Match, segments_of
from proxy.server.fetches import Fetches
from proxy.server.passing import Passing
from proxy.server.pending import Pending

Query = list[tuple[str, str]]


class Reads:
    """Answers reads."""

    def __init__(self, pending: Pending, fetches: Fetches, passing: Passing) -> None:
        self._pending, self._fetches, self._passing = pending, fetches, passing

    async def answer(self, request: web.BaseRequest, match: Match, query: Query) -> web.StreamResponse:
        """Answers one read.

        Args:
            query: of the route's own keys.

        Raises:
            Refusal: it is not to be passed on.
            PictrsError: pict-rs gave no answer.
        """
        key, value = subject(match, query)
        alias = alias_in(value) if key == "proxy" else value
        promise = await self._pending.find(alias) if alias else None
        if promise is not None:
            answer = await self._pending.answer(match, query, promise, request.headers)
            if answer is not None:
                return answer
        # One subject only: what pict-rs would make of several is not left to it.
        others = [pair for pair in query if pair[0] not in match.route.alias_keys]
        named = [(key, value)] if key in match.route.alias_keys else []
        target = write_target(segments_of(match), named + others)
        if key == "proxy" and match.route.fetches and request.method == "GET":
            return await self._fetches.proxied(request, target, value)
        return await self._passing.pass_on(request, target)


def subject(match: Match, query: Query) -> tuple[str, str]:
    """What a request is about, by pict-rs's order of precedence: the key that names it, and the value.

    Returns:
        `("", "")` where it names nothing.
    """
    if "alias" in match.captured:
        return "", match.captured["alias"]
    named = dict(query)
    return next(((key, named[key]) for key in match.route.alias_keys if key in named), ("", ""))
