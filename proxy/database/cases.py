"""Cases and known hashes: what the gate asks of them and what is changed together."""

from __future__ import annotations

from collections.abc import Collection
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import select

from proxy.database import ledger
from proxy.database.engine import Database
from proxy.database.models import Case, CaseState, KnownHash
from proxy.errors import CaseError


def add(database: Database, case: Case, *, facts: dict[str, Any]) -> None:
    """Makes `case` durable, with a ledger entry that carries `facts`."""
    with database.writing() as session:
        session.add(case)
        ledger.append(session, case.state.value, actor="gate", case_id=case.id, facts=facts)


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


def promised(database: Database, key: bytes) -> Case | None:
    """The case to which an alias was promised, while it still shows the placeholder.

    Args:
        key: `alias_key` of the alias.
    """
    query = select(Case).where(Case.alias_key == key, Case.state != CaseState.RELEASED)
    with database.reading() as session:
        return session.scalars(query).first()


def decide(
    database: Database,
    case_id: str,
    *,
    to: CaseState,
    frm: Collection[CaseState],
    reviewer: str,
    facts: dict[str, Any],
    sha256: str | None = None,
    stored_token: str | None = None,
) -> Case:
    """A human's decision: the state, the memory of the hash and the ledger change together.

    Args:
        to, frm: the new state, and those from which it can be reached.
        reviewer: who decided.
        facts: for the ledger.
        sha256: of the original, where the case does not have it (it was adopted after a crash).
        stored_token: pict-rs's own delete token of what a release has stored.

    Raises:
        CaseError: the case is in none of the states `frm` (somebody was faster, say).
    """
    now = datetime.now(UTC)
    with database.writing() as session:
        case = session.get_one(Case, case_id)
        if case.state not in frm:
            raise CaseError(f"{case_id}: is {case.state}, so it cannot become {to}")
        case.state, case.decided_at, case.decided_by = to, now, reviewer
        if stored_token is not None:
            case.stored_token = stored_token
        case.sha256 = case.sha256 or sha256
        if case.sha256 is not None:
            verdict = "block" if to is CaseState.CONFIRMED else "allow"
            session.merge(
                KnownHash(
                    sha256=case.sha256, verdict=verdict, case_id=case.id, added_at=now, added_by=reviewer
                )
            )
        ledger.append(session, to.value, actor=reviewer, case_id=case_id, facts=facts)
    return case


def viewed(database: Database, case_id: str, *, reviewer: str) -> None:
    """Notes in the ledger that a reviewer looked at a case."""
    with database.writing() as session:
        ledger.append(session, "viewed", actor=reviewer, case_id=case_id)


def known(database: Database, sha256: str) -> KnownHash | None:
    """What was decided about a file with exactly these bytes."""
    with database.reading() as session:
        return session.get(KnownHash, sha256)
