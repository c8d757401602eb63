"""The HTTP side: who may ask, protocol v1, health and metrics."""

from __future__ import annotations

import hmac
import logging
from collections.abc import Awaitable, Callable, Sequence

from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from classifier.errors import Rejection, error_place, too_large
from classifier.metrics import Metrics
from classifier.service import Asked, Reply, Service, error_reply

log = logging.getLogger(__name__)


class Server:
    """Answers a gate over HTTP."""

    def __init__(self, service: Service, tokens: Sequence[str], metrics: Metrics) -> None:
        """
        Args:
            service: what answers.
            tokens: any of which a request has to bear; empty where everybody may ask.
            metrics: what `/metrics` shows.
        """
        self._service, self._metrics = service, metrics
        self._tokens = [token.encode() for token in tokens]
        self._is_draining = False

    def application(self) -> web.Application:
        """The routes."""
        application = web.Application(middlewares=[self._border])
        application.add_routes(
            [
                web.post("/v1/classify", self._classify),
                web.get("/v1/info", self._info),
                web.get("/healthz", self._health),
                web.get("/readyz", self._readiness),
                web.get("/metrics", self._show_metrics),
            ]
        )
        application.on_response_prepare.append(self._part_after)
        return application

    def drain(self) -> None:
        """From now on every answer is the last one of its connection, and says so."""
        self._is_draining = True

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
            return _response(error_reply(rejection))
        except web.HTTPException as error:
            return _response(error_reply(Rejection(error.status, "no-such-thing", error.reason)))
        except ConnectionError:
            raise  # the client is gone
        except Exception as error:  # noqa: BLE001 — the border: a bug costs its own request a 500
            log.error("%s failed: %s", request.path, error_place(error))
            return _response(error_reply(Rejection(500, "internal-error", "the classifier failed")))

    async def _part_after(self, _request: web.Request, response: web.StreamResponse) -> None:
        if self._is_draining:
            response.force_close()
            response.headers["Connection"] = "close"  # aiohttp has written its own by now, without

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
        async def read(most: int) -> bytes:
            pieces: list[bytes] = []
            received = 0
            async for piece in request.content.iter_any():
                received += len(piece)
                if received > most:
                    raise too_large(f"more than {most} bytes")
                pieces.append(piece)
            return b"".join(pieces)

        asked = Asked(
            request.headers.get("X-Priority"),
            request.headers.get("X-Deadline-Ms"),
            request.content_length,
            read,
        )
        return _response(await self._service.classify(asked))

    async def _info(self, _request: web.Request) -> web.Response:
        return web.json_response(self._service.info())

    async def _health(self, _request: web.Request) -> web.Response:
        return web.Response(text="ok\n")

    async def _readiness(self, _request: web.Request) -> web.Response:
        # The weights are loaded before anything is listened on.
        return web.Response(
            status=503 if self._is_draining else 200, text="stopping\n" if self._is_draining else "ok\n"
        )

    async def _show_metrics(self, _request: web.Request) -> web.Response:
        body = generate_latest(self._metrics.registry)
        return web.Response(body=body, headers={"Content-Type": CONTENT_TYPE_LATEST})


def _response(reply: Reply) -> web.Response:
    headers = {} if reply.retry_after_s is None else {"Retry-After": str(reply.retry_after_s)}
    return web.json_response(reply.content, status=reply.status, headers=headers)
