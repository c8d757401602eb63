"""The commands of `pictrs-gate`, one file a noun. Of each, `proxy.cli` knows no more than its `add`."""

from __future__ import annotations

import argparse
import getpass
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias, TypeVar

from proxy.config import Config
from proxy.database import Database
from proxy.errors import CaseError

T = TypeVar("T")
Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"


@dataclass(frozen=True, slots=True)
class Shared:
    """Options that several commands have, as parents of their parsers.

    Attributes:
        configured: `--config`.
        as_json: `--json`.
        reviewing: `--reviewer`, who asks and decides.
        keyed: `--identity`, a reviewer's private key.
    """

    configured: argparse.ArgumentParser
    as_json: argparse.ArgumentParser
    reviewing: argparse.ArgumentParser
    keyed: argparse.ArgumentParser


def shared() -> Shared:
    """A new set of them."""
    made = Shared(*(argparse.ArgumentParser(add_help=False) for _ in range(4)))
    made.configured.add_argument("--config", type=Path, default=Path("gate.toml"), metavar="FILE")
    made.as_json.add_argument("--json", action="store_true", help="for programs")
    made.reviewing.add_argument(
        "--reviewer",
        type=_human,
        metavar="NAME",
        help="who asks and decides, for the ledger (default: your login; at a terminal you are asked)",
    )
    made.keyed.add_argument("--identity", type=Path, metavar="FILE", help="the reviewer's private key")
    return made


def argument(read: Callable[[str], T]) -> Callable[[str], T]:
    """`read` for argparse, which would drop the words of its ValueError."""

    def checked(word: str) -> T:
        try:
            return read(word)
        except ValueError as error:
            raise argparse.ArgumentTypeError(f"{word!r}: {error}") from None

    return checked


@contextmanager
def database_of(config: Config) -> Iterator[Database]:
    """The configured database, with nothing else of the gate built that could be in the way.

    Raises:
        ConfigError: it cannot be opened.
    """
    database = Database(config.database.url, password=config.database.password)
    try:
        yield database
    finally:
        database.close()


def who_reviews() -> str:
    """The name of whoever has not given one: asked for at a terminal, else that of the login.

    Raises:
        CaseError: it is no name.
    """
    try:
        login = getpass.getuser()
    except (KeyError, OSError):  # a container's user may have none
        login = ""
    if sys.stdin.isatty() and sys.stderr.isatty():
        print(f"Your name, for the ledger [{login}]: ", end="", file=sys.stderr, flush=True)
        login = sys.stdin.readline().strip() or login
    try:
        return _human(login)
    except argparse.ArgumentTypeError as error:
        raise CaseError(f"--reviewer: {login!r}: {error}; give your name") from None


def _human(name: str) -> str:
    """A reviewer's name, under which nobody else acts: the ledger tells by it who did what."""
    if not name.strip() or not name.isprintable() or len(name) > 200:
        raise argparse.ArgumentTypeError("must be a name of at most 200 printable characters")
    if name.strip().lower() in ("gate", "client", "retention"):
        raise argparse.ArgumentTypeError(f"{name!r} is what the gate calls itself; give your own name")
    return name.strip()
