"""The command `pictrs-gate`."""

from __future__ import annotations

import argparse
import asyncio
import getpass
import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TextIO

from rich.console import Console
from sqlalchemy.exc import SQLAlchemyError

from proxy import __version__, app
from proxy.backfill import report
from proxy.backfill.run import Backfill
from proxy.backfill.sources.pictrs import PictrsSource
from proxy.cases.deciding import Decider
from proxy.cases.sealing import write_new_identity
from proxy.config import Config, host_and_port, load
from proxy.database import BackfillRun, CaseState, Database, cases
from proxy.database import backfill as runs
from proxy.database.engine import in_words
from proxy.errors import CaseError, ConfigError, GateError
from proxy.review import terminal

_MOSTLY_UNREADABLE = 3  # exit status; 2 is argparse's


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command; returns the exit status: 0, or 1 after a line that says what to mend.

    A backfill that could read less than half of what is stored ends with 3.
    """
    options = _parser().parse_args(argv)
    os.umask(0o077)  # database, cases, keys and reports are nobody else's to read
    logging.basicConfig(
        level=options.log_level.upper(),
        format="%(asctime)s %(levelname)s %(name)s %(message)s",
        stream=sys.stderr,
    )
    logging.getLogger("alembic").setLevel(logging.WARNING)
    try:
        return asyncio.run(options.run(options)) or 0
    except GateError as error:
        print(f"pictrs-gate: {error}", file=sys.stderr)
        return 1
    except SQLAlchemyError as error:
        print(f"pictrs-gate: database.url: {in_words(error)}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


async def _serve(options: argparse.Namespace) -> None:
    config = load(options.config)
    for name, section in (("server", config.server), ("internal", config.internal)):
        try:
            await asyncio.get_running_loop().getaddrinfo(*host_and_port(section.listen))
        except (OSError, UnicodeError):
            raise ConfigError(
                f"{name}.listen: {section.listen}: no such host; name an address of this machine"
            ) from None
    await app.serve(config)


async def _keys_new(options: argparse.Namespace) -> None:
    print(write_new_identity(options.output))
    print(
        f"The private key is in {options.output}: keep it off the server if you can, and keep a copy; "
        "without it no case can be opened. Put the line above into cases.recipients.",
        file=sys.stderr,
    )


async def _review_list(options: argparse.Namespace) -> None:
    async with app.parts(load(options.config)) as made:
        states = [CaseState(state) for state in options.state]
        found = await made.database.run(cases.listed, states=states, limit=options.limit)
    terminal.print_list(Console(), found, as_json=options.json)


async def _review_show(options: argparse.Namespace) -> None:
    async with app.parts(load(options.config)) as made:
        case = await made.database.run(cases.get, options.case)
        await made.database.run(cases.viewed, case.id, reviewer=options.reviewer)
    terminal.print_case(Console(), case, as_json=options.json)


async def _review_release(options: argparse.Namespace) -> None:
    config = load(options.config)
    async with app.parts(config) as made:
        decider = Decider(made.database, made.quarantine, made.known, made.lookout, made.pictrs, made.fault)
        case = await decider.release(
            options.case, identity_file=_needed_identity(options, config), reviewer=options.reviewer
        )
    shown = [promise.alias for promise in case.promises if promise.removed_at is None]
    where = f"{', '.join(shown)} shows the picture" if shown else "no alias stands for it"
    print(f"{case.id}: released; {where}")


async def _review_confirm(options: argparse.Namespace) -> None:
    config = load(options.config)
    async with app.parts(config) as made:
        decider = Decider(made.database, made.quarantine, made.known, made.lookout, made.pictrs, made.fault)
        case = await decider.confirm(
            options.case, identity_file=_identity(options, config), reviewer=options.reviewer
        )
    print(f"{case.id}: confirmed; it is kept, and the same file is refused from now on")


def _identity(options: argparse.Namespace, config: Config) -> Path | None:
    path: Path | None = options.identity or config.cases.identity_file
    return path


def _needed_identity(options: argparse.Namespace, config: Config) -> Path:
    path = _identity(options, config)
    if path is None:
        raise CaseError("a release opens the case: name the reviewer's private key with --identity FILE")
    return path


async def _backfill_run(options: argparse.Namespace) -> int:
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


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="pictrs-gate", description="A gate in front of pict-rs that looks at every picture first."
    )
    parser.add_argument("--version", action="version", version=f"pictrs-gate {__version__}")
    parser.add_argument("--log-level", default="info", choices=["debug", "info", "warning", "error"])
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    configured = argparse.ArgumentParser(add_help=False)
    configured.add_argument("--config", type=Path, default=Path("gate.toml"), metavar="FILE")
    json = argparse.ArgumentParser(add_help=False)
    json.add_argument("--json", action="store_true", help="for programs")
    one_case = argparse.ArgumentParser(add_help=False)
    one_case.add_argument("case", help="its id, as `review list` shows it")
    one_case.add_argument("--reviewer", default=getpass.getuser(), help="who decides (default: %(default)s)")

    keyed = argparse.ArgumentParser(add_help=False)
    keyed.add_argument("--identity", type=Path, metavar="FILE", help="the reviewer's private key")

    serve = commands.add_parser("serve", parents=[configured], help="run the gate")
    serve.set_defaults(run=_serve)

    keys = commands.add_parser("keys", help="reviewers' keys").add_subparsers(required=True)
    new = keys.add_parser("new", help="make an identity and print its recipient")
    new.add_argument("--output", type=Path, default=Path("reviewer.key"), metavar="FILE")
    new.set_defaults(run=_keys_new)

    review = commands.add_parser("review", help="look at cases and decide them").add_subparsers(required=True)
    listing = review.add_parser("list", parents=[configured, json], help="cases, newest first")
    listing.add_argument("--state", action="append", default=[], choices=[state.value for state in CaseState])
    listing.add_argument("--limit", type=int, default=100)
    listing.set_defaults(run=_review_list)
    show = review.add_parser("show", parents=[configured, json, one_case], help="one case, in words")
    show.set_defaults(run=_review_show)
    release = review.add_parser(
        "release", parents=[configured, one_case, keyed], help="harmless: store it under its alias"
    )
    release.set_defaults(run=_review_release)
    confirm = review.add_parser(
        "confirm", parents=[configured, one_case, keyed], help="this is it: keep it, block it"
    )
    confirm.set_defaults(run=_review_confirm)

    backfill = commands.add_parser("backfill", help="what is stored already").add_subparsers(required=True)
    run = backfill.add_parser("run", parents=[configured, json], help="look at everything; touch nothing")
    run.add_argument("--report", type=Path, metavar="FILE", help="also write the report as JSON")
    run.set_defaults(run=_backfill_run)
    return parser
