"""`pictrs-gate review …`: cases at the terminal."""

from __future__ import annotations

import argparse
import asyncio
import re
import sys
from collections.abc import Awaitable, Callable, Collection
from pathlib import Path

from rich.console import Console
from sqlalchemy.exc import SQLAlchemyError

from proxy import parts
from proxy.cases.deciding import Confirmation, Decider
from proxy.cases.life import TABLE, Act, CaseState
from proxy.cases.opening import check_new, open_case, save
from proxy.cases.sealing import Opened, read_identities
from proxy.commands import Commands, Shared
from proxy.commands.choosing import agreed, choose, filter_of, filters, several, words
from proxy.config import Config, load
from proxy.database import Case, cases, decisions, ledger, listing, notes
from proxy.database.listing import Filter, chosen
from proxy.errors import CaseError, GateError, PictrsError, SealingError
from proxy.review import terminal
from proxy.saying import said

_BEFORE = {row.act: row.before for row in TABLE}
_SIGNAL = re.compile(r"signal:[0-9A-Za-z_. -]{1,100}")
# Without an answer each release leaves its case half way; after so many in a row pict-rs is away.
_MOST_UNANSWERED = 3

One = Callable[[str], Awaitable[str]]


def add(commands: Commands, shared: Shared) -> None:
    """Adds the commands."""
    review = commands.add_parser("review", help="look at cases and decide them").add_subparsers(required=True)
    base, json, keyed = [shared.configured, shared.reviewing], shared.as_json, shared.keyed
    one_case = argparse.ArgumentParser(add_help=False)
    one_case.add_argument("case", metavar="CASE", help="its id, as `review list` shows it")

    listing_ = review.add_parser(
        "list", parents=[shared.configured, json, filters()], help="cases, newest first"
    )
    listing_.add_argument(
        "--sort",
        type=_order,
        default="newest",
        metavar="ORDER",
        help="newest, oldest, largest, decided (lately), or signal:NAME, highest first",
    )
    listing_.add_argument("--limit", type=_count, default=100, help="cases a page (default: %(default)s)")
    listing_.add_argument("--page", type=_count, default=1, help="which page (default: %(default)s)")
    listing_.set_defaults(run=_list)

    show = review.add_parser(
        "show",
        parents=[*base, json, one_case, keyed],
        help="one case, in words; with a key what is sealed too",
    )
    show.add_argument(
        "--save-to", type=Path, metavar="FILE", help="with a key: also write the original to this new file"
    )
    show.set_defaults(run=_show)

    release = review.add_parser(
        "release", parents=[*base, several(), keyed], help="harmless: store it under its alias"
    )
    release.set_defaults(run=_release)
    confirm = review.add_parser(
        "confirm", parents=[*base, several(), keyed], help="this is it: keep it, block it"
    )
    confirm.set_defaults(run=_confirm)
    report = review.add_parser(
        "report", parents=[*base, several()], help="you have told an authority: note that. Tells nobody"
    )
    report.add_argument("--reference", type=words(500), required=True, help="what the authority calls it")
    report.set_defaults(run=_report)
    hold = review.add_parser(
        "hold-legal", parents=[*base, several()], help="keep it, whatever its period says"
    )
    hold.add_argument("--off", action="store_true", help="take the hold off again")
    hold.add_argument("--reason", type=words(500), required=True)
    hold.set_defaults(run=_hold)
    note = review.add_parser("note", parents=[*base, one_case], help="write something down about a case")
    note.add_argument("text", type=words(2000), metavar="TEXT")
    note.set_defaults(run=_note)


async def _list(options: argparse.Namespace) -> None:
    async with parts.built(load(options.config)) as made:
        found, are_more = await made.database.run(
            listing.page, filter_of(options), order=options.sort, limit=options.limit, number=options.page
        )
    more = f"There are more: --page {options.page + 1}" if are_more else ""
    terminal.print_list(Console(), found, as_json=options.json, more=more)


