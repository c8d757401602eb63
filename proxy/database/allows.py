"""Plain allows: written in batches, kept for some days, read for statistics and for looking again."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy import delete, insert, select

from proxy.database.engine import Database
from proxy.database.models import Allow, Ensemble

_ROWS = 1000  # of a long list in memory at once, or deleted in one transaction
# Gates that share a database write their batches one after the other, so times stand nearly in order.
_UNORDERED = timedelta(minutes=10)


@dataclass(frozen=True, slots=True)
class Allowed:
    """A file that was plainly allowed.

    Attributes:
        sha256: 32 bytes.
        signals, ensemble: what was seen and by what; None where a human's decision let it pass unseen.
    """

    time: datetime
    sha256: bytes
    signals: dict[str, Any] | None
    ensemble: str | None


def add(database: Database, rows: Sequence[Allowed]) -> None:
    """Adds rows in one transaction."""
    with database.writing() as session:
        names = {row.ensemble for row in rows if row.ensemble}
        query = select(Ensemble.name, Ensemble.number).where(Ensemble.name.in_(names))
        known = {row.name: row.number for row in session.execute(query)}
        for name in sorted(names - known.keys()):
            new = Ensemble(name=name)
            session.add(new)
            session.flush()
            known[name] = new.number
        values = [
            {
                "time": row.time,
                "sha256": row.sha256,
                "signals": row.signals,
                "ensemble": known[row.ensemble] if row.ensemble else None,
            }
            for row in rows
        ]
        if values:
            session.execute(insert(Allow), values)


def prune(database: Database, *, before: datetime) -> bool:
    """Deletes some of the rows that are older than a moment; whether there may be more of them."""
    oldest = select(Allow.number, Allow.time).order_by(Allow.number).limit(_ROWS)
    with database.reading() as session:
        numbers = [row.number for row in session.execute(oldest) if row.time < before]
    if numbers:
        with database.writing() as session:
            session.execute(delete(Allow).where(Allow.number.in_(numbers)))
    return len(numbers) == _ROWS


def since(database: Database, moment: datetime) -> Iterator[Allowed]:
    """The rows from a moment on, newest first, read bit by bit."""
    with database.reading() as session:
        names = {row.number: row.name for row in session.execute(select(Ensemble.number, Ensemble.name))}
        columns = select(Allow.time, Allow.sha256, Allow.signals, Allow.ensemble)
        query = columns.order_by(Allow.number.desc()).execution_options(yield_per=_ROWS)
        for row in session.execute(query):
            if row.time < moment - _UNORDERED:
                return
            if row.time >= moment:
                ensemble = None if row.ensemble is None else names.get(row.ensemble)
                yield Allowed(row.time.astimezone(UTC), row.sha256, row.signals, ensemble)
