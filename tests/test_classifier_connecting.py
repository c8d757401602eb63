"""Dialling out: why there is no link is said in words."""

from __future__ import annotations

import asyncio
import logging
import ssl
from pathlib import Path
from typing import Any, cast

import pytest
from aiohttp import web

from classifier.connect import Dialler, Dialling
from classifier.metrics import Metrics
from classifier.service import Service
from tests.certificates import Authority
from tests.processes import free_port


class _Introduced:
    def info(self) -> dict[str, Any]:
        return {"signals": ["drawing"]}


async def said(url: str, caplog: pytest.LogCaptureFixture) -> str:
    """What the log has about the first link that was not, or did not last."""
    dialler = Dialler(Dialling(url, "t" * 16), cast(Service, _Introduced()), Metrics())
    stop = asyncio.Event()
    with caplog.at_level(logging.WARNING):
        running = asyncio.create_task(dialler.run(stop))
        async with asyncio.timeout(20):
            while not caplog.records:
                await asyncio.sleep(0.01)
        stop.set()
        await running
    return caplog.records[0].getMessage()


async def served(handler: Any, port: int, **options: Any) -> web.AppRunner:
    application = web.Application()
    application.router.add_get("/worker", handler)
    runner = web.AppRunner(application)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", port, **options).start()
    return runner


async def test_who_is_sent_away_is_told_why(caplog: pytest.LogCaptureFixture) -> None:
    async def sends_away(request: web.Request) -> web.WebSocketResponse:
        socket = web.WebSocketResponse(protocols=["pictrs-gate-worker.v1"])
        await socket.prepare(request)
        await socket.receive()
        await socket.close(code=1008, message=b"it lacks the signal\n'minor'")
        return socket

    port = free_port()
    runner = await served(sends_away, port)
    message = await said(f"ws://127.0.0.1:{port}/worker", caplog)
    assert "the gate closed the link (1008): it lacks the signal 'minor'" in message
    await runner.cleanup()


async def test_where_nobody_listens_that_is_said(caplog: pytest.LogCaptureFixture) -> None:
    assert "cannot be reached: " in await said(f"ws://127.0.0.1:{free_port()}/worker", caplog)


async def test_a_certificate_that_is_not_trusted_is_called_one(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def greets(request: web.Request) -> web.Response:
        return web.Response()

    port = free_port()
    tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    tls.load_cert_chain(*Authority(tmp_path, "unknown").sign("gate", "IP:127.0.0.1"))
    runner = await served(greets, port, ssl_context=tls)
    message = await said(f"wss://127.0.0.1:{port}/worker", caplog)
    assert "certificate is not trusted" in message
    await runner.cleanup()
