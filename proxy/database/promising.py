"""Aliases that stand for cases: given, claimed, deleted by users, stored by a release."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from datetime import UTC, datetime

from sqlalchemy import select

from proxy.cases.life import CaseState
from proxy.database import ledger
from proxy.database.engine import Database
from proxy.database.models import Case, Promise
from proxy.errors import CaseError

# Of one case. Lemmy makes one thumbnail a post; a release stores them one after the other.
_MOST_PROMISES = 32
# From these on, nothing is shown at a new alias that would not be shown at pict-rs.
_DECIDED = frozenset(CaseState) - {CaseState.DEFERRED, CaseState.PENDING, CaseState.RELEASING}


def promise_of(database: Database, key: bytes) -> Promise | None:
    """What was promised under an alias, whatever has become of its case; None where it was nothing.

    Args:
        key: `alias_key` of the alias.
    """
    with database.reading() as session:
        return session.scalars(select(Promise).where(Promise.alias_key == key)).first()


def promise_more(database: Database, promise: Promise) -> bool:
    """A further alias for a case; False where a human has decided it, or it has too many already."""
    with database.writing() as session:
        case = session.get_one(Case, promise.case_id)
        if case.state in _DECIDED or len(case.promises) >= _MOST_PROMISES:
            return False
        session.add(promise)
        ledger.append(session, "further alias", actor="gate", case_id=case.id, facts={"alias": promise.alias})
    return True


def claim(database: Database, upload_id: str) -> Promise | None:
    """What was promised under an upload id, once; None for an id that is not the gate's, or no more."""
    with database.reading() as session:
        if session.scalars(select(Promise.number).where(Promise.upload_id == upload_id)).first() is None:
            return None
    with database.writing() as session:
        promise = session.scalars(select(Promise).where(Promise.upload_id == upload_id)).first()
        if promise is not None:
            promise.upload_id = None
    return promise


def remove(database: Database, promises: Collection[Promise], *, act: str) -> list[str]:
    """Somebody has deleted aliases in Lemmy: their placeholders go, the case stays, the ledger tells.

    Returns:
        Those of them that pict-rs has, or may be about to get.
    """
    with database.writing() as session:
        kept = [session.get_one(Promise, given.number) for given in promises]
        for promise in kept:
            if promise.removed_at is None:
                promise.removed_at = datetime.now(UTC)
                facts = {"alias": promise.alias}
                ledger.append(session, act, actor="client", case_id=promise.case_id, facts=facts)
        in_pictrs = (CaseState.RELEASING, CaseState.RELEASED)
        return [
            promise.alias
            for promise in kept
            if (promise.stored_at or promise.case.state in in_pictrs) and not promise.is_foreign
        ]


@dataclass(frozen=True, slots=True)
class Sending:
    """An attempt to store one alias.

    Attributes:
        at: when it was noted; two attempts differ in it.
        is_again: whether an earlier attempt may have stored it already.
    """

    at: datetime
    is_again: bool


def storing(database: Database, promise: Promise) -> Sending | None:
    """A release is about to store one alias: it is still under way.

    To be asked of one that is somebody else's only where pict-rs does not have it any more.

    Returns:
        None where the alias was deleted meanwhile.

    Raises:
        CaseError: the release is not under way any more.
    """
    with database.writing() as session:
        kept = session.get_one(Promise, promise.number)
        if kept.case.state is not CaseState.RELEASING:
            raise CaseError(f"{kept.case_id}: is {kept.case.state} by {kept.case.decided_by}")
        kept.case.decided_at = datetime.now(UTC)
        if kept.removed_at is not None:
            return None
        sending = Sending(datetime.now(UTC), kept.sent_at is not None and not kept.is_foreign)
        kept.sent_at, kept.is_foreign = sending.at, False
    return sending


def taken(database: Database, promise: Promise, sending: Sending) -> None:
    """pict-rs has refused one alias as taken. It is somebody else's, unless another attempt was quicker."""
    with database.writing() as session:
        kept = session.get_one(Promise, promise.number)
        if not sending.is_again and kept.sent_at == sending.at and kept.stored_at is None:
            kept.is_foreign = True


def stored(database: Database, promise: Promise, *, token: str | None) -> bool:
    """A release has stored one alias in pict-rs.

    Args:
        token: pict-rs's own delete token; None where an earlier attempt has stored it.

    Returns:
        False where the alias was deleted meanwhile, so that it must not stay there.
    """
    with database.writing() as session:
        kept = session.get_one(Promise, promise.number)
        kept.stored_at, kept.is_foreign = datetime.now(UTC), False
        kept.stored_token = token or kept.stored_token
        return kept.removed_at is None


def not_stored(database: Database, case_id: str) -> list[str]:
    """Whatever a release has stored is about to be taken back; the aliases that pict-rs may have of it."""
    with database.writing() as session:
        return take_back(session.get_one(Case, case_id))


def take_back(case: Case) -> list[str]:
    """What `not_stored` does, in a transaction of the caller's."""
    for promise in case.promises:
        promise.stored_at = promise.stored_token = None
    return [promise.alias for promise in case.promises if not promise.is_foreign]


def withdrawn(database: Database, case_id: str) -> list[str]:
    """The aliases of a case that were deleted while a release may have been storing them."""
    with database.reading() as session:
        promises = session.get_one(Case, case_id).promises
        return [one.alias for one in promises if one.removed_at and one.sent_at and not one.is_foreign]


def to_store(database: Database, case_id: str) -> list[Promise]:
    """The aliases of a case that a release has still to store in pict-rs."""
    query = select(Promise).where(
        Promise.case_id == case_id, Promise.stored_at.is_(None), Promise.removed_at.is_(None)
    )
    with database.reading() as session:
        return list(session.scalars(query.order_by(Promise.number)))
