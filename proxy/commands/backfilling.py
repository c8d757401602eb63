"""What `backfill run` and `backfill watch` have in common: means, cases of hits, one at a time, an end."""

from __future__ import annotations

import asyncio
import fcntl
import signal
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager

from proxy import parts
from proxy.backfill.holding import Holding
from proxy.backfill.looking import Means
from proxy.backfill.sources import Source
from proxy.backfill.thumbnails import thumbnail_of
from proxy.cases.keeping import Keeper
from proxy.cases.quota import Quota
from proxy.commands.engines import Engine
from proxy.config import Config
from proxy.database import BackfillRun
from proxy.errors import ConfigError
from proxy.intake.budget import Budget
from proxy.parts import Parts
from proxy.stored import stored_as

ACTIONS = ("report", "hold")
ACTION_HELP = "on a hit: report touches nothing (default); hold seals it as a case and takes it from pict-rs"
RATE_HELP = "files a second at most"
QUIET_HOURS_HELP = "pauses, local time"

_MEGABYTE = 1024 * 1024
_GROWTH = 2  # pict-rs encodes some files again, which can make them larger than what was uploaded


def means_of(made: Parts, source: Source, looking: Engine) -> Means:
    """What a run works with."""
    largest = largest_of(made.config)
    return Means(
        database=made.database,
        source=source,
        lookout=made.lookout,
        policy=made.policy,
        known=made.known,
        pace=looking.pace,
        budget=Budget(max(made.config.backfill.memory_mb * _MEGABYTE, largest)),
        largest=largest,
        resolve=lambda sha256, size: stored_as(made.pictrs, sha256, size),
        thumbnail=lambda alias, side: thumbnail_of(made.pictrs, alias, side),
        viewer=looking.viewer,
    )


def largest_of(config: Config) -> int:
    """Bytes of a stored file; larger ones are unreadable."""
    return _GROWTH * config.pictrs.max_file_size_mb * _MEGABYTE


@asynccontextmanager
async def holding_of(
    made: Parts, means: Means, run: BackfillRun, action: str
) -> AsyncIterator[Holding | None]:
    """What makes cases of hits, where that is asked for.

    Raises:
        ConfigError: it is, and pict-rs cannot be asked.
    """
    if action != "hold":
        yield None
        return
    if made.config.pictrs.api_key is None:
        raise ConfigError("--action hold: needs pictrs.api_key")
    await parts.make_folder(made)
    quota = Quota(made.database, made.config.cases.folder, parts.limits_of(made.config), made.metrics)
    await quota.count()
    watching = asyncio.create_task(quota.watch())  # what gates seal meanwhile takes room too
    keeper = Keeper(made.database, made.quarantine, quota, made.metrics, made.fault)
    try:
        yield Holding(
            database=made.database,
            keeper=keeper,
            pictrs=made.pictrs,
            budget=means.budget,
            largest=means.largest,
            fault=made.fault,
            run_id=run.id,
            by=f"backfill {run.kind}",
        )
    finally:
        watching.cancel()
        await asyncio.gather(watching, return_exceptions=True)
        keeper.close()


@contextmanager
def told_to_stop() -> Iterator[asyncio.Event]:
    """Set by the first SIGINT or SIGTERM; the second one ends the program as ever."""
    stop, loop = asyncio.Event(), asyncio.get_running_loop()
    numbers = (signal.SIGINT, signal.SIGTERM)

    def told() -> None:
        stop.set()
        for number in numbers:
            loop.remove_signal_handler(number)

    for number in numbers:
        loop.add_signal_handler(number, told)
    try:
        yield stop
    finally:
        for number in numbers:
            loop.remove_signal_handler(number)


@contextmanager
def alone(config: Config, kind: str) -> Iterator[None]:
    """Sees to it that no other process does the same, which would look at every file twice.

    Raises:
        ConfigError: one does.
    """
    path = config.cases.folder / f"backfill-{kind}.lock"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("a")
    except OSError as error:
        raise ConfigError(f"cases.folder: {path}: {error.strerror}") from None
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ConfigError(
                f"backfill: another `backfill {kind}` is under way here; end it, or wait for it"
            ) from None
        yield
