"""What pict-rs itself says that it stores: pages of `/internal/hashes`, originals by alias."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from datetime import datetime, timedelta

from proxy.backfill.sources import Entry, Page, Unreadable
from proxy.errors import PictrsError
from proxy.pictrs import Pictrs, StoredFile, StoredPage
from proxy.stored import kind_of, stored_under

_PAGE = 100
# pict-rs orders by when a hash came, which is a little after the time that it tells of a file.
_MARGIN = timedelta(minutes=1)


class PictrsSource:
    """Newest first. Files that come while a run goes on are before its first page and not part of it."""

    def __init__(
        self, pictrs: Pictrs, *, since: datetime | None = None, until: datetime | None = None
    ) -> None:
        """
        Args:
            pictrs: to be asked with its API key.
            since: older files need not be listed.
            until: newer ones neither.
        """
        self._pictrs, self._since, self._until = pictrs, since, until

    async def page(self, at: str | None) -> Page:
        """See `Source.page`. `at` is the first entry's slug, and a time to go on from where that is gone.

        Raises:
            PictrsError: pict-rs cannot be asked.
        """
        slug, _, time = (at or "").partition("@")
        page = await self._first() if not slug else await self._pictrs.stored(slug=slug, limit=_PAGE)
        if slug and page.current not in (slug, None):
            # Deleted meanwhile: pict-rs begins with the newest then. The page before comes again, not more.
            since = datetime.fromisoformat(time) + _MARGIN if time else None
            page = await self._pictrs.stored(timestamp=since, limit=_PAGE)
        times = [file.created_at for file in page.files if file.created_at is not None]
        is_over = page.next is None or (
            self._since is not None
            and len(times) == len(page.files)
            and max(times, default=self._since) < self._since - _MARGIN
        )
        last = max(times).isoformat() if times else time
        return Page([_entry(file) for file in page.files], None if is_over else f"{page.next}@{last}")

    async def fetch(self, entry: Entry, most: int) -> bytes | Unreadable:
        """See `Source.fetch`.

        Raises:
            PictrsError: pict-rs cannot be reached.
        """
        lost = Unreadable("it has no alias")
        for alias in entry.aliases:
            try:
                return await self._pictrs.original(alias, largest=most)
            except PictrsError as error:
                lost = Unreadable(str(error), error.may_pass)
                if error.status is None:
                    # It is gone, which this raises, or silent over one file that no run would get past.
                    await self._pictrs.stored(limit=1)
                if error.status != 404:  # every other alias leads to the same bytes
                    break
        return lost

    async def again(self, hexes: Sequence[str]) -> AsyncIterator[Page]:
        """The files with these keys, as they are now; one that is gone has no alias.

        Raises:
            PictrsError: pict-rs cannot be asked.
        """
        for first in range(0, len(hexes), _PAGE):
            some = hexes[first : first + _PAGE]
            found = [(hex_, await stored_under(self._pictrs, bytes.fromhex(hex_))) for hex_ in some]
            yield Page([_entry(file or StoredFile(hex_, ())) for hex_, file in found], None)

    async def close(self) -> None:
        """The client of pict-rs is its maker's."""

    async def _first(self) -> StoredPage:
        until = self._until + _MARGIN if self._until else None
        return await self._pictrs.stored(timestamp=until, limit=_PAGE)


def _entry(file: StoredFile) -> Entry:
    hex_ = file.hex.lower()
    return Entry(
        place=hex_,
        size=int(hex_[64:76] or "0", 16),
        sha256=hex_[:64],
        aliases=file.aliases,
        at=file.created_at,
        kind=kind_of(hex_),
    )
