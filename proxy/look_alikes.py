"""Which earlier decision a picture looks like: an index in memory that follows the database.

All gates that share a database see at the next look what any of them has confirmed or imported.
"""

from __future__ import annotations

import threading
from array import array
from typing import TYPE_CHECKING

from proxy.database import Database, memory
from proxy.database.memory import Remembered

if TYPE_CHECKING:
    from proxy.near import NearIndex

_AT_ONCE = 500  # matches whose decisions are asked for together
_BRIEFLY_S = 0.2


class LookAlikes:
    """Known pictures. Every method blocks, so it belongs into a thread; any number of them may call it."""

    def __init__(self, distance: int) -> None:
        """
        Args:
            distance: bits of 256 up to which two PDQ hashes count as one picture's.
        """
        self._distance = distance
        self._loading = threading.Lock()
        # Together, so that whoever reads it has an index and how far it has come: last number, lists removed.
        self._known: tuple[NearIndex | None, int, int] = (None, 0, 0)

    def find(self, database: Database, pdq: bytes) -> tuple[Remembered, int] | None:
        """The sternest decision about a picture that looks like this one, of those the nearest; its distance.

        Raises:
            SQLAlchemyError: the database cannot be asked.
        """
        index = self.catch_up(database)
        nears = [] if index is None else index.within(pdq, self._distance)
        best: tuple[Remembered, int] | None = None
        for begin in range(0, len(nears), _AT_ONCE):
            some = nears[begin : begin + _AT_ONCE]
            decisions = memory.of_pictures(database, [near.number for near in some])
            for near in some:
                decision = decisions.get(near.number)  # None: forgotten since
                if decision is not None and decision.verdict == "block":
                    return decision, near.distance
                if decision is not None and best is None:
                    best = decision, near.distance
        return best

    def catch_up(self, database: Database) -> NearIndex | None:
        """Reads what has become known since; None where nothing is. A million take some seconds, once.

        Raises:
            SQLAlchemyError: the database cannot be asked.
        """
        index, last, removed = self._known
        newest = memory.standing(database)
        if newest == (last, removed):
            return index
        # A single decision is read in less; while one thread reads a long list, the others go on with what
        # was known before.
        if not self._loading.acquire(timeout=-1 if index is None else _BRIEFLY_S):
            return index
        try:
            return self._load(database)
        finally:
            self._loading.release()

    def _load(self, database: Database) -> NearIndex | None:
        index, last, removed = self._known
        newest, now_removed = memory.standing(database)
        if (newest, now_removed) == (last, removed):  # read by whoever was here before
            return index
        if now_removed != removed:  # memory of removed lists is given back by beginning anew
            index, last = None, 0
        numbers, hashes = array("q"), bytearray()
        for some, of_some in memory.pictures(database, after=last, up_to=newest):
            numbers.extend(some)
            hashes += of_some
        if numbers:
            from proxy.near import NearIndex  # numpy: 25 MB that a gate without such hashes does not need

            index = NearIndex(numbers, hashes) if index is None else index.with_more(numbers, hashes)
        self._known = index, newest, now_removed
        return index
