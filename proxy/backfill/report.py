"""The report of a run: counts, hits, what nobody could look at; for people or programs. No pictures."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from itertools import islice
from typing import Any, TextIO

from rich.console import Console
from rich.table import Table
from rich.text import Text

from proxy.backfill.options import Options
from proxy.database import BackfillHit, BackfillRun
from proxy.database.models import BackfillUnreadable
from proxy.review.terminal import harmless, signals_cell

# What a table shows; the JSON has everything.
_HITS, _UNREADABLE, _ALIASES = 1000, 20, 10


def write_json(
    into: TextIO, run: BackfillRun, hits: Iterable[BackfillHit], unreadable: Iterable[BackfillUnreadable]
) -> None:
    """The report as one JSON object, written entry by entry: a run may have found any number."""
    into.write(json.dumps(_counts(run), indent=1).removesuffix("\n}"))
    _write_list(into, "hits", map(hit_as_json, hits))
    _write_list(into, "unreadable_files", map(_unreadable, unreadable))
    into.write("\n}\n")


def _counts(run: BackfillRun) -> dict[str, Any]:
    return {
        "run": run.id,
        "kind": run.kind,
        "state": run.state,
        "source": run.source,
        "options": run.options,
        "started_at": run.started_at.isoformat(),
        "finished_at": run.finished_at and run.finished_at.isoformat(),
        "looked_at": run.looked_at,
        "reused": run.reused,
        "skipped": run.skipped,
        "unreadable": run.unreadable,
        "hit_count": run.hits,
        "held": run.held,
    }


def _write_list(into: TextIO, name: str, entries: Iterable[Mapping[str, Any]]) -> None:
    into.write(f",\n {json.dumps(name)}: [")
    for number, entry in enumerate(entries):
        into.write(("," if number else "") + "\n  " + json.dumps(entry))
    into.write("\n ]")


def hit_as_json(hit: BackfillHit) -> dict[str, Any]:
    """What is known of a hit, for programs."""
    return {
        "aliases": hit.aliases,
        "sha256": hit.hex[:64],
        "place": hit.place,
        "stored_at": hit.stored_at and hit.stored_at.isoformat(),
        "verdict": hit.verdict,
        "reason": hit.reason,
        "signals": hit.signals,
        "case": hit.case_id,
        "not_held": hit.not_held,
    }


def _unreadable(file: BackfillUnreadable) -> dict[str, Any]:
    return {"aliases": file.aliases, "sha256": file.hex[:64], "place": file.place, "reason": file.reason}


def print_report(
    console: Console,
    run: BackfillRun,
    hits: Iterable[BackfillHit],
    unreadable: Iterable[BackfillUnreadable],
) -> None:
    """The report as tables of a length that can be read."""
    console.print(
        f"Run {run.id}: {run.looked_at} files looked at, {run.hits} hits, {run.unreadable} unreadable"
        + (f", {run.reused} known from an earlier look" if run.reused else "")
        + f". {touched(run)}"
    )
    if run.hits:
        holds = _holds(run)
        table = _table("aliases", "verdict", "signals", "why", *(["case"] if holds else []))
        for hit in islice(hits, _HITS):
            table.add_row(
                _aliases(hit.aliases or [hit.place]),
                hit.verdict,
                signals_cell(hit.signals),
                Text(harmless(hit.reason)),
                *([Text(harmless(case_of(hit)))] if holds else []),
            )
        console.print(table)
        _say_how_many_more(console, run.hits - _HITS)
    if run.unreadable:
        console.print("\nNobody could look at these:")
        table = _table("aliases", "why")
        for file in islice(unreadable, _UNREADABLE):
            table.add_row(_aliases(file.aliases or [file.place]), Text(harmless(file.reason)))
        console.print(table)
        _say_how_many_more(console, run.unreadable - _UNREADABLE)


def touched(run: BackfillRun) -> str:
    """What a run has done to pict-rs, as a sentence."""
    if not _holds(run):
        return "Nothing was touched."
    return f"{run.held} held as cases; nothing else was touched."


def _holds(run: BackfillRun) -> bool:
    return bool(run.held) or (run.options or {}).get("action") == "hold"


def case_of(hit: BackfillHit) -> str:
    """The case of a hit, or why there is none."""
    return f"not held: {hit.not_held}" if hit.not_held else hit.case_id or ""


def hit_in_words(hit: BackfillHit) -> str:
    """One line."""
    signals = ", ".join(f"{harmless(name)}={value:.2f}" for name, value in sorted(hit.signals.items()))
    names = " ".join(harmless(alias) for alias in (hit.aliases or [hit.place])[:_ALIASES])
    case = f"; {harmless(case_of(hit))}" if case_of(hit) else ""
    return f"{hit.verdict}: {names} ({signals or harmless(hit.reason)}){case}"


def print_runs(console: Console, runs: Sequence[BackfillRun], *, as_json: bool) -> None:
    """All `runs`, a line each."""
    if as_json:
        console.out(json.dumps([_counts(run) for run in runs], indent=1))
        return
    if not runs:
        console.print("No runs.")
        return
    table = _table("run", "what", "options", "state", "begun", "last", "seen", "known", "lost", "hits")
    for run in runs:
        moments = [f"{at:%m-%d %H:%M}" if at else "" for at in (run.started_at, run.changed_at)]
        numbers = map(str, (run.looked_at, run.reused, run.unreadable, run.hits))
        words = [Text(harmless(f"{run.kind} {run.source}")), Text(harmless(_asked_for(run)))]
        table.add_row(str(run.id), *words, run.state, *moments, *numbers)
    console.print(table)


def _asked_for(run: BackfillRun) -> str:
    # What a watch does with hits is said anew whenever it is started, and not kept.
    return "" if run.kind == "watch" else Options.from_json(run.options or {}).in_words()


def _table(*columns: str) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        table.add_column(column, overflow="fold", no_wrap=column in ("verdict", "signals"))
    return table


def _aliases(aliases: list[str]) -> Text:
    """One a line; a popular file may have thousands."""
    lines = [harmless(alias) for alias in aliases[:_ALIASES]]
    if len(aliases) > _ALIASES:
        lines.append(f"and {len(aliases) - _ALIASES} more")
    return Text("\n".join(lines))


def _say_how_many_more(console: Console, count: int) -> None:
    if count > 0:
        console.print(f"… and {count} more: --json and --report show all.")
