"""Cases of what pict-rs had stored: placeholders first, then who takes the picture away, and that it is gone.

`stored_at` of a promise whose case nobody has released says that pict-rs has the picture still.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from datetime import UTC, datetime, timedelta

from sqlalchemy import or_, select
from sqlalchemy.orm import Session

from proxy.aliases import alias_key, make_delete_token
from proxy.cases.life import RELEASE_S, CaseState
from proxy.database import ledger
from proxy.database.engine import Database
from proxy.database.models import BackfillHit, Case, Promise, UnseenUpload
from proxy.errors import CaseError

# After this, whoever took a picture away is gone: a step takes `pictrs.timeout_s`, 30 s by default.
LEASE_S = RELEASE_S
_GATE = "gate"
_IN_PICTRS = frozenset({CaseState.RELEASING, CaseState.RELEASED})


def promised(database: Database, aliases: Collection[str]) -> list[Promise]:
    """What some aliases stand for already."""
    with database.reading() as session:
        return _promises(session, [alias_key(alias) for alias in aliases])


def may_take_over(promise: Promise) -> bool:
    """Whether the alias of one case may become another's: it shows what pict-rs has, on no human's word."""
    released = promise.case.state is CaseState.RELEASED and promise.case.decided_by == _GATE
    return released or promise.removed_at is not None


def put_in_place(session: Session, case: Case) -> None:
    """Adds a new case of what pict-rs has, whose promises stand from now on.

    An alias that the gate has released by itself, or that somebody had deleted, becomes this case's with its
    tokens; one that stands for another case stays there.
    """
    wanted = {promise.alias_key: promise for promise in case.promises}
    for there in _promises(session, list(wanted)):
        case.promises.remove(wanted[there.alias_key])
        if may_take_over(there):
            facts = {"alias": there.alias, "to": case.id}
            ledger.append(session, "alias taken over", actor=_GATE, case_id=there.case_id, facts=facts)
            there.stored_at = datetime.now(UTC)
            case.promises.append(there)
    session.add(case)
    session.flush()


def found(database: Database, case_id: str, aliases: Collection[str]) -> None:
    """Further aliases that the picture of a case turns out to have in pict-rs: they stand for it as well."""
    with database.writing() as session:
        case = session.get_one(Case, case_id)
        there = {promise.alias_key for promise in _promises(session, [alias_key(one) for one in aliases])}
        for alias in aliases:
            if case.state in _IN_PICTRS or alias_key(alias) in there:
                continue
            case.promises.append(
                Promise(
                    alias=alias,
                    alias_key=alias_key(alias),
                    delete_token=make_delete_token(),
                    details=case.promises[0].details,
                    arguments=[],
                    stored_at=datetime.now(UTC),
                    token_lost=True,
                )
            )
            ledger.append(session, "further alias", actor=_GATE, case_id=case.id, facts={"alias": alias})


def taking_away(database: Database, case_id: str, *, by: str) -> list[Promise]:
    """Somebody is about to take away what pict-rs has of a case, and has two minutes for the next step.

    Returns:
        The promises whose aliases pict-rs may have; none where there is nothing to take away.

    Raises:
        CaseError: somebody else is doing it.
    """
    now = datetime.now(UTC)
    with database.writing() as session:
        case = session.get_one(Case, case_id)
        there = [promise for promise in case.promises if promise.stored_at is not None]
        if case.state in _IN_PICTRS or not there:
            return []
        if case.leased_by not in (None, by) and case.leased_until is not None and case.leased_until > now:
            raise CaseError(f"{case_id}: it is just being taken away from pict-rs; try again in two minutes")
        case.leased_by, case.leased_until = by, now + timedelta(seconds=LEASE_S)
        return there


def taken_away(database: Database, case_id: str) -> None:
    """pict-rs does not have the picture of a held case any more, and nothing of it under way."""
    with database.writing() as session:
        case = session.get_one(Case, case_id)
        if case.state in _IN_PICTRS or all(promise.stored_at is None for promise in case.promises):
            return  # somebody has decided it meanwhile
        for promise in case.promises:
            promise.stored_at = promise.stored_token = None
        case.leased_by = case.leased_until = None
        ledger.append(session, "taken from pict-rs", actor=_GATE, case_id=case.id)


def not_taken(database: Database, *, older_than_s: float = 0.0) -> list[str]:
    """The cases of what was stored already that pict-rs has a picture of still.

    Args:
        older_than_s: younger ones are whoever's has made them.
    """
    of_stored = select(BackfillHit.case_id).where(BackfillHit.case_id.is_not(None))
    of_unseen = select(UnseenUpload.case_id).where(UnseenUpload.case_id.is_not(None))
    query = (
        select(Case.id)
        .join(Promise, Promise.case_id == Case.id)
        .where(
            Promise.stored_at.is_not(None),
            Case.state.not_in(_IN_PICTRS),
            Case.created_at < datetime.now(UTC) - timedelta(seconds=older_than_s),
            or_(Case.id.in_(of_stored), Case.id.in_(of_unseen)),
        )
        .distinct()
    )
    with database.reading() as session:
        return list(session.scalars(query.order_by(Case.id)))


def _promises(session: Session, keys: Sequence[bytes]) -> list[Promise]:
    promises: list[Promise] = []
    for at in range(0, len(keys), 500):  # a popular file has thousands, a statement takes only so many
        promises += session.scalars(select(Promise).where(Promise.alias_key.in_(keys[at : at + 500])))
    return promises
