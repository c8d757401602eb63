"""`pictrs-gate backfill …`: what is stored already."""

from __future__ import annotations

import argparse
import asyncio
import sys
from pathlib import Path
from typing import TextIO

from rich.console import Console

from proxy import app
from proxy.backfill import report
from proxy.backfill.run import Backfill
from proxy.backfill.sources.pictrs import PictrsSource
from proxy.commands import Commands, Shared
from proxy.config import load
from proxy.database import BackfillRun, Database
from proxy.database import backfill as runs
from proxy.errors import ConfigError

_MOSTLY_UNREADABLE = 3  # exit status; 2 is argparse's


def add(commands: Commands, shared: Shared) -> None:
    """Adds the commands."""
    backfill = commands.add_parser("backfill", help="what is stored already").add_subparsers(required=True)
    run = backfill.add_parser(
        "run", parents=[shared.configured, shared.as_json], help="look at everything; touch nothing"
    )
    run.add_argument("--report", type=Path, metavar="FILE", help="also write the report as JSON")
    run.set_defaults(run=_run)


async def _run(options: argparse.Namespace) -> int:
    console = Console(stderr=True)

    def on_page(run: BackfillRun) -> None:
        console.print(f"run {run.id}: {run.looked_at} files looked at, {run.unreadable} unreadable")

    config = load(options.config)
    if all(section.url is None for section in config.classifiers):
        raise ConfigError(
            "classifiers: a backfill is a program that nobody dials, so it needs a classifier with a url"
        )
    if options.report is not None:
        await asyncio.to_thread(_check_writable, options.report)  # not only after hours
    async with app.parts(config) as made:
        await made.lookout.check()
        source = PictrsSource(made.pictrs, max_file_size=config.pictrs.max_file_size_mb * 1024 * 1024)
        run = await Backfill(made.database, source, made.lookout, made.policy, made.known).run(on_page)
        await made.database.run(_report, run, options.report, as_json=options.json)
    if run.unreadable <= run.looked_at:
        return 0
    print(
        f"pictrs-gate: {run.unreadable} of {run.unreadable + run.looked_at} files could not be looked at; "
        "the report says why",
        file=sys.stderr,
    )
    return _MOSTLY_UNREADABLE


def _check_writable(path: Path) -> None:
    """Appends nothing, so that an older report stays until there is a new one."""
    try:
        path.open("a").close()
    except OSError as error:
        raise ConfigError(f"--report {path}: {error.strerror}; name another file") from None


def _report(database: Database, run: BackfillRun, path: Path | None, *, as_json: bool) -> None:
    def write(into: TextIO) -> None:
        report.write_json(into, run, runs.hits_of(database, run.id), runs.unreadable_of(database, run.id))

    try:
        if path is not None:
            with path.open("w", encoding="utf-8") as file:
                write(file)
    except OSError as error:
        raise ConfigError(f"--report {path}: {error.strerror}") from None
    finally:  # what took hours is shown in any case
        if as_json:
            write(sys.stdout)
        else:
            hits, unreadable = runs.hits_of(database, run.id), runs.unreadable_of(database, run.id)
            report.print_report(Console(), run, runs.hit_count(database, run.id), hits, unreadable)
