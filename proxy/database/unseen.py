"""Uploads that were let pass unseen, in the database: noted, looked at since, held since, gone.

Who sent something lies here sealed; it is let go of only where no case came of it, or the case has it.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import or_, select

from proxy.database import ledger, taking
from proxy.database.backlog import own
from proxy.database.decisions import GATE
from proxy.database.engine import Database
from proxy.database.models import Case, Promise, UnseenUpload
from proxy.errors import CaseError


def passed_unseen(database: Database, uploads: Sequence[UnseenUpload]) -> None:
    """Notes uploads that are stored although nobody has looked."""
    with database.writing() as session:
        session.add_all(uploads)


def still_unseen(database: Database, leased: UnseenUpload) -> None:
    """
    Raises:
        CaseError: an upload has nothing to be done about it any more, or is not the caller's.
    """
    with database.reading() as session:
        own(session, leased, reads=True)


def seen_since(database: Database, leased: UnseenUpload, *, reason: str) -> None:
    """An upload that passed unseen is harmless.

    Raises:
        CaseError: it is not the caller's any more.
    """
    with database.writing() as session:
        upload = own(session, leased)
        upload.done_at, upload.facts = datetime.now(UTC), b""
        facts = {"sha256": upload.sha256, "alias": upload.alias, "reason": reason}
        ledger.append(session, "seen since", actor=GATE, facts=facts)


def same_picture(database: Database, leased: UnseenUpload, aliases: Sequence[str]) -> Sequence[UnseenUpload]:
    """The other uploads that passed unseen under one of some aliases, and are not done with."""
    query = select(UnseenUpload).where(
        UnseenUpload.alias.in_(aliases),
        UnseenUpload.number != leased.number,
        UnseenUpload.done_at.is_(None),
        UnseenUpload.case_id.is_(None),
    )
    with database.reading() as session:
        return session.scalars(query.order_by(UnseenUpload.number)).all()


def gone_since(database: Database, leased: UnseenUpload, *, alias_key: bytes) -> None:
    """pict-rs does not have an upload that passed unseen any more: it was deleted, or has become part of a
    case in the moment in which it was noted. Then who sent it stays with the case.

    Raises:
        CaseError: it is not the caller's any more.
    """
    with database.writing() as session:
        upload = own(session, leased)
        upload.done_at = datetime.now(UTC)
        upload.case_id = session.scalars(
            select(Promise.case_id).where(Promise.alias_key == alias_key)
        ).first()
        if upload.case_id is None:
            upload.facts = b""
        facts = {"sha256": upload.sha256, "alias": upload.alias}
        ledger.append(session, "gone unseen", actor=GATE, case_id=upload.case_id, facts=facts)


def held_since(
    database: Database,
    leased: UnseenUpload,
    case: Case,
    *,
    others: Sequence[UnseenUpload],
    facts: dict[str, Any],
) -> None:
    """An upload that passed unseen is a case now, which stands at its aliases; pict-rs has it still.

    Args:
        case: new, with its promises, which are stored.
        others: those of `same_picture`, which are part of the same case; their facts are sealed with it.

    Raises:
        CaseError: it is not the caller's any more, or its alias has become another case's.
        IntegrityError: one of the aliases stands for a case already.
    """
    with database.writing() as session:
        upload = own(session, leased)
        taking.put_in_place(session, case)
        if all(promise.alias != upload.alias for promise in case.promises):
            raise CaseError(f"{upload.number}: its alias has just become another case's")
        upload.case_id = case.id
        for other in others:
            kept = session.get_one(UnseenUpload, other.number)
            kept.case_id, kept.done_at, kept.facts = case.id, datetime.now(UTC), b""
        ledger.append(session, case.state.value, actor=GATE, case_id=case.id, facts=facts)


def done_with(database: Database, leased: UnseenUpload) -> None:
    """pict-rs does not have the picture of a held upload any more, or a human has decided that it shall.

    Raises:
        CaseError: it is not the caller's any more.
    """
    with database.writing() as session:
        upload = own(session, leased)
        upload.done_at, upload.facts = datetime.now(UTC), b""


def still_public(database: Database, hits: Collection[int]) -> set[int]:
    """The numbers of uploads that turned out hits and that pict-rs has still.

    Args:
        hits: numbers of those that are no cases, for want of room say; some thousands at most.
    """
    query = select(UnseenUpload.number).where(
        UnseenUpload.done_at.is_(None), or_(UnseenUpload.case_id.is_not(None), UnseenUpload.number.in_(hits))
    )
    with database.reading() as session:
        return set(session.scalars(query))


def tokens(database: Database, aliases: Sequence[str]) -> dict[str, str]:
    """The delete tokens of those of some aliases that passed unseen and are not done with."""
    query = select(UnseenUpload.alias, UnseenUpload.delete_token).where(
        UnseenUpload.alias.in_(aliases), UnseenUpload.done_at.is_(None)
    )
    with database.reading() as session:
        return {row.alias: row.delete_token for row in session.execute(query)}
