"""The append-only log of everything decided and by whom: each entry carries the hash of the one before.

Entries are written inside the transaction of what they tell, so neither can exist without the other. What
an entry costs does not grow with the ledger.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import Text, cast, select
from sqlalchemy.orm import Session

from proxy.database.engine import Database
from proxy.database.models import LedgerEntry
from proxy.ledger.chain import FIRST, Chain, Entry, entry_hash

SETTINGS, KEY, CHECKPOINT = "settings", "checkpoint key", "checkpoint"  # acts of the gate about itself

_LONGEST_ACT = 32  # what its column takes; SQLite would take more, and PostgreSQL fail
_ROWS = 1000  # of a long ledger in memory at once
_RECENT = 200  # entries of one act among which the last of a gate is looked for

_ENTRY = (
    LedgerEntry.number,
    LedgerEntry.time,
    LedgerEntry.act,
    LedgerEntry.actor,
    LedgerEntry.case_id,
    # As it is stored: what is no JSON any more was tampered with, and is to be found, not tripped over.
    cast(LedgerEntry.facts, Text),
    LedgerEntry.previous,
    LedgerEntry.hash,
)


def append(
    session: Session, act: str, *, actor: str, case_id: str | None = None, facts: dict[str, Any] | None = None
) -> int:
    """Adds an entry to a writing session, and returns its number.

    Args:
        session: of `Database.writing`, whose lock keeps two entries from following the same one.
        act: what was done, one word or two; at most 32 characters.
        actor: who did it: `gate`, or a reviewer's name.
        case_id: the case that it is about.
        facts: JSON values; never a picture's bytes, a token or a key.

    Raises:
        ValueError: `act` is too long, or facts hold what is no JSON.
    """
    if len(act) > _LONGEST_ACT:
        raise ValueError(f"{act!r}: an act of the ledger has at most {_LONGEST_ACT} characters")
    number, hash_ = head(session)
    time = datetime.now(UTC).isoformat(timespec="microseconds")
    entry = Entry(number + 1, time, act, actor, case_id, facts or {}, hash_)
    entry = replace(entry, hash=entry_hash(entry))
    session.add(
        LedgerEntry(
            number=entry.number,
            time=entry.time,
            act=entry.act,
            actor=entry.actor,
            case_id=entry.case,
            facts=facts or {},
            previous=entry.previous,
            hash=entry.hash,
        )
    )
    session.flush()
    return entry.number


def head(session: Session) -> tuple[int, str]:
    """Number and hash of the last entry; 0 and `FIRST` where there is none."""
    last = select(LedgerEntry.number, LedgerEntry.hash).order_by(LedgerEntry.number.desc()).limit(1)
    row = session.execute(last).first()
    return (row.number, row.hash) if row else (0, FIRST)


def record(
    database: Database, act: str, *, actor: str, facts: dict[str, Any], case_id: str | None = None
) -> None:
    """An entry of its own, durable on return."""
    with database.writing() as session:
        append(session, act, actor=actor, case_id=case_id, facts=facts)


def started(database: Database, gate: str, settings: dict[str, Any], *, key: str) -> None:
    """Notes what has changed since the same gate was started last: its settings, the key that it signs with.

    Nothing is written where nothing has changed.

    Args:
        gate: which one it is, of several on one database.
        settings: name to JSON value, all of them.
        key: the public half of its key, hexadecimal.
    """
    with database.reading() as session:  # usually that is all, and nobody has to wait
        if not _news(session, gate, settings, key):
            return
    with database.writing() as session:
        for act, facts in _news(session, gate, settings, key):
            append(session, act, actor="gate", facts=facts)


def entries(database: Database, *, case_id: str | None = None) -> list[LedgerEntry]:
    """All entries in order, or those of one case."""
    query = select(LedgerEntry).order_by(LedgerEntry.number)
    if case_id is not None:
        query = query.where(LedgerEntry.case_id == case_id)
    with database.reading() as session:
        return list(session.scalars(query))


def walk(database: Database) -> Iterator[Entry]:
    """All entries in order, read bit by bit, whatever became of them."""
    query = select(*_ENTRY).order_by(LedgerEntry.number).execution_options(yield_per=_ROWS)
    with database.reading() as session:
        for row in session.execute(query):
            yield _entry(tuple(row))


def newest(
    database: Database, *, case_id: str | None = None, since: datetime | None = None, limit: int | None = None
) -> list[Entry]:
    """The newest entries, in order: of one case, from a moment on, at most `limit` of them."""
    query = select(*_ENTRY).order_by(LedgerEntry.number.desc()).limit(limit)
    if case_id is not None:
        query = query.where(LedgerEntry.case_id == case_id)
    if since is not None:
        query = query.where(LedgerEntry.time >= _text(since))
    with database.reading() as session:
        return [_entry(tuple(row)) for row in session.execute(query)][::-1]


def since(database: Database, moment: datetime) -> Iterator[Entry]:
    """The entries from a moment on, newest first, read bit by bit."""
    query = select(*_ENTRY).order_by(LedgerEntry.number.desc()).execution_options(yield_per=_ROWS)
    with database.reading() as session:
        for row in session.execute(query):
            if str(row.time) < _text(moment):  # times only grow, so the rest is older
                return
            yield _entry(tuple(row))


def first_broken(database: Database) -> int | None:
    """The number of the first place at which the chain does not hold; None if all holds."""
    chain = Chain()
    return next((found.number for entry in walk(database) for found in chain.follow(entry)), None)


def _news(
    session: Session, gate: str, settings: dict[str, Any], key: str
) -> list[tuple[str, dict[str, Any]]]:
    """What `started` has to note: acts with their facts."""
    news: list[tuple[str, dict[str, Any]]] = []
    before = _last(session, SETTINGS, "gate", gate)
    known: dict[str, Any] = (before or {}).get("settings") or {}
    names = sorted(known.keys() | settings.keys())
    changed = {
        name: {"from": known.get(name), "to": settings.get(name)}
        for name in names
        if known.get(name) != settings.get(name) or (name in known) != (name in settings)
    }
    if changed:
        # Of a gate that is new here everything is news, and stands there once.
        told = {"changed": changed} if before else {}
        news.append((SETTINGS, {"gate": gate, **told, "settings": settings}))
    if _last(session, KEY, "key", key) is None:
        news.append((KEY, {"gate": gate, "key": key}))
    return news


def _last(session: Session, act: str, name: str, value: str) -> dict[str, Any] | None:
    """The facts of the newest entry of that act of which one fact has that value."""
    query = select(*_ENTRY).where(LedgerEntry.act == act).order_by(LedgerEntry.number.desc()).limit(_RECENT)
    found = (_entry(tuple(row)).facts for row in session.execute(query))
    return next((facts for facts in found if isinstance(facts, dict) and facts.get(name) == value), None)


def _entry(row: Sequence[Any]) -> Entry:
    number, time, act, actor, case, facts, previous, hash_ = row
    try:
        read = json.loads(facts)
    except (ValueError, TypeError, RecursionError):
        read = None
    said = read if isinstance(read, dict) else None
    case = None if case is None else str(case)
    return Entry(number, str(time), str(act), str(actor), case, said, str(previous), str(hash_))


def _text(moment: datetime) -> str:
    return moment.astimezone(UTC).isoformat(timespec="microseconds")
