"""`pictrs-gate migrate`: brings the database to what this version needs."""

from __future__ import annotations

import argparse
import asyncio

from proxy.commands import Commands, Shared
from proxy.config import load
from proxy.database import engine

_PENDING = 3  # exit status of --check; 2 is argparse's


def add(commands: Commands, shared: Shared) -> None:
    """Adds the command."""
    migrate = commands.add_parser(
        "migrate", parents=[shared.configured], help="bring the database to what this version needs"
    )
    migrate.add_argument(
        "--check",
        action="store_true",
        help=f"only say what is missing; then exit status {_PENDING}",
    )
    migrate.set_defaults(run=_run)


async def _run(options: argparse.Namespace) -> int:
    database = load(options.config).database
    work = engine.pending if options.check else engine.migrate
    missing = await asyncio.to_thread(work, database.url, database.password)
    if missing.is_done:
        print(f"{database.url}: {missing}, nothing to do")
        return 0
    if not options.check:
        print(f"{database.url}: {missing}, done")
        return 0
    how = (
        "a gate does it when it starts" if missing.is_safe else "stop every gate, then `pictrs-gate migrate`"
    )
    print(f"{database.url}: {missing}, not done; {how}")
    return _PENDING
