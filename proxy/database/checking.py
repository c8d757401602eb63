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


def newest_for_gate(database: Database) -> Case | None:
    """The newest case that the gate has still to open; not one found after a crash."""
    query = (
        select(Case)
        .where(Case.state != CaseState.EXPIRED, Case.gate_reads, Case.sealed_to.is_not(None))
        .order_by(Case.created_at.desc(), Case.id.desc())
    )
    with database.reading() as session:
        return session.scalars(query.limit(1)).first()


def sealed(database: Database) -> list[tuple[str, str, int | None]]:
    """Id, file and size of each case whose bytes should be there; None where nobody has counted them."""
    query = select(Case.id, Case.file, Case.sealed_size).where(Case.state != CaseState.EXPIRED)
    with database.reading() as session:
        return [(row.id, row.file, row.sealed_size) for row in session.execute(query)]
