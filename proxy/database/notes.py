"""What reviewers add to a case besides a decision: notes, a report's reference, a legal hold, what they saw.

Each is written together with its entry in the ledger, or not at all.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from proxy.cases.life import Act, Actor, CaseState
from proxy.database import ledger
from proxy.database.decisions import allowed, move
from proxy.database.engine import Database
from proxy.database.models import Case, Note
from proxy.errors import CaseError


def reported(database: Database, case_id: str, *, by: str, reference: str) -> Case:
    """A human has told an authority: the case is `reported`, and its period begins anew.

    Args:
        reference: what the authority calls it.

    Raises:
        CaseError: there is no such case, or it is not confirmed.
    """
    with database.writing() as session:
        case = _get(session, case_id)
        to = allowed(case, Act.REPORT, Actor.REVIEWER)
        confirmed_at, confirmed_by = case.decided_at, case.decided_by
        move(session, case, to, by, {"sha256": case.sha256, "reference": reference})
        # Who confirmed it, and when, stays to be seen beside who reported it.
        case.reported_at, case.reported_by, case.reported_as = case.decided_at, by, reference
        case.decided_at, case.decided_by = confirmed_at, confirmed_by
    return case


def held_legally(
    database: Database, case_id: str, is_there: Callable[[str], bool], *, by: str, reason: str
) -> Case:
    """Puts a legal hold on a case: it does not expire, whatever its period says.

    Args:
        is_there: whether the sealed file of that name is there; what has expired may be back from a copy.

    Raises:
        CaseError: there is no such case, it has one already, or its bytes are gone.
    """
    with database.writing() as session:
        case = _get(session, case_id)
        session.refresh(case, with_for_update=True)  # nobody deletes it meanwhile
        if case.state is CaseState.EXPIRED and not is_there(case.file):
            raise CaseError(f"{case_id}: has expired; there are no bytes left to hold")
        if case.hold_at is not None:
            raise CaseError(f"{case_id}: is under legal hold already, by {case.hold_by}")
        case.hold_at, case.hold_by, case.hold_reason = datetime.now(UTC), by, reason
        ledger.append(session, "legal hold", actor=by, case_id=case_id, facts={"reason": reason})
    return case


def hold_lifted(database: Database, case_id: str, *, by: str, reason: str) -> Case:
    """Takes the legal hold off a case; from now on its period counts again.

    Raises:
        CaseError: there is no such case, or no hold on it.
    """
    with database.writing() as session:
        case = _get(session, case_id)
        if case.hold_at is None:
            raise CaseError(f"{case_id}: is not under legal hold")
        facts = {"reason": reason, "held by": case.hold_by, "held for": case.hold_reason}
        case.hold_at = case.hold_by = case.hold_reason = None
        ledger.append(session, "legal hold lifted", actor=by, case_id=case_id, facts=facts)
    return case


def noted(database: Database, case_id: str, *, by: str, text: str) -> Note:
    """Writes a note down. The ledger has its hash, so that it cannot be changed unnoticed.

    Raises:
        CaseError: there is no such case.
    """
    with database.writing() as session:
        _get(session, case_id)
        note = Note(case_id=case_id, at=datetime.now(UTC), by=by, text=text)
        session.add(note)
        sha256 = hashlib.sha256(text.encode()).hexdigest()
        ledger.append(session, "noted", actor=by, case_id=case_id, facts={"sha256 of the note": sha256})
    return note


def notes_of(database: Database, case_id: str) -> list[Note]:
    """The notes about a case, in their order."""
    with database.reading() as session:
        return list(session.scalars(select(Note).where(Note.case_id == case_id).order_by(Note.number)))


def viewed(database: Database, case_id: str, *, by: str, facts: dict[str, Any]) -> None:
    """Notes in the ledger that a reviewer is about to see a case.

    Args:
        facts: what of it, besides its row: `{"sealed facts": True}`, `{"saved": True}`.
    """
    with database.writing() as session:
        ledger.append(session, "viewed", actor=by, case_id=case_id, facts=facts)


def _get(session: Session, case_id: str) -> Case:
    case = session.get(Case, case_id)
    if case is None:
        raise CaseError(f"{case_id}: no such case; `pictrs-gate review list` shows them")
    return case
