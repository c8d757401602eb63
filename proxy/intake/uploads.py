"""From a request's body to the files in it, in memory, once, within limits."""

from __future__ import annotations

import asyncio
import hashlib
import io
import math
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

import aiohttp
from aiohttp import web

from proxy import refusals
from proxy.intake.multipart import Limits, MultipartError, Parser, Part, TooLarge, boundary_of
from proxy.media import Format, recognise

_FIELD = "images[]"
# A sender may stand still for so long, and has as long to come up to speed.
_STALL_S = 5.0
_GRACE_S = 5.0
# Whoever would need so many times the time that there is left is not waited for.
_HOPELESS = 3.0
_SLOWEST_BYTES_PER_S = 4096  # where nothing says how much is to come
# What may come beside the content: boundaries, part headers.
_OVERHEAD_BYTES = 16 * 1024


@dataclass(frozen=True, slots=True)
class Upload:
    """One file of one request that pict-rs would store.

    Attributes:
        content: its bytes: what is looked at, and what is stored.
        sha256: of `content`, lower-case hexadecimal.
        media: what its signature claims.
        file_name: as the client wrote it (no more than 1000 characters of it).
        declared_type: the content type that the client wrote, or None.
    """

    content: bytes = field(repr=False)
    sha256: str
    media: Format
    file_name: str
    declared_type: str | None

    @property
    def alias(self) -> str:
        """The alias that an import asks for: what follows the last slash of its file name, as in pict-rs."""
        return self.file_name.rpartition("/")[2]


@dataclass(frozen=True, slots=True)
class UploadLimits:
    """pict-rs's own two limits, which the gate has to know to keep its memory bounded."""

    files: int
    file_bytes: int


def largest_body(limits: UploadLimits) -> int:
    """Bytes of the largest request body that can be within `limits`."""
    return limits.files * (limits.file_bytes + _OVERHEAD_BYTES)


async def read_uploads(
    request: web.BaseRequest, limits: UploadLimits, *, within_s: float = math.inf
) -> list[Upload]:
    """Reads all files of a multipart request.

    Args:
        within_s: seconds until the last byte must have come.

    Raises:
        Refusal: 400 or 413 in pict-rs's words, or 408 as soon as it is clear that the body comes too slowly;
            nothing of the request may be stored then.
    """
    content_type = request.headers.getall("Content-Type", [])
    if not content_type:
        raise refusals.malformed("No Content-Type `form-data` header")
    if len(content_type) > 1:
        raise refusals.malformed("the request's content has two types")
    if (request.content_length or 0) > largest_body(limits):
        raise refusals.FILE_TOO_LARGE()
    try:
        parser = Parser(
            boundary_of(content_type[0]), Limits(parts=limits.files, part_bytes=limits.file_bytes)
        )
        uploads = await _collect(_Pace(request, within_s), parser)
    except TooLarge:
        raise refusals.FILE_TOO_LARGE() from None
    except MultipartError as error:
        raise refusals.malformed(str(error)) from None
    except (aiohttp.ClientError, aiohttp.http.HttpProcessingError, ConnectionError):
        raise refusals.malformed("the request's body ended early") from None
    if not uploads:
        raise refusals.NO_FILES()
    return uploads


class _Pace:
    """A request's body, piece by piece, as long as it comes fast enough to be whole in time.

    A body has memory reserved from its first byte on, so a sender who cannot make it is cut off early.
    """

    def __init__(self, request: web.BaseRequest, within_s: float) -> None:
        self._stream, self._length = request.content, request.content_length
        self._clock = asyncio.get_running_loop().time
        self._began, self._within_s = self._clock(), within_s
        self._received = 0

    async def pieces(self) -> AsyncIterator[bytes]:
        """The body.

        Raises:
            Refusal: 408.
        """
        while True:
            left = self._began + self._within_s - self._clock()
            try:
                async with asyncio.timeout(max(min(_STALL_S, left), 0)):
                    piece = await self._stream.readany()
            except TimeoutError:
                raise refusals.TOO_SLOW() from None
            if not piece:
                return
            self._received += len(piece)
            self._check()
            yield piece

    def _check(self) -> None:
        passed = self._clock() - self._began
        if passed < _GRACE_S:
            return
        if self._length is None:
            needed = _SLOWEST_BYTES_PER_S * (passed - _GRACE_S)
            hopeless = self._received < needed
        else:
            left = max(self._within_s - passed, 0)
            hopeless = (self._length - self._received) * passed > _HOPELESS * left * self._received
        if hopeless:
            raise refusals.TOO_SLOW()


async def _collect(body: _Pace, parser: Parser) -> list[Upload]:
    uploads: list[Upload] = []
    part: Part | None = None
    content = io.BytesIO()  # grows in place, and gives its bytes away without a copy
    digest = hashlib.sha256()
    async for chunk in body.pieces():
        for event in parser.feed(chunk):
            if isinstance(event, Part):
                part, content, digest = _checked(event), io.BytesIO(), hashlib.sha256()
            elif event is not None:
                content.write(event)
                digest.update(event)
            else:
                assert part is not None
                uploads.append(
                    upload_of(
                        *(content.getvalue(), digest.hexdigest()),
                        file_name=part.file_name or "",
                        declared_type=part.content_type,
                    )
                )
                content = io.BytesIO()
        await asyncio.sleep(0)  # a fast sender must not keep the loop for itself
    parser.close()
    return uploads


def _checked(part: Part) -> Part:
    if part.name != _FIELD:
        raise refusals.malformed("Found field with unexpected name or type")
    if part.file_name is None:
        raise refusals.malformed("Filename is missing")
    return part


def upload_of(content: bytes, sha256: str, *, file_name: str, declared_type: str | None) -> Upload:
    """A file that may be stored, once it has been looked at.

    Raises:
        Refusal: it is empty, or in no format of pict-rs's.
    """
    if not content:
        raise refusals.FILE_EMPTY()
    media = recognise(content)
    if media is None:
        raise refusals.NOT_MEDIA()
    return Upload(content, sha256, media, file_name[:1000], declared_type)
