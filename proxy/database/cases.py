"""Cases: how they begin, and what is asked of them."""

from __future__ import annotations

from collections.abc import Collection
from datetime import datetime
from typing import Any

from sqlalchemy import or_, select
from sqlalchemy.exc import IntegrityError

from proxy.cases.life import CaseState
from proxy.database import ledger
from proxy.database.engine import Database, violated
from proxy.database.models import Case, KnownHash
from proxy.errors import AliasTaken, CaseError

_SHOWN = frozenset({CaseState.RELEASING, CaseState.RELEASED, CaseState.EXPIRED})


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
        if "alias_key" in violated(error):
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
    """The newest case of a file with exactly these bytes, unless it was released or its bytes are gone."""
    query = (
        select(Case)
        .where(Case.sha256 == sha256, Case.state.not_in((CaseState.RELEASED, CaseState.EXPIRED)))
        .order_by(Case.created_at.desc())
        .limit(1)
    )
    with database.reading() as session:
        return session.scalars(query).first()


def same_file(database: Database, case: Case) -> list[Case]:
    """The other cases of the same bytes that pict-rs shows, or is being sent; the oldest first."""
    query = select(Case).where(Case.sha256 == case.sha256, Case.id != case.id, Case.state.in_(_SHOWN))
    with database.reading() as session:
        found = session.scalars(query.order_by(Case.created_at, Case.id))
        return [
            one
            for one in found
            if one.state is CaseState.RELEASING
            or any(promise.is_in_pictrs and promise.removed_at is None for promise in one.promises)
        ]


def under_release(database: Database, *, since: datetime) -> list[Case]:
    """Cases whose release was begun after `since` and has not ended."""
    query = select(Case).where(Case.state == CaseState.RELEASING, Case.decided_at > since)
    with database.reading() as session:
        return list(session.scalars(query))


def released_files(database: Database, sha256: Collection[str]) -> list[Case]:
    """The cases of released files with exactly these bytes, as uploaded or as stored; expired ones too.

    Args:
        sha256: of files that pass because a human has released them; an expired case of one was released.
    """
    if not sha256:
        return []
    states = (CaseState.RELEASED, CaseState.EXPIRED)
    allowed = select(KnownHash.case_id).where(KnownHash.sha256.in_(sha256), KnownHash.verdict == "allow")
    is_of_it = or_(Case.sha256.in_(sha256), Case.id.in_(allowed))
    query = select(Case).where(is_of_it, Case.state.in_(states))
    with database.reading() as session:
        return list(session.scalars(query))
