"""The memory of frames: signals by the pixels that the heads were given, for a while.

pict-rs's validation hook asks again about a picture that has just been looked at, in a file that it has
written anew. Where the pixels are the same, the answer costs a decode and no inference.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable

from classifier.heads import Signals


class Memory:
    """Signals of the last frames, bounded in number and in time."""

    def __init__(
        self, most: int = 16_384, for_s: float = 900.0, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """
        Args:
            most: frames; each takes some hundred bytes.
            for_s: seconds after which a frame is forgotten.
        """
        self._most, self._for_s, self._clock = most, for_s, clock
        self._frames: OrderedDict[bytes, tuple[float, Signals]] = OrderedDict()

    def recall(self, digest: bytes) -> Signals | None:
        """The signals of a frame, or None where it is not remembered.

        Args:
            digest: of what the heads would be given.
        """
        known = self._frames.get(digest)
        return None if known is None or known[0] < self._clock() - self._for_s else known[1]

    def remember(self, digest: bytes, signals: Signals) -> None:
        """Keeps a frame's signals; the oldest are forgotten for them."""
        self._frames.pop(digest, None)
        self._frames[digest] = (self._clock(), signals)
        while len(self._frames) > self._most:
            self._frames.popitem(last=False)
