"""Dialling out to a gate: for a box at home, which nobody can call (`docs/protocol.md`, Dialling out).

One WebSocket carries many requests at once. What it asks is answered by the same service as over HTTP.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import random
import ssl
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import aiohttp

from classifier.errors import SetupError, too_large
from classifier.metrics import Metrics
from classifier.service import Asked, Service

log = logging.getLogger(__name__)

SUBPROTOCOL = "pictrs-gate-worker.v1"
_LARGEST_MESSAGE = 256 * 1024  # the gate's pieces have 64 KB
_HEARTBEAT_S = 10.0
_DIAL_S = 15.0
_SEND_S = 15.0
_FIRST_WAIT_S, _LONGEST_WAIT_S = 1.0, 30.0
_STEADY_S = 60.0  # after which a link that breaks is dialled anew as if for the first time
_DRAIN_S = 60.0
_CLOSE, _ERROR = aiohttp.WSMsgType.CLOSE, aiohttp.WSMsgType.ERROR
_ENDS = (_CLOSE, aiohttp.WSMsgType.CLOSING, aiohttp.WSMsgType.CLOSED, _ERROR)
_LONGEST_REASON = 200


@dataclass(frozen=True, slots=True)
class Dialling:
    """
    Attributes:
        url: of the gate's worker address, `wss://…/worker`.
        token: that the gate wants to see.
        tls: how the gate's certificate is checked; None for the system's authorities.
    """

    url: str
    token: str
    tls: ssl.SSLContext | None = None


class _Body:
    """A file on its way, in pieces."""

    def __init__(self, size: int) -> None:
        self.size = size
        self._pieces: list[bytes] = []
        self._missing = size
        self._is_here = asyncio.Event()
        if not size:
            self._is_here.set()

    def add(self, piece: bytes) -> None:
        """The next piece; ValueError where there are more bytes than were announced."""
        self._missing -= len(piece)
        if self._missing < 0:
            raise ValueError("a file is longer than was announced")
        self._pieces.append(piece)
        if not self._missing:
            self._is_here.set()

    async def read(self, most: int) -> bytes:
        """See `Asked.read`."""
        if self.size > most:
            raise too_large(f"more than {most} bytes")
        await self._is_here.wait()
        content = b"".join(self._pieces)
        self._pieces.clear()
        return content


class Dialler:
    """Keeps a link to a gate, and answers what comes over it."""

    def __init__(self, dialling: Dialling, service: Service, metrics: Metrics) -> None:
        self._dialling, self._service, self._metrics = dialling, service, metrics

    async def run(self, stop: asyncio.Event) -> None:
        """Dials, and dials anew whenever the link breaks, until `stop`; what has come by then is answered.

        Raises:
            SetupError: the gate refuses the token.
        """
        loop = asyncio.get_running_loop()
        wait_s = _FIRST_WAIT_S
        stopping = asyncio.create_task(stop.wait())
        try:
            async with aiohttp.ClientSession(cookie_jar=aiohttp.DummyCookieJar()) as session:
                while not stop.is_set():
                    began = loop.time()
                    reason = await self._session(session, stopping)
                    if stop.is_set():
                        return
                    if loop.time() - began > _STEADY_S:
                        wait_s = _FIRST_WAIT_S
                    # Full jitter: many workers that lost one gate do not come back all at once.
                    pause_s = random.uniform(0, wait_s)  # noqa: S311 — no secret
                    wait_s = min(_LONGEST_WAIT_S, wait_s * 2)
                    log.warning("no link to %s: %s; again in %.1f s", self._dialling.url, reason, pause_s)
                    await asyncio.wait([stopping], timeout=pause_s)
        finally:
            stopping.cancel()

    async def _session(self, session: aiohttp.ClientSession, stopping: asyncio.Task[bool]) -> str:
        """One link, from dialling to its end; why it ended."""
        dialling = self._dialling
        try:
            async with asyncio.timeout(_DIAL_S):
                socket = await session.ws_connect(
                    dialling.url,
                    protocols=[SUBPROTOCOL],
                    headers={"Authorization": f"Bearer {dialling.token}"},
                    ssl=dialling.tls or True,
                    heartbeat=_HEARTBEAT_S,
                    max_msg_size=_LARGEST_MESSAGE,
                )
        except aiohttp.WSServerHandshakeError as error:
            if error.status == 401:
                raise SetupError(f"{dialling.url}: the gate refuses the token; see --token-file") from None
            return f"the gate answered {error.status}"
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            return _in_words(error)
        link = _Link(socket, self._service)
        try:
            await link.introduce()
            log.info("linked to %s", dialling.url)
            self._metrics.linked.set(1)
            return await link.converse(stopping)
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            return _in_words(error)
        finally:
            self._metrics.linked.set(0)
            await link.end()


class _Link:
    """A link that stands."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse, service: Service) -> None:
        self._socket, self._service = socket, service
        self._bodies: dict[int, _Body] = {}
        self._answers: dict[int, asyncio.Task[None]] = {}

    async def introduce(self) -> None:
        """Says what looks here, and how much at once."""
        await self._send({"hello": self._service.info()})

    async def converse(self, stopping: asyncio.Task[bool]) -> str:
        """Answers what comes, until the link ends or it is time to stop; why it ended."""
        receiving = asyncio.create_task(self._receive())
        try:
            await asyncio.wait([receiving, stopping], return_when=asyncio.FIRST_COMPLETED)
            if not receiving.done():
                # The gate says it, too, once it has every answer that it waits for.
                await self._send({"bye": True})
                await asyncio.wait([receiving], timeout=_DRAIN_S)
            return receiving.result() if receiving.done() else "the classifier is stopping"
        finally:
            receiving.cancel()

    async def end(self) -> None:
        """Gives up what is left, and hangs up."""
        for task in self._answers.values():
            task.cancel()
        with contextlib.suppress(aiohttp.ClientError, OSError, TimeoutError):
            async with asyncio.timeout(_SEND_S):
                await self._socket.close()

    async def _receive(self) -> str:
        while True:
            message = await self._socket.receive()
            if message.type is _CLOSE and message.extra:
                return f"the gate closed the link ({message.data}): {_line(message.extra)}"
            if message.type in _ENDS:
                return f"the link is closed ({self._socket.close_code})"
            try:
                if message.type is aiohttp.WSMsgType.BINARY:
                    self._take_piece(message.data)
                elif message.type is aiohttp.WSMsgType.TEXT:
                    said = _object(message.data)
                    if "bye" in said:
                        return "the gate said goodbye"
                    self._take(said)
            except (ArithmeticError, LookupError, TypeError, ValueError):
                return "the gate said something that is not of the protocol"

    def _take_piece(self, data: bytes) -> None:
        body = self._bodies.get(int.from_bytes(data[:4], "big"))
        if body is not None:  # else it has been answered, or nobody waits for it any more
            body.add(data[4:])

    def _take(self, message: Mapping[str, Any]) -> None:
        if (number := message.get("cancel")) is not None:
            if number in self._answers:
                self._bodies.pop(number, None)
                self._answers[number].cancel()
            return
        number, size = int(message["classify"]), int(message["size"])
        if number in self._answers or size < 0:
            raise ValueError("a number that is taken")
        body = self._bodies[number] = _Body(size)
        asked = Asked(str(message["priority"]), str(message["deadline_ms"]), size, body.read)
        task = self._answers[number] = asyncio.create_task(self._answer(number, asked))
        task.add_done_callback(lambda _: self._forget(number))  # also where it was cancelled before it began

    def _forget(self, number: int) -> None:
        self._bodies.pop(number, None)
        self._answers.pop(number, None)

    async def _answer(self, number: int, asked: Asked) -> None:
        reply = await self._service.classify(asked)
        self._bodies.pop(number, None)  # what comes of it now is not wanted
        answer = {
            "answer": number,
            "status": reply.status,
            "retry_after_s": reply.retry_after_s,
            "content": reply.content,
        }
        with contextlib.suppress(aiohttp.ClientError, OSError, TimeoutError):
            await self._send(answer)

    async def _send(self, message: Mapping[str, Any]) -> None:
        async with asyncio.timeout(_SEND_S):
            await self._socket.send_str(json.dumps(message))


def _in_words(error: Exception) -> str:
    """Why there is no link, for the log."""
    match error:
        case TimeoutError():
            return "the gate does not answer in time"
        case aiohttp.ClientConnectorCertificateError():
            return f"the gate's certificate is not trusted: {_line(str(error.certificate_error))}"
        case aiohttp.ClientConnectorDNSError():
            return "the gate's name is not found"
        case aiohttp.ClientConnectorError():
            return f"the gate cannot be reached: {_line(error.strerror or type(error.os_error).__name__)}"
    return type(error).__name__


def _line(text: str) -> str:
    """What somebody else said, on one line and short."""
    return "".join(sign if sign.isprintable() else " " for sign in text)[:_LONGEST_REASON]


def _object(message: str) -> Mapping[str, Any]:
    """The JSON object of a message.

    Raises:
        ValueError: it is none.
    """
    try:
        content = json.loads(message)
    except RecursionError:
        content = None
    if not isinstance(content, dict):
        raise ValueError("a message is not a JSON object")
    return content
