"""Lockdowns: begun and ended by humans, or by the time that they set. Each change is in the ledger.

Only the newest one can be in force, so what every upload asks is one row by its primary key.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from proxy.database import ledger
from proxy.database.engine import Database
from proxy.database.models import Lockdown

_NEWEST = select(Lockdown).order_by(Lockdown.number.desc()).limit(1)


def in_force(database: Database) -> Lockdown | None:
    """The lockdown that every upload is under now, or None. Every upload asks."""
    with database.reading() as session:
        newest = session.scalars(_NEWEST).first()
    return newest if newest is not None and _is_open(newest) and not _is_over(newest) else None


def begin(database: Database, *, by: str, reason: str | None, until: datetime | None) -> Lockdown:
    """Begins one, durable on return; one that is in force already ends with it.

    Args:
        by: a reviewer's name.
        until: when it ends by itself; None where somebody has to end it.
    """
    with database.writing() as session:
        _end(session, by=by)
        begun = Lockdown(began_at=datetime.now(UTC), by=by, reason=reason, until=until)
        session.add(begun)
        session.flush()
        ledger.append(session, "lockdown on", actor=by, facts=_facts(begun))
    return begun


def end(database: Database, *, by: str) -> Lockdown | None:
    """Ends the one that is in force; None where there is none."""
    with database.writing() as session:
        ended = _end(session, by=by)
    return ended if ended is not None and ended.ended_by is not None else None


def end_due(database: Database) -> Lockdown | None:
    """Writes down, once, that the time of the newest one is over; None where there is nothing to write."""
    with database.reading() as session:
        newest = session.scalars(_NEWEST).first()
    if newest is None or not _is_open(newest) or not _is_over(newest):
        return None
    with database.writing() as session:
        return _end(session, by=None)


def _end(session: Session, *, by: str | None) -> Lockdown | None:
    """Ends the newest one where it is open: at its time where that has passed, else now and by somebody."""
    newest = session.scalars(_NEWEST.with_for_update()).first()
    if newest is None or not _is_open(newest):
        return None
    if _is_over(newest):
        newest.ended_at = newest.until
        actor = "gate"
    elif by is not None:
        newest.ended_at, newest.ended_by = datetime.now(UTC), by
        actor = by
    else:
        return None
    facts = {**_facts(newest), "by itself": newest.ended_by is None}
    ledger.append(session, "lockdown off", actor=actor, facts=facts)
    return newest


def _is_open(lockdown: Lockdown) -> bool:
    return lockdown.ended_at is None


def _is_over(lockdown: Lockdown) -> bool:
    return lockdown.until is not None and lockdown.until <= datetime.now(UTC)


def _facts(lockdown: Lockdown) -> dict[str, Any]:
    until = lockdown.until and lockdown.until.astimezone(UTC).isoformat(timespec="seconds")
    return {"number": lockdown.number, "reason": lockdown.reason, "until": until}
