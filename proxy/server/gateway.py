"""The `server` listener: one request line, one route of the table, one answer."""

from __future__ import annotations

import asyncio
import hmac
import logging

from aiohttp import web

from proxy import refusals
from proxy.errors import PictrsError, Refusal
from proxy.intake.target import Target, read_target
from proxy.metrics import Metrics
from proxy.pictrs import Pictrs
from proxy.routes import Match, Treatment, find
from proxy.server import answers
from proxy.server.reads import Reads
from proxy.server.uploads import Uploads

log = logging.getLogger(__name__)


class Gateway:
    """Answers every request that reaches the `server` listener."""

    def __init__(
        self, uploads: Uploads, reads: Reads, pictrs: Pictrs, api_key: str | None, metrics: Metrics
    ) -> None:
        self._uploads, self._reads, self._pictrs = uploads, reads, pictrs
        self._api_key, self._metrics = api_key, metrics

    async def __call__(self, request: web.BaseRequest) -> web.StreamResponse:
        """Answers one request. Nothing that goes wrong here is told in more than its kind."""
        started = asyncio.get_running_loop().time()
        name = "none"
        try:
            target = read_target(request.raw_path)
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
        if route.fetches and target.only("proxy") is not None:
            raise Refusal(403, "not-gated", "The gate does not proxy pictures of other sites yet")
        match route.treatment:
            case Treatment.REFUSE:
                raise Refusal(403, "not-gated", f"The gate does not take pictures by /{route.path} yet")
            case Treatment.LOOK:
                return await self._uploads.answer(request, target.query)
            case Treatment.PASS:
                return await self._reads.answer(request, matched, target)

    def _has_key(self, request: web.BaseRequest) -> bool:
        given = request.headers.get("X-Api-Token", "").encode("utf-8", "surrogateescape")
        return self._api_key is not None and hmac.compare_digest(given, self._api_key.encode())


def _where(error: BaseException) -> str:
    """File and line of an error: enough to find a bug, and never a value."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return f"{trace.tb_frame.f_code.co_filename}:{trace.tb_lineno}" if trace else "unknown"
