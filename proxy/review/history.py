"""What has happened to a case, and what may be done to it now, for people and for programs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from proxy.cases.life import Act, Actor
from proxy.database import Case, LedgerEntry, Note
from proxy.database.decisions import allowed
from proxy.errors import CaseError

_COMMANDS = {Act.BEGIN_RELEASE: "release", Act.CONFIRM: "confirm", Act.REPORT: "report"}
# What a case's own lines show already.
_SHOWN = frozenset({"sha256", "signals", "ensemble", "ensemble_version", "verdict", "reason", "aliases"})


def possible(case: Case, *, confirmed_elsewhere: bool) -> dict[str, str | None]:
    """Which decisions a reviewer may make now: for each command None, or why not."""
    found: dict[str, str | None] = {}
    for act, command in _COMMANDS.items():
        try:
            allowed(case, act, Actor.REVIEWER, confirmed_elsewhere=confirmed_elsewhere)
            found[command] = None
        except CaseError as error:
            found[command] = str(error).removeprefix(f"{case.id}: ")
    return found


def earlier_in_words(earlier: Mapping[str, Any]) -> str:
    """The earlier decision that a case's file had met."""
    what = {"block": "refused", "allow": "released"}.get(str(earlier.get("verdict")), "decided about")
    where = f"in case {earlier['case']}" if earlier.get("case") else ""
    if earlier.get("list"):
        where = f"on the list {earlier['list']}"
    by = f" by {earlier['by']}" if earlier.get("by") else ""
    if earlier.get("kind") == "pdq":
        alike = f"looks like what was {what} (perceptual hash, {earlier.get('distance')} of 256 bits apart)"
    else:
        alike = f"the same bytes were {what}"
    return " ".join(word for word in (alike + by, where) if word)


def entry_in_words(entry: LedgerEntry) -> str:
    """One entry of the ledger, without what the case's own lines show."""
    facts = [f"{name}: {_value(value)}" for name, value in entry.facts.items() if name not in _SHOWN]
    if entry.act in ("legal hold", "legal hold lifted") and "reason" in entry.facts:
        facts.insert(0, f"reason: {entry.facts['reason']}")
    return f"{entry.act} by {entry.actor}" + (f" ({'; '.join(facts)})" if facts else "")


def history_of(entries: Iterable[LedgerEntry]) -> list[dict[str, Any]]:
    """The entries of the ledger as JSON values."""
    return [
        {
            "number": entry.number,
            "time": entry.time,
            "act": entry.act,
            "actor": entry.actor,
            "facts": entry.facts,
        }
        for entry in entries
    ]


def notes_of(notes: Iterable[Note]) -> list[dict[str, Any]]:
    """Notes as JSON values."""
    return [{"at": note.at.isoformat(), "by": note.by, "text": note.text} for note in notes]


def _value(value: Any) -> str:
    if value is True:
        return "yes"
    if isinstance(value, list):
        return ", ".join(map(str, value))
    return str(value)
