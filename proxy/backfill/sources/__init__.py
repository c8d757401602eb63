"""Where stored files come from: one small file a kind."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True)
class Entry:
    """One stored file.

    Attributes:
        hex: pict-rs's own key of it, 39 bytes in hexadecimal.
        aliases: all of its aliases.
    """

    hex: str
    aliases: Sequence[str]

    @property
    def sha256(self) -> str:
        """Of the stored bytes, lower-case hexadecimal: the first 32 bytes of pict-rs's key."""
        return self.hex[:64].lower()


@dataclass(frozen=True, slots=True)
class Unreadable:
    """The bytes of an entry cannot be had. `reason` says why, in words for the report."""

    reason: str


@dataclass(frozen=True, slots=True)
class Page:
    """Some entries, and where to go on; None at the end."""

    entries: Sequence[Entry]
    next: str | None


class Source(Protocol):
    """Lists stored files in pages and brings their bytes."""

    async def page(self, at: str | None) -> Page:
        """The page at `at`, or the first one."""
        ...

    async def fetch(self, entry: Entry) -> bytes | Unreadable:
        """The stored bytes, or why this one file cannot be read (gone meanwhile, too large, damaged)."""
        ...
