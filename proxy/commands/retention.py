"""`pictrs-gate retention …`: delete the bytes of cases whose period is over."""

from __future__ import annotations

import argparse
import json
from typing import Any

from proxy import parts
from proxy.cases.retention import Retention
from proxy.commands import Commands, Shared
from proxy.config import load
from proxy.database.retention import Due


def add(commands: Commands, shared: Shared) -> None:
    """Adds the commands."""
    retention = commands.add_parser("retention", help="cases whose period is over").add_subparsers(
        required=True
    )
    run = retention.add_parser(
        "run",
        parents=[shared.configured, shared.reviewing, shared.as_json],
        help="delete the bytes of cases whose period is over; what was decided stays",
    )
    run.add_argument("--dry-run", action="store_true", help="only show what is due")
    run.set_defaults(run=_run)


async def _run(options: argparse.Namespace) -> int:
    config = load(options.config)
    async with parts.built(config) as made:
        retention = Retention(made.database, made.quarantine, parts.periods_of(config), made.fault)
        if options.dry_run:
            _show_due(await retention.due() + await retention.left(), as_json=options.json)
            return 0
        done = await retention.run(on_behalf_of=options.reviewer)
    if options.json:
        found = {"expired": [_facts_of(one) for one in done.expired]}
        print(json.dumps({**found, "deleted": done.deleted, "kept": done.kept}, indent=1))
    else:
        for case, why in done.kept.items():
            print(f"{case}: kept: {why}")
        print(f"{len(done.expired)} cases expired, bytes of {len(done.deleted)} deleted")
    return 0 if all(why.endswith("is under legal hold") for why in done.kept.values()) else 1


def _show_due(due: list[Due], *, as_json: bool) -> None:
    if as_json:
        print(json.dumps([_facts_of(one) for one in due], indent=1))
        return
    for one in due:
        hold = ", kept: is under legal hold" if one.on_hold else ""
        print(f"{one.case}: {one.state.value} since {one.since:%Y-%m-%d}, {one.size or '?'} bytes{hold}")
    size = sum(one.size or 0 for one in due if not one.on_hold)
    print(f"{sum(not one.on_hold for one in due)} cases are due, {size} bytes; nothing was done")


def _facts_of(one: Due) -> dict[str, Any]:
    return {
        "case": one.case,
        "state": one.state.value,
        "since": one.since.isoformat(),
        "size": one.size,
        "on_hold": one.on_hold,
    }
