"""`pictrs-gate review …`: cases as tables and words. Never a picture, unless it is asked for by name."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from proxy.database import Case, LedgerEntry, Note
from proxy.review.history import earlier_in_words, entry_in_words, history_of, notes_of, possible

# Of the sealed facts, what a case's row has as well.
_IN_THE_ROW = frozenset({"case", "sha256", "pdq", "pdq_quality", "size", "reason", "signals"})


def harmless(text: str) -> str:
    """`text` for a terminal: what it would obey or hide (escapes, changes of direction) is spelled out.

    Aliases, arguments and content types come from uploaders, who must not get to repaint a reviewer's screen.
    """
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)


def signals_cell(signals: Mapping[str, float]) -> Text:
    """One a line, so that a number is never torn apart in a narrow terminal."""
    return Text("\n".join(f"{harmless(name)}={value:.2f}" for name, value in sorted(signals.items())))


def facts_of(case: Case) -> dict[str, Any]:
    """A case as JSON values, for programs."""
    return {
        "id": case.id,
        "state": case.state.value,
        "created_at": case.created_at.isoformat(),
        "reason": case.reason,
        "rule": case.rule,
        "sha256": case.sha256,
        "pdq": case.pdq,
        "pdq_quality": case.pdq_quality,
        "size": case.size,
        "content_type": case.content_type,
        "alias": case.promises[0].alias if case.promises else None,
        "arguments": case.promises[0].arguments if case.promises else None,
        "promises": [
            {
                "alias": promise.alias,
                "arguments": promise.arguments,
                "removed_at": _iso(promise.removed_at),
            }
            for promise in case.promises
        ],
        "signals": case.signals,
        "ensemble": case.ensemble,
        "earlier": case.earlier,
        "decided_at": _iso(case.decided_at),
        "decided_by": case.decided_by,
        "reported_at": _iso(case.reported_at),
        "reported_by": case.reported_by,
        "reported_as": case.reported_as,
        "legal_hold": case.hold_at
        and {"at": _iso(case.hold_at), "by": case.hold_by, "reason": case.hold_reason},
        "expired_at": _iso(case.expired_at),
    }


@dataclass(frozen=True, slots=True)
class Shown:
    """Everything of one case that `review show` shows.

    Attributes:
        notes: what reviewers have written, in its order.
        entries: the ledger's about it, in their order.
        sealed: the facts of the sealed file; None without a key.
        sealed_trouble: why they are not shown although a key is there.
        confirmed_elsewhere: whether the same bytes were confirmed.
    """

    case: Case
    notes: Sequence[Note] = ()
    entries: Sequence[LedgerEntry] = ()
    sealed: Mapping[str, Any] | None = None
    sealed_trouble: str | None = None
    confirmed_elsewhere: bool = False


def print_list(console: Console, cases: Sequence[Case], *, as_json: bool, more: str = "") -> None:
    """All `cases`, a line each; `more` says how to see those behind them."""
    if as_json:
        console.out(json.dumps([facts_of(case) for case in cases], indent=1))
        return
    if not cases:
        console.print("No cases.")
        return
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("case", "state", "age", "type", "signals", "why"):
        table.add_column(column, overflow="fold", no_wrap=column not in ("type", "why"))
    for case in cases:
        age, kind = _age(case.created_at), case.content_type or "?"
        state = case.state.value + (", legal hold" if case.hold_at else "")
        table.add_row(
            *map(_cell, (case.id, state, age, kind)),
            signals_cell(case.signals) if case.signals else "not seen",
            _cell(case.reason),
        )
    console.print(table)
    if more:
        console.print(_cell(more))


def print_case(console: Console, shown: Shown, *, as_json: bool) -> None:
    """Everything that is known about one case, in words."""
    case = shown.case
    if as_json:
        found = facts_of(case)
        found["possible"] = possible(case, confirmed_elsewhere=shown.confirmed_elsewhere)
        found["notes"], found["history"] = notes_of(shown.notes), history_of(shown.entries)
        found["sealed"] = shown.sealed
        console.out(json.dumps(found, indent=1))
        return
    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in (*_row(case), *_sealed(shown), *_what_happened(shown)):
        table.add_row(_cell(name), _cell(value))
    console.print(table)


def _row(case: Case) -> Iterator[tuple[str, str]]:
    """What the case's own row says."""
    yield "case", case.id
    decided = f", by {case.decided_by} at {_moment(case.decided_at)}" if case.decided_at else ""
    yield "state", f"{case.state.value}{decided}"
    if case.hold_at is not None:
        yield "legal hold", f"by {case.hold_by} at {_moment(case.hold_at)}: {case.hold_reason}"
    if case.reported_at is not None:
        yield "reported", f"by {case.reported_by} at {_moment(case.reported_at)} as {case.reported_as}"
    if case.expired_at is not None:
        yield "expired", f"{_moment(case.expired_at)}; its bytes are deleted"
    yield "since", f"{_moment(case.created_at)} ({_age(case.created_at)} ago)"
    yield "why", case.reason
    if case.earlier:
        yield "earlier", earlier_in_words(case.earlier)
    for name, value in sorted((case.signals or {}).items()):
        yield f"signal {name}", f"{value:.3f}  {_in_words(value)}"
    if case.ensemble:
        yield "seen by", case.ensemble
    yield "file", f"{case.content_type or 'unknown type'}, {case.size or '?'} bytes"
    yield "sha256", case.sha256 or "in the sealed file"
    if case.pdq:
        yield "pdq", f"{case.pdq} (quality {case.pdq_quality} of 100)"
    if not case.promises:
        yield "alias", "none was promised"
    for promise in case.promises:
        yield "alias", f"{promise.alias}{', deleted since' if promise.removed_at else ''}"
        if promise.arguments:
            yield "asked for", "&".join(f"{key}={value}" for key, value in promise.arguments)
    yield "sealed file", case.file


