"""Passing a request on to pict-rs and its answer back: streamed, without the client's credentials."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Sequence
from contextlib import suppress

import aiohttp
from aiohttp import web

from proxy.errors import Refusal
from proxy.intake.budget import Budget
from proxy.pictrs import Pictrs
from proxy.server import answers

log = logging.getLogger(__name__)

# What pict-rs may be told of a request. Credentials of the client's are not among it, but for pict-rs's own.
_REQUEST_HEADERS = (
    "Accept",
    "Accept-Encoding",
    "If-Match",
    "If-Modified-Since",
    "If-None-Match",
    "If-Range",
    "If-Unmodified-Since",
    "Range",
    "User-Agent",
    "X-Api-Token",
    "X-Request-Deadline",
)
# Of one connection only (RFC 9110, 7.6.1), or written anew by this one.
_HOP_BY_HOP = frozenset(
    {
        "connection",
        "date",
        "keep-alive",
        "proxy-authenticate",
        "proxy-authorization",
        "proxy-connection",
        "server",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
    }
)
_LARGEST_BODY = 64 * 1024
_BODY_S = 10.0
_SLOWEST_READ_S = 600.0  # for memory that is lent; 40 MB at 70 kB/s
_SMALL_ANSWER = 256 * 1024  # bytes; the sockets hold about as much
_STALL_S = 60.0  # a client that takes nothing for so long is gone


class Passing:
    """Passes requests on."""

    def __init__(self, pictrs: Pictrs, budget: Budget) -> None:
        """
        Args:
            budget: memory for answers whose readers are slower than pict-rs.
        """
        self._pictrs, self._budget = pictrs, budget

    async def pass_on(
        self, request: web.BaseRequest, target: str, *, with_body: bool = False
    ) -> web.StreamResponse:
        """pict-rs's answer to a request under the gate's own target.

        Args:
            target: written by `write_target`.
            with_body: whether the request's small JSON body goes along.

        Raises:
            Refusal: the body is not to be had.
            PictrsError: pict-rs gave no answer.
        """
        headers = {name: request.headers[name] for name in _REQUEST_HEADERS if name in request.headers}
        body = None
        if with_body:
            body = await _small_body(request)
            headers["Content-Type"] = "application/json"
        async with self._pictrs.open(request.method, target, headers=headers, body=body) as upstream:
            length = upstream.content_length or 0
            if length <= _SMALL_ANSWER or not self._budget.try_lend(length):
                return await _stream(request, upstream, upstream.content.iter_any())
            # pict-rs 0.5 breaks off what is not taken within 5 s, so it is taken at once.
            taken: asyncio.Queue[bytes | Exception | None] = asyncio.Queue()
            taking = asyncio.create_task(_take(upstream, taken))
            try:
                return await _stream(request, upstream, _taken(taken), within_s=_SLOWEST_READ_S)
            finally:
                self._budget.give_back(length)
                taking.cancel()
                with suppress(asyncio.CancelledError):
                    await taking


async def _take(upstream: aiohttp.ClientResponse, into: asyncio.Queue[bytes | Exception | None]) -> None:
    """Takes all of an answer, as fast as it comes; None is its end."""
    try:
        async for chunk in upstream.content.iter_any():
            into.put_nowait(chunk)
    except Exception as error:  # noqa: BLE001 — or whoever waits for the rest would wait for ever
        into.put_nowait(error)
    else:
        into.put_nowait(None)


async def _taken(queue: asyncio.Queue[bytes | Exception | None]) -> AsyncIterator[bytes]:
    while (chunk := await queue.get()) is not None:
        if isinstance(chunk, Exception):
            raise chunk
        yield chunk


async def _small_body(request: web.BaseRequest) -> bytes:
    body = bytearray()
    try:
        async with asyncio.timeout(_BODY_S):
            async for chunk in request.content.iter_any():
                body += chunk
                if len(body) > _LARGEST_BODY:
                    raise Refusal(413, "request-too-large", "The request's body is too large")
    except TimeoutError:
        raise Refusal(408, "request-timeout", "The request took too long") from None
    except (aiohttp.ClientError, aiohttp.http.HttpProcessingError, ConnectionError):
        raise Refusal(400, "invalid-request", "The request's body ended early") from None
    return bytes(body)


def _passed_headers(headers: Sequence[tuple[str, str]], connection: str) -> list[tuple[str, str]]:
    dropped = _HOP_BY_HOP | {word.strip().lower() for word in connection.split(",")}
    return [(name, value) for name, value in headers if name.lower() not in dropped]


async def _stream(
    request: web.BaseRequest,
    upstream: aiohttp.ClientResponse,
    chunks: AsyncIterator[bytes],
    *,
    within_s: float | None = None,
) -> web.StreamResponse:
    """pict-rs's answer, piece by piece; cut off where pict-rs's is, so that half a file never looks whole."""
    response = web.StreamResponse(status=upstream.status, reason=upstream.reason)
    connection = upstream.headers.get("Connection", "")
    for name, value in _passed_headers(list(upstream.headers.items()), connection):
        response.headers.add(name, value)
    response.headers["Server"] = answers.SERVER
    await response.prepare(request)
    try:
        async with asyncio.timeout(within_s):
            async for chunk in chunks:
                async with asyncio.timeout(_STALL_S):
                    await response.write(chunk)
    except Exception as error:  # noqa: BLE001 — half an answer is out, and no other may follow it
        log.info("an answer was cut off: %s", type(error).__name__)
        if request.transport is not None:
            request.transport.abort()
        return response
    await response.write_eof()
    return response
