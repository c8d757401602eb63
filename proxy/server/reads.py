"""Every route but the uploads: passed on to pict-rs, streamed; pending aliases answered by the gate."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping, Sequence
from typing import Any

import aiohttp
from aiohttp import web

from proxy import refusals
from proxy.aliases import alias_key
from proxy.cases.placeholder import Placeholders
from proxy.database import Case, Database, cases
from proxy.errors import Refusal
from proxy.intake.target import Target, write_target
from proxy.media import Size, processed_size
from proxy.media.geometry import STEPS
from proxy.pictrs import Pictrs
from proxy.routes import Match, segments_of
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
_VARIANTS = frozenset({"apng", "avif", "gif", "jpeg", "jpg", "jxl", "png", "webp"})
_LARGEST_BODY = 64 * 1024
_BODY_S = 10.0
_STALL_S = 60.0  # a client that takes nothing for so long is gone


class Reads:
    """Answers what is not an upload."""

    def __init__(self, database: Database, pictrs: Pictrs, placeholders: Placeholders) -> None:
        self._database, self._pictrs, self._placeholders = database, pictrs, placeholders

    async def answer(self, request: web.BaseRequest, match: Match, target: Target) -> web.StreamResponse:
        """Answers one request whose route is passed on.

        Raises:
            Refusal: the request cannot be read in one way only.
            PictrsError: pict-rs gave no answer.
        """
        alias = _alias(match, target)
        if alias is not None:
            case = await self._database.run(cases.promised, alias_key(alias))
            if case is not None and (pending := await self._pending(match, target, case)) is not None:
                return pending
        return await self._pass_on(request, match, target)

    async def _pending(self, match: Match, target: Target, case: Case) -> web.Response | None:
        """The answer for an alias whose case is undecided; None where pict-rs is to give it."""
        details = case.details or {}
        size = Size(details["width"], details["height"])
        match match.route.name:
            case "original" | "original-query":
                return await self._picture(size, str(case.alias).rpartition(".")[2])
            case "process":
                extension = _writable(match.captured["ext"])
                return await self._picture(_processed(size, target), extension)
            case "process-later":
                _writable(match.captured["ext"])
                return _fresh(web.Response(status=202))
            case "details" | "details-query":
                return await self._told(details)
            case "details-process":
                width, height = _processed(size, target)
                return await self._told({**details, "width": width, "height": height})
            case "blurhash":
                return await self._told({"blurhash": details["blurhash"], "msg": "ok"})
        return None

    async def _picture(self, size: Size, extension: str) -> web.Response:
        content_type, content = await self._placeholders.picture(size, extension)
        return _fresh(web.Response(body=content, content_type=content_type))

    async def _told(self, content: Mapping[str, Any]) -> web.Response:
        return _fresh(answers.read_answer(content, is_06=await self._pictrs.is_06()))

    async def _pass_on(self, request: web.BaseRequest, match: Match, target: Target) -> web.StreamResponse:
        headers = {name: request.headers[name] for name in _REQUEST_HEADERS if name in request.headers}
        body = None
        if match.route.takes_body:
            body = await _small_body(request)
            headers["Content-Type"] = "application/json"
        written = write_target(segments_of(match), target.query)
        async with self._pictrs.open(request.method, written, headers=headers, body=body) as upstream:
            return await _stream(request, upstream)


def _alias(match: Match, target: Target) -> str | None:
    """The alias that pict-rs would find in a request, or None.

    Raises:
        Refusal: it names one twice.
    """
    if "alias" in match.captured:
        return match.captured["alias"]
    named = [target.only(key) for key in match.route.alias_keys]
    return next((alias for alias in named if alias is not None), None)


def _writable(extension: str) -> str:
    """`extension`, where pict-rs makes variants with it."""
    if extension not in _VARIANTS:
        raise refusals.unknown_extension(extension)
    return extension


def _processed(size: Size, target: Target) -> Size:
    """The size of a variant; what pict-rs does not know among the steps it ignores on a read."""
    steps = [(key, value) for key, value in target.query if key in STEPS]
    try:
        return processed_size(size, steps)
    except ValueError:
        raise refusals.STEP_UNKNOWN() from None


def _fresh(response: web.Response) -> web.Response:
    """A placeholder is never to be kept by anybody."""
    response.headers["Cache-Control"] = answers.NO_STORE
    return response


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


async def _stream(request: web.BaseRequest, upstream: aiohttp.ClientResponse) -> web.StreamResponse:
    """pict-rs's answer, piece by piece; cut off where pict-rs's is, so that half a file never looks whole."""
    response = web.StreamResponse(status=upstream.status, reason=upstream.reason)
    connection = upstream.headers.get("Connection", "")
    for name, value in _passed_headers(list(upstream.headers.items()), connection):
        response.headers.add(name, value)
    response.headers["Server"] = answers.SERVER
    await response.prepare(request)
    try:
        async for chunk in upstream.content.iter_any():
            async with asyncio.timeout(_STALL_S):
                await response.write(chunk)
    except (aiohttp.ClientError, TimeoutError, OSError) as error:
        log.info("an answer was cut off: %s", type(error).__name__)
        if request.transport is not None:
            request.transport.abort()
        return response
    await response.write_eof()
    return response
