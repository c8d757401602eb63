"""Cases that are to be sealed for other recipients, and the moment in which they are."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from sqlalchemy import ColumnElement, and_, func, not_, or_, select

from proxy.cases.life import CaseState
from proxy.database import ledger
from proxy.database.engine import Database
from proxy.database.models import Case


@dataclass(frozen=True, slots=True)
class Wanted:
    """For whom cases are to be sealed, as `proxy.cases.recipients.digest` names it.

    Attributes:
        usual: the reviewers alone.
        gate_reads: the reviewers and the gate; None where the gate has no key. Cases that it has
            still to open are then left out: see `count_for_gate`.
    """

    usual: str
    gate_reads: str | None


def to_reseal(database: Database, wanted: Wanted) -> list[str]:
    """The ids of all cases that are sealed for others than they should be, or for nobody knows whom."""
    with database.reading() as session:
        return list(session.scalars(select(Case.id).where(_otherwise_sealed(wanted)).order_by(Case.id)))


def count_to_reseal(database: Database, wanted: Wanted) -> int:
    """How many they are."""
    with database.reading() as session:
        return session.scalar(select(func.count()).where(_otherwise_sealed(wanted))) or 0


def count_for_gate(database: Database) -> int:
    """How many cases the gate has still to open."""
    with database.reading() as session:
        return session.scalar(select(func.count()).where(_is_there, Case.gate_reads)) or 0


def resealed(
    database: Database, case: Case, *, to: str, size: int, by: str, recipients: int, swap: Callable[[], bool]
) -> bool:
    """Swaps a case's file, and notes it, unless the case has changed since `case` was read.

    Args:
        case: as it was when its file was read.
        to: whom the new file is sealed for.
        size: bytes of the new file.
        recipients: how many they are, for the ledger.
        swap: puts the new file in the place of the old one; False where the old one is another by now.

    Returns:
        Whether it was done.
    """
    with database.writing() as session:
        now = session.get(Case, case.id, with_for_update=True)
        if now is None or now.state is CaseState.EXPIRED:
            return False
        if (now.file, now.gate_reads) != (case.file, case.gate_reads) or not swap():
            return False
        now.sealed_to, now.sealed_size = to, size
        facts = {"recipients": recipients, "sealed to": to}
        ledger.append(session, "resealed", actor=by, case_id=case.id, facts=facts)
    return True


def put_back(database: Database, case: Case, put: Callable[[], None]) -> bool:
    """Undoes a swap that was cut off: until it is done again, nobody knows for whom the case is sealed.

    Args:
        case: as it was when its files were read.
        put: puts the former file back.

    Returns:
        False where the case has changed meanwhile: nothing is put back.
    """
    with database.writing() as session:  # on the disk before anything is moved, should that be cut off too
        now = session.get_one(Case, case.id, with_for_update=True)
        if (now.sealed_to, now.gate_reads) != (case.sealed_to, case.gate_reads):
            return False
        now.sealed_to = None
    with database.writing() as session:  # in which no other file takes its place
        now = session.get_one(Case, case.id, with_for_update=True)
        if (now.sealed_to, now.gate_reads) != (None, case.gate_reads):
            return False
        put()
    return True


_is_there = Case.state != CaseState.EXPIRED


def _otherwise_sealed(wanted: Wanted) -> ColumnElement[bool]:
    # A comparison with nothing is neither true nor false, so nothing is named.
    is_unknown = Case.sealed_to.is_(None)
    usual = and_(not_(Case.gate_reads), or_(is_unknown, Case.sealed_to != wanted.usual))
    if wanted.gate_reads is None:
        return and_(_is_there, usual)
    with_gate = and_(Case.gate_reads, or_(is_unknown, Case.sealed_to != wanted.gate_reads))
    return and_(_is_there, or_(usual, with_gate))
