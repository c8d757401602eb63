"""`pictrs-gate backfill …`: what is stored already."""

from __future__ import annotations

import argparse
import asyncio
import fcntl
import signal
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path
from typing import Any

from rich.console import Console

from proxy import parts
from proxy.backfill import report
from proxy.backfill.holding import Holding
from proxy.backfill.looking import Means
from proxy.backfill.options import Options, a_count, a_moment, a_rate, a_share, a_side, hours, seconds
from proxy.backfill.progress import Display, display
from proxy.backfill.run import Work, pages_of
from proxy.backfill.sources import Page, Source
from proxy.backfill.sources.opening import checked, opened
from proxy.backfill.sources.pictrs import PictrsSource
from proxy.backfill.thumbnails import thumbnail_of
from proxy.backfill.viewing import BackfillError
from proxy.backfill.watch import new_pages, newest
from proxy.backfill.writing import check_writable, write_report
from proxy.cases.keeping import Keeper
from proxy.cases.quota import Quota
from proxy.commands import Commands, Shared
from proxy.commands.engines import Engine, add_engine, check_engine, check_wanted, classifiers, engine
from proxy.config import Config, load
from proxy.database import BackfillRun
from proxy.database import backfill as runs
from proxy.database.backfill import Batch
from proxy.errors import ConfigError, PictrsError
from proxy.intake.budget import Budget
from proxy.media import Kind
from proxy.parts import Parts
from proxy.stored import stored_as

_MOSTLY_UNREADABLE, _STOPPED = 3, 4  # exit status; 2 is argparse's
_MEGABYTE = 1024 * 1024
_STILL_THERE = "held pictures are in pict-rs still, behind placeholders; a later run tries again"
_GROWTH = 2  # pict-rs encodes some files again, which can make them larger than what was uploaded
_REPORT_HELP = "also write it there: .json, .csv, or .html, which has both beside it"
_ACTIONS = ("report", "hold")
_ACTION_HELP = "on a hit: report touches nothing (default); hold seals it as a case and takes it from pict-rs"
_THUMBNAILS_HELP = (
    "look at pict-rs's variants of N pixels first, and at the original only where that is not enough"
)
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
        type=_of(checked),
        metavar="WHERE",
        help="pictrs (default), files:/PATH, s3://BUCKET/PREFIX, sftp://[USER@]HOST[:PORT]/PATH",
    )
    chosen.add_argument("--action", choices=_ACTIONS, help=_ACTION_HELP)
    chosen.add_argument("--since", type=_of(a_moment), metavar="WHEN", help="stored since: 2026-11-01, 30d")
    chosen.add_argument("--until", type=_of(a_moment), metavar="WHEN", help="stored before")
    chosen.add_argument("--prefix", metavar="TEXT", help="of an alias, or of a name in the store")
    chosen.add_argument("--limit", type=_of(a_count), metavar="N", help="files at most")
    chosen.add_argument("--kind", choices=[*_KINDS])
    chosen.add_argument("--sample", type=_of(a_share), metavar="1%", help="a share, always of the same files")
    chosen.add_argument("--rate", type=_of(a_rate), metavar="N", help="files a second at most")
    chosen.add_argument("--quiet-hours", type=_of(hours), metavar="08:00-23:00", help="pauses, local time")
    chosen.add_argument("--via-thumbnails", type=_of(a_side), metavar="N", help=_THUMBNAILS_HELP)
    chosen.add_argument("--stale", action="store_true", help="also what an older ensemble has looked at")
    add_engine(run, _of)
    run.set_defaults(run=_run)
    watch = backfill.add_parser(
        "watch", parents=[shared.configured, shared.as_json], help="look at what comes"
    )
    watch.add_argument(
        "--every", type=_of(seconds), default=30.0, metavar="30s", help="default: %(default)s s"
    )
    watch.add_argument("--action", choices=_ACTIONS, default="report", help=_ACTION_HELP)
    watch.set_defaults(run=_watch)
    status = backfill.add_parser(
        "status", parents=[shared.configured, shared.as_json], help="the newest runs"
    )
    status.set_defaults(run=_status)
    shown = backfill.add_parser(
        "report", parents=[shared.configured, shared.as_json], help="what a run has found"
    )
    shown.add_argument("number", type=_of(a_count), nargs="?", metavar="RUN", help="default: the newest")
    shown.add_argument("--report", type=Path, metavar="FILE", help=_REPORT_HELP)
    shown.set_defaults(run=_show)


async def _run(options: argparse.Namespace) -> int:
    config = load(options.config)
    check_engine(options, config)
    if options.report is not None:
        await asyncio.to_thread(check_writable, options.report)  # not only after hours
    with _alone(config, "run"), display(sys.stderr, as_json=options.json) as shown:
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


