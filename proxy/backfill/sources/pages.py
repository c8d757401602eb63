"""Pages out of a listing that goes on from one page to the next, instead of beginning anew for each."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable

from proxy.backfill.sources import Entry, Page

PAGE = 100  # entries, of which a run keeps how far it is
_SOON_S = 2.0  # a page that takes longer is given as it is: its files can be fetched meanwhile


class Pages:
    """Of one source. Not for two callers at once."""

    def __init__(self, begin: Callable[[str | None], AsyncGenerator[Entry]]) -> None:
        """
        Args:
            begin: what lists the entries after a place, or all of them.
        """
        self._begin = begin
        self._listing: AsyncGenerator[Entry] | None = None
        self._coming: asyncio.Task[Entry | None] | None = None
        self._goes_on_at = ""

    async def page(self, at: str | None) -> Page:
        """See `Source.page`. `at` is the last place before it.

        Raises:
            what `begin` raises; the next page is then listed anew.
        """
        if self._coming is None or at != self._goes_on_at:
            await self.close()
            self._listing = self._begin(at)
            self._coming = asyncio.ensure_future(anext(self._listing, None))
        self._goes_on_at = ""
        entries: list[Entry] = []
        soon = asyncio.get_running_loop().time() + _SOON_S
        while len(entries) < PAGE:
            left = max(0.0, soon - asyncio.get_running_loop().time())
            await asyncio.wait({self._coming}, timeout=left if entries else None)
            if not self._coming.done():
                break
            if (entry := self._coming.result()) is None:
                return Page(entries, None)
            entries.append(entry)
            assert self._listing is not None
            self._coming = asyncio.ensure_future(anext(self._listing, None))
        self._goes_on_at = entries[-1].place
        return Page(entries, self._goes_on_at)

    async def close(self) -> None:
        """Ends the listing, if there is one."""
        if self._coming is not None:
            self._coming.cancel()
            await asyncio.gather(self._coming, return_exceptions=True)
        if self._listing is not None:
            await self._listing.aclose()
        self._coming = self._listing = None
