"""Places for files: a bound on how many are here at once, and on their bytes. One more is refused at once."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from classifier.errors import overloaded
from classifier.turns import Priority


class Admission:
    """Counted apart for each priority, or a backfill that has filled the house would turn uploads away."""

    def __init__(self, most_files: int, most_bytes: int) -> None:
        """
        Args:
            most_files: of each priority.
            most_bytes: of the files of each priority together.
        """
        self._most_files, self._most_bytes = most_files, most_bytes
        self._files: Counter[Priority] = Counter()
        self._bytes: Counter[Priority] = Counter()

    @property
    def files(self) -> int:
        """How many are here."""
        return self._files.total()

    @contextmanager
    def place(self, priority: Priority, size: int) -> Iterator[None]:
        """A place for one file, taken before it is read.

        Args:
            size: bytes that it has, or may have.

        Raises:
            Rejection: there is none.
        """
        files, held = self._files[priority], self._bytes[priority]
        if files >= self._most_files:
            raise overloaded(f"{files} {priority} files are here already")
        if files and held + size > self._most_bytes:  # the first one is always taken
            raise overloaded(f"{held} bytes of {priority} files are here already")
        self._files[priority] += 1
        self._bytes[priority] += size
        try:
            yield
        finally:
            self._files[priority] -= 1
            self._bytes[priority] -= size
