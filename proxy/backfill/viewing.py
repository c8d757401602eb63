"""Brings a stored file to whoever looks at it. Its bytes are in memory for that long, and on no disk."""

from __future__ import annotations

import asyncio
import functools
import hashlib
import io
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Protocol

from PIL import Image

from proxy.backfill.pace import Pace
from proxy.backfill.sources import Entry, Source, Unreadable
from proxy.channels.lookout import Lookout
from proxy.channels.looks import File, Look, Priority, Unseen
from proxy.errors import GateError
from proxy.intake.budget import Budget
from proxy.media import Format, recognise
from proxy.media.signatures import PNG

LEAST_LENT = 64 * 1024  # bytes of the budget for a file, however small it says it is
_LOOK_S = 120.0  # nobody waits for a backfill; live uploads go first at the classifier
_HASHED_AT_ONCE = 1024 * 1024  # more than that is hashed off the event loop


class BackfillError(GateError):
    """A run had to stop. What it has done is kept, and the next one goes on from there."""


class Brought(Protocol):
    """A file where it can be looked at, which need not be here."""

    @property
    def size(self) -> int:
        """Bytes."""
        ...

    @property
    def media(self) -> Format | None:
        """What its signature claims; None where that is no format of pict-rs's."""
        ...

    async def sha256(self) -> str:
        """Of its bytes, lower-case hexadecimal."""
        ...

    async def look(self) -> Look:
        """Somebody's look. Where nobody looks at a file twice, but at a plain picture, it is the file.

        Raises:
            BackfillError: nobody looks at anything.
        """
        ...


class Viewer(Protocol):
    """Brings files to where they are looked at. Many at once."""

    def brought(self, entry: Entry, most: int) -> AbstractAsyncContextManager[Brought | Unreadable]:
        """A file for as long as it is needed, or why it cannot be read. See `Source.fetch`.

        Raises:
            BackfillError, and what a source raises: it cannot be reached any more.
        """
        ...


class ViewerHere:
    """Files are fetched into this process, and the channels asked about them."""

    def __init__(self, source: Source, lookout: Lookout, pace: Pace, budget: Budget) -> None:
        """
        Args:
            budget: of the memory for files that are fetched and not yet looked at.
        """
        self._source, self._lookout, self._pace, self._budget = source, lookout, pace, budget

    @asynccontextmanager
    async def brought(self, entry: Entry, most: int) -> AsyncIterator[Brought | Unreadable]:
        """See `Viewer.brought`."""
        async with self._budget.lend(max(most, LEAST_LENT)):
            content = await self._source.fetch(entry, most)
            yield content if isinstance(content, Unreadable) else _Here(self, content)

    async def ask(self, file: File) -> Look:
        """See `Brought.look`."""
        look: Look = await self._ask_once(file)
        for _ in range(2):
            if not isinstance(look, Unseen):
                break
            if isinstance(await self._ask_once(_plain_picture()), Unseen):
                raise BackfillError(f"nobody could look: {look.reason}; start it again to go on")
            look = await self._ask_once(file)
        return look

    async def _ask_once(self, file: File) -> Look:
        async with self._pace.turn():
            return await self._lookout.look(
                file,
                priority=Priority.BACKFILL,
                within_s=_LOOK_S,
                on_overloaded=self._pace.overloaded,
            )


class _Here:
    """A file in the memory of this process."""

    def __init__(self, viewer: ViewerHere, content: bytes) -> None:
        self._viewer, self._content = viewer, content
        self.size, self.media = len(content), recognise(content)

    async def sha256(self) -> str:
        """See `Brought.sha256`."""
        if self.size <= _HASHED_AT_ONCE:
            return hashlib.sha256(self._content).hexdigest()
        return (await asyncio.to_thread(hashlib.sha256, self._content)).hexdigest()

    async def look(self) -> Look:
        """See `Brought.look`."""
        assert self.media is not None
        return await self._viewer.ask(File(self._content, self.media))


@functools.cache
def _plain_picture() -> File:
    file = io.BytesIO()
    Image.new("RGB", (64, 64), (128, 128, 128)).save(file, "PNG")
    return File(file.getvalue(), PNG)