async def _watch(options: argparse.Namespace) -> int:
    config = load(options.config)
    check_engine(argparse.Namespace(engine="classifiers"), config)
    with _alone(config, "watch"), display(sys.stderr, as_json=options.json) as shown, _told_to_stop() as stop:
        async with parts.built(config) as made:
            await made.lookout.check()
            source = PictrsSource(made.pictrs)
            means = _means(made, source, await classifiers(made))
            run = await _begun_to_watch(made, source)
            shown.say(f"run {run.id}: watching, every {options.every:g} s")
            async with _holding(made, means, run, options.action) as holding:
                while not stop.is_set():
                    try:
                        run = await _round(made, means, source, run, stop, shown, holding)
                    except (PictrsError, BackfillError) as error:
                        shown.say(f"run {run.id}: {error}; trying again in {options.every:g} s")
                    with suppress(TimeoutError):
                        async with asyncio.timeout(options.every):
                            await stop.wait()
    return 0


async def _begun_to_watch(made: Parts, source: PictrsSource) -> BackfillRun:
    """The watch there is; or a new one, from where the newest run began, or from now on."""
    if (run := await made.database.run(runs.open_run, kind="watch")) is not None:
        return run
    where = await made.database.run(runs.where_runs_began)
    if where is None:
        where = newest((await source.page(None)).entries)
    return await made.database.run(runs.begin, kind="watch", options=Options().to_json(), newest=where)


async def _round(
    made: Parts,
    means: Means,
    source: PictrsSource,
    run: BackfillRun,
    stop: asyncio.Event,
    shown: Display,
    holding: Holding | None,
) -> BackfillRun:
    """Looks at what has come since the last round, if anything has, and then at what is behind."""

    async def over(run: BackfillRun, pages: AsyncIterator[Page]) -> tuple[BackfillRun, bool]:
        if (first := await anext(pages, None)) is None:
            return run, True
        work = Work(
            means,
            run,
            Options(),
            ensembles=await made.lookout.ensembles(),
            stop=stop,
            on_batch=lambda run: shown.update(run, means.pace.limit),
            on_hit=lambda hit: shown.say(report.hit_in_words(hit)),
            holding=holding,
        )
        is_done = await work.over(_from(first, pages))
        return work.run, is_done

    if holding is not None:
        await holding.take_rest()
    first = await source.page(None)
    run, is_done = await over(run, new_pages(source, first, run.newest or newest(())))
    if not is_done:
        return run
    where = newest(first.entries)
    if where != run.newest:
        run = await made.database.run(runs.watched, run.id, where)
    behind = await made.database.run(runs.behind, run.id, with_hits=holding is not None)
    run, _ = await over(run, source.again(behind))
    return run


async def _behind(made: Parts, run: BackfillRun, source: Source) -> AsyncIterator[Page]:
    """What could not be read when the run was there, where the source can be asked by a key."""
    if isinstance(source, PictrsSource):
        behind = await made.database.run(runs.behind, run.id, with_hits=False)
        async for page in source.again(behind):
            yield page


async def _from(first: Page, others: AsyncIterator[Page]) -> AsyncIterator[Page]:
    yield first
    async for one in others:
        yield one


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
    given = {
        name: getattr(options, name)
        for name in Options.__dataclass_fields__
        if getattr(options, name, None) not in (None, False)
    }
    if "kind" in given:
        given["kind"] = _KINDS[given["kind"]]
    run = await made.database.run(runs.open_run)
    if run is not None and not options.new:
        kept = Options.from_json(run.options or {})
        if any(getattr(kept, name) != value for name, value in given.items()):
            raise ConfigError(
                f"backfill: run {run.id} is not finished and has other options; give none to go on with it, "
                "or --new to leave it and begin another"
            )
        words = f"{kept.source}, {kept.in_words()}"
        if kept.action == "hold" and "action" not in given:
            raise ConfigError(
                f"backfill: run {run.id} ({words}) is not finished, and it takes pictures from pict-rs; "
                "--action hold goes on with it, --new leaves it and begins another"
            )
        try:
            check_wanted(options, made.config, kept)
        except ConfigError as error:
            raise ConfigError(
                f"{error}; run {run.id} asks for it and is not finished: --new leaves it"
            ) from None
        shown.say(f"goes on with run {run.id}: {words}")
        return run
    wanted = Options(**given)
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
    )


async def _worked(
    options: argparse.Namespace,
    made: Parts,
    run: BackfillRun,
    wanted: Options,
    source: Source,
    shown: Display,
) -> tuple[BackfillRun, bool]:
    """The run after its work, and whether all of it is done."""
    async with engine(options, made, wanted, _largest(made.config)) as looking:
        means = _means(made, source, looking)
        with _told_to_stop() as stop:
            async with _holding(made, means, run, wanted.action) as holding:
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


def _means(made: Parts, source: Source, looking: Engine) -> Means:
    largest = _largest(made.config)
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


def _largest(config: Config) -> int:
    return _GROWTH * config.pictrs.max_file_size_mb * _MEGABYTE


@asynccontextmanager
async def _holding(made: Parts, means: Means, run: BackfillRun, action: str) -> AsyncIterator[Holding | None]:
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
def _told_to_stop() -> Iterator[asyncio.Event]:
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
def _alone(config: Config, kind: str) -> Iterator[None]:
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


def _of(read: Callable[[str], Any]) -> Callable[[str], Any]:
    """`read` for argparse, which would drop the words of its error."""

    def checked(word: str) -> Any:
        try:
            return read(word)
        except ValueError as error:
            raise argparse.ArgumentTypeError(f"{word!r}: {error}") from None

    return checked
