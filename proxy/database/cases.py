"""Cases and known hashes: what the gate asks of them and what is changed together."""

from __future__ import annotations

from collections.abc import Collection
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

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


def undecided(database: Database, case_id: str) -> Case:
    """The case with that id, as long as no human has decided it.

    Raises:
        CaseError: there is none, or it is decided.
    """
    case = get(database, case_id)
    _check_undecided(case)
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


def releasing(database: Database, case_id: str, *, reviewer: str, sha256: str) -> Case:
    """Begins a release, before pict-rs is sent anything. May be begun again, after a crash say.

    Args:
        sha256: of the original; an adopted case learns it here.

    Raises:
        CaseError: it is decided already, or the same file was confirmed.
    """
    with database.writing() as session:
        case = session.get_one(Case, case_id)
        _check_undecided(case)
        known_file = session.get(KnownHash, sha256)
        if known_file is not None and known_file.verdict == "block":
            raise CaseError(
                f"{case_id}: the same file was confirmed by {known_file.added_by} "
                f"in case {known_file.case_id}, so it cannot be released"
            )
        case.sha256 = sha256
        _set(session, case, CaseState.RELEASING, reviewer, {"sha256": sha256, "alias": case.alias})
    return case


def released(database: Database, case_id: str, *, reviewer: str, stored_token: str | None) -> Case:
    """Ends a release: pict-rs has the picture, and the same bytes pass from now on.

    Args:
        stored_token: pict-rs's own delete token; None where an earlier attempt has stored it.

    Raises:
        CaseError: somebody has confirmed it meanwhile.
    """
    with database.writing() as session:
        case = session.get_one(Case, case_id)
        if stored_token is not None:
            case.stored_token = stored_token
        if case.state is CaseState.RELEASED:  # the same release, run twice
            return case
        if case.state is not CaseState.RELEASING:
            raise CaseError(f"{case_id}: is {case.state} by {case.decided_by}, so it cannot be released")
        _set(session, case, CaseState.RELEASED, reviewer, {"sha256": case.sha256, "alias": case.alias})
        _remember(session, case, "allow", reviewer)
    return case


def not_released(database: Database, case_id: str, *, reviewer: str, reason: str) -> None:
    """Takes back the beginning of a release that pict-rs has refused: a human has to decide anew."""
    with database.writing() as session:
        case = session.get_one(Case, case_id)
        if case.state is CaseState.RELEASING:
            _set(session, case, CaseState.PENDING, reviewer, {"release refused": reason})
            case.decided_at = case.decided_by = None


def confirmed(database: Database, case_id: str, *, reviewer: str, sha256: str, before: datetime) -> Case:
    """A human's decision that a case is what it was held for: the same bytes are refused from now on.

    Args:
        sha256: of the original; an adopted case learns it here.
        before: a release begun later than this may still be under way.

    Raises:
        CaseError: it is decided already, or being released.
    """
    with database.writing() as session:
        case = session.get_one(Case, case_id)
        _check_undecided(case)
        check_no_release_since(case, before)
        case.sha256 = sha256
        _set(session, case, CaseState.CONFIRMED, reviewer, {"sha256": sha256, "alias": case.alias})
        _remember(session, case, "block", reviewer)
    return case


def check_no_release_since(case: Case, before: datetime) -> None:
    """Says whether a release of `case` may be under way.

    Raises:
        CaseError: one was begun later than `before`.
    """
    if case.state is CaseState.RELEASING and case.decided_at is not None and case.decided_at > before:
        raise CaseError(f"{case.id}: {case.decided_by} is releasing it right now; look again in two minutes")


def _check_undecided(case: Case) -> None:
    if case.state in (CaseState.RELEASED, CaseState.CONFIRMED):
        raise CaseError(f"{case.id}: is {case.state} already, by {case.decided_by}")


def _set(session: Session, case: Case, to: CaseState, reviewer: str, facts: dict[str, Any]) -> None:
    """State and ledger change together."""
    case.state, case.decided_at, case.decided_by = to, datetime.now(UTC), reviewer
    ledger.append(session, to.value, actor=reviewer, case_id=case.id, facts=facts)


def _remember(session: Session, case: Case, verdict: str, reviewer: str) -> None:
    session.merge(
        KnownHash(
            sha256=case.sha256, verdict=verdict, case_id=case.id, added_at=case.decided_at, added_by=reviewer
        )
    )


def viewed(database: Database, case_id: str, *, reviewer: str) -> None:
    """Notes in the ledger that a reviewer looked at a case."""
    with database.writing() as session:
        ledger.append(session, "viewed", actor=reviewer, case_id=case_id)


def known(database: Database, sha256: str) -> KnownHash | None:
    """What was decided about a file with exactly these bytes."""
    with database.reading() as session:
        return session.get(KnownHash, sha256)
