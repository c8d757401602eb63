"""The command `pictrs-gate`."""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import sys
from collections.abc import Sequence

from sqlalchemy.exc import SQLAlchemyError

from proxy import __version__
from proxy.commands import (
    backfill,
    doctor,
    hashes,
    keys,
    ledger,
    lockdown,
    migrate,
    queue,
    retention,
    review,
    serve,
    shared,
    who_reviews,
)
from proxy.database.dialects import in_words
from proxy.errors import GateError

_COMMANDS = (serve, migrate, doctor, keys, review, queue, lockdown, retention, hashes, ledger, backfill)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command; returns the exit status: 0, or 1 after a line that says what to mend.

    A backfill that could read less than half of what is stored ends with 3, and whatever nobody reads any
    more as a shell says it: 141.
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
        if "reviewer" in options and options.reviewer is None:
            options.reviewer = who_reviews()
        status = asyncio.run(options.run(options)) or 0
        if sys.stdout is not None:  # a supervisor may have closed it
            sys.stdout.flush()
        return status
    except GateError as error:
        print(f"pictrs-gate: {error}", file=sys.stderr)
        return 1
    except SQLAlchemyError as error:
        print(f"pictrs-gate: database.url: {in_words(error)}", file=sys.stderr)
        return 1
    except BrokenPipeError:  # as where `| head` has read enough; the interpreter writes the rest nowhere
        nowhere = os.open(os.devnull, os.O_WRONLY)
        for stream in (sys.stdout, sys.stderr):
            if stream is not None:
                os.dup2(nowhere, stream.fileno())
        return 141
    except KeyboardInterrupt:
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="pictrs-gate", description="A gate in front of pict-rs that looks at every picture first."
    )
    parser.add_argument("--version", action="version", version=f"pictrs-gate {__version__}")
    parser.add_argument("--log-level", default="info", choices=["debug", "info", "warning", "error"])
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    options = shared()
    for command in _COMMANDS:
        command.add(commands, options)
    return parser
