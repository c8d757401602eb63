"""`pictrs-gate backfill …`: what is stored already."""

from __future__ import annotations

import argparse
import asyncio
import sys
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rich.console import Console

from proxy import parts
from proxy.backfill import report
from proxy.backfill.options import Options, a_count, a_rate, a_share, a_side, hours
from proxy.backfill.progress import Display, display
from proxy.backfill.run import Work, pages_of
from proxy.backfill.sources import Page, Source
from proxy.backfill.sources.opening import checked, opened
from proxy.backfill.sources.pictrs import PictrsSource
from proxy.backfill.watch import newest
from proxy.backfill.writing import check_writable, write_report
from proxy.commands import Commands, Shared, argument, watching
from proxy.commands.backfilling import (
    ACTION_HELP,
    ACTIONS,
    QUIET_HOURS_HELP,
    RATE_HELP,
    alone,
    holding_of,
    largest_of,
    means_of,
    told_to_stop,
)
from proxy.commands.engines import add_engine, check_engine, check_wanted, engine
from proxy.config import load
from proxy.database import BackfillRun
from proxy.database import backfill as runs
from proxy.database.backfill import Batch
from proxy.errors import ConfigError
from proxy.media import Kind
from proxy.moments import a_moment
from proxy.parts import Parts

_MOSTLY_UNREADABLE, _STOPPED = 3, 4  # exit status; 2 is argparse's
_STILL_THERE = "held pictures are in pict-rs still, behind placeholders; a later run tries again"
_REPORT_HELP = "also write it there: .json, .csv, or .html, which has both beside it"
_THUMBNAILS_HELP = (
    "look at pict-rs's variants of N pixels first, and at the original only where that is not enough"
)
_MANNERS = ("rate", "quiet_hours")  # may change on the way
_KINDS = {kind.value.lower(): kind for kind in Kind}


def add(commands: Commands, shared: Shared) -> None:
    """Adds the commands."""
    backfill = commands.add_parser("backfill", help="what is stored already").add_subparsers(required=True)
    run = backfill.add_parser(
        "run", parents=[shared.configured, shared.as_json], help="look at everything that is stored"
    )
    run.add_argument("--report", type=Path, metavar="FILE", help=_REPORT_HELP)
    run.add_argument("--new", action="store_true", help="begin anew, though a run is not finished")
    chosen = run.add_argument_group("what is looked at; kept with the run, which goes on with them")
    chosen.add_argument(
        "--source",
        type=argument(checked),
        metavar="WHERE",
        help="pictrs (default), files:/PATH, s3://BUCKET/PREFIX, sftp://[USER@]HOST[:PORT]/PATH",
    )
    chosen.add_argument("--action", choices=ACTIONS, help=ACTION_HELP)
    chosen.add_argument("--since", type=argument(_when), metavar="WHEN", help="stored since: 2026-11-01, 30d")
    chosen.add_argument("--until", type=argument(_when), metavar="WHEN", help="stored before")
    chosen.add_argument("--prefix", metavar="TEXT", help="of an alias, or of a name in the store")
    chosen.add_argument("--limit", type=argument(a_count), metavar="N", help="files at most")
    chosen.add_argument("--kind", choices=[*_KINDS])
    chosen.add_argument(
        "--sample", type=argument(a_share), metavar="1%", help="a share, always of the same files"
    )
    chosen.add_argument("--rate", type=argument(a_rate), metavar="N", help=RATE_HELP)
    chosen.add_argument("--quiet-hours", type=argument(hours), metavar="08:00-23:00", help=QUIET_HOURS_HELP)
    chosen.add_argument("--via-thumbnails", type=argument(a_side), metavar="N", help=_THUMBNAILS_HELP)
    chosen.add_argument("--stale", action="store_true", help="also what an older ensemble has looked at")
    add_engine(run)
    run.set_defaults(run=_run)
    watching.add(backfill, shared)
    status = backfill.add_parser(
        "status", parents=[shared.configured, shared.as_json], help="the newest runs"
    )
    status.set_defaults(run=_status)
    shown = backfill.add_parser(
        "report", parents=[shared.configured, shared.as_json], help="what a run has found"
    )
    shown.add_argument("number", type=argument(a_count), nargs="?", metavar="RUN", help="default: the newest")
    shown.add_argument("--report", type=Path, metavar="FILE", help=_REPORT_HELP)
    shown.set_defaults(run=_show)


async def _run(options: argparse.Namespace) -> int:
    config = load(options.config)
    check_engine(options, config)
    if options.report is not None:
        await asyncio.to_thread(check_writable, options.report)  # not only after hours
    with alone(config, "run"), display(sys.stderr, as_json=options.json) as shown:
        async with parts.built(config) as made:
            if options.engine == "classifiers":
                await made.lookout.check()
            run = await _begun(options, made, shown)
            wanted = Options.from_json(run.options)
            source = opened(wanted, config.backfill, made.pictrs)
            try:
                run, is_done = await _worked(options, made, run, wanted, source, shown)
            finally:
                await source.close()
            if not is_done:
                shown.say(f"run {run.id}: stopped; the same command goes on with it")
                return _STOPPED
            run = await made.database.run(runs.record, run.id, Batch(), finished=True)
            await made.database.run(write_report, made.policy, run, options.report, as_json=options.json)
    if run.unreadable <= run.looked_at + run.reused:
        return 0
    print(
        f"pictrs-gate: {run.unreadable} of {run.unreadable + run.looked_at + run.reused} files could not be "
        "looked at; the report says why",
        file=sys.stderr,
    )
    return _MOSTLY_UNREADABLE


