"""What comes after a run: the newest pages, down to where the last round was. Nothing new is one request."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any

from proxy.backfill.sources import Entry, Page, Source

_REMEMBERED = 20  # of the newest, because some of them may be deleted
# Two uploads at once may be listed in another order than they came: so long is looked back.
_BACK = timedelta(minutes=1)


def newest(entries: Sequence[Entry]) -> dict[str, Any]:
    """What a first page tells of where a later round has to stop, as JSON values."""
    at = max((entry.at for entry in entries if entry.at is not None), default=None)
    # All that the next round looks back at, or it would list that as new for as long as nothing comes.
    near = [entry for entry in entries if at and entry.at and entry.at >= at - _BACK]
    return {
        "places": list(dict.fromkeys(_named(entry) for entry in (*entries[:_REMEMBERED], *near))),
        "at": at.isoformat() if at is not None else None,
    }


async def new_pages(source: Source, first: Page, before: Mapping[str, Any]) -> AsyncIterator[Page]:
    """The entries that have come since `before`, which is what `newest` said then; no page where none has.

    Args:
        first: the first page, as it is now.
    """
    known = frozenset(before["places"])
    since = datetime.fromisoformat(before["at"]) - _BACK if before["at"] else None
    page, is_there = first, not known
    while True:
        new = []
        is_old = False
        for entry in page.entries:
            is_old = since is not None and (entry.at is None or entry.at < since)
            is_there = is_there or _named(entry) in known or (is_old and entry.at is not None)
            if _named(entry) not in known and not (known and is_there and (is_old or since is None)):
                new.append(entry)
        if new:
            yield Page(new, None)
        if page.next is None or (known and is_there and (is_old or since is None)):
            return
        page = await source.page(page.next)


def _named(entry: Entry) -> str:
    """What tells an entry from one of the same bytes that is taken away and stored again."""
    return entry.place if entry.at is None else f"{entry.place} {entry.at.isoformat()}"
