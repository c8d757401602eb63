"""What this gate is just sending to pict-rs, so that the validation hook knows it for the gate's own.

A human's word stands against the model there; what was merely looked at passes a lockdown, and nothing more.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Self

from proxy.channels.looks import Look, Seen


@dataclass(frozen=True, slots=True)
class Sent:
    """A file that was allowed, as it is known again in pict-rs's rewriting.

    Attributes:
        sha256: as it was uploaded.
        pdq, pdq_quality: perceptual hash; None where it was not looked at.
    """

    sha256: str | None
    pdq: str | None
    pdq_quality: int | None

    @classmethod
    def of(cls, sha256: str, look: Look | None) -> Self:
        """A file of which `look` is what was seen."""
        if not isinstance(look, Seen):
            return cls(sha256, None, None)
        return cls(sha256, look.pdq, look.pdq_quality)


class Clearances:
    """Uploads that were allowed, while pict-rs is sent them."""

    def __init__(self) -> None:
        self._now: Counter[str] = Counter()
        self._sent: Counter[Sent] = Counter()

    @contextmanager
    def of(self, released: list[str], sent: list[Sent], *, lingering_s: float = 0) -> Iterator[None]:
        """While the block lasts, and some seconds more, pict-rs asks about these.

        Args:
            released: SHA-256 of those that pass on a human's word, whatever the model says.
            sent: all of them. A lockdown does not stop them any more.
        """
        self._now.update(released)
        self._sent.update(sent)

        def over() -> None:
            self._now -= Counter(released)  # drops what is back to 0
            self._sent -= Counter(sent)

        try:
            yield
        finally:
            if lingering_s:
                asyncio.get_running_loop().call_later(lingering_s, over)
            else:
                over()

    @property
    def now(self) -> frozenset[str]:
        """SHA-256, as they were uploaded, of the files that pass on a human's word."""
        return frozenset(self._now)

    @property
    def sent(self) -> frozenset[Sent]:
        """All that is being sent."""
        return frozenset(self._sent)
