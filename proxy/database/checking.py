"""Looks at a database without changing it: which version it has, whether the end of its ledger holds."""

from __future__ import annotations

from pathlib import Path

from sqlalchemy import Column, MetaData, String, Table, create_engine, inspect, make_url, select

from proxy.cases.life import CaseState
from proxy.database import ledger
from proxy.database.engine import Database
from proxy.database.models import Case
from proxy.ledger.chain import Entry, entry_hash


def found_version(url: str) -> str | None:
    """The newest migration that a database has had; None for one that is not there, or has no tables yet.

    Raises:
        SQLAlchemyError: it cannot be asked.
    """
    parsed = make_url(url)
    if parsed.get_backend_name() == "sqlite" and not Path(str(parsed.database)).exists():
        return None  # asking would make it
    engine = create_engine(url, hide_parameters=True)
    try:
        with engine.connect() as connection:
            if not inspect(connection).has_table("alembic_version"):
                return None
            version = Table("alembic_version", MetaData(), Column("version_num", String))
            found: str | None = connection.scalar(select(version.c.version_num))
            return found
    finally:
        engine.dispose()


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
