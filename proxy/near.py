"""Which of a million pictures look like this one: an index over PDQ hashes that misses none.

Multi-index hashing (Norouzi, Punjani, Fleet: "Fast Search in Hamming Space with Multi-Index Hashing"): a hash
is cut into 16 words of 16 bits, and each word has a table of the hashes that have it. Where two hashes differ
by few bits, some word of theirs differs by next to none, so only the neighbours of each word are compared.

Needs numpy, so it is imported only where there is something to compare with.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

_WORDS, _BITS = 16, 16
_VALUES = 1 << _BITS
_AT_ONCE = 1 << 16  # comparisons: 2 MiB
_UNSORTED = 4096  # so many are compared one by one, which takes a tenth of a millisecond

_Hashes = NDArray[np.uint64]  # (n, 4)
_Places = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Near:
    """A hash that was found.

    Attributes:
        number: that it was given.
        distance: bits that differ.
    """

    number: int
    distance: int


class NearIndex:
    """Hashes, each with a number. It never changes: `with_more` makes another one, so any thread may ask."""

    def __init__(self, numbers: Sequence[int] = (), hashes: bytes | bytearray = b"") -> None:
        """
        Args:
            numbers: of the hashes, in their order.
            hashes: 32 bytes each, one behind the other.
        """
        self._numbers = np.array(numbers, np.int64)
        self._hashes: _Hashes = np.frombuffer(hashes, np.uint64).reshape(-1, 4)
        # Of the hashes up to `_sorted`: the places of those with value `v` in word `w` are
        # `_places[_starts[k]:_starts[k + 1]]`, where `k` is `w * _VALUES + v`.
        self._sorted, self._starts, self._places = 0, np.zeros(1, np.uint32), np.zeros(0, np.uint32)
        if len(self) > _UNSORTED:
            self._sort()

    def __len__(self) -> int:
        return len(self._numbers)

    def with_more(self, numbers: Sequence[int], hashes: bytes | bytearray) -> NearIndex:
        """An index of these too. Where they are many it is sorted anew: two seconds a million."""
        more = NearIndex()
        more._numbers = np.concatenate([self._numbers, np.array(numbers, np.int64)])
        more._hashes = np.concatenate([self._hashes, np.frombuffer(hashes, np.uint64).reshape(-1, 4)])
        more._sorted, more._starts, more._places = self._sorted, self._starts, self._places
        if len(more) - more._sorted > _UNSORTED:
            more._sort()
        return more

    def within(self, pdq: bytes, distance: int) -> list[Near]:
        """All hashes that differ from `pdq` by at most `distance` bits, the nearest first.

        Args:
            pdq: 32 bytes.
            distance: 0..256; the work grows steeply beyond 31.
        """
        query = np.frombuffer(pdq, np.uint64)
        found = [
            Near(int(self._numbers[place]), bits)
            for places in (self._candidates(pdq, distance), np.arange(self._sorted, len(self)))
            for place, bits in self._compared(query, places, distance)
        ]
        return sorted(set(found), key=lambda near: (near.distance, near.number))

    def _compared(self, query: _Hashes, places: _Places, distance: int) -> Iterator[tuple[int, int]]:
        """Those of the hashes at `places` that are near enough, and how near."""
        for begin in range(0, len(places), _AT_ONCE):
            some = places[begin : begin + _AT_ONCE]
            hashes = self._hashes.take(some, axis=0)  # several times faster than [some]
            np.bitwise_xor(hashes, query, out=hashes)
            quarters = np.bitwise_count(hashes)
            bits = quarters[:, 0].astype(np.uint16) + quarters[:, 1] + quarters[:, 2] + quarters[:, 3]
            near = np.flatnonzero(bits <= distance)
            yield from zip(some[near].tolist(), bits[near].tolist(), strict=True)

    def _candidates(self, pdq: bytes, distance: int) -> _Places:
        """Places of sorted hashes, among them all that are near enough; some come several times."""
        if self._sorted == 0:
            return np.zeros(0, np.int64)
        words = np.frombuffer(pdq, np.uint16)
        # If every word `w` differed by more than `radius[w]` bits, together they would differ by the sum of
        # `radius[w] + 1`, which is `distance + 1`. So one of them differs by no more.
        least, wider = divmod(distance + 1, _WORDS)
        keys = np.concatenate(
            [
                word * _VALUES + (words[word] ^ _masks(least if word < wider else least - 1)).astype(np.int64)
                for word in range(_WORDS)
            ]
        )
        begins = self._starts[keys].astype(np.int64)
        counts = self._starts[keys + 1] - begins
        ends = np.cumsum(counts)
        if (
            ends[-1] > self._sorted
        ):  # of hashes that are much alike, or of a large distance: compare all, once
            return np.arange(self._sorted)
        at = np.repeat(begins - ends + counts, counts) + np.arange(ends[-1])
        places: _Places = self._places[at].astype(np.int64)
        return places

    def _sort(self) -> None:
        count = len(self)
        words = self._hashes.view(np.uint16)
        self._places = np.empty(_WORDS * count, np.uint32)
        self._starts = np.zeros(_WORDS * _VALUES + 1, np.uint32)
        for word in range(_WORDS):
            column, first, key = words[:, word], word * count, word * _VALUES
            self._places[first : first + count] = np.argsort(column, kind="stable")
            ends = first + np.cumsum(np.bincount(column, minlength=_VALUES))
            self._starts[key + 1 : key + _VALUES + 1] = ends
        self._sorted = count


@cache
def _masks(radius: int) -> NDArray[np.uint16]:
    """What a word may differ by: every value with at most `radius` bits, none for -1."""
    masks = [
        sum(1 << bit for bit in bits)
        for count in range(min(radius, _BITS) + 1)
        for bits in combinations(range(_BITS), count)
    ]
    return np.array(masks, np.uint16)
