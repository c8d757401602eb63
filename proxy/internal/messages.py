"""What the `internal` listener and those who answer on it tell each other: requests, answers, takeovers."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv6Address

from proxy.errors import Refusal


@dataclass(frozen=True, slots=True)
class Growth:
    """A body that may become large: its socket is left unread beyond `free_bytes` until `ask` returns."""

    free_bytes: int
    ask: Callable[[], Awaitable[object]]


@dataclass(frozen=True, slots=True)
class Request:
    """A request, its body still unread.

    Attributes:
        method: as it came.
        target: as it came: visible ASCII.
        headers: names in lower case, values as Latin-1, in their order, repeated ones as often as they came.
        peer: the caller's address, an IPv4 one as such also where it came in by IPv6; None where unknown.
        read_body: see `body`.
    """

    method: str
    target: str
    headers: Sequence[tuple[str, str]] = field(repr=False)
    peer: IPv4Address | IPv6Address | None = field(repr=False)
    read_body: Callable[[int, Growth | None], Awaitable[bytes]] = field(repr=False)

    def values(self, name: str) -> list[str]:
        """The values of all headers of this name (lower case)."""
        return [value for key, value in self.headers if key == name]

    async def body(self, limit: int, growth: Growth | None = None) -> bytes:
        """Reads the whole body, once; tells the client first to go on where it waits for that.

        Args:
            limit: bytes that it may have.
            growth: whom to ask before it becomes large.

        Raises:
            Refusal: 413 where it has more, 408 where it comes too slowly, 400 where it is malformed.
        """
        return await self.read_body(limit, growth)


@dataclass(frozen=True, slots=True)
class Response:
    """An answer. Content-Length, Date, Server and Connection are the listener's to write."""

    status: int
    body: bytes = field(default=b"", repr=False)
    headers: Sequence[tuple[str, str]] = ()


@dataclass(frozen=True, slots=True)
class Takeover:
    """Instead of an answer: 101, and from there on the connection is another protocol's.

    Attributes:
        headers: of the 101.
        run: speaks that protocol, given what has come already; the connection ends when it returns, and it is
            cancelled when the listener stops.
    """

    headers: Sequence[tuple[str, str]]
    run: Callable[[asyncio.StreamReader, asyncio.StreamWriter, bytes], Awaitable[None]]


def text(status: int, content: str) -> Response:
    """An answer in plain words."""
    return Response(status, content.encode(), [("Content-Type", "text/plain; charset=utf-8")])


def json_answer(status: int, content: object, headers: Sequence[tuple[str, str]] = ()) -> Response:
    """An answer in JSON."""
    return Response(status, json.dumps(content).encode(), [("Content-Type", "application/json"), *headers])


def refusal(error: Refusal) -> Response:
    """A refusal, in the shape that the gate's other answers have."""
    retry_after = [] if error.retry_after_s is None else [("Retry-After", str(error.retry_after_s))]
    return json_answer(error.status, {"msg": error.msg, "code": error.code}, retry_after)


Handler = Callable[[Request], Awaitable[Response | Takeover]]
