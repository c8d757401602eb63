"""Looks at a database without changing it: whether the end of its ledger holds, and its newest case."""

from __future__ import annotations

from sqlalchemy import select

from proxy.cases.life import CaseState
from proxy.database import ledger
from proxy.database.engine import Database
from proxy.database.models import Case
from proxy.ledger.chain import Entry, entry_hash


def first_broken_of_last(database: Database, count: int) -> int | None:
    """Of the last `count` entries of the ledger, the number of the first that does not hold."""
    before: Entry | None = None
    for entry in ledger.newest(database, limit=count):
        follows = before is None or (entry.number, entry.previous) == (before.number + 1, before.hash)
        if not follows or entry.hash != entry_hash(entry):
            return entry.number
        before = entry
    return None


def newest_sealed(database: Database) -> Case | None:
    """The newest case whose bytes are still there."""
    query = (
        select(Case).where(Case.state != CaseState.EXPIRED).order_by(Case.created_at.desc(), Case.id.desc())
    )
    with database.reading() as session:
        return session.scalars(query.limit(1)).first()
