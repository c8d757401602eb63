"""Expiry: what is due, moving it to `expired`, and noting that its bytes are deleted.

First the state and the ledger, then the bytes: a crash between the two leaves an expired case whose file is
still there, which the next run deletes. The other way round evidence would be gone without a word.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from sqlalchemy import select

from proxy.cases.life import Act, Actor, CaseState
from proxy.database import decisions, ledger
from proxy.database.engine import Database
from proxy.database.models import Case

RETENTION = "retention"  # in the ledger; no reviewer may have that name


@dataclass(frozen=True, slots=True)
class Periods:
    """How long the bytes of a case are kept; None is for ever.

    Attributes:
        released: from the end of the release.
        confirmed: from the report, or from the confirmation where nobody has reported it.
    """

    released: timedelta | None
    confirmed: timedelta | None

    def of(self, state: CaseState) -> timedelta | None:
        """The period of a state; only what is decided has one."""
        match state:
            case CaseState.RELEASED:
                return self.released
            case CaseState.CONFIRMED | CaseState.REPORTED:
                return self.confirmed
        return None


@dataclass(frozen=True, slots=True)
class Due:
    """A case whose period is over, or which has expired with its bytes still there.

    Attributes:
        since: when the period began; of an expired case when it was noted as deleted, else decided.
        size: bytes of its sealed file, where they were counted.
        on_hold: whether a legal hold keeps it.
    """

    case: str
    state: CaseState
    since: datetime
    size: int | None
    on_hold: bool


def due(database: Database, periods: Periods) -> list[Due]:
    """Cases whose period is over, those under legal hold too; the oldest first."""
    now, found = datetime.now(UTC), []
    began = {CaseState.REPORTED: Case.reported_at}
    with database.reading() as session:
        for state in CaseState:
            period, column = periods.of(state), began.get(state, Case.decided_at)
            if period is None:
                continue
            query = select(Case.id, column, Case.sealed_size, Case.hold_at).where(
                Case.state == state, column <= now - period
            )
            for case_id, since, size, hold_at in session.execute(query):
                if since is not None:
                    found.append(Due(case_id, state, since, size, hold_at is not None))
    return sorted(found, key=lambda one: (one.since, one.case))


def expire(database: Database, case_id: str, periods: Periods, *, on_behalf_of: str | None) -> None:
    """Moves a case to `expired`, durable on return; its bytes are still there.

    Args:
        on_behalf_of: who has run it; None for the rule that the admin has switched on.

    Raises:
        CaseError: it may not expire: a legal hold, somebody has decided anew, its period is not over.
    """
    with database.writing() as session:
        case = session.get_one(Case, case_id, with_for_update=True)
        was, decided = case.state, (case.decided_at, case.decided_by)
        to = decisions.allowed(case, Act.EXPIRE, Actor.RETENTION, period_over=_is_over(case, periods))
        period, since = periods.of(was), _began(case)
        facts = {
            "sha256": case.sha256,
            "was": was.value,
            "since": since and since.isoformat(),
            "period_days": period and period.days,
            "file": case.file,
            "on behalf of": on_behalf_of,
        }
        decisions.move(session, case, to, RETENTION, facts)
        case.decided_at, case.decided_by = decided  # a human's decision stays his


def to_delete(database: Database, present: Mapping[str, int | None]) -> list[Due]:
    """Expired cases whose bytes are not noted as deleted, or whose file is there all the same.

    Args:
        present: the files in the quarantine by name, and how large each is.
    """
    query = (
        select(Case.id, Case.file, Case.expired_at, Case.decided_at, Case.created_at, Case.hold_at)
        .where(Case.state == CaseState.EXPIRED)
        .order_by(Case.id)
    )
    with database.reading() as session:
        return [
            Due(
                row.id,
                CaseState.EXPIRED,
                row.expired_at or row.decided_at or row.created_at,
                present.get(row.file),
                row.hold_at is not None,
            )
            for row in session.execute(query)
            if row.expired_at is None or row.file in present
        ]


def delete_bytes(
    database: Database, case_id: str, delete: Callable[[str], bool], *, on_behalf_of: str | None
) -> bool:
    """Has the bytes of an expired case deleted and notes it; nobody can put a legal hold on it meanwhile.

    Args:
        delete: deletes the file of that name for good; False where it was gone.

    Returns:
        Whether there is nothing of it left; False where a legal hold is on it.

    Raises:
        SealingError: `delete` could not.
    """
    with database.writing() as session:
        case = session.get_one(Case, case_id, with_for_update=True)
        if case.state is not CaseState.EXPIRED or case.hold_at is not None:
            return False
        was_there = delete(case.file)
        if was_there or case.expired_at is None:
            facts = {"file": case.file, "was gone": not was_there, "on behalf of": on_behalf_of}
            ledger.append(session, "bytes deleted", actor=RETENTION, case_id=case.id, facts=facts)
            case.expired_at, case.sealed_size, case.uploader = datetime.now(UTC), None, None
    return True


def _is_over(case: Case, periods: Periods) -> bool:
    period, began = periods.of(case.state), _began(case)
    return period is not None and began is not None and began <= datetime.now(UTC) - period


def _began(case: Case) -> datetime | None:
    """When the period of a case began."""
    return case.reported_at if case.state is CaseState.REPORTED else case.decided_at
