"""Where stored files come from: one small file a kind. None of them writes anything."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol

from proxy.media import Kind


@dataclass(frozen=True, slots=True)
class Entry:
    """One stored file, as its listing tells.

    Attributes:
        place: what the source calls it: pict-rs's hash (39 bytes in hexadecimal), a path, a key.
        size: bytes; 0 where it is not known.
        sha256: of the stored bytes, lower-case hexadecimal, where the listing knows it.
        aliases: all of its aliases, where the listing knows them.
        at: when it was stored, where that is known.
        kind: of media, where that is known.
        mark: of this version of the file at its place, where the place alone does not tell.
    """

    place: str
    size: int = 0
    sha256: str | None = None
    aliases: Sequence[str] = ()
    at: datetime | None = None
    kind: Kind | None = None
    mark: str = ""

    @property
    def key(self) -> bytes:
        """Under which it is remembered, 32 bytes: by its content, or else by where it lies."""
        if self.sha256 is not None:
            return bytes.fromhex(self.sha256)
        return hashlib.sha256(f"{self.place}\0{self.size}\0{self.mark}".encode()).digest()


@dataclass(frozen=True, slots=True)
class Unreadable:
    """The bytes of an entry cannot be had.

    Attributes:
        reason: why, in words for the report.
        may_pass: whether another try may bring them.
    """

    reason: str
    may_pass: bool = False


@dataclass(frozen=True, slots=True)
class Page:
    """Some entries, and where to go on; None at the end."""

    entries: Sequence[Entry]
    next: str | None


class Source(Protocol):
    """Lists stored files in pages and brings their bytes."""

    async def page(self, at: str | None) -> Page:
        """The page at `at`, or the first one. What an earlier page has listed may come again."""
        ...

    async def fetch(self, entry: Entry, most: int) -> bytes | Unreadable:
        """The stored bytes, or why this one file cannot be read (gone meanwhile, too large, damaged).

        Args:
            most: bytes to read; a file that has more is unreadable.
        """
        ...

    async def close(self) -> None:
        """Gives back its connections."""
        ...
