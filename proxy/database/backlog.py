"""What has still to be looked at: deferred cases, and uploads that were let pass unseen.

Whoever works on one has a lease of it, and every step of that work checks the lease in its own transaction.
So two gates never do the same thing twice, and what a killed gate had in hand is given out again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, TypeVar

from sqlalchemy import ColumnElement, and_, func, or_, select, update
from sqlalchemy.orm import InstrumentedAttribute, Session

from proxy.cases.life import RELEASE_S, Act, Actor, CaseState
from proxy.database import ledger
from proxy.database.decisions import GATE, allowed, begin_release, move
from proxy.database.engine import Database
from proxy.database.models import Case, UnseenUpload
from proxy.errors import CaseError

_LONGEST_S = 3600.0  # until something is tried again
# After so many gates have died with it in hand, a file is not opened any more only to be sealed anew.
_MOST_RESEALS = 10
_AFTERLIFE = (CaseState.PENDING, CaseState.RELEASED, CaseState.CONFIRMED, CaseState.REPORTED)

Item = TypeVar("Item", Case, UnseenUpload)


@dataclass(frozen=True, slots=True)
class Lease:
    """The proof that something is one's own: who has it, and until when."""

    owner: str
    until: datetime


@dataclass(frozen=True, slots=True)
class Looked:
    """What a look has said about a case, for its row."""

    reason: str
    rule: str | None = None
    earlier: dict[str, Any] | None = None
    signals: dict[str, Any] | None = None
    ensemble: str | None = None
    pdq: str | None = None
    pdq_quality: int | None = None


@dataclass(frozen=True, slots=True)
class Waiting:
    """What waits, in numbers.

    Attributes:
        deferred: cases that the gate has still to look at; `since` the oldest of them.
        releasing: harmless ones that the gate has still to store.
        for_reviewers: deferred cases that the gate cannot open, of an older version say.
        unseen: uploads that were let pass unseen and not looked at yet; `unseen_since` the oldest of them.
        cut_off: releases that a reviewer has begun and that have not ended; he has to repeat them.
        pending: cases that wait for a reviewer.
    """

    deferred: int
    since: datetime | None
    releasing: int
    for_reviewers: int
    unseen: int
    unseen_since: datetime | None
    cut_off: int
    pending: int


# --- leases ---


def forget_leases(database: Database, owner: str, *, until: datetime) -> None:
    """A gate that starts has nothing in hand. Who had it is still known: a try that ended so was in vain.

    Args:
        until: leases up to then are forgotten; what it takes in hand itself ends later.
    """
    with database.writing() as session:
        for model in (Case, UnseenUpload):
            old = and_(model.leased_by == owner, model.leased_until <= until)
            session.execute(update(model).where(old).values(leased_until=None))


def lease_case(database: Database, lease: Lease, *, looking: bool = True) -> Case | None:
    """The oldest deferred case that the gate can look at, for the caller alone; None where there is none.

    A release that the gate has begun by itself and not ended is given out again.

    Args:
        looking: whether it may be one that nobody has looked at; else only such a release.
    """
    which = and_(Case.state == CaseState.RELEASING, Case.decided_by == GATE)
    if looking:
        which = or_(Case.state == CaseState.DEFERRED, which)
    return _leased(database, Case, and_(Case.gate_reads, which), (Case.created_at, Case.id), lease)


def lease_unseen(database: Database, lease: Lease, *, looking: bool = True) -> UnseenUpload | None:
    """The oldest upload that passed unseen and is not done with, for the caller alone; None without any.

    Args:
        looking: whether it may be one that nobody has looked at; else only one that is sealed already.
    """
    which: ColumnElement[bool] = UnseenUpload.done_at.is_(None)
    if not looking:
        which = and_(which, UnseenUpload.case_id.is_not(None))
    return _leased(database, UnseenUpload, which, (UnseenUpload.number,), lease)