async def _show(options: argparse.Namespace) -> None:
    config = load(options.config)
    async with parts.built(config) as made:
        case = await made.database.run(cases.get, options.case)
        if options.save_to is not None:
            _needed_identity(options, config, "to save the original")
            check_new(options.save_to)
        opened, trouble = await _opened(made, case, options, config)
        facts = {"sealed facts": True} if opened else {}
        if options.save_to is not None:
            facts["saved"] = True
        await made.database.run(notes.viewed, case.id, by=options.reviewer, facts=facts)
        if opened is not None and options.save_to is not None:
            await asyncio.to_thread(save, opened, options.save_to)
        shown = terminal.Shown(
            case,
            await made.database.run(notes.notes_of, case.id),
            await made.database.run(ledger.entries, case_id=case.id),
            None if opened is None else opened.facts,
            trouble,
            await made.database.run(decisions.is_confirmed, case),
        )
    terminal.print_case(Console(), shown, as_json=options.json)
    if options.save_to is not None:
        print(
            f"{options.save_to}: the original, in the clear; delete it when you have seen it", file=sys.stderr
        )


async def _opened(
    made: parts.Parts, case: Case, options: argparse.Namespace, config: Config
) -> tuple[Opened | None, str | None]:
    """What is sealed, where there is a key; or why it is not shown. A key that was named has to open it."""
    identity_file = _identity(options, config)
    if identity_file is None:
        return None, None
    try:
        identities = read_identities(identity_file)
        return await asyncio.to_thread(open_case, made.quarantine, case, identities), None
    except (CaseError, SealingError) as error:
        if options.identity is not None or options.save_to is not None:
            raise
        return None, str(error)


async def _release(options: argparse.Namespace) -> int:
    config = load(options.config)
    identity_file = _needed_identity(options, config, "a release opens the case")
    async with parts.built(config) as made:
        decider = _decider(made)

        async def one(case_id: str) -> str:
            case = await decider.release(case_id, identity_file=identity_file, reviewer=options.reviewer)
            shown = [promise.alias for promise in case.promises if promise.removed_at is None]
            where = f"{', '.join(shown)} shows the picture" if shown else "no alias stands for it"
            waiting = "" if options.all else await _also_waiting(made, case, options.cases)
            return f"released; {where}{_not_put_back(case)}{waiting}"

        return await _each(made, options, "release", one, usual=_BEFORE[Act.BEGIN_RELEASE])


async def _confirm(options: argparse.Namespace) -> int:
    config = load(options.config)
    identity_file = _identity(options, config)
    async with parts.built(config) as made:
        decider, with_it = _decider(made), dict[str, str]()

        async def one(case_id: str) -> str:
            if case_id in with_it:
                return f"confirmed with {with_it[case_id]}"
            done = await decider.confirm(case_id, identity_file=identity_file, reviewer=options.reviewer)
            with_it.update((other.id, case_id) for other in done.with_it)
            return f"confirmed; it is kept, and the same file is refused from now on{_elsewhere(done)}"

        # What is released is shown to everybody: whoever wants that back says so with --state.
        usual = _BEFORE[Act.CONFIRM] - {CaseState.RELEASED}
        return await _each(made, options, "confirm", one, usual=usual)


async def _report(options: argparse.Namespace) -> int:
    async with parts.built(load(options.config)) as made:

        async def one(case_id: str) -> str:
            await made.database.run(notes.reported, case_id, by=options.reviewer, reference=options.reference)
            return "noted as reported; this program has told nobody"

        return await _each(made, options, "note as reported", one, usual=_BEFORE[Act.REPORT])


async def _hold(options: argparse.Namespace) -> int:
    done = "the legal hold is off" if options.off else "is under legal hold"
    async with parts.built(load(options.config)) as made:

        async def one(case_id: str) -> str:
            facts = {"by": options.reviewer, "reason": options.reason}
            if options.off:
                await made.database.run(notes.hold_lifted, case_id, **facts)
            else:
                await made.database.run(notes.held_legally, case_id, is_there, **facts)
            return done

        def is_there(name: str) -> bool:
            return name in made.quarantine.names()

        what = "take the legal hold off" if options.off else "put a legal hold on"
        usual = set(CaseState) if options.off else set(CaseState) - {CaseState.EXPIRED}
        return await _each(made, options, what, one, usual=usual, under_hold=options.off)


async def _note(options: argparse.Namespace) -> None:
    async with parts.built(load(options.config)) as made:
        await made.database.run(notes.noted, options.case, by=options.reviewer, text=options.text)
    print(f"{options.case}: noted")