async def _behind(made: Parts, run: BackfillRun, source: Source) -> AsyncIterator[Page]:
    """What could not be read when the run was there, where the source can be asked by a key."""
    if isinstance(source, PictrsSource):
        behind = await made.database.run(runs.behind, run.id, with_hits=False)
        async for page in source.again(behind):
            yield page


async def _chained(*listings: AsyncIterator[Page]) -> AsyncIterator[Page]:
    for listing in listings:
        async for one in listing:
            yield one


async def _status(options: argparse.Namespace) -> int:
    async with parts.built(load(options.config)) as made:
        found = await made.database.run(runs.listed)
    report.print_runs(Console(), found, as_json=options.json)
    return 0


async def _show(options: argparse.Namespace) -> int:
    async with parts.built(load(options.config)) as made:
        run = await made.database.run(runs.get, options.number)
        await made.database.run(write_report, made.policy, run, options.report, as_json=options.json)
    return 0


async def _begun(options: argparse.Namespace, made: Parts, shown: Display) -> BackfillRun:
    """The unfinished run, or a new one.

    Raises:
        ConfigError: the unfinished one has other options; or it holds, and that was not asked for again.
    """
    run = await made.database.run(runs.open_run)
    if run is not None and not options.new:
        return await _gone_on_with(run, options, made, shown)
    now = datetime.now(UTC)
    wanted = Options(**_given(options, now))
    check_wanted(options, made.config, wanted)
    if wanted.via_thumbnails is not None and wanted.source != "pictrs":
        raise ConfigError("--via-thumbnails: pict-rs makes them; of other sources, originals are looked at")
    # It says what to mend before a run is begun.
    await opened(wanted, made.config.backfill, made.pictrs).close()
    first = await PictrsSource(made.pictrs).page(None) if wanted.source == "pictrs" else None
    return await made.database.run(
        runs.begin,
        kind="run",
        options=wanted.to_json(),
        newest=newest(first.entries) if first is not None and wanted.is_whole else None,
        at=now,
    )


async def _gone_on_with(
    run: BackfillRun, options: argparse.Namespace, made: Parts, shown: Display
) -> BackfillRun:
    """The unfinished run, at another rate and in other hours where that is asked for.

    Raises:
        ConfigError: it was begun with other options; or it holds, and that was not asked for again.
    """
    kept, given = Options.from_json(run.options or {}), _given(options, run.started_at)
    other = [name for name, value in given.items() if getattr(kept, name) != value and name not in _MANNERS]
    words = f"backfill: run {run.id} ({kept.source}, {kept.in_words()}) is not finished"
    if other:
        names = ", ".join(f"--{name.replace('_', '-')}" for name in other)
        raise ConfigError(
            f"{words} and has other options ({names}); give none to go on with it, or --new to leave it and "
            "begin another"
        )
    if kept.action == "hold" and "action" not in given:
        raise ConfigError(
            f"{words}, and it takes pictures from pict-rs; --action hold goes on with it, --new leaves it "
            "and begins another"
        )
    kept = replace(kept, **given)
    try:
        check_wanted(options, made.config, kept)
    except ConfigError as error:
        raise ConfigError(f"{error}; run {run.id} asks for it and is not finished: --new leaves it") from None
    shown.say(f"goes on with run {run.id}: {kept.source}, {kept.in_words()}")
    return await made.database.run(runs.changed, run.id, kept.to_json())


def _given(options: argparse.Namespace, now: datetime) -> dict[str, Any]:
    """What of `Options` the command line says; how long ago is counted from `now`."""
    said = {name: getattr(options, name, None) for name in Options.__dataclass_fields__}
    given: dict[str, Any] = {name: value for name, value in said.items() if value not in (None, False)}
    for name in ("since", "until"):
        if name in given:
            given[name] = a_moment(given[name], now)
    if "kind" in given:
        given["kind"] = _KINDS[given["kind"]]
    return given


async def _worked(
    options: argparse.Namespace,
    made: Parts,
    run: BackfillRun,
    wanted: Options,
    source: Source,
    shown: Display,
) -> tuple[BackfillRun, bool]:
    """The run after its work, and whether all of it is done."""
    async with engine(options, made, wanted, largest_of(made.config)) as looking:
        means = means_of(made, source, looking)
        with told_to_stop() as stop:
            async with holding_of(made, means, run, wanted.action) as holding:
                if holding is not None:
                    await holding.take_rest()
                work = Work(
                    means,
                    run,
                    wanted,
                    ensembles=looking.ensembles,
                    stop=stop,
                    on_batch=lambda run: shown.update(run, means.pace.limit),
                    on_pause=shown.pause,
                    holding=holding,
                )
                is_done = await work.over(_chained(_behind(made, run, source), pages_of(source, run.cursor)))
                if holding is not None and (left := await holding.take_rest()):
                    shown.say(f"{left} {_STILL_THERE}")
    return work.run, is_done


def _when(word: str) -> str:
    """The words of a moment. How long ago counts from when the run began, which only it knows."""
    a_moment(word)
    return word
