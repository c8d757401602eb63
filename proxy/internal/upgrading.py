"""From a request to a WebSocket (RFC 6455, section 4.2)."""

from __future__ import annotations

import asyncio
import base64
import hashlib
from collections.abc import Awaitable, Callable

from proxy.channels.websocket import WebSocket
from proxy.errors import Refusal
from proxy.internal.messages import Request, Takeover

# RFC 6455, section 1.3
_ACCEPT = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"


def takeover(
    request: Request, subprotocol: str, largest: int, serve: Callable[[WebSocket], Awaitable[None]]
) -> Takeover:
    """The answer that turns a request into a WebSocket.

    Args:
        subprotocol: that the client has to offer.
        largest: bytes of a message.
        serve: what is done with the WebSocket; it ends with its return.

    Raises:
        Refusal: the request does not ask for it properly.
    """
    keys = request.values("sec-websocket-key")
    upgrades = _words(request, "upgrade")
    is_asked = (
        request.method == "GET" and "websocket" in upgrades and "upgrade" in _words(request, "connection")
    )
    if not is_asked or len(keys) != 1 or request.values("sec-websocket-version") != ["13"]:
        raise Refusal(426, "upgrade-required", "This is a WebSocket, version 13")
    if subprotocol not in _words(request, "sec-websocket-protocol"):
        raise Refusal(400, "bad-request", f"This gate speaks {subprotocol} there")
    accept = base64.b64encode(hashlib.sha1(keys[0].encode() + _ACCEPT, usedforsecurity=False).digest())

    async def run(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, already: bytes) -> None:
        await serve(WebSocket(reader, writer, already, largest))

    return Takeover(
        [
            ("Upgrade", "websocket"),
            ("Connection", "Upgrade"),
            ("Sec-WebSocket-Accept", accept.decode()),
            ("Sec-WebSocket-Protocol", subprotocol),
        ],
        run,
    )


def _words(request: Request, name: str) -> list[str]:
    return [word.strip().lower() for value in request.values(name) for word in value.split(",")]
