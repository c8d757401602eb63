"""Which frames of a long animation or a video are scored: those that differ most from one another.

Frames evenly spread would let one foreign frame among hundreds pass between two of them. So every frame is
decoded, reduced to a thumbnail, and compared with those that are kept so far. A frame that is farther from
all of them than the two most alike are from each other takes the place of one of these. What is unlike
everything else therefore stays to the end, and what repeats itself is kept once.
"""

from __future__ import annotations

from typing import Generic, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image

THUMBNAIL = (24, 24)
# Frames are kept until all are known, reduced to so many pixels: no head looks at more.
KEPT_PIXELS = 1_000_000
# Root of the mean square over a thumbnail, of 255: no more than what compressing leaves of one and the same.
_SAME = 1.0

T = TypeVar("T")


class Chooser(Generic[T]):
    """Keeps at most so many frames, the first and the last among them."""

    def __init__(self, most: int) -> None:
        """
        Args:
            most: frames, at least 2.
        """
        self._most = most
        self._kept: list[tuple[int, T]] = []
        self._thumbnails = np.empty((most, THUMBNAIL[0] * THUMBNAIL[1] * 3), np.float32)
        self._apart = np.full((most, most), np.inf, np.float32)

    def wants(self, thumbnail: NDArray[np.uint8]) -> int | None:
        """Where the next frame is to be kept; None where it adds nothing.

        Args:
            thumbnail: (24, 24, 3), RGB.
        """
        count = len(self._kept)
        if count == 0:
            return 0
        nearest = float(self._distances(thumbnail).min())
        if count < self._most - 1:  # the last place is the last frame's
            return count if nearest > _SAME else None
        one, other = np.unravel_index(self._apart[:count, :count].argmin(), (count, count))
        if count == 1 or nearest <= self._apart[one, other]:
            return None
        return int(max(one, other))  # never the first frame

    def keep(self, place: int, thumbnail: NDArray[np.uint8], index: int, frame: T) -> None:
        """Keeps a frame in the place that `wants` named."""
        if place == len(self._kept):
            self._kept.append((index, frame))
        else:
            self._kept[place] = (index, frame)
        self._thumbnails[place] = thumbnail.reshape(-1)
        distances = self._distances(thumbnail)
        distances[place] = np.inf
        self._apart[place, : len(distances)] = self._apart[: len(distances), place] = distances

    def chosen(self, last: tuple[int, T]) -> list[tuple[int, T]]:
        """What is scored, in the order of the file.

        Args:
            last: the last frame and its index.
        """
        others = [one for one in self._kept if one[0] != last[0]]
        return sorted([*others, last], key=lambda one: one[0])

    def _distances(self, thumbnail: NDArray[np.uint8]) -> NDArray[np.float32]:
        apart = self._thumbnails[: len(self._kept)] - thumbnail.reshape(-1).astype(np.float32)
        distances: NDArray[np.float32] = np.sqrt(np.square(apart).mean(axis=1))
        return distances


def thumbnail_of(image: Image.Image) -> NDArray[np.uint8]:
    """Of an RGB picture: (24, 24, 3), each value the mean of its part."""
    return np.asarray(image.resize(THUMBNAIL, Image.Resampling.BOX), np.uint8)
