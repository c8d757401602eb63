"""What comes of having a file looked at, and the protocol of whatever does the looking."""

from __future__ import annotations

import enum
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from proxy.media import Format


class Priority(enum.StrEnum):
    """Whose turn it is where there is a queue; `live` goes before `backfill` always."""

    LIVE = "live"
    BACKFILL = "backfill"


@dataclass(frozen=True, slots=True)
class Seen:
    """A classifier looked.

    Attributes:
        signals: name to 0..1, the maximum over the frames.
        frames: for each scored frame its index and signals.
        ensemble: name and version of what looked.
        format: that it decoded the file as, as `proxy.media` names formats.
        width, height: pixels once upright, as the classifier decoded them.
        pdq, pdq_quality: perceptual hash, 64 hexadecimal digits and 0..100; None where it computes none.
    """

    signals: Mapping[str, float]
    frames: Sequence[Mapping[str, Any]]
    ensemble: str
    format: str
    width: int
    height: int
    pdq: str | None = None
    pdq_quality: int | None = None


@dataclass(frozen=True, slots=True)
class Undecodable:
    """A classifier took the file and could make no picture of it; it never will."""

    reason: str


@dataclass(frozen=True, slots=True)
class Unseen:
    """Nobody could look.

    Attributes:
        reason: why, in words for the ledger.
        failed: whether a classifier was asked and failed, rather than being full or not there.
    """

    reason: str
    failed: bool = False


Look = Seen | Undecodable | Unseen


@dataclass(frozen=True, slots=True)
class File:
    """What a channel gets: bytes, the format that their signature claims, their SHA-256 where it is known."""

    content: bytes = field(repr=False)
    media: Format
    sha256: str | None = None


class ChannelError(Exception):
    """This channel could not do it now; another one might.

    Attributes:
        retry_after_s: when the same channel is worth another try; None where it is not, for this file.
    """

    def __init__(self, reason: str, *, retry_after_s: float | None = None) -> None:
        super().__init__(reason)
        self.retry_after_s = retry_after_s


class Channel(Protocol):
    """One way to reach one classifier."""

    name: str

    async def look(self, file: File, *, priority: Priority, within_s: float) -> Seen | Undecodable:
        """Has one file looked at.

        Args:
            file: sent as it is.
            priority: passed on.
            within_s: seconds after which the answer is of no use; the channel gives up by then.

        Raises:
            ChannelError: nobody looked.
        """
        ...

    async def signals(self) -> frozenset[str]:
        """The names of the signals that its classifier gives.

        Raises:
            ChannelError: it could not be asked.
        """
        ...

    async def ensemble(self) -> str | None:
        """Name and version of what looks, as `Seen.ensemble` will have it; None where that is not told.

        Raises:
            ChannelError: it could not be asked.
        """
        ...

    async def close(self) -> None:
        """Gives back its connections."""
        ...