def lease_to_reseal(database: Database, lease: Lease) -> Case | None:
    """A case that the gate's key still opens, although somebody has looked or decided; None without any."""
    waits = and_(Case.gate_reads, Case.state.in_(_AFTERLIFE), Case.tries < _MOST_RESEALS)
    return _leased(database, Case, waits, (Case.created_at, Case.id), lease)


def give_back(
    database: Database,
    item: Case | UnseenUpload,
    *,
    again_s: float | None,
    counts: bool,
    is_over: bool = False,
) -> None:
    """Ends a lease, if it is still the caller's.

    Args:
        item: as it was leased.
        again_s: seconds after which it is given out again, doubled for each try in vain; None for at once.
        counts: whether this was a try in vain.
        is_over: whether pict-rs is certainly sent nothing any more by the release that was tried, so that a
            human need not wait before he decides otherwise.
    """
    with database.writing() as session:
        kept: Case | UnseenUpload
        if isinstance(item, Case):
            kept = session.get_one(Case, item.id, with_for_update=True)
        else:
            kept = session.get_one(UnseenUpload, item.number, with_for_update=True)
        if (kept.leased_by, kept.leased_until) != (item.leased_by, item.leased_until):
            return
        kept.leased_by = kept.leased_until = None
        kept.tries += counts
        wait_s = None if again_s is None else min(again_s * 2 ** min(kept.tries, 20), _LONGEST_S)
        kept.again_at = None if wait_s is None else datetime.now(UTC) + timedelta(seconds=wait_s)
        if is_over and isinstance(kept, Case) and _is_released_by_gate(kept):
            kept.decided_at = None


def _leased(
    database: Database,
    model: type[Item],
    which: ColumnElement[bool],
    order: Sequence[InstrumentedAttribute[Any]],
    lease: Lease,
) -> Item | None:
    query = select(model).where(which, _is_free(model)).order_by(*order).limit(1)
    with database.reading() as session:  # mostly there is nothing, and then nobody is kept from writing
        if session.scalars(query).first() is None:
            return None
    with database.writing() as session:
        item: Item | None = session.scalars(query.with_for_update(skip_locked=True, of=model)).first()
        if item is not None:
            item.tries += item.leased_by is not None  # whoever had it has died, perhaps of it
            item.leased_by, item.leased_until, item.again_at = lease.owner, lease.until, None
    return item


def _is_free(model: type[Item]) -> ColumnElement[bool]:
    now = datetime.now(UTC)
    return and_(
        or_(model.leased_until.is_(None), model.leased_until < now),
        or_(model.again_at.is_(None), model.again_at <= now),
    )


def _key(item: Case | UnseenUpload) -> str | int:
    return item.id if isinstance(item, Case) else item.number


def own(session: Session, item: Item, *, reads: bool = False) -> Item:
    """What was leased, as it is now.

    Args:
        reads: whether the session is one that only reads, and so locks nothing.

    Raises:
        CaseError: it is not the caller's any more.
    """
    kept = session.get_one(type(item), _key(item), with_for_update=None if reads else True)
    if (kept.leased_by, kept.leased_until) != (item.leased_by, item.leased_until):
        raise CaseError(f"{_key(item)}: another gate has it by now")
    if isinstance(kept, UnseenUpload) and kept.done_at is not None:
        raise CaseError(f"{_key(item)}: it is done with, as another upload of the same picture")
    return kept


# --- deferred cases ---


def suspected(database: Database, leased: Case, looked: Looked) -> Case:
    """A deferred case waits for a human: it is not harmless, or cannot be looked at.

    Raises:
        CaseError: it is not the caller's any more, or a human has decided it.
    """
    with database.writing() as session:
        case = own(session, leased)
        to = allowed(case, Act.SUSPECT, Actor.GATE)
        _note(case, looked)
        facts = {
            "reason": case.reason,
            "earlier": case.earlier,
            "signals": case.signals,
            "ensemble": case.ensemble,
        }
        move(session, case, to, GATE, facts)
        case.decided_at = case.decided_by = None
    return case


