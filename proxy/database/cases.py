"""Cases, their promises and known hashes: what the gate asks of them and what is changed together."""

from __future__ import annotations

from collections.abc import Collection
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import bindparam, select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from proxy.database import ledger
from proxy.database.engine import Database, in_words
from proxy.database.models import Case, CaseState, KnownHash, Promise
from proxy.errors import AliasTaken, CaseError

# Of one case. Lemmy makes one thumbnail a post; a release stores them one after the other.
_MOST_PROMISES = 32
_DECIDED = (CaseState.RELEASED, CaseState.CONFIRMED)
_KNOWN = select(KnownHash.verdict, KnownHash.added_by).where(KnownHash.sha256 == bindparam("sha256"))


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
        if "alias_key" in in_words(error):
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


def of_file(database: Database, sha256: str) -> Case | None:
    """The newest case of a file with exactly these bytes, unless it was released."""
    query = (
        select(Case)
        .where(Case.sha256 == sha256, Case.state != CaseState.RELEASED)
        .order_by(Case.created_at.desc())
        .limit(1)
    )
    with database.reading() as session:
        return session.scalars(query).first()


def under_release(database: Database, *, since: datetime) -> list[Case]:
    """Cases whose release was begun after `since` and has not ended."""
    query = select(Case).where(Case.state == CaseState.RELEASING, Case.decided_at > since)
    with database.reading() as session:
        return list(session.scalars(query))


def released_files(database: Database, sha256: Collection[str]) -> list[Case]:
    """The released cases of files with exactly these bytes."""
    if not sha256:
        return []
    query = select(Case).where(Case.sha256.in_(sha256), Case.state == CaseState.RELEASED)
    with database.reading() as session:
        return list(session.scalars(query))


# --- promises ---


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
        return [promise.alias for promise in kept if promise.stored_at or promise.case.state in in_pictrs]


def storing(database: Database, promise: Promise) -> bool:
    """A release is about to store one alias: it is still under way.

    Returns:
        False where the alias was deleted meanwhile.

    Raises:
        CaseError: the release is not under way any more.
    """
    with database.writing() as session:
        kept = session.get_one(Promise, promise.number)
        if kept.case.state is not CaseState.RELEASING:
            raise CaseError(f"{kept.case_id}: is {kept.case.state} by {kept.case.decided_by}")
        kept.case.decided_at = datetime.now(UTC)
        return kept.removed_at is None


def stored(database: Database, promise: Promise, *, token: str | None) -> bool:
    """A release has stored one alias in pict-rs.

    Args:
        token: pict-rs's own delete token; None where an earlier attempt has stored it.

    Returns:
        False where the alias was deleted meanwhile, so that it must not stay there.
    """
    with database.writing() as session:
        kept = session.get_one(Promise, promise.number)
        kept.stored_at = datetime.now(UTC)
        kept.stored_token = token or kept.stored_token
        return kept.removed_at is None


def not_stored(database: Database, case_id: str) -> list[str]:
    """Whatever a release has stored is about to be taken back; the aliases that pict-rs may have."""
    with database.writing() as session:
        case = session.get_one(Case, case_id)
        for promise in case.promises:
            promise.stored_at = promise.stored_token = None
        return [promise.alias for promise in case.promises]


# --- decisions ---


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
        _set(session, case, CaseState.RELEASING, reviewer, _facts(case))
    return case


def to_store(database: Database, case_id: str) -> list[Promise]:
    """The aliases of a case that a release has still to store in pict-rs."""
    query = select(Promise).where(
        Promise.case_id == case_id, Promise.stored_at.is_(None), Promise.removed_at.is_(None)
    )
    with database.reading() as session:
        return list(session.scalars(query.order_by(Promise.number)))


def released(database: Database, case_id: str, *, reviewer: str, stored_as: Collection[str]) -> Case | None:
    """Ends a release: pict-rs has the picture, and the same bytes pass from now on.

    Args:
        stored_as: SHA-256 of what pict-rs has made of the file, one for each alias that it told of.

    Returns:
        The case; None where a further alias was promised meanwhile, which has to be stored first.

    Raises:
        CaseError: somebody has confirmed it meanwhile.
    """
    with database.writing() as session:
        case = session.get_one(Case, case_id)
        if case.state is CaseState.RELEASED:  # the same release, run twice
            return case
        if case.state is not CaseState.RELEASING:
            raise CaseError(f"{case_id}: is {case.state} by {case.decided_by}, so it cannot be released")
        if any(promise.stored_at is None and promise.removed_at is None for promise in case.promises):
            return None
        _set(session, case, CaseState.RELEASED, reviewer, _facts(case))
        for sha256 in {case.sha256, *stored_as} - {None}:
            known_file = session.get(KnownHash, sha256)
            if known_file is None or known_file.verdict != "block":
                _remember(session, case, str(sha256), "allow", reviewer)
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
        _set(session, case, CaseState.CONFIRMED, reviewer, _facts(case))
        _remember(session, case, sha256, "block", reviewer)
    return case


def seen_since(database: Database, case_id: str, *, pdq: str | None, pdq_quality: int | None) -> None:
    """Notes the perceptual hash of a case that nobody could look at when it was sealed."""
    with database.writing() as session:
        case = session.get_one(Case, case_id)
        case.pdq, case.pdq_quality = pdq, pdq_quality


def check_no_release_since(case: Case, before: datetime) -> None:
    """Says whether a release of `case` may be under way.

    Raises:
        CaseError: one was begun later than `before`.
    """
    if case.state is CaseState.RELEASING and case.decided_at is not None and case.decided_at > before:
        raise CaseError(f"{case.id}: {case.decided_by} is releasing it right now; look again in two minutes")


def viewed(database: Database, case_id: str, *, reviewer: str) -> None:
    """Notes in the ledger that a reviewer looked at a case."""
    with database.writing() as session:
        ledger.append(session, "viewed", actor=reviewer, case_id=case_id)


def known(database: Database, sha256: str) -> tuple[str, str] | None:
    """The verdict on a file with exactly these bytes, and who decided. Every upload asks."""
    with database.reading() as session:
        row = session.execute(_KNOWN, {"sha256": sha256}).first()
        return None if row is None else (row.verdict, row.added_by)


def _check_undecided(case: Case) -> None:
    if case.state in _DECIDED:
        raise CaseError(f"{case.id}: is {case.state} already, by {case.decided_by}")


def _facts(case: Case) -> dict[str, Any]:
    return {"sha256": case.sha256, "aliases": [promise.alias for promise in case.promises]}


def _set(session: Session, case: Case, to: CaseState, reviewer: str, facts: dict[str, Any]) -> None:
    """State and ledger change together."""
    case.state, case.decided_at, case.decided_by = to, datetime.now(UTC), reviewer
    ledger.append(session, to.value, actor=reviewer, case_id=case.id, facts=facts)


def _remember(session: Session, case: Case, sha256: str, verdict: str, reviewer: str) -> None:
    session.merge(
        KnownHash(
            sha256=sha256, verdict=verdict, case_id=case.id, added_at=case.decided_at, added_by=reviewer
        )
    )
