"""`GET /image/backgrounded/claim`: once for each upload id, the gate's own for what is held."""

from __future__ import annotations

import uuid

from aiohttp import web

from proxy.database import Database, promising
from proxy.intake.target import write_target
from proxy.pictrs import Pictrs
from proxy.routes import Match, segments_of
from proxy.server import answers
from proxy.server.passing import Passing

Query = list[tuple[str, str]]


class Claims:
    """Answers claims."""

    def __init__(self, database: Database, pictrs: Pictrs, passing: Passing) -> None:
        self._database, self._pictrs, self._passing = database, pictrs, passing

    async def answer(self, request: web.BaseRequest, match: Match, query: Query) -> web.StreamResponse:
        """Answers one claim.

        Raises:
            PictrsError: pict-rs gave no answer.
        """
        upload_id = _canonical(dict(query).get("upload_id", ""))
        promise = await self._database.run(promising.claim, upload_id) if upload_id else None
        if promise is None:
            return await self._passing.pass_on(request, write_target(segments_of(match), query))
        is_06 = await self._pictrs.is_06()
        return answers.upload_answer([answers.upload_entry(promise, is_06=is_06)], is_06=is_06, status=200)


def _canonical(upload_id: str) -> str | None:
    """An upload id, a UUID in any spelling, in the one that the gate made."""
    try:
        return str(uuid.UUID(upload_id))
    except ValueError:
        return None
