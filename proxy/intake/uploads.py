"""From a request's body to the files in it, in memory, once, within limits."""

from __future__ import annotations

import asyncio
import hashlib
import io
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

import aiohttp
from aiohttp import web

from proxy import refusals
from proxy.intake.budget import Crowded, Room
from proxy.intake.multipart import Limits, MultipartError, Parser, Part, TooLarge, boundary_of
from proxy.media import Format, recognise

_FIELD = "images[]"
_STALL_S = 5.0  # that a sender may stand still
_WINDOW_S = 5.0  # of which the pace is measured
# Whoever would need so many times the time that there is left is not waited for.
_HOPELESS = 3.0
# Where nothing says how much is to come: of a small body, and of one that may become large.
_SLOWEST_BYTES_PER_S, _SLOWEST_LARGE_BYTES_PER_S = 4 * 1024, 64 * 1024
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
    request: web.BaseRequest, limits: UploadLimits, *, within_s: float, room: Room
) -> list[Upload]:
    """Reads all files of a multipart request.

    Args:
        within_s: seconds until the last byte must have come.
        room: memory for the body.

    Raises:
        Refusal: 400 or 413 in pict-rs's words, 503 without room, or 408 as soon as it is clear that the body
            comes too slowly; nothing of the request may be stored then.
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
        uploads = await _collect(_Pace(request, within_s, room), parser)
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
    """A request's body, piece by piece, as long as there is room for it and it comes fast enough.

    A body keeps others from its memory, so a sender who cannot make it is cut off early: twice in a row he
    would have needed three times what was left, at his pace of the last five seconds.
    """

    def __init__(self, request: web.BaseRequest, within_s: float, room: Room) -> None:
        self._stream, self._length, self._room = request.content, request.content_length, room
        self._clock = asyncio.get_running_loop().time
        self._end = self._clock() + within_s
        self._received = 0
        self._mark, self._received_then, self._was_hopeless = self._clock(), 0, False

    async def pieces(self) -> AsyncIterator[bytes]:
        """The body.

        Raises:
            Refusal: 408; 503 where there is no room for it.
        """
        while True:
            try:
                async with asyncio.timeout_at(min(self._clock() + _STALL_S, self._end)):
                    piece = await self._stream.readany()
            except TimeoutError:
                raise refusals.TOO_SLOW() from None
            if not piece:
                return
            self._received += len(piece)
            if self._received > self._room.most:  # without a length, or it would have been refused before
                raise refusals.FILE_TOO_LARGE()
            while self._received > self._room.granted:
                await self._grow()
            self._check()
            yield piece

    async def _grow(self) -> None:
        began = self._clock()
        try:
            await self._room.grow()
        except (TimeoutError, Crowded):
            raise refusals.busy() from None
        self._mark += self._clock() - began  # the sender is not to blame for the wait

    def _check(self) -> None:
        """Looks back every five seconds."""
        passed, came = self._clock() - self._mark, self._received - self._received_then
        if passed < _WINDOW_S:
            return
        self._mark, self._received_then = self._clock(), self._received
        if self._length is None:
            least = _SLOWEST_BYTES_PER_S if self._received <= Room.SMALL_BYTES else _SLOWEST_LARGE_BYTES_PER_S
            is_hopeless = came < least * passed
        else:
            left = max(self._end - self._clock(), 0)
            is_hopeless = (self._length - self._received) * passed > _HOPELESS * left * came
        if is_hopeless and self._was_hopeless:
            raise refusals.TOO_SLOW()
        self._was_hopeless = is_hopeless


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
