"""How much room the quarantine may take: a flood must not fill the disk.

Where there is no room an upload is refused, never passed and never promised. What is counted in an upload's
path is a number in memory: the database's own count of a few seconds ago and what this gate has sealed since.
So with several gates the quota may be passed by what the others seal in that time.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy.exc import SQLAlchemyError

from proxy.database import Database, room
from proxy.errors import NoRoom, SealingError
from proxy.metrics import Metrics
from proxy.saying import said

log = logging.getLogger(__name__)

_COUNT_EVERY_S = 3.0
_COUNT_PAUSE = 50  # times as long as a count of very many cases takes: 2 % of a core
# What a container has besides the bytes: facts, the tar's blocks, age's header and a tag for each 64 KiB.
_BESIDES, _CHUNK = 16 * 1024, 4096
# Of the quota, kept for what pict-rs has already: that nobody refuses, and it is public until it is sealed.
_RESERVE = 1 / 20
# Files without a case that may wait for a database which takes no more of them.
_MOST_UNRECORDED = 10_000


@dataclass(frozen=True, slots=True)
class Limits:
    """
    Attributes:
        quota: bytes that all sealed files together may take.
        of_uploader: bytes of them that may be one uploader's.
        keep_free: bytes that have to stay free on the folder's disk.
    """

    quota: int
    of_uploader: int
    keep_free: int


class _Bytes:
    """Bytes by uploader, and of all of them; either is known at once, however many there are."""

    def __init__(self, by_uploader: Mapping[str | None, int] | None = None) -> None:
        self._by_uploader = dict(by_uploader or {})
        self.total = sum(self._by_uploader.values())

    def of(self, uploader: str | None) -> int:
        return self._by_uploader.get(uploader, 0)

    def add(self, uploader: str | None, size: int) -> None:
        """`size` may be negative."""
        self.total += size
        left = self._by_uploader.pop(uploader, 0) + size
        if left:
            self._by_uploader[uploader] = left


@dataclass(slots=True)
class Place:
    """Room that is taken for one case while it is written."""

    case_id: str | None = None
    size: int = 0

    def written(self, case_id: str, size: int) -> None:
        """Its sealed file is on the disk: it takes its room from now on, recorded or not."""
        self.case_id, self.size = case_id, size


class Quota:
    """Gives room in the quarantine."""

    def __init__(self, database: Database, folder: Path, limits: Limits, metrics: Metrics) -> None:
        self._database, self._folder, self._limits, self._metrics = database, folder, limits, metrics
        self._counted, self._since, self._being_written = _Bytes(), _Bytes(), _Bytes()
        self._cases_since: dict[str, tuple[str | None, int]] = {}  # on the disk and not counted yet
        metrics.quarantine_quota_bytes.set(limits.quota)

    @contextmanager
    def place(self, original_bytes: int, uploader: str | None, *, is_public: bool = False) -> Iterator[Place]:
        """Room for one case while it is written; on the event loop.

        Args:
            original_bytes: size of what is to be sealed.
            uploader: the tag of who sent it; without one there is no share of his own.
            is_public: whether pict-rs has it, so that it may have what is left when uploads are refused.

        Raises:
            NoRoom: there is none.
        """
        needed = _sealed_bytes(original_bytes)
        parts = (self._counted, self._since, self._being_written)
        most = self._limits.quota * (1 if is_public else 1 - _RESERVE)
        if sum(part.total for part in parts) + needed > most:
            raise self._no_room("quota", "the quarantine is full: cases.quota_gb")
        his = sum(part.of(uploader) for part in parts)
        if uploader is not None and his + needed > self._limits.of_uploader:
            raise self._no_room("share", "one uploader's share of it is used up: cases.share_of_uploader")
        if len(self._cases_since) >= _MOST_UNRECORDED:
            raise self._no_room("unrecorded", "the database does not take the cases that are sealed")
        self._being_written.add(uploader, needed)
        place = Place()
        try:
            yield place
        finally:
            self._being_written.add(uploader, -needed)
            if place.case_id is not None:
                self._since.add(uploader, place.size)
                self._cases_since[place.case_id] = (uploader, place.size)

    def check_disk(self, original_bytes: int) -> None:
        """Makes sure that the disk is not filled to the brim; in a thread.

        Raises:
            NoRoom: it would be.
            SealingError: the folder is gone.
        """
        try:
            free = free_bytes(self._folder)
        except OSError as error:
            raise SealingError(f"cases.folder: {self._folder}: {error.strerror}") from None
        if free - _sealed_bytes(original_bytes) < self._limits.keep_free:
            raise self._no_room("disk", "the disk is nearly full: cases.keep_free_mb")

    async def count(self) -> None:
        """Asks the database anew.

        Raises:
            SQLAlchemyError: it cannot be asked; the numbers stay as they are.
        """
        taken = await self._database.run(room.taken, list(self._cases_since))
        self._counted = _Bytes(taken.by_uploader)
        for case_id in taken.recorded:
            uploader, size = self._cases_since.pop(case_id)
            self._since.add(uploader, -size)
        self._metrics.quarantine_bytes.set(self._counted.total + self._since.total)

    async def watch(self) -> None:
        """Counts again and again, for ever."""
        loop = asyncio.get_running_loop()
        while True:
            began = loop.time()
            try:
                await self.count()
                self._metrics.quarantine_free_bytes.set(await asyncio.to_thread(free_bytes, self._folder))
            except SQLAlchemyError as error:
                log.error("the quarantine could not be counted: %s", said(error))
            except OSError as error:
                self._metrics.quarantine_free_bytes.set(0)
                log.error("cases.folder: %s: %s", self._folder, error.strerror)
            await asyncio.sleep(max(_COUNT_EVERY_S, _COUNT_PAUSE * (loop.time() - began)))

    def _no_room(self, limit: str, why: str) -> NoRoom:
        self._metrics.quota_refusals.labels(limit=limit).inc()
        return NoRoom(why)


def free_bytes(folder: Path) -> int:
    """What the gate's user may still write on the folder's disk."""
    found = os.statvfs(folder)
    return found.f_bavail * found.f_frsize


def _sealed_bytes(original_bytes: int) -> int:
    return original_bytes + original_bytes // _CHUNK + _BESIDES