def _sealed(shown: Shown) -> Iterator[tuple[str, str]]:
    """What only a key shows; without what the row says."""
    if shown.sealed_trouble:
        yield "sealed facts", f"not shown: {shown.sealed_trouble}"
    for name, value in (shown.sealed or {}).items():
        if name in _IN_THE_ROW or value in (None, [], {}):
            continue
        if name == "frames":
            yield "sealed frames", _frames_in_words(value)
        elif isinstance(value, Mapping):
            for inner, one in value.items():
                yield f"sealed {name} {inner}", str(one)
        elif isinstance(value, list):
            yield f"sealed {name}", json.dumps(value, ensure_ascii=False)
        else:
            yield f"sealed {name}", str(value)


def _what_happened(shown: Shown) -> Iterator[tuple[str, str]]:
    for note in shown.notes:
        yield "note", f"{_moment(note.at)}, {note.by}: {note.text}"
    for entry in shown.entries:
        yield "history", f"{entry.time[:19].replace('T', ' ')} UTC: {entry_in_words(entry)}"
    for command, why_not in possible(shown.case, confirmed_elsewhere=shown.confirmed_elsewhere).items():
        yield f"may {command}", "yes" if why_not is None else f"no: {why_not}"


def _frames_in_words(frames: Any) -> str:
    """Which frame of how many was the worst of each signal."""
    worst: dict[str, tuple[float, int]] = {}
    try:
        for frame in frames:
            for name, value in frame["signals"].items():
                worst[name] = max(worst.get(name, (-1.0, 0)), (float(value), int(frame["index"])))
    except (AttributeError, KeyError, TypeError, ValueError):
        return json.dumps(frames)  # another gate's way to write them
    highest = ", ".join(f"{name} {value:.3f} in frame {at}" for name, (value, at) in sorted(worst.items()))
    return f"{len(frames)} looked at; highest: {highest}"


def _moment(moment: datetime | None) -> str:
    return f"{moment:%Y-%m-%d %H:%M:%S} UTC" if moment else "?"


def _iso(moment: datetime | None) -> str | None:
    return moment.isoformat() if moment else None


def _cell(value: str) -> Text:
    """As it is: rich would take [brackets] in a string for its own markup."""
    return Text(harmless(value))


def _in_words(value: float) -> str:
    """A signal is a suspicion; these words keep it one."""
    for bound, words in ((0.9, "very likely"), (0.6, "likely"), (0.3, "possible"), (0.1, "unlikely")):
        if value >= bound:
            return words
    return "very unlikely"


def _age(moment: datetime) -> str:
    seconds = int((datetime.now(UTC) - moment).total_seconds())
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= length:
            return f"{seconds // length} {unit}"
    return f"{max(seconds, 0)} s"
