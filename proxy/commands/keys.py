"""`pictrs-gate keys …`: the keys that cases are sealed to."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from proxy.cases.sealing import write_new_identity
from proxy.commands import Commands, Shared


def add(commands: Commands, shared: Shared) -> None:
    """Adds the commands."""
    keys = commands.add_parser("keys", help="reviewers' keys").add_subparsers(required=True)
    new = keys.add_parser("new", help="make an identity and print its recipient")
    new.add_argument("--output", type=Path, default=Path("reviewer.key"), metavar="FILE")
    new.set_defaults(run=_new)


async def _new(options: argparse.Namespace) -> None:
    print(write_new_identity(options.output))
    print(
        f"The private key is in {options.output}: keep it off the server if you can, and keep a copy; "
        "without it no case can be opened. Put the line above into cases.recipients.",
        file=sys.stderr,
    )
