"""`pictrs-gate backfill watch`: what comes is looked at, round by round."""

from __future__ import annotations

import argparse
import asyncio
import sys
from collections.abc import AsyncIterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime

from proxy import parts
from proxy.backfill.holding import Holding
from proxy.backfill.looking import Means
from proxy.backfill.options import Options, a_rate, hours, quiet_for, seconds
from proxy.backfill.progress import Display, display
from proxy.backfill.run import Work
from proxy.backfill.sources import Page
from proxy.backfill.sources.pictrs import PictrsSource
from proxy.backfill.viewing import BackfillError
from proxy.backfill.watch import new_pages, newest
from proxy.commands import Commands, Shared, argument
from proxy.commands.backfilling import (
    ACTION_HELP,
    ACTIONS,
    QUIET_HOURS_HELP,
    RATE_HELP,
    alone,
    holding_of,
    means_of,
    told_to_stop,
)
from proxy.commands.engines import check_engine, classifiers
from proxy.config import load
from proxy.database import BackfillRun
from proxy.database import backfill as runs
from proxy.errors import PictrsError
from proxy.parts import Parts


def add(backfill: Commands, shared: Shared) -> None:
    """Adds the command."""
    watch = backfill.add_parser(
        "watch", parents=[shared.configured, shared.as_json], help="look at what comes"
    )
    watch.add_argument(
        "--every", type=argument(seconds), default=30.0, metavar="30s", help="default: %(default)s s"
    )
    watch.add_argument("--action", choices=ACTIONS, default="report", help=ACTION_HELP)
    watch.add_argument("--rate", type=argument(a_rate), metavar="N", help=RATE_HELP)
    watch.add_argument("--quiet-hours", type=argument(hours), metavar="08:00-23:00", help=QUIET_HOURS_HELP)
    watch.set_defaults(run=_watch)


@dataclass(frozen=True, slots=True)
class _Watch:
    """What all rounds work with."""

    made: Parts
    means: Means
    source: PictrsSource
    wanted: Options
    holding: Holding | None
    stop: asyncio.Event
    shown: Display

    async def round(self, run: BackfillRun) -> BackfillRun:
        """Looks at what has come since the last round, if anything has, and then at what is behind."""
        if self.holding is not None:
            await self.holding.take_rest()
        if quiet_for(self.wanted.quiet_hours, datetime.now().astimezone()) > 0:
            return run
        first = await self.source.page(None)
        run, is_done = await self._over(run, new_pages(self.source, first, run.newest or newest(())))
        if not is_done:
            return run
        where = newest(first.entries)
        if where != run.newest:
            run = await self.made.database.run(runs.watched, run.id, where)
        behind = await self.made.database.run(runs.behind, run.id, with_hits=self.holding is not None)
        run, _ = await self._over(run, self.source.again(behind))
        return run

    async def _over(self, run: BackfillRun, pages: AsyncIterator[Page]) -> tuple[BackfillRun, bool]:
        """The run after its work, and whether all of it is done."""
        if (first := await anext(pages, None)) is None:
            return run, True
        work = Work(
            self.means,
            run,
            self.wanted,
            ensembles=await self.made.lookout.ensembles(),
            stop=self.stop,
            on_batch=lambda run: self.shown.update(run, self.means.pace.limit),
            on_pause=self.shown.pause,
            on_hit=self.shown.found,
            holding=self.holding,
        )
        is_done = await work.over(_from(first, pages))
        return work.run, is_done


async def _watch(options: argparse.Namespace) -> int:
    config = load(options.config)
    check_engine(argparse.Namespace(engine="classifiers"), config)
    into = sys.stdout if options.json else sys.stderr  # for programs, hits are what it gives
    with alone(config, "watch"), display(into, as_json=options.json) as shown, told_to_stop() as stop:
        async with parts.built(config) as made:
            await made.lookout.check()
            source = PictrsSource(made.pictrs)
            means = means_of(made, source, await classifiers(made))
            run = None
            while run is None and not stop.is_set():
                try:
                    run = await _begun(made, source)
                except PictrsError as error:
                    shown.say(f"{error}; trying again in {options.every:g} s")
                    await _told(stop, within_s=options.every)
            if run is None:
                return 0
            shown.say(f"run {run.id}: watching, every {options.every:g} s")
            async with holding_of(made, means, run, options.action) as holding:
                wanted = Options(rate=options.rate, quiet_hours=options.quiet_hours)
                watch = _Watch(made, means, source, wanted, holding, stop, shown)
                while not stop.is_set():
                    try:
                        run = await watch.round(run)
                    except (PictrsError, BackfillError) as error:
                        shown.say(f"run {run.id}: {error}; trying again in {options.every:g} s")
                    await _told(stop, within_s=options.every)
    return 0


async def _told(stop: asyncio.Event, *, within_s: float) -> None:
    with suppress(TimeoutError):
        async with asyncio.timeout(within_s):
            await stop.wait()


async def _begun(made: Parts, source: PictrsSource) -> BackfillRun:
    """The watch there is; or a new one, from where the newest run began, or from now on."""
    if (run := await made.database.run(runs.open_run, kind="watch")) is not None:
        return run
    where = await made.database.run(runs.where_runs_began)
    if where is None:
        where = newest((await source.page(None)).entries)
    return await made.database.run(runs.begin, kind="watch", options=Options().to_json(), newest=where)


async def _from(first: Page, others: AsyncIterator[Page]) -> AsyncIterator[Page]:
    yield first
    async for one in others:
        yield one
