"""Cases: how they begin, and what is asked of them."""

from __future__ import annotations

from collections.abc import Collection
from datetime import datetime
from typing import Any

from sqlalchemy import bindparam, select
from sqlalchemy.exc import IntegrityError

from proxy.cases.life import CaseState
from proxy.database import ledger
from proxy.database.engine import Database, in_words
from proxy.database.models import Case, KnownHash
from proxy.errors import AliasTaken, CaseError

_KNOWN = select(KnownHash.verdict, KnownHash.added_by).where(KnownHash.sha256 == bindparam("sha256"))


def add(database: Database, case: Case, *, facts: dict[str, Any]) -> None:
    """Makes `case` and its promises durable, with a ledger entry that carries `facts`.

    Raises:
        AliasTaken: one of the aliases is promised already.
    """
    try:
        with database.writing() as session:
            session.add(case)
            ledger.append(session, case.state.value, actor="gate", case_id=case.id, facts=facts)
    except IntegrityError as error:
        if "alias_key" in in_words(error):
            raise AliasTaken("an alias is promised already") from None
        raise


def get(database: Database, case_id: str) -> Case:
    """The case with that id.

    Raises:
        CaseError: there is none.
    """
    with database.reading() as session:
        case = session.get(Case, case_id)
    if case is None:
        raise CaseError(f"{case_id}: no such case; `pictrs-gate review list` shows them")
    return case


def listed(database: Database, *, states: Collection[CaseState] = (), limit: int = 100) -> list[Case]:
    """The newest cases, of any state or of those given."""
    query = select(Case).order_by(Case.created_at.desc(), Case.id).limit(limit)
    if states:
        query = query.where(Case.state.in_(states))
    with database.reading() as session:
        return list(session.scalars(query))


def files(database: Database) -> set[str]:
    """The file of every case."""
    with database.reading() as session:
        return set(session.scalars(select(Case.file)))


def of_file(database: Database, sha256: str) -> Case | None:
    """The newest case of a file with exactly these bytes, unless it was released."""
    query = (
        select(Case)
        .where(Case.sha256 == sha256, Case.state != CaseState.RELEASED)
        .order_by(Case.created_at.desc())
        .limit(1)
    )
    with database.reading() as session:
        return session.scalars(query).first()


def under_release(database: Database, *, since: datetime) -> list[Case]:
    """Cases whose release was begun after `since` and has not ended."""
    query = select(Case).where(Case.state == CaseState.RELEASING, Case.decided_at > since)
    with database.reading() as session:
        return list(session.scalars(query))


def released_files(database: Database, sha256: Collection[str]) -> list[Case]:
    """The released cases of files with exactly these bytes."""
    if not sha256:
        return []
    query = select(Case).where(Case.sha256.in_(sha256), Case.state == CaseState.RELEASED)
    with database.reading() as session:
        return list(session.scalars(query))


def viewed(database: Database, case_id: str, *, reviewer: str) -> None:
    """Notes in the ledger that a reviewer looked at a case."""
    with database.writing() as session:
        ledger.append(session, "viewed", actor=reviewer, case_id=case_id)


def known(database: Database, sha256: str) -> tuple[str, str] | None:
    """The verdict on a file with exactly these bytes, and who decided. Every upload asks."""
    with database.reading() as session:
        row = session.execute(_KNOWN, {"sha256": sha256}).first()
        return None if row is None else (row.verdict, row.added_by)


def known_among(database: Database, sha256: Collection[str]) -> set[str]:
    """Those of many files that have a verdict."""
    with database.reading() as session:
        return set(session.scalars(select(KnownHash.sha256).where(KnownHash.sha256.in_(sha256))))
