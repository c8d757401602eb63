"""The `server` listener: one request line, one route of the table, one answer."""

from __future__ import annotations

import asyncio
import hmac
import logging

from aiohttp import HttpVersion10, HttpVersion11, web
from sqlalchemy.exc import SQLAlchemyError

from proxy import refusals
from proxy.database.dialects import in_words
from proxy.errors import PictrsError, Refusal
from proxy.intake.target import Target, read_target, write_target
from proxy.metrics import Metrics
from proxy.pictrs import Entrance, Pictrs
from proxy.routes import Match, Treatment, find, known_pairs, segments_of
from proxy.server import answers
from proxy.server.claims import Claims
from proxy.server.deadlines import read_deadline
from proxy.server.fetches import Fetches
from proxy.server.passing import Passing
from proxy.server.reads import Reads
from proxy.server.removals import Removals
from proxy.server.uploads import Uploads

log = logging.getLogger(__name__)


class Gateway:
    """Answers every request that reaches the `server` listener."""

    def __init__(
        self,
        *,
        uploads: Uploads,
        fetches: Fetches,
        claims: Claims,
        reads: Reads,
        removals: Removals,
        passing: Passing,
        pictrs: Pictrs,
        api_key: str | None,
        metrics: Metrics,
    ) -> None:
        self._uploads, self._fetches, self._claims = uploads, fetches, claims
        self._reads, self._removals, self._passing = reads, removals, passing
        self._pictrs, self._api_key, self._metrics = pictrs, api_key, metrics

    async def __call__(self, request: web.BaseRequest) -> web.StreamResponse:
        """Answers one request. Nothing that goes wrong here is told in more than its kind."""
        started = asyncio.get_running_loop().time()
        name = "none"
        try:
            _check_framing(request)
            target = read_target(request.raw_path)
            read_deadline(request.headers)  # pict-rs reads it before anything else
            matched = find(target)
            if matched is not None:
                name = matched.route.name
            response = await self._answer(request, matched, target)
        except Refusal as error:
            is_06 = error.in_06 is not None and await self._pictrs.is_06()
            response = answers.refusal(error, is_06=is_06)
        except PictrsError as error:
            log.warning("%s: %s", name, error)
            content = {"code": "pictrs-unavailable", "msg": "pict-rs did not answer"}
            response = answers.json_answer(504 if error.timed_out else 502, content)
        except SQLAlchemyError as error:
            log.error("%s: the database cannot be asked: %s", name, in_words(error))
            unavailable = Refusal(503, "busy", "The gate cannot answer now", retry_after_s=5)
            response = answers.refusal(unavailable, is_06=False)
        except ConnectionError:
            raise  # the client is gone; aiohttp closes what is left
        except Exception as error:  # noqa: BLE001 — the border: a bug costs its own request a 500
            log.error("%s: %s at %s", name, type(error).__name__, _where(error))
            response = answers.json_answer(500, {"code": "internal-error", "msg": "The gate failed"})
        if not response.prepared:
            response.headers["Server"] = answers.SERVER
        seconds = asyncio.get_running_loop().time() - started
        self._metrics.requests.labels(route=name, status=response.status).inc()
        self._metrics.request_seconds.labels(route=name).observe(seconds)
        log.debug(
            "route=%s method=%s status=%s ms=%.1f", name, request.method, response.status, seconds * 1000
        )
        return response

    async def _answer(
        self, request: web.BaseRequest, matched: Match | None, target: Target
    ) -> web.StreamResponse:
        if matched is None:
            if target.segments[0] == "internal" and not self._has_key(request):
                raise refusals.NO_API_KEY()
            return web.Response(status=404)
        route = matched.route
        if request.method not in route.methods:
            if route.wrong_method == 404:
                return web.Response(status=404)
            return web.Response(status=405, headers={"Allow": ", ".join(sorted(route.methods))})
        query = known_pairs(route, target.query)
        match route.treatment:
            case Treatment.UPLOAD:
                entrance = Entrance(target.segments)
                if entrance is Entrance.IMPORT and not self._has_key(request):
                    raise refusals.NO_API_KEY()
                return await self._uploads.answer(request, entrance, target.query)
            case Treatment.DOWNLOAD:
                return await self._fetches.downloaded(request, query)
            case Treatment.CLAIM:
                return await self._claims.answer(request, matched, query)
            case Treatment.READ:
                return await self._reads.answer(request, matched, query)
            case Treatment.REMOVE:
                return await self._removals.answer(request, matched, query, has_key=self._has_key(request))
            case Treatment.PASS:
                written = write_target(segments_of(matched), query)
                return await self._passing.pass_on(request, written, with_body=route.takes_body)

    def _has_key(self, request: web.BaseRequest) -> bool:
        given = request.headers.get("X-Api-Token", "").encode("utf-8", "surrogateescape")
        return self._api_key is not None and hmac.compare_digest(given, self._api_key.encode())


def _check_framing(request: web.BaseRequest) -> None:
    """What aiohttp's parser takes and others might take otherwise.

    Raises:
        Refusal: 400.
    """
    if request.version not in (HttpVersion10, HttpVersion11):
        raise Refusal(400, "invalid-request", "HTTP/1.1 is spoken here")
    transfer = [value.strip().lower() for value in request.headers.getall("Transfer-Encoding", [])]
    if transfer not in ([], ["chunked"]) or (transfer and "Content-Length" in request.headers):
        raise Refusal(400, "invalid-request", "the request's length cannot be read in one way only")
    if any(value.lower() != "identity" for value in request.headers.getall("Content-Encoding", [])):
        raise Refusal(400, "invalid-request", "the request's content is encoded")


def _where(error: BaseException) -> str:
    """File and line of an error: enough to find a bug, and never a value."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return f"{trace.tb_frame.f_code.co_filename}:{trace.tb_lineno}" if trace else "unknown"
