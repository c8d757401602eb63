"""`pictrs-gate lockdown …`: hold every upload from now on, whatever it is, and end that."""

from __future__ import annotations

import argparse
import json
from datetime import UTC, datetime

from proxy.commands import Commands, Shared, argument, database_of
from proxy.config import load
from proxy.database import Lockdown, lockdowns
from proxy.moments import a_span
from proxy.review.terminal import harmless


def add(commands: Commands, shared: Shared) -> None:
    """Adds the commands."""
    lockdown = commands.add_parser("lockdown", help="hold every upload").add_subparsers(required=True)
    on = lockdown.add_parser(
        "on", parents=[shared.configured, shared.reviewing], help="hold every upload, at once, on every gate"
    )
    on.add_argument("--for", dest="duration", type=argument(a_span), metavar="TIME", help="90s, 30m, 2h, 1d")
    on.add_argument("--reason", type=_reason, help="stands in every case that is held meanwhile")
    on.set_defaults(run=_on)
    off = lockdown.add_parser(
        "off", parents=[shared.configured, shared.reviewing], help="end it: what was held is looked at"
    )
    off.set_defaults(run=_off)
    status = lockdown.add_parser(
        "status", parents=[shared.configured, shared.as_json], help="whether there is one"
    )
    status.set_defaults(run=_status)


async def _on(options: argparse.Namespace) -> None:
    until = datetime.now(UTC) + options.duration if options.duration else None
    with database_of(load(options.config)) as database:
        begun = lockdowns.begin(database, by=options.reviewer, reason=options.reason, until=until)
    print(f"lockdown: {_in_words(begun)}")


async def _off(options: argparse.Namespace) -> None:
    with database_of(load(options.config)) as database:
        ended = lockdowns.end(database, by=options.reviewer)
    print("lockdown: off" if ended else "lockdown: there was none")


async def _status(options: argparse.Namespace) -> None:
    with database_of(load(options.config)) as database:
        lockdowns.end_due(database)
        found = lockdowns.in_force(database)
    if options.json:
        print(json.dumps({"on": found is not None, **(_facts_of(found) if found else {})}, indent=1))
        return
    print(f"lockdown: {_in_words(found) if found else 'off'}")


def _facts_of(lockdown: Lockdown) -> dict[str, str | None]:
    return {
        "since": lockdown.began_at.isoformat(),
        "by": lockdown.by,
        "reason": lockdown.reason,
        "until": lockdown.until.isoformat() if lockdown.until else None,
    }


def _in_words(lockdown: Lockdown) -> str:
    until = f"until {_moment(lockdown.until)}" if lockdown.until else "until somebody ends it"
    reason = f": {lockdown.reason}" if lockdown.reason else ""
    return harmless(f"on since {_moment(lockdown.began_at)}, by {lockdown.by}, {until}{reason}")


def _moment(moment: datetime) -> str:
    return f"{moment:%Y-%m-%d %H:%M:%S} UTC"


def _reason(text: str) -> str:
    if not text.strip() or not text.isprintable() or len(text) > 400:
        raise argparse.ArgumentTypeError("must be a line of at most 400 printable characters")
    return text.strip()
