"""`pictrs-gate review …`: cases at the terminal."""

from __future__ import annotations

import argparse
from pathlib import Path

from rich.console import Console

from proxy import app
from proxy.cases.deciding import Decider
from proxy.commands import Commands, Shared
from proxy.config import Config, load
from proxy.database import CaseState, cases
from proxy.errors import CaseError
from proxy.review import terminal


def add(commands: Commands, shared: Shared) -> None:
    """Adds the commands."""
    review = commands.add_parser("review", help="look at cases and decide them").add_subparsers(required=True)
    one_case = argparse.ArgumentParser(add_help=False)
    one_case.add_argument("case", help="its id, as `review list` shows it")
    base, json, keyed = [shared.configured, shared.reviewing], shared.as_json, shared.keyed
    listing = review.add_parser("list", parents=[shared.configured, json], help="cases, newest first")
    listing.add_argument("--state", action="append", default=[], choices=[state.value for state in CaseState])
    listing.add_argument("--limit", type=int, default=100)
    listing.set_defaults(run=_list)
    show = review.add_parser("show", parents=[*base, json, one_case], help="one case, in words")
    show.set_defaults(run=_show)
    release = review.add_parser(
        "release", parents=[*base, one_case, keyed], help="harmless: store it under its alias"
    )
    release.set_defaults(run=_release)
    confirm = review.add_parser(
        "confirm", parents=[*base, one_case, keyed], help="this is it: keep it, block it"
    )
    confirm.set_defaults(run=_confirm)


async def _list(options: argparse.Namespace) -> None:
    async with app.parts(load(options.config)) as made:
        states = [CaseState(state) for state in options.state]
        found = await made.database.run(cases.listed, states=states, limit=options.limit)
    terminal.print_list(Console(), found, as_json=options.json)


async def _show(options: argparse.Namespace) -> None:
    async with app.parts(load(options.config)) as made:
        case = await made.database.run(cases.get, options.case)
        await made.database.run(cases.viewed, case.id, reviewer=options.reviewer)
    terminal.print_case(Console(), case, as_json=options.json)


async def _release(options: argparse.Namespace) -> None:
    config = load(options.config)
    async with app.parts(config) as made:
        decider = Decider(made.database, made.quarantine, made.known, made.lookout, made.pictrs, made.fault)
        case = await decider.release(
            options.case, identity_file=_needed_identity(options, config), reviewer=options.reviewer
        )
    shown = [promise.alias for promise in case.promises if promise.removed_at is None]
    where = f"{', '.join(shown)} shows the picture" if shown else "no alias stands for it"
    print(f"{case.id}: released; {where}")
    if lost := [one.alias for one in case.promises if one.token_lost and one.removed_at is None]:
        print(
            f"what cannot be put back: the delete tokens that pict-rs had given out for {', '.join(lost)} "
            "(it tells them to nobody; an admin can still purge), and when it was stored"
        )


async def _confirm(options: argparse.Namespace) -> None:
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
