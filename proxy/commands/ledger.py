"""`pictrs-gate ledger …`: whether the ledger is what was written, what it says, what it counts."""

from __future__ import annotations

import argparse
import asyncio
import json
import re
from collections.abc import Callable
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, TypeVar

from rich.console import Console
from rich.table import Table
from rich.text import Text

from proxy.cases.evidence import Files, check_files
from proxy.commands import Commands, Shared, argument, database_of
from proxy.config import Config, load
from proxy.database import Database, allows, ledger
from proxy.errors import ConfigError
from proxy.ledger.chain import Entry
from proxy.ledger.checkpoints import read
from proxy.ledger.signing import read_signer
from proxy.ledger.statistics import QUANTILES, VERDICTS, Statistics, count
from proxy.ledger.verifying import Report, verify
from proxy.moments import a_moment
from proxy.review.terminal import harmless

_DOES_NOT_HOLD = 3  # exit status; 2 is argparse's
T = TypeVar("T")

_MOST_DAYS = 36_500


def add(commands: Commands, shared: Shared) -> None:
    """Adds the commands."""
    group = commands.add_parser("ledger", help="what was decided and by whom").add_subparsers(required=True)
    base = [shared.configured, shared.as_json]
    check = group.add_parser(
        "verify", parents=base, help="find what was altered, removed or put elsewhere; exit status 3 where"
    )
    check.add_argument(
        "--checkpoints",
        type=Path,
        action="append",
        default=[],
        metavar="FILE",
        help="a copy that was kept elsewhere, beside the gate's own",
    )
    check.add_argument(
        "--public-key",
        type=_key,
        action="append",
        default=[],
        metavar="HEX",
        help="count only what this key has signed; may be given again for several gates",
    )
    check.add_argument(
        "--files", action="store_true", help="and read every sealed file: is it what the gate has written?"
    )
    check.set_defaults(run=_verify)
    show = group.add_parser("show", parents=base, help="entries in order; as JSON, one a line")
    show.add_argument("--case", metavar="ID", help="of this case only")
    show.add_argument(
        "--since", type=argument(a_moment), metavar="WHEN", help="2026-11-23, 2026-11-23T08:00, 7d, 12h"
    )
    show.add_argument("--limit", type=_natural, default=100, help="the newest of them; 0: all (%(default)s)")
    show.set_defaults(run=_show)
    stats = group.add_parser("stats", parents=base, help="verdicts by day, and how the signals lie")
    stats.add_argument("--days", type=_natural, default=7, help="the last of them (default: %(default)s)")
    stats.set_defaults(run=_stats)


async def _verify(options: argparse.Namespace) -> int:
    config = load(options.config)

    def work(database: Database) -> tuple[Report, Files | None]:
        copies = [read(path) for path in _files(config, options.checkpoints)]
        files = check_files(database, config.cases.folder) if options.files else None
        return verify(database, copies, trusted=options.public_key, own=_own_key(config)), files

    report, files = await _with_database(config, work)
    if options.json:
        print(json.dumps(_as_json(report) | ({"files": asdict(files)} if files else {}), indent=1))
    else:
        if files is not None:
            _print_files(files)
        _print_report(Console(), report)
    return _DOES_NOT_HOLD if report.broken or (files is not None and files.broken) else 0


async def _show(options: argparse.Namespace) -> None:
    found = await _with_database(
        load(options.config),
        lambda database: ledger.newest(
            database, case_id=options.case, since=options.since, limit=options.limit or None
        ),
    )
    if options.json:
        for entry in found:
            print(json.dumps(asdict(entry)))
    else:
        _print_entries(Console(), found)


async def _stats(options: argparse.Namespace) -> None:
    today = datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    since = today - timedelta(days=min(max(options.days, 1), _MOST_DAYS) - 1)
    counted = await _with_database(
        load(options.config),
        lambda database: count(allows.since(database, since), ledger.since(database, since)),
    )
    if options.json:
        print(json.dumps(counted.json(), indent=1))
    else:
        _print_statistics(Console(), counted)


async def _with_database(config: Config, work: Callable[[Database], T]) -> T:
    """`work(database)` in a thread, with nothing else of the gate built."""

    def run() -> T:
        with database_of(config) as database:
            return work(database)

    return await asyncio.to_thread(run)


