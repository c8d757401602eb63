"""Metrics and health."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from proxy.metrics import Metrics


class Internal:
    """Answers `/metrics`, `/healthz` (the process lives) and `/readyz` (it can do its work)."""

    def __init__(self, metrics: Metrics, is_ready: Callable[[], Awaitable[bool]]) -> None:
        self._metrics, self._is_ready = metrics, is_ready

    async def __call__(self, request: web.BaseRequest) -> web.StreamResponse:
        """Answers one request."""
        if request.method not in ("GET", "HEAD"):
            return web.Response(status=405, headers={"Allow": "GET, HEAD"})
        match request.path:
            case "/healthz":
                return web.Response(text="ok\n")
            case "/readyz":
                ready = await self._is_ready()
                return web.Response(status=200 if ready else 503, text="ready\n" if ready else "not ready\n")
            case "/metrics":
                body = generate_latest(self._metrics.registry)
                return web.Response(body=body, headers={"Content-Type": CONTENT_TYPE_LATEST})
        return web.Response(status=404)
