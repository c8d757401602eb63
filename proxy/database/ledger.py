"""The append-only log of everything decided and by whom: each entry carries the hash of the one before.

Entries are written inside the transaction of what they tell, so neither can exist without the other.
"""

from __future__ import annotations

import hashlib
import json
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from proxy.database.engine import Database
from proxy.database.models import LedgerEntry

FIRST = "0" * 64  # what the first entry names as the hash before it
_LONGEST_ACT = 32  # what its column takes; SQLite would take more, and PostgreSQL fail


def append(
    session: Session, act: str, *, actor: str, case_id: str | None = None, facts: dict[str, Any] | None = None
) -> None:
    """Adds an entry to a writing session.

    Args:
        session: of `Database.writing`, whose lock keeps two entries from following the same one.
        act: what was done, one word or two.
        actor: who did it: `gate`, or a reviewer's name.
        case_id: the case that it is about.
        facts: JSON values; never a picture's bytes, a token or a key.

    Raises:
        ValueError: `act` is too long, or facts hold what is no JSON.
    """
    if len(act) > _LONGEST_ACT:
        raise ValueError(f"{act!r}: an act of the ledger has at most {_LONGEST_ACT} characters")
    last = session.scalars(select(LedgerEntry).order_by(LedgerEntry.number.desc()).limit(1)).first()
    entry = LedgerEntry(
        number=last.number + 1 if last else 1,
        time=datetime.now(UTC).isoformat(timespec="microseconds"),
        act=act,
        actor=actor,
        case_id=case_id,
        facts=facts or {},
        previous=last.hash if last else FIRST,
    )
    entry.hash = entry_hash(entry)
    session.add(entry)
    session.flush()


def entry_hash(entry: LedgerEntry) -> str:
    """SHA-256 (hexadecimal) over the entry as canonical JSON: keys sorted, no spaces, UTF-8, no `hash`."""
    content = {
        "number": entry.number,
        "time": entry.time,
        "act": entry.act,
        "actor": entry.actor,
        "case": entry.case_id,
        "facts": entry.facts,
        "previous": entry.previous,
    }
    canonical = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(canonical.encode()).hexdigest()


def record(database: Database, act: str, *, actor: str, facts: dict[str, Any]) -> None:
    """An entry of its own, durable on return."""
    with database.writing() as session:
        append(session, act, actor=actor, facts=facts)


def entries(database: Database, *, case_id: str | None = None) -> list[LedgerEntry]:
    """All entries in order, or those of one case."""
    query = select(LedgerEntry).order_by(LedgerEntry.number)
    if case_id is not None:
        query = query.where(LedgerEntry.case_id == case_id)
    with database.reading() as session:
        return list(session.scalars(query))


def first_broken(database: Database) -> int | None:
    """The number of the first entry that was altered, or before which one is missing; None if all hold."""
    previous, expected = FIRST, 1
    for entry in entries(database):
        if entry.number != expected or entry.previous != previous or entry.hash != entry_hash(entry):
            return expected
        previous, expected = entry.hash, expected + 1
    return None
