"""Verdicts by day and how the signals lie: from plain allows and the ledger, in bounded memory."""

from __future__ import annotations

from array import array
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from proxy.database.allows import Allowed
from proxy.ledger.chain import Entry

VERDICTS = ("allow", "hold", "block", "defer", "allowed unseen")
QUANTILES = (0.5, 0.9, 0.99, 0.999, 1.0)

_BY_ACT = {
    "blocked": "block",
    "allowed unseen": "allowed unseen",
    "held again": "hold",
    "refused unseen": "defer",
    "allowed as released": "allow",
}
_STEPS = 10_000  # a signal is kept to four digits


class Spread:
    """How the values of one signal lie, to four digits, however many there are."""

    def __init__(self) -> None:
        self._counts = array("Q", bytes(8 * (_STEPS + 1)))
        self.count = 0

    def add(self, value: float) -> None:
        """One more value, 0..1."""
        self._counts[round(value * _STEPS)] += 1
        self.count += 1

    def quantile(self, share: float) -> float:
        """The smallest value that at least that share (0..1) of all do not exceed; 0 where there are none."""
        wanted, below = share * self.count, 0
        for step, count in enumerate(self._counts):
            below += count
            if count and below >= wanted:
                return step / _STEPS
        return 0.0


@dataclass(slots=True)
class Statistics:
    """
    Attributes:
        days: of each day (UTC, ISO 8601) how many of each verdict.
        signals: of each signal how its values lie.
    """

    days: dict[str, Counter[str]] = field(default_factory=lambda: defaultdict(Counter))
    signals: dict[str, Spread] = field(default_factory=lambda: defaultdict(Spread))

    def json(self) -> dict[str, Any]:
        """As JSON values."""
        return {
            "days": {day: dict(counts) for day, counts in sorted(self.days.items())},
            "signals": {
                name: {
                    "count": spread.count,
                    "quantiles": {str(share): spread.quantile(share) for share in QUANTILES},
                }
                for name, spread in sorted(self.signals.items())
            },
        }


def count(rows: Iterable[Allowed], entries: Iterable[Entry]) -> Statistics:
    """Counts rows and entries, each read once."""
    counted = Statistics()
    for row in rows:
        counted.days[row.time.date().isoformat()]["allow"] += 1
        _add(counted, row.signals)
    for entry in entries:
        facts = entry.facts or {}
        # A case begins with its verdict; what becomes of it later has none.
        verdict = _BY_ACT.get(entry.act) or facts.get("verdict")
        if entry.actor == "gate" and verdict in VERDICTS:
            counted.days[entry.time[:10]][str(verdict)] += 1
            _add(counted, facts.get("signals"))
    return counted


def _add(counted: Statistics, signals: object) -> None:
    if isinstance(signals, Mapping):
        for name, value in signals.items():
            if isinstance(value, int | float) and 0 <= value <= 1:
                counted.signals[name].add(value)
