"""`pictrs-gate review …`: cases as tables and words. Never a picture, unless it is asked for by name."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from proxy.database import Case


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
        "size": case.size,
        "content_type": case.content_type,
        "alias": case.promises[0].alias if case.promises else None,
        "arguments": case.promises[0].arguments if case.promises else None,
        "promises": [
            {
                "alias": promise.alias,
                "arguments": promise.arguments,
                "removed_at": promise.removed_at and promise.removed_at.isoformat(),
            }
            for promise in case.promises
        ],
        "signals": case.signals,
        "ensemble": case.ensemble,
        "earlier": case.earlier,
        "decided_at": case.decided_at and case.decided_at.isoformat(),
        "decided_by": case.decided_by,
    }


def print_list(console: Console, cases: Sequence[Case], *, as_json: bool) -> None:
    """All `cases`, a line each."""
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
        table.add_row(
            *map(_cell, (case.id, case.state.value, age, kind)),
            signals_cell(case.signals) if case.signals else "not seen",
            _cell(case.reason),
        )
    console.print(table)


def print_case(console: Console, case: Case, *, as_json: bool) -> None:
    """Everything that is known about one case, in words."""
    if as_json:
        console.out(json.dumps(facts_of(case), indent=1))
        return
    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")

    def add(name: str, value: str) -> None:
        table.add_row(_cell(name), _cell(value))

    add("case", case.id)
    decided = f", by {case.decided_by} at {case.decided_at:%Y-%m-%d %H:%M:%S} UTC" if case.decided_at else ""
    add("state", f"{case.state.value}{decided}")
    add("since", f"{case.created_at:%Y-%m-%d %H:%M:%S} UTC ({_age(case.created_at)} ago)")
    add("why", case.reason)
    if case.earlier is not None:
        add("known from", _earlier_in_words(case.earlier))
    for name, value in sorted((case.signals or {}).items()):
        add(f"signal {name}", f"{value:.3f}  {_in_words(value)}")
    if case.ensemble:
        add("seen by", case.ensemble)
    add("file", f"{case.content_type or 'unknown type'}, {case.size or '?'} bytes")
    add("sha256", case.sha256 or "in the sealed file")
    if not case.promises:
        add("alias", "none was promised")
    for promise in case.promises:
        add("alias", f"{promise.alias}{', deleted since' if promise.removed_at else ''}")
        if promise.arguments:
            add("asked for", "&".join(f"{key}={value}" for key, value in promise.arguments))
    add("sealed file", case.file)
    console.print(table)


def _cell(value: str) -> Text:
    """As it is: rich would take [brackets] in a string for its own markup."""
    return Text(harmless(value))


def _in_words(value: float) -> str:
    """A signal is a suspicion; these words keep it one."""
    for bound, words in ((0.9, "very likely"), (0.6, "likely"), (0.3, "possible"), (0.1, "unlikely")):
        if value >= bound:
            return words
    return "very unlikely"


def _earlier_in_words(earlier: Mapping[str, Any]) -> str:
    source = f"case {earlier['case']}" if earlier["case"] else f"the list {earlier['list']}"
    by = f", by {earlier['by']}" if earlier["by"] else ""
    if earlier["kind"] == "sha256":
        return f"{source}{by}: the same bytes, {earlier['verdict']}"
    return f"{source}{by}: looks alike (PDQ distance {earlier['distance']} of 256), {earlier['verdict']}"


def _age(moment: datetime) -> str:
    seconds = int((datetime.now(UTC) - moment).total_seconds())
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= length:
            return f"{seconds // length} {unit}"
    return f"{max(seconds, 0)} s"
