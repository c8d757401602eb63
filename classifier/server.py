"""The HTTP side: protocol v1 (`docs/protocol.md`), health and metrics."""

from __future__ import annotations

import asyncio
import hmac
import logging
import re
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from classifier.decoding.files import FORMATS
from classifier.engine import Engine, Result
from classifier.errors import Rejection, deadline_exceeded, too_large
from classifier.metrics import Metrics
from classifier.turns import Priority

log = logging.getLogger(__name__)

_LONGEST_DEADLINE_MS = 600_000


@dataclass(frozen=True, slots=True)
class ServerSettings:
    """
    Attributes:
        tokens: any of which a request has to bear; empty where everybody may ask.
        body_bytes: the largest file that is taken.
        deadline_ms: for a request that names none.
    """

    tokens: Sequence[str]
    body_bytes: int
    deadline_ms: int = 30_000


class Server:
    """Answers protocol v1."""

    def __init__(self, settings: ServerSettings, engine: Engine, metrics: Metrics) -> None:
        self._settings, self._engine, self._metrics = settings, engine, metrics
        self._tokens = [token.encode() for token in settings.tokens]
        metrics.waiting.set_function(lambda: engine.waiting)

    def application(self) -> web.Application:
        """The routes."""
        application = web.Application(middlewares=[self._border])
        application.add_routes(
            [
                web.post("/v1/classify", self._classify),
                web.get("/v1/info", self._info),
                web.get("/healthz", self._health),
                web.get("/readyz", self._health),  # the weights are loaded before anything is listened on
                web.get("/metrics", self._show_metrics),
            ]
        )
        return application

    @web.middleware
    async def _border(
        self, request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
    ) -> web.StreamResponse:
        """Who may ask, and errors in the protocol's shape that tell nothing of a file."""
        try:
            if request.path.startswith("/v1/"):
                self._check_token(request)
            return await handler(request)
        except Rejection as rejection:
            return _error(rejection)
        except web.HTTPException as error:
            return _error(Rejection(error.status, "no-such-thing", error.reason))
        except ConnectionError:
            raise  # the client is gone
        except Exception as error:  # noqa: BLE001 — the border: a bug costs its own request a 500
            log.error("%s failed: %s", request.path, type(error).__name__)
            return _error(Rejection(500, "internal-error", "the classifier failed"))

    def _check_token(self, request: web.Request) -> None:
        if not self._tokens:
            return
        scheme, _, given = request.headers.get("Authorization", "").partition(" ")
        # aiohttp hands on bytes that are not UTF-8 as surrogates, which a plain `encode` refuses
        offered = given.encode("utf-8", "surrogateescape")
        matches = [hmac.compare_digest(offered, token) for token in self._tokens]
        if scheme.lower() != "bearer" or not any(matches):
            raise Rejection(401, "unauthorized", "this classifier wants a bearer token that it knows")

    async def _classify(self, request: web.Request) -> web.Response:
        loop = asyncio.get_running_loop()
        began = loop.time()
        priority = Priority.LIVE
        outcome, result = "internal-error", None
        try:
            priority = _priority(request)
            deadline = began + _deadline_ms(request, self._settings.deadline_ms) / 1000
            content = await self._body(request, deadline)
            result = await self._engine.look(content, priority=priority, deadline=deadline)
            outcome = "ok"
        except Rejection as rejection:
            outcome = rejection.code
            raise
        finally:
            self._metrics.requests.labels(outcome=outcome, priority=priority).inc()
            took_ms = (loop.time() - began) * 1000
            log.info("outcome=%s priority=%s ms=%.1f %s", outcome, priority, took_ms, _summary(result))
        self._metrics.remembered.inc(result.remembered)
        for stage, milliseconds in result.timing_ms.items():
            self._metrics.stage_seconds.labels(stage=stage).observe(milliseconds / 1000)
        return web.json_response(self._answer(result))

    async def _body(self, request: web.Request, deadline: float) -> bytes:
        most = self._settings.body_bytes
        if (request.content_length or 0) > most:
            raise too_large(f"more than {most} bytes")
        pieces: list[bytes] = []
        received = 0
        try:
            async with asyncio.timeout_at(deadline):
                async for piece in request.content.iter_any():
                    received += len(piece)
                    if received > most:
                        raise too_large(f"more than {most} bytes")
                    pieces.append(piece)
        except TimeoutError:
            raise deadline_exceeded() from None
        if not received:
            raise Rejection(400, "undecodable", "there is no file in the request")
        return b"".join(pieces)

    def _answer(self, result: Result) -> dict[str, Any]:
        ensemble = self._engine.ensemble
        return {
            "ensemble": ensemble.name,
            "version": ensemble.version,
            "media": asdict(result.media),
            "signals": result.signals,
            "remembered": result.remembered,
            "frames": [{"index": frame.index, "signals": frame.signals} for frame in result.frames],
            "hashes": asdict(result.hashes),
            "timing_ms": result.timing_ms,
        }

    async def _info(self, _request: web.Request) -> web.Response:
        ensemble = self._engine.ensemble
        return web.json_response(
            {
                "protocol": 1,
                "ensemble": ensemble.name,
                "about": ensemble.about,
                "version": ensemble.version,
                "signals": ensemble.signals,
                "formats": list(FORMATS),
                "limits": {"body_bytes": self._settings.body_bytes, "deadline_ms": _LONGEST_DEADLINE_MS},
            }
        )

    async def _health(self, _request: web.Request) -> web.Response:
        return web.Response(text="ok\n")

    async def _show_metrics(self, _request: web.Request) -> web.Response:
        body = generate_latest(self._metrics.registry)
        return web.Response(body=body, headers={"Content-Type": CONTENT_TYPE_LATEST})


def _priority(request: web.Request) -> Priority:
    try:
        return Priority(request.headers.get("X-Priority", Priority.LIVE))
    except ValueError:
        raise Rejection(400, "bad-request", f"X-Priority is {' or '.join(Priority)}") from None


def _deadline_ms(request: web.Request, default: int) -> int:
    given = request.headers.get("X-Deadline-Ms")
    if given is None:
        return default
    number = re.fullmatch(r"0*([1-9][0-9]*)", given)
    if number is None:
        raise Rejection(400, "bad-request", "X-Deadline-Ms is a whole number of milliseconds, 1 or more")
    # Whoever can wait longer than is promised may; nine digits are more than enough to see that.
    return min(int(number[1][:9]), _LONGEST_DEADLINE_MS)


def _error(rejection: Rejection) -> web.Response:
    headers = {} if rejection.retry_after_s is None else {"Retry-After": str(rejection.retry_after_s)}
    content = {"error": {"code": rejection.code, "message": rejection.message}}
    return web.json_response(content, status=rejection.status, headers=headers)


def _summary(result: Result | None) -> str:
    """What the log may know of a file: neither content nor hash."""
    if result is None:
        return ""
    media = result.media
    return f"{media.kind}/{media.format} {media.width}x{media.height} frames={media.frames}"
