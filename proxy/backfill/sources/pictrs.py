"""What pict-rs itself says that it stores: pages of `/internal/hashes`, originals by alias."""

from __future__ import annotations

from proxy.backfill.sources import Entry, Page, Unreadable
from proxy.errors import PictrsError
from proxy.pictrs import Pictrs

_PAGE = 100
_GROWTH = 2  # pict-rs encodes some files again, which can make them larger than what was uploaded


class PictrsSource:
    """Newest first. Files that come while a run goes on are before its first page and not part of it."""

    def __init__(self, pictrs: Pictrs, *, max_file_size: int) -> None:
        """
        Args:
            pictrs: to be asked with its API key.
            max_file_size: bytes that an upload may have; what is stored may be somewhat larger.
        """
        self._pictrs, self._largest = pictrs, _GROWTH * max_file_size

    async def page(self, at: str | None) -> Page:
        """See `Source.page`.

        Raises:
            PictrsError: pict-rs cannot be asked.
        """
        files, following = await self._pictrs.hashes(slug=at, limit=_PAGE)
        return Page([Entry(file.hex, file.aliases) for file in files], following)

    async def fetch(self, entry: Entry) -> bytes | Unreadable:
        """See `Source.fetch`.

        Raises:
            PictrsError: pict-rs cannot be reached.
        """
        reason = "it has no alias"
        for alias in entry.aliases:
            try:
                return await self._pictrs.original(alias, largest=self._largest)
            except PictrsError as error:
                reason = str(error)
                if error.status is None:
                    # It is gone, which this raises, or silent over one file that no run would get past.
                    await self.page(None)
                if error.status != 404:  # every other alias leads to the same bytes
                    break
        return Unreadable(reason)
