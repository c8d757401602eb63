"""Cases of what pict-rs has stored already: a placeholder for each alias, and how the picture is taken away.

It is sealed and its placeholders stand before anything is taken away, and nothing is put back before pict-rs
has ended its taking away: its queue would do the same to what has just come back.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Collection, Mapping
from datetime import UTC, datetime

from proxy.aliases import alias_key, make_delete_token
from proxy.cases import placeholder
from proxy.channels.looks import Look, Seen
from proxy.database import Database, Promise, cases, taking
from proxy.errors import CaseError, PictrsError
from proxy.faults import FaultPoint
from proxy.intake.uploads import Upload
from proxy.media import Size, measure
from proxy.pictrs import Pictrs
from proxy.stored import stored_as, stored_under

log = logging.getLogger(__name__)

_GONE_S = 30.0  # that pict-rs's queue may take; some milliseconds, where it has nothing else to do
_MOST_FAILED = 3  # in a row; then the rest is for the next time
_FIRST_GLANCE_S, _GLANCE_S = 0.02, 0.5


async def stored_promises(
    upload: Upload, look: Look | None, aliases: Collection[str], tokens: Mapping[str, str] | None = None
) -> list[Promise]:
    """Promises for the aliases that a stored file has; not recorded yet.

    Args:
        look: at these bytes; None where their own header has to tell the size.
        tokens: the delete tokens of those aliases of which the gate was told them when they were stored;
            pict-rs tells nobody later.
    """
    tokens = tokens or {}
    measured = await asyncio.to_thread(measure, upload.content, upload.media)
    size, frames = measured or (None, None)
    if isinstance(look, Seen):
        size = Size(look.width, look.height)
    details = await asyncio.to_thread(placeholder.details, upload.media, size, frames)
    now = datetime.now(UTC)
    return [
        Promise(
            alias=alias,
            alias_key=alias_key(alias),
            delete_token=tokens.get(alias) or make_delete_token(),
            details=details,
            arguments=[],  # what is sealed has been through them
            stored_at=now,
            stored_token=tokens.get(alias),
            token_lost=alias not in tokens,
        )
        for alias in sorted(set(aliases))
    ]


async def take_away(database: Database, pictrs: Pictrs, fault: FaultPoint, case_id: str, *, by: str) -> bool:
    """Takes a held picture away from pict-rs, and sees that it has gone. May be repeated after a crash.

    Alias by alias, not by a purge: that would also take an alias for which no case stands, and whoever
    repeated it could not know when the first one ends. pict-rs removes the file after its last alias.

    Args:
        by: who does it; another one is kept out meanwhile.

    Returns:
        Whether there was something to take away.

    Raises:
        CaseError: somebody else is doing it.
        PictrsError: pict-rs may have it still.
    """
    if not await database.run(taking.taking_away, case_id, by=by):
        return False
    case = await database.run(cases.get, case_id)
    file = await stored_as(pictrs, case.sha256 or "", case.size or 0)
    if file is not None:
        await database.run(taking.found, case_id, list(file.aliases))
        await _delete(database, pictrs, fault, case_id, bytes.fromhex(file.hex), by)
    await database.run(taking.taken_away, case_id)
    log.warning("case %s is sealed, and pict-rs has it no more", case_id)
    return True


async def take_rest(
    database: Database, pictrs: Pictrs, fault: FaultPoint, *, by: str, older_than_s: float = 0.0
) -> int:
    """Takes away what others have sealed and were kept from taking away, by a crash say.

    Args:
        older_than_s: how old a case is that nobody else is about to see to.

    Returns:
        Of how many cases pict-rs has the picture still.
    """
    waiting = await database.run(taking.not_taken, older_than_s=older_than_s)
    random.shuffle(waiting)  # what hangs may not keep the same ones waiting each time
    taken, failed_in_a_row = 0, 0
    for case_id in waiting:
        try:
            await take_away(database, pictrs, fault, case_id, by=by)
            taken, failed_in_a_row = taken + 1, 0
        except (PictrsError, CaseError) as error:  # its placeholders stand; the next attempt takes it away
            log.warning("case %s is sealed; pict-rs has it still: %s", case_id, error)
            failed_in_a_row += isinstance(error, PictrsError)
        if failed_in_a_row == _MOST_FAILED:
            break
    return len(waiting) - taken


async def _delete(
    database: Database, pictrs: Pictrs, fault: FaultPoint, case_id: str, key: bytes, by: str
) -> None:
    """Deletes the aliases that stand for the case, as far as pict-rs has them for the very bytes that are
    sealed, and waits until that is done.
    """
    promises = await database.run(taking.taking_away, case_id, by=by)
    ours = {promise.alias_key for promise in promises}

    async def left() -> list[str]:
        file = await stored_under(pictrs, key)
        return [alias for alias in (file.aliases if file else ()) if alias_key(alias) in ours]

    async def delete(alias: str) -> bool:
        # Each time: who was slow may have lost the case, and what is released is not to be deleted.
        if not await database.run(taking.taking_away, case_id, by=by):
            return False
        await pictrs.delete(alias)
        return True

    *others, last = await left() or [""]
    for alias in others:
        if not await delete(alias):
            return
        fault("alias-taken")
    # Only after the last alias pict-rs has something more to do, so that is to be one deletion and no other.
    waiting = _Waiting()
    while len(await left()) > 1:
        await waiting.more()
    if last and not await delete(last):
        return
    fault("all-taken")
    waiting = _Waiting()
    while (file := await stored_under(pictrs, key)) is not None:
        if file.aliases and not await left():
            break  # what is left is another case's, and so pict-rs keeps the file
        await waiting.more()


class _Waiting:
    """For pict-rs, which answers a deletion before it has done it."""

    def __init__(self) -> None:
        self._end = asyncio.get_running_loop().time() + _GONE_S
        self._glance_s = _FIRST_GLANCE_S

    async def more(self) -> None:
        if asyncio.get_running_loop().time() > self._end:
            raise PictrsError(f"pict-rs has not taken a picture away within {_GONE_S:.0f} s; repeat it")
        await asyncio.sleep(self._glance_s)
        self._glance_s = min(2 * self._glance_s, _GLANCE_S)
