"""The files of a tree of folders in the order of their names, where each answer takes its time.

Folders are listed ahead, many at once: pict-rs keeps a file ten folders deep, and alone in most of them.
"""

from __future__ import annotations

import asyncio
import heapq
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from dataclasses import dataclass

AT_ONCE = 128  # folders being listed; OpenSSH lends each an open file, of a thousand by default
_AHEAD = (
    1000  # files and folders that are known and not asked for yet; the folders being listed may add to it
)

_Path = tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Found:
    """A folder or a plain file in a folder.

    Attributes:
        size: bytes.
        changed: seconds since 1970; 0 where it is not known.
    """

    name: str
    is_folder: bool
    size: int = 0
    changed: int = 0


class NotListed(Exception):
    """A folder that cannot be listed, though others can."""


# The folders and plain files in a folder, by its path from the root.
# Raises FileNotFoundError, PermissionError and NotListed; whatever else ends the walk.
Scan = Callable[[str], AsyncIterator[Found]]


async def walked(scan: Scan, after: str | None = None) -> AsyncGenerator[tuple[str, Found | None]]:
    """Every file after `after`, by its path from the root; of a folder that cannot be read None.

    Raises:
        FileNotFoundError, PermissionError, NotListed: the root itself.
        what else `scan` raises.
    """
    walk = _Walk(scan, tuple(after.split("/")) if after else ())
    try:
        async for path, found in walk.files():
            yield "/".join(path), found
    finally:
        walk.end()


class _Walk:
    def __init__(self, scan: Scan, after: _Path) -> None:
        self._scan, self._after = scan, after
        # Two heaps. Paths in their parts are in the order of a walk, a folder before what is in it.
        self._waiting: list[_Path] = [()]
        self._ready: list[_Path] = []
        self._facts: dict[_Path, Found | None] = {}
        self._listing: dict[_Path, asyncio.Task[None]] = {}
        self._failed: Exception | None = None

    async def files(self) -> AsyncIterator[tuple[_Path, Found | None]]:
        """See `walked`."""
        self._begin()
        while self._failed is None:
            before = [*self._listing, *self._waiting[:1]]
            if self._ready and (not before or self._ready[0] < min(before)):
                path = heapq.heappop(self._ready)
                self._begin()
                yield path, self._facts.pop(path)
            elif self._listing:
                await asyncio.wait(self._listing.values(), return_when=asyncio.FIRST_COMPLETED)
            else:
                return
        raise self._failed

    def end(self) -> None:
        """Waits for nothing: what has been asked is answered or the connection closed."""
        self._waiting.clear()
        for task in self._listing.values():
            task.cancel()

    def _begin(self) -> None:
        while self._failed is None and self._waiting and len(self._listing) < AT_ONCE:
            if len(self._ready) + len(self._waiting) > _AHEAD and not self._is_next(self._waiting[0]):
                return
            path = heapq.heappop(self._waiting)
            self._listing[path] = asyncio.ensure_future(self._list(path))

    def _is_next(self, path: _Path) -> bool:
        return path < min((*self._listing, *self._ready[:1]), default=(*path, ""))

    async def _list(self, path: _Path) -> None:
        try:
            async for found in self._scan("/".join(path)):
                self._add((*path, found.name), found)
        except Exception as error:  # noqa: BLE001 — whoever asks for the next file has it
            if path and isinstance(error, PermissionError | NotListed):
                self._keep(path, None)
            elif not path or not isinstance(error, FileNotFoundError):  # deleted meanwhile
                self._failed = self._failed or error
                self.end()  # each of the others could wait for the same host in vain
        finally:
            del self._listing[path]
            self._begin()

    def _add(self, path: _Path, found: Found) -> None:
        if not found.is_folder:
            self._keep(path, found)
        elif path >= self._after[: len(path)]:
            heapq.heappush(self._waiting, path)
            self._begin()

    def _keep(self, path: _Path, found: Found | None) -> None:
        if path > self._after and path not in self._facts:
            self._facts[path] = found
            heapq.heappush(self._ready, path)
