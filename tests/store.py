"""As much of pict-rs as decisions need, in memory; and a fault point that ends what reaches it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from proxy.errors import PictrsError
from proxy.intake.multipart import OutgoingFile

STORED = "bb" * 32


class Killed(BaseException):
    """What would be a kill -9."""


def dying_at(point: str) -> Callable[[str], None]:
    """A fault point."""

    def fault(reached: str) -> None:
        if reached == point:
            raise Killed

    return fault


class Store:
    """pict-rs.

    Attributes:
        stored: alias → SHA-256 of what is stored under it.
        deleted: aliases, as it was asked.
        stuck: aliases that it cannot delete.
    """

    def __init__(self, stored: Mapping[str, str] | None = None) -> None:
        self.stored, self.deleted, self.stuck = dict(stored or {}), list[str](), set[str]()

    async def delete(self, alias: str) -> None:
        """See `Pictrs.delete`."""
        if alias in self.stuck:
            raise PictrsError("pict-rs answered 500", status=500, code="io-error")
        self.deleted.append(alias)
        self.stored.pop(alias, None)

    async def stored_sha256(self, alias: str) -> str | None:
        """See `Pictrs.stored_sha256`."""
        return self.stored.get(alias)

    async def has(self, alias: str) -> bool:
        """See `Pictrs.has`."""
        return alias in self.stored

    async def aliases(self, alias: str) -> list[str]:
        """See `Pictrs.aliases`."""
        return [one for one, what in self.stored.items() if what == self.stored.get(alias)]

    async def import_file(self, file: OutgoingFile, query: Sequence[tuple[str, str]]) -> dict[str, Any]:
        """See `Pictrs.import_file`."""
        if file.file_name in self.stored:
            raise PictrsError("pict-rs answered 400", status=400, code="duplicate-alias")
        self.stored[file.file_name] = STORED
        return {"file": file.file_name, "delete_token": "t"}
