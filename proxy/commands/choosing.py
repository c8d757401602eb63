"""Which cases a command is about: filters, several at once, and the question before that is done."""

from __future__ import annotations

import argparse
import re
import sys
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace

from proxy.cases.life import CaseState
from proxy.commands import argument
from proxy.database import Database
from proxy.database.listing import Filter, chosen, states_of
from proxy.errors import CaseError
from proxy.moments import a_moment

_SIGNAL = re.compile(r"([0-9A-Za-z_. -]{1,100})=(.+)")
_SHA256 = re.compile(r"[0-9a-fA-F]{64}")


def filters() -> argparse.ArgumentParser:
    """The options that choose among cases, as a parser's parent."""
    made = argparse.ArgumentParser(add_help=False)
    group = made.add_argument_group("filters (all that are given have to fit)")
    group.add_argument(
        "--state",
        action="append",
        default=[],
        choices=[state.value for state in CaseState],
        help="may be given several times",
    )
    group.add_argument(
        "--since",
        type=argument(a_moment),
        metavar="WHEN",
        help="uploaded then or later: 2026-11-23, 2026-11-23T08:00, 3d",
    )
    group.add_argument(
        "--until", type=argument(a_moment), metavar="WHEN", help="uploaded before: as above, 3d is 3 days ago"
    )
    group.add_argument("--rule", metavar="NAME", help="held by this rule")
    group.add_argument(
        "--signal-at-least",
        type=_signal,
        action="append",
        default=[],
        metavar="NAME=X",
        help="a signal of 0..1; may be given several times",
    )
    group.add_argument("--alias", help="promised for it")
    group.add_argument("--sha256", type=_sha256, help="of the uploaded bytes")
    group.add_argument("--legal-hold", action="store_true", default=None, help="under legal hold")
    return made


def filter_of(options: argparse.Namespace) -> Filter:
    """What the options of `filters` ask for."""
    return Filter(
        states=tuple(CaseState(state) for state in options.state),
        since=options.since,
        until=options.until,
        rule=options.rule,
        signals_at_least=dict(options.signal_at_least),
        alias=options.alias,
        sha256=options.sha256,
        under_hold=options.legal_hold,
    )


def several() -> argparse.ArgumentParser:
    """Ids of cases, or `--all` with filters, as a parser's parent."""
    made = argparse.ArgumentParser(add_help=False, parents=[filters()])
    made.add_argument("cases", nargs="*", metavar="CASE", help="its id, as `review list` shows it")
    made.add_argument("--all", action="store_true", help="all that the filters leave, oldest first")
    made.add_argument("--yes", action="store_true", help="do not ask before several are changed")
    return made


def choose(
    database: Database,
    options: argparse.Namespace,
    usual: Collection[CaseState],
    under_hold: bool | None = None,
) -> list[tuple[str, CaseState | None]]:
    """Ids and states of the cases that a command is about, each once.

    Args:
        usual: the states that `--all` means where no `--state` is given.
        under_hold: the same for `--legal-hold`.

    Raises:
        CaseError: the options name none, or contradict each other.
    """
    wanted = filter_of(options)
    if not options.all:
        if wanted != Filter():
            raise CaseError("filters are for --all; give ids, or --all and filters")
        if not options.cases:
            raise CaseError("name a case, or several, or --all with filters")
        return states_of(database, list(dict.fromkeys(options.cases)))
    if options.cases:
        raise CaseError("give ids or --all, not both")
    return list(chosen(database, _with_defaults(wanted, usual, under_hold)))


def agreed(found: Sequence[tuple[str, CaseState | None]], what: str, options: argparse.Namespace) -> bool:
    """Whether somebody wants all this done. One case that is named by its id needs no question.

    Args:
        what: is about to be done, `release` say.

    Raises:
        CaseError: nobody is there to be asked.
    """
    if options.yes or (len(found) == 1 and not options.all):
        return True
    states = Counter("unknown" if state is None else state.value for _, state in found)
    of_which = ", ".join(f"{count} {state}" for state, count in sorted(states.items()))
    said = f"{what} {len(found)} case{'s' if len(found) > 1 else ''} ({of_which}) as {options.reviewer}"
    if not sys.stdin.isatty():
        raise CaseError(f"{said}: that needs a terminal to ask at, or --yes")
    print(f"{said}? [y/N] ", end="", file=sys.stderr, flush=True)
    return sys.stdin.readline().strip().lower() in ("y", "yes")


def words(longest: int) -> Callable[[str], str]:
    """The type of an option that a reviewer writes something into, of at most so many characters."""

    def check(text: str) -> str:
        text = text.strip()
        if not text or len(text) > longest:
            raise argparse.ArgumentTypeError(f"must be 1 to {longest} characters")
        try:
            text.encode()
        except UnicodeEncodeError:
            raise argparse.ArgumentTypeError("must be UTF-8") from None
        return text

    return check


def _with_defaults(wanted: Filter, usual: Collection[CaseState], under_hold: bool | None) -> Filter:
    return replace(
        wanted,
        states=wanted.states or usual,
        under_hold=under_hold if wanted.under_hold is None else wanted.under_hold,
    )


def _signal(text: str) -> tuple[str, float]:
    match = _SIGNAL.fullmatch(text)
    try:
        value = float(match[2]) if match else -1.0
    except ValueError:
        value = -1.0
    if match is None or not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"{text!r}: must be NAME=X with X of 0..1, for example minor=0.5")
    return match[1], value


def _sha256(text: str) -> str:
    if not _SHA256.fullmatch(text):
        raise argparse.ArgumentTypeError("must be 64 hexadecimal digits")
    return text.lower()
