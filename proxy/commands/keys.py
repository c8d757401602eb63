"""`pictrs-gate keys …`: the keys that cases are sealed to."""

from __future__ import annotations

import argparse
import asyncio
import sys
from pathlib import Path

import pyrage

from proxy import parts
from proxy.cases.rotating import Keys, Rotation
from proxy.cases.sealing import gate_public, read_identities, write_new_identity
from proxy.commands import Commands, Shared
from proxy.config import Config, load
from proxy.database import ledger, rotating
from proxy.errors import CaseError, GateError

_SAID_EVERY = 100  # cases
_MOST_PASSES = 3  # of new cases that a gate with the old configuration goes on sealing


def add(commands: Commands, shared: Shared) -> None:
    """Adds the commands."""
    keys = commands.add_parser("keys", help="reviewers' keys").add_subparsers(required=True)
    new = keys.add_parser("new", help="make an identity and print its recipient")
    new.add_argument("--output", type=Path, default=Path("reviewer.key"), metavar="FILE")
    new.set_defaults(run=_new)
    rotate = keys.add_parser(
        "rotate",
        parents=[shared.configured, shared.reviewing],
        help="seal every case for the recipients that are configured now",
    )
    rotate.add_argument(
        "--identity",
        type=Path,
        action="append",
        default=[],
        metavar="FILE",
        help="a private key that opens cases as they are; may be given several times",
    )
    rotate.add_argument("--dry-run", action="store_true", help="say what would be done, and what would fail")
    rotate.set_defaults(run=_rotate)


async def _new(options: argparse.Namespace) -> None:
    print(write_new_identity(options.output))
    print(
        f"The private key is in {options.output}: keep it off the server if you can, and keep a copy; "
        "without it no case can be opened. Put the line above into cases.recipients.",
        file=sys.stderr,
    )


async def _rotate(options: argparse.Namespace) -> int:
    config = load(options.config)
    keys = _keys(options, config)
    if not keys.are_among(keys.reviewers):
        print(
            "No identity that was given is among the new recipients, so of the new files only the headers "
            "can be checked. Open one with a new key before an old one is destroyed.",
            file=sys.stderr,
        )
    async with parts.built(config) as made:
        rotation = Rotation(made.database, made.quarantine, keys, made.fault)
        if keys.gate is None and (count := await made.database.run(rotating.count_for_gate)):
            print(
                f"left as they are: {count} cases that the gate has still to open, for its own key is "
                "not here (cases.gate_identity_file); it seals them for its recipients when it has looked",
                file=sys.stderr,
            )
        if options.dry_run:
            return await _try(rotation)
        troubles = await asyncio.to_thread(rotation.resume)
        for trouble in troubles:
            print(f"pictrs-gate: {trouble}", file=sys.stderr)
        done, failed = await _reseal_all(rotation, options.reviewer)
        left = len(await asyncio.to_thread(rotation.left))
        if done or failed:
            facts = {
                "resealed": done,
                "failed": failed,
                "recipients": list(keys.reviewers),
                "sealed to": keys.wanted.usual,
            }
            await made.database.run(ledger.record, "keys rotated", actor=options.reviewer, facts=facts)
    print(f"{done} cases resealed for {len(set(keys.reviewers))} recipients, {left} left")
    return 1 if left or troubles else 0


async def _try(rotation: Rotation) -> int:
    """Says what a rotation would do."""
    left = await asyncio.to_thread(rotation.left)
    failed = 0
    for case_id in left:
        try:
            await asyncio.to_thread(rotation.check, case_id)
        except GateError as error:
            failed += 1
            print(f"pictrs-gate: {error}", file=sys.stderr)
    print(f"{len(left) - failed} cases would be resealed, {failed} could not be")
    return 1 if failed else 0


async def _reseal_all(rotation: Rotation, by: str) -> tuple[int, int]:
    """How many cases were sealed anew, and how many could not be."""
    done, failed = 0, set[str]()
    for _ in range(_MOST_PASSES):
        left = [case_id for case_id in await asyncio.to_thread(rotation.left) if case_id not in failed]
        if not left:
            break
        for case_id in left:
            try:
                done += await asyncio.to_thread(rotation.reseal, case_id, by=by)
            except GateError as error:
                failed.add(case_id)
                print(f"pictrs-gate: {error}", file=sys.stderr)
            if done and done % _SAID_EVERY == 0:
                print(f"{done} of {len(left)} cases resealed", file=sys.stderr)
    return done, len(failed)


def gate_recipient(config: Config) -> str | None:
    """The public half of the gate's own key; None where it has none yet, and so no case that needs it.

    Raises:
        SealingError: its file cannot be read.
    """
    path = config.cases.gate_identity_file
    return gate_public(read_identities(path)) if path.exists() else None


def _keys(options: argparse.Namespace, config: Config) -> Keys:
    files = list(options.identity)
    if config.cases.identity_file is not None:
        files.append(config.cases.identity_file)
    if not files:
        raise CaseError("a rotation opens every case: name a private key that can with --identity FILE")
    gate = gate_recipient(config)
    if gate is not None:
        files.append(config.cases.gate_identity_file)
    identities: list[pyrage.x25519.Identity] = [one for file in files for one in read_identities(file)]
    return Keys(config.cases.recipients, gate, identities)
