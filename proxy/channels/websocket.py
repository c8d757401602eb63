"""The gate's end of a WebSocket (RFC 6455), on `wsproto`: messages with a bound on their size.

Every wait has an end, also sending: a peer that takes nothing, or says nothing for longer than its heartbeat
lasts, is gone.
"""

from __future__ import annotations

import asyncio
from collections import deque
from contextlib import suppress

from wsproto.connection import Connection, ConnectionType
from wsproto.events import BytesMessage, CloseConnection, Event, Ping, Pong, TextMessage
from wsproto.frame_protocol import CloseReason
from wsproto.utilities import LocalProtocolError, RemoteProtocolError

# Small, because much work may come in few bytes, and others have to get their turn in between.
_READ_BYTES = 4 * 1024
# What a piece of a message weighs beside its bytes, however few they are.
_PIECE_WEIGHT = 64
_MOST_CONTROLS = 100  # pings and pongs within a heartbeat; one or two are usual
_HEARTBEAT_S = 10.0
# After two heartbeats without an answer, and time for a piece that is on its way.
_SILENCE_S = 30.0
_STALL_S = 15.0
_CLOSE_S = 1.0


class Closed(Exception):
    """The connection is at its end, whoever ended it."""


class WebSocket:
    """One peer. Messages may be sent by several tasks, and are received by one."""

    def __init__(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, already: bytes, largest: int
    ) -> None:
        """
        Args:
            already: what has come behind the request's head.
            largest: bytes of a message; one that is longer ends the connection.
        """
        self._reader, self._writer, self._largest = reader, writer, largest
        self._frames = Connection(ConnectionType.SERVER)
        self._already = already
        self._events: deque[Event] = deque()
        self._turn = asyncio.Lock()
        self._is_receiving = False
        self._controls, self._controls_since = 0, 0.0

    async def receive(self) -> str | bytes:
        """The next message. Beats the heart while it waits.

        Raises:
            Closed: there is none.
        """
        self._is_receiving = True
        try:
            if self._already:
                self._understand(self._already)
                self._already = b""
            return await self._receive()
        finally:
            self._is_receiving = False

    async def _receive(self) -> str | bytes:
        parts: list[str] | list[bytes] = []
        size = 0
        while True:
            match await self._next():
                case (TextMessage() | BytesMessage()) as part:
                    content = part.data.encode() if isinstance(part.data, str) else part.data
                    size += len(content) + _PIECE_WEIGHT
                    if size > self._largest:
                        await self.close(1009, "too large")
                        raise Closed
                    parts.append(part.data)  # type: ignore[arg-type]
                    if part.message_finished:
                        return parts[0][:0].join(parts)  # type: ignore[arg-type]
                case (Ping() | Pong()) as control:
                    await self._count_control()
                    if isinstance(control, Ping):
                        await self._send(control.response())
                case CloseConnection() as end:  # its own, or what is wrong with what it said
                    await self.close(1002 if end.code == CloseReason.PROTOCOL_ERROR else 1000)
                    raise Closed

    async def _next(self) -> Event:
        """The next thing that the peer does."""
        loop = asyncio.get_running_loop()
        heard = loop.time()
        while not self._events:
            try:
                async with asyncio.timeout(_HEARTBEAT_S):
                    content = await self._reader.read(_READ_BYTES)
            except TimeoutError:
                if loop.time() - heard > _SILENCE_S:
                    raise Closed from None
                await self._send(Ping())
                continue
            except OSError:
                raise Closed from None
            if not content:
                raise Closed
            heard = loop.time()
            self._understand(content)
            await asyncio.sleep(0)  # a read of what is here already lets nobody else in
        return self._events.popleft()

    async def _count_control(self) -> None:
        now = asyncio.get_running_loop().time()
        if now - self._controls_since > _HEARTBEAT_S:
            self._controls_since, self._controls = now, 0
        self._controls += 1
        if self._controls > _MOST_CONTROLS:
            await self.close(1008, "too many pings")
            raise Closed

    def _understand(self, content: bytes) -> None:
        try:
            self._frames.receive_data(content)
            self._events.extend(self._frames.events())
        except (LocalProtocolError, RemoteProtocolError):
            raise Closed from None

    async def send(self, message: str | bytes) -> None:
        """Sends one message; waits until the kernel has it.

        Raises:
            Closed: it cannot be sent.
        """
        await self._send(TextMessage(message) if isinstance(message, str) else BytesMessage(message))

    async def close(self, code: int, reason: str = "") -> None:
        """Says goodbye, waits a moment for the peer to say it too, and hangs up. Raises nothing."""
        with suppress(Closed, OSError, TimeoutError):
            async with asyncio.timeout(_CLOSE_S):
                await self._send(CloseConnection(code, reason))
                while not self._is_receiving:
                    if isinstance(await self._next(), CloseConnection):
                        break
        self._writer.close()

    async def _send(self, event: Event) -> None:
        # Written at once: a sender that is cancelled leaves a whole message, or none.
        try:
            async with self._turn, asyncio.timeout(_STALL_S):
                if self._writer.is_closing():
                    raise Closed
                self._writer.write(self._frames.send(event))
                await self._writer.drain()
        except (LocalProtocolError, OSError, TimeoutError):
            self._writer.transport.abort()
            raise Closed from None