def _files(config: Config, given: list[Path]) -> list[Path]:
    own = config.ledger.checkpoints_file
    return [*([own] if own.exists() else []), *given]


def _own_key(config: Config) -> str | None:
    """The public half of the gate's key; None where this user may not read it, or there is none yet."""
    try:
        return read_signer(config.ledger.key_file).key
    except (OSError, ConfigError):
        return None


def _as_json(report: Report) -> dict[str, Any]:
    return {
        "holds": report.broken == 0,
        "entries": report.entries,
        "last": report.last,
        "broken": report.broken,
        "findings": [asdict(finding) for finding in report.findings],
        "checkpoints": {
            "count": report.checkpoints,
            "held": report.held,
            "last_held": report.last_held and asdict(report.last_held),
        },
        "keys": [asdict(key) for key in report.keys],
        "notes": report.notes,
    }


def _print_report(console: Console, report: Report) -> None:
    def say(text: str) -> None:
        console.print(Text(harmless(text)), soft_wrap=True)

    for finding in report.findings:
        place = "" if finding.number is None else f"entry {finding.number} "
        say(f"{finding.kind.value.upper()}: {place}{finding.words}")
    if report.broken > len(report.findings):
        say(f"and {report.broken - len(report.findings)} more")
    for key in report.keys:
        say(f"checkpoints are signed by {key.key} of {key.gate}, says entry {key.number}")
    for note in report.notes:
        say(f"note: {note}")
    held = f"{report.held} of {report.checkpoints} checkpoints hold"
    if report.last_held is not None:
        held += f", the last is of {report.last_held.time} at entry {report.last_held.number}"
    say(f"{report.entries} entries, {held}")
    say("the ledger does NOT hold" if report.broken else "the ledger holds")


def _print_files(files: Files) -> None:
    for case in files.missing:
        print(f"MISSING: the sealed file of case {harmless(case)} is not there, or cannot be read")
    for case in files.other:
        print(f"ALTERED: the sealed file of case {harmless(case)} is none that the gate has written")
    if files.unknown:
        print(f"note: of {len(files.unknown)} sealed files the ledger does not say what was written")
    print(f"{files.held} sealed files are what the gate has written")


def _print_entries(console: Console, found: list[Entry]) -> None:
    if not found:
        console.print("No entries.")
        return
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("entry", "time", "act", "by", "case", "facts"):
        table.add_column(column, overflow="fold", no_wrap=column in ("entry", "case"))
    for entry in found:
        facts = json.dumps(entry.facts, ensure_ascii=False) if entry.facts else ""
        cells = (str(entry.number), entry.time[:19], entry.act, entry.actor, entry.case or "", facts)
        table.add_row(*(Text(harmless(cell)) for cell in cells))
    console.print(table)


def _print_statistics(console: Console, counted: Statistics) -> None:
    if not counted.days:
        console.print("No verdicts.")
        return
    days = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("day", *VERDICTS):
        days.add_column(column, justify="left" if column == "day" else "right")
    for day, counts in sorted(counted.days.items()):
        days.add_row(Text(harmless(day)), *(str(counts[verdict]) for verdict in VERDICTS))
    console.print(days)
    if not counted.signals:
        return
    signals = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("signal", "seen", *(f"{share:.1%}" for share in QUANTILES)):
        signals.add_column(column, justify="left" if column == "signal" else "right")
    for name, spread in sorted(counted.signals.items()):
        values = (f"{spread.quantile(share):.4f}" for share in QUANTILES)
        signals.add_row(Text(harmless(name)), str(spread.count), *values)
    console.print()
    console.print(signals)


def _key(text: str) -> str:
    if not re.fullmatch(r"[0-9a-f]{64}", text.lower()):
        raise argparse.ArgumentTypeError("must be an Ed25519 public key, 64 hexadecimal digits")
    return text.lower()


def _natural(text: str) -> int:
    if not re.fullmatch(r"\d{1,9}", text, re.ASCII):
        raise argparse.ArgumentTypeError("must be a number, 0 or more")
    return int(text)
