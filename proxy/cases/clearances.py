"""Which uploads are being stored on a human's word, so that the validation hook does not overrule it."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager


class Clearances:
    """Uploads that pass because a human has released the same bytes before, while pict-rs is sent them."""

    def __init__(self) -> None:
        self._now: Counter[str] = Counter()

    @contextmanager
    def of(self, sha256: list[str], *, lingering_s: float = 0) -> Iterator[None]:
        """While the block lasts, and some seconds more, files that look like these pass the hook."""
        self._now.update(sha256)
        try:
            yield
        finally:
            if lingering_s and sha256:
                asyncio.get_running_loop().call_later(lingering_s, self._now.subtract, sha256)
            else:
                self._now.subtract(sha256)

    @property
    def now(self) -> frozenset[str]:
        """SHA-256 of the files as they were uploaded."""
        return frozenset(+self._now)
