"""A folder of pict-rs's store, on this machine. It is only read, and no link in it is followed."""

from __future__ import annotations

import asyncio
import errno
import os
import stat
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

from proxy.backfill.sources import Entry, Page, Unreadable
from proxy.backfill.sources.names import escaped, may_be_media, time_in, unescaped
from proxy.errors import ConfigError

_PAGE = 100
_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK
_FOR_GOOD = frozenset(
    {errno.ENOENT, errno.EACCES, errno.EPERM, errno.ELOOP, errno.ENOTDIR, errno.EISDIR, errno.ENXIO}
)


class FilesSource:
    """In the order of their names, which in pict-rs's own layout is that of their coming."""

    def __init__(self, folder: Path) -> None:
        """
        Raises:
            ConfigError: `folder` is none.
        """
        if folder.is_symlink() or not folder.is_dir():
            raise ConfigError(f"--source files:{folder}: no folder; name pict-rs's store.path")
        self._folder = folder

    async def page(self, at: str | None) -> Page:
        """See `Source.page`. `at` is the name of the last file before it."""
        return await asyncio.to_thread(self._page, at)

    async def fetch(self, entry: Entry, most: int) -> bytes | Unreadable:
        """See `Source.fetch`."""
        return await asyncio.to_thread(self._read, entry.place, most)

    async def close(self) -> None:
        """There is nothing to give back."""

    def _page(self, after: str | None) -> Page:
        try:
            return self._listed(after)
        except OSError as error:
            raise ConfigError(f"--source files:{self._folder}: {error.strerror}") from None

    def _listed(self, after: str | None) -> Page:
        entries: list[Entry] = []
        for name, facts in _walk(self._folder, "", tuple((after or "").split("/")) if after else ()):
            if len(entries) == _PAGE:
                return Page(entries, entries[-1].place)
            if facts is None:
                entries.append(Entry(name, mark="not to be read"))
            elif may_be_media(name):
                at = time_in(name) or datetime.fromtimestamp(facts.st_mtime, UTC)
                entries.append(Entry(name, facts.st_size, at=at, mark=str(facts.st_mtime_ns)))
        return Page(entries, None)

    def _read(self, place: str, most: int) -> bytes | Unreadable:
        try:
            # A link that somebody has put there since is not followed, nor a pipe waited for.
            try:
                descriptor = os.open(self._folder / place, _READ)
            except FileNotFoundError:
                descriptor = os.open(os.fsencode(self._folder) + b"/" + unescaped(place), _READ)
            with open(descriptor, "rb") as file:  # noqa: PTH123 — of a descriptor
                if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                    return Unreadable("no plain file any more")
                content = file.read(most + 1)
        except OSError as error:
            return Unreadable(error.strerror or type(error).__name__, error.errno not in _FOR_GOOD)
        return content if len(content) <= most else Unreadable(f"it has more than {most} bytes now")


def _walk(folder: Path, prefix: str, after: tuple[str, ...]) -> Iterator[tuple[str, os.stat_result | None]]:
    """Every plain file after `after` (a path in its parts), by name; folders before it are not opened.

    What may not be read, also a folder, has no facts.

    Raises:
        OSError: the folder itself cannot be read.
    """
    with os.scandir(folder) as found:
        entries = sorted(((escaped(os.fsencode(one.name)), one) for one in found), key=lambda named: named[0])
    for name, entry in entries:
        if after and name < after[0]:
            continue
        is_on_the_way = bool(after) and name == after[0]
        try:
            if entry.is_dir(follow_symlinks=False):
                rest = after[1:] if is_on_the_way else ()
                yield from _walk(Path(entry.path), f"{prefix}{name}/", rest)
            elif entry.is_file(follow_symlinks=False) and not (is_on_the_way and len(after) == 1):
                yield prefix + name, entry.stat(follow_symlinks=False)
        except FileNotFoundError:  # deleted meanwhile
            continue
        except PermissionError:
            yield prefix + name, None