async def _each(
    made: parts.Parts,
    options: argparse.Namespace,
    what: str,
    one: One,
    *,
    usual: Collection[CaseState],
    under_hold: bool | None = None,
) -> int:
    """Does something to every case that is chosen. What fails is said, and the others are done.

    Returns:
        The exit status.
    """
    found = await made.database.run(choose, options, usual, under_hold)
    if not found:
        print("No cases.")
        return 0
    if not agreed(found, what, options):
        print("Nothing was done.", file=sys.stderr)
        return 1
    failed = unanswered = 0
    for number, (case_id, _) in enumerate(found, start=1):
        try:
            print(terminal.harmless(f"{case_id}: {await one(case_id)}"), flush=True)
            unanswered = 0
        except GateError as error:
            failed += 1
            print(f"pictrs-gate: {_named(error, case_id)}", file=sys.stderr)
            is_unanswered = isinstance(error, PictrsError) and error.code is None
            unanswered = unanswered + 1 if is_unanswered else 0
            if unanswered == _MOST_UNANSWERED and number < len(found):
                print(
                    f"pictrs-gate: pict-rs does not answer; {len(found) - number} cases were not tried",
                    file=sys.stderr,
                )
                break
        except SQLAlchemyError as error:  # nor could the others be written
            failed += 1
            left = f"; cases that were not tried: {len(found) - number}" if number < len(found) else ""
            print(f"pictrs-gate: {case_id}: {said(error)}; then repeat it{left}", file=sys.stderr)
            break
    if len(found) > 1:
        print(f"{number - failed} of {len(found)} done, {failed} failed")
    return 1 if failed else 0


def _not_put_back(case: Case) -> str:
    """What a release cannot restore of a case that a backfill has made, to be appended; nothing of others."""
    lost = [one.alias for one in case.promises if one.token_lost and one.removed_at is None]
    if not lost:
        return ""
    return (
        f"; what cannot be put back: the delete tokens that pict-rs had given out for {', '.join(lost)} "
        "(it tells them to nobody; an admin can still purge), and when it was stored"
        + ("" if set(case.stored_as or ()) <= {case.sha256} else "; pict-rs has written other bytes of it")
    )


async def _also_waiting(made: parts.Parts, case: Case, named: Collection[str]) -> str:
    """Other cases of the bytes that are released now, to be appended; nothing where there is none.

    Args:
        named: on the command line: their turn comes.
    """
    same = Filter(states=tuple(_BEFORE[Act.BEGIN_RELEASE]), sha256=case.sha256)
    try:
        found = await made.database.run(lambda database: list(chosen(database, same)))
    except SQLAlchemyError:  # the release is done, whatever this would have said
        return ""
    others = [case_id for case_id, _ in found if case_id not in named]
    if not others or case.sha256 is None:
        return ""
    return f"; {len(others)} more of the same file wait: `release --all --sha256 {case.sha256}` releases them"


def _elsewhere(done: Confirmation) -> str:
    """Where else the same picture is, or was, to be appended; nothing where it is nowhere."""
    said = ""
    if done.with_it:
        ids = ", ".join(f"{one.id} ({one.state.value})" for one in done.with_it)
        said += f"; with it what the gate had released of the same file was taken away: {ids}"
    if done.shown:
        states = ", ".join(f"{one.id} ({one.state.value}, by {one.decided_by})" for one in done.shown)
        said += f"; THE SAME FILE IS STILL SHOWN by {states}: confirm that too, or purge its aliases"
    if done.aliases is None:
        said += "; pict-rs gave no answer to what else it has of the same file"
    elif done.aliases:
        said += f"; PICT-RS HAS THE SAME FILE ALSO AS {', '.join(done.aliases)}: purge that"
    return said


def _named(error: GateError, case_id: str) -> str:
    said = terminal.harmless(str(error))
    return said if case_id in said else f"{case_id}: {said}"


def _decider(made: parts.Parts) -> Decider:
    return Decider(made.database, made.quarantine, made.known, made.lookout, made.pictrs, made.fault)


def _identity(options: argparse.Namespace, config: Config) -> Path | None:
    path: Path | None = options.identity or config.cases.identity_file
    return path


def _needed_identity(options: argparse.Namespace, config: Config, why: str) -> Path:
    path = _identity(options, config)
    if path is None:
        raise CaseError(f"{why}: name the reviewer's private key with --identity FILE")
    read_identities(path)  # said once, not for each case
    return path


def _order(text: str) -> str:
    """A known order, or the name of a signal."""
    if text in [order.value for order in listing.Order] or _SIGNAL.fullmatch(text):
        return text
    raise argparse.ArgumentTypeError(
        f"{text!r}: must be {', '.join(order.value for order in listing.Order)} or signal:NAME"
    )


def _count(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= 100_000:
        raise argparse.ArgumentTypeError(f"{text!r}: must be a number of 1 to 100000")
    return int(text)
