"""What pict-rs itself says that it stores: pages of `/internal/hashes`, originals by alias."""

from __future__ import annotations

from proxy.backfill.sources import Entry, Page
from proxy.errors import PictrsError
from proxy.pictrs import Pictrs

_PAGE = 100
_LARGEST_BYTES = 256 * 1024 * 1024


class PictrsSource:
    """Newest first. Files that come while a run goes on are before its first page and not part of it."""

    def __init__(self, pictrs: Pictrs) -> None:
        self._pictrs = pictrs

    async def page(self, at: str | None) -> Page:
        """See `Source.page`.

        Raises:
            PictrsError: pict-rs cannot be asked.
        """
        files, following = await self._pictrs.hashes(slug=at, limit=_PAGE)
        return Page([Entry(file.hex, file.aliases) for file in files], following)

    async def fetch(self, entry: Entry) -> bytes | None:
        """See `Source.fetch`.

        Raises:
            PictrsError: pict-rs cannot be reached.
        """
        for alias in entry.aliases:
            try:
                return await self._pictrs.original(alias, largest=_LARGEST_BYTES)
            except PictrsError as error:
                if error.status is None or error.status >= 500:
                    raise
        return None