def releasing(database: Database, leased: Case, *, sha256: str, looked: Looked | None) -> tuple[Case, bool]:
    """The gate begins a release by itself, or begins it again.

    Args:
        looked: what made it harmless; None where that is written down already.

    Returns:
        As `decisions.releasing`.

    Raises:
        CaseError: it is not the caller's any more, a human has decided it, or the same file was confirmed.
    """
    with database.writing() as session:
        case = own(session, leased)
        if looked is not None:
            _note(case, looked)
        is_repeated = begin_release(session, case, by=GATE, sha256=sha256)
    return case, is_repeated


def taking_back(database: Database, leased: Case) -> None:
    """The gate is about to take back a release of its own; a human has to wait until it has.

    Raises:
        CaseError: it is not the caller's any more, or a human's.
    """
    with database.writing() as session:
        case = own(session, leased)
        if not _is_released_by_gate(case):
            raise CaseError(f"{case.id}: is {case.state} by {case.decided_by}")
        case.decided_at = datetime.now(UTC)


def resealed(database: Database, leased: Case, *, to: str | None, replace: Callable[[], int] | None) -> None:
    """The file of a case is for the reviewers alone from now on.

    Args:
        to: whom the new file is sealed for (`proxy.cases.recipients.digest`); None where there is none.
        replace: puts the new file in the place of the former one, and says how many bytes it has. Called
            while nobody else can change the case, so that no late file takes the place of another one, or of
            what was deleted. None where the file was for the reviewers alone already.

    Raises:
        CaseError: it is not the caller's any more; nothing was replaced.
    """
    with database.writing() as session:
        case = own(session, leased)
        if case.state is CaseState.EXPIRED:
            raise CaseError(f"{case.id}: is {case.state}")
        facts = {} if replace is not None else {"found": True}
        size = replace() if replace is not None else None
        if size is not None:
            case.sealed_size, case.sealed_to = size, to
        case.gate_reads, case.tries = False, 0
        ledger.append(session, "resealed", actor=GATE, case_id=case.id, facts=facts)


def _note(case: Case, looked: Looked) -> None:
    case.reason, case.rule = looked.reason[:500], looked.rule and looked.rule[:200]
    case.earlier = looked.earlier or case.earlier
    case.signals = looked.signals or case.signals
    case.ensemble = looked.ensemble[:200] if looked.ensemble else case.ensemble
    if looked.pdq is not None:
        case.pdq, case.pdq_quality = looked.pdq, looked.pdq_quality


def _is_released_by_gate(case: Case) -> bool:
    return case.state is CaseState.RELEASING and case.decided_by == GATE


# --- what an operator asks ---


def waiting(database: Database) -> Waiting:
    """What waits, and since when."""
    deferred = select(func.count(Case.id), func.min(Case.created_at)).where(Case.state == CaseState.DEFERRED)
    releasing_ = select(func.count(Case.id)).where(
        Case.state == CaseState.RELEASING, Case.decided_by == GATE, Case.gate_reads
    )
    late = datetime.now(UTC) - timedelta(seconds=RELEASE_S)
    cut_off = select(func.count(Case.id)).where(
        Case.state == CaseState.RELEASING, Case.decided_by != GATE, Case.decided_at < late
    )
    pending = select(func.count(Case.id)).where(Case.state == CaseState.PENDING)
    unseen = select(func.count(UnseenUpload.number), func.min(UnseenUpload.created_at))
    with database.reading() as session:
        count, since = session.execute(deferred.where(Case.gate_reads)).one()
        others = session.execute(deferred.where(~Case.gate_reads)).one()[0]
        unseen_count, unseen_since = session.execute(unseen.where(UnseenUpload.done_at.is_(None))).one()
        return Waiting(
            deferred=count,
            since=since,
            releasing=session.scalar(releasing_) or 0,
            for_reviewers=others,
            unseen=unseen_count,
            unseen_since=unseen_since,
            cut_off=session.scalar(cut_off) or 0,
            pending=session.scalar(pending) or 0,
        )
