"""Which frames of a long animation or a video are scored: those that differ most, and some at even distances.

Frames evenly spread alone would let one foreign frame among hundreds pass between two of them. So every frame
is decoded, reduced to a thumbnail, and compared with those that are kept so far. A frame that is farther from
all of them than the two most alike are from each other takes the place of one of these. What is unlike
everything else therefore stays to the end, and what repeats itself is kept once.

Whatever is compared, somebody may make two frames alike in just that. So a quarter of the places, and those
that stay empty, are for frames evenly spread: what is shown for long is looked at, whatever stands around it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image

_CELLS = 24  # a side: of each, its colour and its contrast are compared
_FINE = 4  # pixels of a thumbnail that make a cell, a side
THUMBNAIL = (_CELLS * _FINE, _CELLS * _FINE)
# Frames are kept until all are known, reduced to so many pixels: no head looks at more.
KEPT_PIXELS = 1_000_000
# Root of the mean square over the cells, of 255: no more than what compressing leaves of one and the same.
_SAME = 1.0

# One frame: as it is shown, and where a colour profile makes that another picture, as it is stored.
Readings: TypeAlias = Sequence[Image.Image]
Features: TypeAlias = NDArray[np.float32]


class Chooser:
    """Keeps at most so many frames, the first and the last among them."""

    def __init__(self, most: int) -> None:
        """
        Args:
            most: frames, at least 2.
        """
        self._most = most
        self._differing = most - most // 4
        self._kept: list[tuple[int, Readings]] = []
        self._features: list[Features] = []
        self._apart = np.full((most, most), np.inf, np.float32)
        self._spread: dict[int, Readings] = {}
        self._stride = 1

    def see(self, index: int, features: Features, picture: Callable[[], Readings]) -> None:
        """The next frame.

        Args:
            features: `features_of` it; of all frames of a file alike in shape.
            picture: makes what is kept of it, where it is kept.
        """
        place = self._place(features)
        spreads = index % self._stride == 0
        if place is None and not spreads:
            return
        readings = picture()
        if place is not None:
            self._keep(place, features, index, readings)
        if spreads:
            self._spread[index] = readings
            if len(self._spread) > self._most:
                self._stride *= 2
                self._spread = {at: one for at, one in self._spread.items() if at % self._stride == 0}

    def chosen(self, last: tuple[int, Readings]) -> list[tuple[int, Readings]]:
        """What is scored, in the order of the file. No two are the same to the last pixel, but the last.

        Args:
            last: the last frame and its index.
        """
        chosen = {index: readings for index, readings in self._kept if index != last[0]}
        seen = {_digest(readings) for readings in chosen.values()}
        others = []
        for index, readings in self._spread.items():
            if index not in chosen and index != last[0] and (digest := _digest(readings)) not in seen:
                seen.add(digest)
                others.append((index, readings))
        room = min(self._most - 1 - len(chosen), len(others))
        chosen |= dict(others[len(others) * (2 * one + 1) // (2 * room)] for one in range(room))
        return sorted([*chosen.items(), last], key=lambda one: one[0])

    def _place(self, features: Features) -> int | None:
        """Where a frame is to be kept; None where it adds nothing to those that differ."""
        count = len(self._kept)
        if count == 0:
            return 0
        nearest = float(self._distances(features).min())
        if count < self._differing - 1:  # the last place is the last frame's
            return count if nearest > _SAME else None
        one, other = np.unravel_index(self._apart[:count, :count].argmin(), (count, count))
        if count == 1 or nearest <= self._apart[one, other]:
            return None
        return int(max(one, other))  # never the first frame

    def _keep(self, place: int, features: Features, index: int, readings: Readings) -> None:
        if place == len(self._kept):
            self._kept.append((index, readings))
            self._features.append(features)
        else:
            self._kept[place], self._features[place] = (index, readings), features
        distances = self._distances(features)
        distances[place] = np.inf
        self._apart[place, : len(distances)] = self._apart[: len(distances), place] = distances

    def _distances(self, features: Features) -> NDArray[np.float32]:
        """From each that is kept: by what they differ most in."""
        return np.array(
            [np.sqrt(np.square(one - features).mean(axis=1)).max() for one in self._features], np.float32
        )


def features_of(readings: Readings) -> Features:
    """Of RGB pictures, one or two: (4, n), colours and contrasts of the first and of the last."""
    first = features_of_thumbnail(_thumbnail(readings[0]))
    last = first if len(readings) == 1 else features_of_thumbnail(_thumbnail(readings[-1]))
    return np.concatenate([first, last])


def features_of_thumbnail(thumbnail: NDArray[np.uint8]) -> Features:
    """Of a thumbnail, (96, 96, 3): (2, 24 · 24 · 3), the mean of each cell, and its standard deviation."""
    cells = thumbnail.astype(np.float32).reshape(_CELLS, _FINE, _CELLS, _FINE, 3)
    return np.stack([cells.mean(axis=(1, 3)).reshape(-1), cells.std(axis=(1, 3)).reshape(-1)])


def _thumbnail(image: Image.Image) -> NDArray[np.uint8]:
    return np.asarray(image.resize(THUMBNAIL, Image.Resampling.BOX), np.uint8)


def _digest(readings: Readings) -> bytes:
    digest = hashlib.sha256()
    for one in readings:
        digest.update(f"{one.size}".encode())
        digest.update(one.tobytes())
    return digest.digest()
