"""A listener: aiohttp's HTTP parser and nothing else of it, with errors that quote nothing.

aiohttp's own router, path normalising, decompression and error pages stay out: what a request means is
decided by the table of routes, once.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Awaitable, Callable
from typing import Any

from aiohttp import web

from proxy.errors import ConfigError
from proxy.sections import host_and_port

log = logging.getLogger(__name__)

Handler = Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]

_BUSY = (
    b"HTTP/1.1 503 Service Unavailable\r\nServer: pictrs-gate\r\nRetry-After: 5\r\n"
    b"Content-Length: 0\r\nConnection: close\r\n\r\n"
)
_LINGER_S = 2.0
_MOST_TURNED_AWAY = 64  # that are told so; more at once are hung up on
_WRITE_S = (
    60.0  # for a client to take all of an answer but its last 64 KiB, where it is not a file of pict-rs's
)
# Closes connections that send no (whole) request head for so long.
_IDLE_S = 75.0


class _Protocol(web.RequestHandler):
    """aiohttp quotes what it could not parse, in its answer and in the log; that may be part of a picture."""

    __slots__ = ("_admission",)

    def __init__(self, server: _Server, **settings: Any) -> None:
        super().__init__(server, **settings)
        self._admission = server

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        turned_away = self._admission.admit(self)
        if turned_away is None:
            super().connection_made(transport)
        else:
            transport.set_protocol(turned_away)
            turned_away.connection_made(transport)

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        log.info("a request could not be read: %s", type(exc).__name__)
        if request.writer.output_size > 0:
            raise ConnectionError("an answer was under way")
        response = web.Response(status=status, headers={"Server": "pictrs-gate"})
        response.force_close()
        return response

    def log_exception(self, *args: object, **kwargs: object) -> None:
        error = kwargs.get("exc_info")
        log.error("a connection failed: %s", type(error).__name__)


class _Busy(asyncio.Protocol):
    """Turns a connection away, and takes what still comes for a moment, or the answer would be lost."""

    def __init__(self, turned_away: set[_Busy]) -> None:
        self._turned_away = turned_away
        turned_away.add(self)
        self._end: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        if len(self._turned_away) > _MOST_TURNED_AWAY:
            transport.abort()
            return
        transport.write(_BUSY)
        transport.write_eof()
        self._end = asyncio.get_running_loop().call_later(_LINGER_S, transport.abort)

    def connection_lost(self, exc: Exception | None) -> None:
        self._turned_away.discard(self)
        if self._end is not None:
            self._end.cancel()


class _Server(web.Server):
    """Bounds its connections: for a new one, that is closed which has been idle longest."""

    def __init__(self, handler: Handler, most: int, **settings: Any) -> None:
        super().__init__(self._answer, **settings)
        self._handler, self._most = handler, most
        self._open: dict[web.RequestHandler, None] = {}  # in the order of their last answers
        self._answering: set[web.RequestHandler] = set()
        self._turned_away: set[_Busy] = set()

    def __call__(self) -> web.RequestHandler:
        return _Protocol(self, loop=self._loop, **self._kwargs)

    def admit(self, connection: web.RequestHandler) -> _Busy | None:
        """Makes room for a connection that has just been accepted; None, or who turns it away."""
        if len(self._open) >= self._most and not self._make_room():
            return _Busy(self._turned_away)
        self._open[connection] = None
        return None

    def connection_lost(self, handler: web.RequestHandler, exc: BaseException | None = None) -> None:
        self._open.pop(handler, None)
        super().connection_lost(handler, exc)

    def _make_room(self) -> bool:
        for one in self._open:
            if one in self._answering:
                continue
            del self._open[one]
            # Closing waits for what is not sent yet, and whoever does not read would wait with it.
            if one.transport is not None and one.transport.get_write_buffer_size():
                one.transport.abort()
            one.force_close()
            return True
        return False

    async def _answer(self, request: web.BaseRequest) -> web.StreamResponse:
        connection = request.protocol
        self._answering.add(connection)
        try:
            response = await self._handler(request)
            await _write_out(request, response)
            return response
        finally:
            self._answering.discard(connection)
            if self._open.pop(connection, True) is None:
                self._open[connection] = None


async def _write_out(request: web.BaseRequest, response: web.StreamResponse) -> None:
    """Writes an answer within a bound: aiohttp would go on to the next while nobody reads this one."""
    try:
        async with asyncio.timeout(_WRITE_S):
            await response.prepare(request)
            await response.write_eof()
            await request.writer.drain()
    except TimeoutError:
        if request.transport is not None:
            request.transport.abort()
        raise ConnectionError("nobody takes the answer") from None


class Listener:
    """One address that is listened on."""

    def __init__(
        self, name: str, listen: str, handler: Handler, *, shutdown_s: float, connections: int
    ) -> None:
        """
        Args:
            name: of the configuration's section, for messages.
            listen: `host:port`; port 0 takes any free one.
            handler: answers requests; it has caught everything of its own.
            shutdown_s: seconds that requests under way have to end, once it is stopped.
            connections: at once. An idle one gives way to a new one; where none is, that gets 503.
        """
        self.name, self._listen, self._handler = name, listen, handler
        self._shutdown_s, self._connections = shutdown_s, connections
        self._server: _Server | None = None
        self._asyncio_server: asyncio.Server | None = None

    async def start(self) -> tuple[str, int]:
        """Starts listening.

        Returns:
            The address, with the port that was taken.

        Raises:
            ConfigError: the address is taken or not this machine's.
        """
        host, port = host_and_port(self._listen)
        self._server = _Server(
            self._handler,
            self._connections,
            auto_decompress=False,
            keepalive_timeout=_IDLE_S,
            access_log=None,
            lingering_time=5.0,
        )
        loop = asyncio.get_running_loop()
        try:
            self._asyncio_server = await loop.create_server(self._server, host, port, backlog=1024)
        except (OSError, socket.gaierror) as error:
            raise ConfigError(
                f"{self.name}.listen: {self._listen}: {error.strerror}; "
                "stop what listens there, or choose another port"
            ) from None
        bound = self._asyncio_server.sockets[0].getsockname()
        return bound[0], bound[1]

    async def stop(self) -> None:
        """Takes no more requests and waits, within bounds, for those under way."""
        if self._asyncio_server is None or self._server is None:
            return
        self._asyncio_server.close()
        self._server.pre_shutdown()
        await self._server.shutdown(self._shutdown_s)
