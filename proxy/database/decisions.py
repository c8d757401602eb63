"""Decisions about cases: state, memory of hashes and ledger change together, as `proxy.cases.life` allows."""

from __future__ import annotations

from collections.abc import Collection
from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy import select, update
from sqlalchemy.orm import Session

from proxy.cases import life
from proxy.cases.life import RELEASE_S, Act, Actor, CaseState, Standing
from proxy.database import cases, ledger, memory, promising
from proxy.database.engine import Database
from proxy.database.models import Case, KnownHash, UnseenUpload
from proxy.errors import CaseError, ConfirmedMeanwhile, StoredMeanwhile

_MOST_OVERTAKEN = 100_000  # seen to at once

GATE = "gate"  # in `decided_by` and in the ledger, where no human was; no reviewer may have that name


def check(database: Database, case_id: str, act: Act) -> Case:
    """The case with that id, if a reviewer may do `act` to it now.

    Raises:
        CaseError: there is none, or it is not allowed.
    """
    case = cases.get(database, case_id)
    allowed(case, act, Actor.REVIEWER, confirmed_elsewhere=is_confirmed(database, case))
    return case


def is_confirmed(database: Database, case: Case) -> bool:
    """Whether a case's bytes were confirmed, in whatever case."""
    with database.reading() as session:
        return _is_blocked(session, case.sha256)


def releasing(database: Database, case_id: str, *, by: str, sha256: str) -> tuple[Case, bool]:
    """Begins a release, before pict-rs is sent anything. May be begun again, after a crash say.

    Args:
        by: a reviewer's name, or `GATE`.
        sha256: of the original; an adopted case learns it here.

    Returns:
        The case, and whether an earlier attempt may have stored something already.

    Raises:
        CaseError: it is decided already, or the same file was confirmed.
    """
    with database.writing() as session:
        case = session.get_one(Case, case_id)
        return case, begin_release(session, case, by=by, sha256=sha256)


def begin_release(session: Session, case: Case, *, by: str, sha256: str) -> bool:
    """What `releasing` does, in a transaction of the caller's.

    Returns:
        Whether an earlier attempt may have stored something already.

    Raises:
        CaseError: as of `releasing`.
    """
    is_repeated = case.state is CaseState.RELEASING
    to = allowed(case, Act.BEGIN_RELEASE, actor_of(by))
    known_file = session.get(KnownHash, sha256)
    if known_file is not None and known_file.verdict == "block":
        raise CaseError(
            f"{case.id}: the same file was confirmed by {known_file.added_by} "
            f"in case {known_file.case_id}, so it cannot be released"
        )
    if not is_repeated and any(promise.stored_at for promise in case.promises):
        raise CaseError(f"{case.id}: it is just being taken away from pict-rs; try again in two minutes")
    if any(upload.done_at is None for upload in _passed_unseen(session, case)):
        raise CaseError(f"{case.id}: it is just being taken away from pict-rs; try again in two minutes")
    case.sha256 = sha256
    move(session, case, to, by, _facts(case))
    return is_repeated


def released(database: Database, case_id: str, *, by: str, stored_as: Collection[str]) -> Case | None:
    """Ends a release: pict-rs has the picture. After a reviewer's, the same bytes pass from now on.

    Args:
        by: a reviewer's name, or `GATE`, which remembers nothing: it has only looked.
        stored_as: SHA-256 of what pict-rs has made of the file, one for each alias that it told of.

    Returns:
        The case; None where a further alias was promised meanwhile, which has to be stored first.

    Raises:
        ConfirmedMeanwhile: the same file, or what pict-rs has made of it, was confirmed in another case; what
            is stored has to be taken back.
        CaseError: somebody has confirmed it meanwhile.
    """
    with database.writing() as session:
        case = session.get_one(Case, case_id)
        if case.state is CaseState.RELEASED:  # the same release, run twice
            return case
        to = allowed(case, Act.END_RELEASE, actor_of(by))
        if any(promise.stored_at is None and promise.removed_at is None for promise in case.promises):
            return None
        if _is_blocked(session, case.sha256, *stored_as):
            raise ConfirmedMeanwhile(f"{case_id}: the same file has just been confirmed in another case")
        case.stored_as = sorted({*(case.stored_as or ()), *stored_as})
        move(session, case, to, by, _facts(case))
        if actor_of(by) is Actor.REVIEWER:
            for sha256 in {case.sha256, *stored_as} - {None}:
                _remember(session, case, str(sha256), "allow", by)
    return case


def not_released(database: Database, case_id: str, *, by: str, reason: str) -> None:
    """Takes back the beginning of a release that pict-rs has refused: a human has to decide anew.

    The gate takes back only what it has begun itself.
    """
    with database.writing() as session:
        case = session.get_one(Case, case_id)
        if case.state is CaseState.RELEASING and (by != GATE or case.decided_by == GATE):
            to = allowed(case, Act.TAKE_BACK, actor_of(by))
            move(session, case, to, by, {"release refused": reason})
            case.decided_at = case.decided_by = None


def confirming(database: Database, case_id: str, *, by: str, stored_as: Collection[str]) -> list[str]:
    """A confirmation is about to take away what pict-rs has of a case; cut off, it is to be repeated.

    From here on what pict-rs had is known although pict-rs cannot be asked any more, and the period of a
    release begins anew, so that the case does not expire meanwhile.

    Args:
        stored_as: as of `confirmed`.

    Returns:
        The aliases that pict-rs may have.

    Raises:
        CaseError: it is decided already, or being released.
    """
    with database.writing() as session:
        case = session.get_one(Case, case_id)
        elsewhere = _is_blocked(session, case.sha256)
        allowed(case, Act.CONFIRM, actor_of(by), confirmed_elsewhere=elsewhere)
        case.stored_as = sorted({*(case.stored_as or ()), *stored_as})
        if case.state is CaseState.RELEASED:
            case.decided_at = datetime.now(UTC)
        return promising.take_back(case)


def confirmed(
    database: Database, case_id: str, *, by: str, sha256: str, stored_as: Collection[str] = ()
) -> tuple[Case, list[Case]]:
    """A human's decision that a case is what it was held for: the same bytes are refused from now on.

    What the gate has released of the same bytes by itself is confirmed with it: no human has said otherwise.

    Args:
        sha256: of the original; an adopted case learns it here.
        stored_as: SHA-256 of what pict-rs has made of it, where it had it, beside those of `confirming`.

    Returns:
        The case, and others of the same file that pict-rs has still and must lose now.

    Raises:
        StoredMeanwhile: pict-rs has it; take it away there first, then ask again.
        CaseError: it is decided already, or being released.
    """
    with database.writing() as session:
        case = session.get_one(Case, case_id)
        elsewhere = _is_blocked(session, case.sha256)
        to = allowed(case, Act.CONFIRM, actor_of(by), confirmed_elsewhere=elsewhere)
        if any(promise.stored_at for promise in case.promises):
            raise StoredMeanwhile(f"{case_id}: has just been stored in pict-rs; try again")
        case.sha256 = sha256
        # However long ago it was: an import that nobody heard of any more may end at any later moment.
        if case.state is CaseState.RELEASING or any(promise.sent_at for promise in case.promises):
            case.overtaken_at = datetime.now(UTC)
        move(session, case, to, by, _facts(case))
        unseen = {upload.sha256 for upload in _passed_unseen(session, case)}
        for known in {sha256, *stored_as, *(case.stored_as or ()), *unseen}:
            _remember(session, case, known, "block", by)
        _refuse_what_was_released(session, case, by)
        memory.remember_picture(session, case, by=by)
        with_it = _confirmed_with(session, case, by)
    return case, with_it


def seen_since(database: Database, case_id: str, *, pdq: str | None, pdq_quality: int | None) -> None:
    """Notes the perceptual hash of a case that nobody could look at when it was sealed."""
    with database.writing() as session:
        case = session.get_one(Case, case_id)
        case.pdq, case.pdq_quality = pdq, pdq_quality
        if case.state in (CaseState.CONFIRMED, CaseState.REPORTED):
            memory.remember_picture(session, case, by=case.decided_by)


def standing_of(case: Case, *, period_over: bool = False, confirmed_elsewhere: bool = False) -> Standing:
    """What decides which acts are allowed on a case."""
    young = datetime.now(UTC) - timedelta(seconds=RELEASE_S)
    return Standing(
        case.state,
        by_gate=case.decided_by == GATE,
        may_be_under_way=case.decided_at is not None and case.decided_at > young,
        confirmed_elsewhere=confirmed_elsewhere,
        legal_hold=case.hold_at is not None,
        period_over=period_over,
    )


def overtaken(database: Database) -> list[tuple[str, datetime]]:
    """Ids of confirmed cases of which a release may still store something, and since when."""
    query = select(Case.id, Case.overtaken_at).where(Case.overtaken_at.is_not(None)).limit(_MOST_OVERTAKEN)
    with database.reading() as session:
        return [(case_id, since) for case_id, since in session.execute(query) if since is not None]


def not_overtaken_any_more(database: Database, case_id: str) -> None:
    """Nothing of a confirmed case can come to pict-rs any more."""
    with database.writing() as session:
        session.get_one(Case, case_id).overtaken_at = None


def allowed(
    case: Case, act: Act, actor: Actor, *, period_over: bool = False, confirmed_elsewhere: bool = False
) -> CaseState:
    """The state that an act leads to; to be asked in the transaction that then moves the case there.

    Raises:
        CaseError: it is not allowed; the message names the case and says why.
    """
    try:
        standing = standing_of(case, period_over=period_over, confirmed_elsewhere=confirmed_elsewhere)
        return life.after(standing, act, actor)
    except CaseError as error:
        by = f", by {case.decided_by}" if case.decided_by else ""
        raise CaseError(f"{case.id}: {error}{by}") from None


def actor_of(by: str) -> Actor:
    """Who it is that goes by that name."""
    return Actor.GATE if by == GATE else Actor.REVIEWER


def _passed_unseen(session: Session, case: Case) -> list[UnseenUpload]:
    """The uploads that the case was made of after they had passed unseen."""
    return list(session.scalars(select(UnseenUpload).where(UnseenUpload.case_id == case.id)))


def _facts(case: Case) -> dict[str, Any]:
    return {"sha256": case.sha256, "aliases": [promise.alias for promise in case.promises]}


def move(session: Session, case: Case, to: CaseState, by: str, facts: dict[str, Any]) -> None:
    """Changes state and ledger together; `to` is what `allowed` has said."""
    case.state, case.decided_at, case.decided_by = to, datetime.now(UTC), by
    ledger.append(session, to.value, actor=by, case_id=case.id, facts=facts)


def _is_blocked(session: Session, *sha256: str | None) -> bool:
    """Whether a human has confirmed one of these files."""
    query = select(KnownHash.sha256).where(KnownHash.sha256.in_(sha256), KnownHash.verdict == "block")
    return session.scalars(query).first() is not None


def _refuse_what_was_released(session: Session, case: Case, by: str) -> None:
    """Whatever a reviewer's release of the same file lets pass, in pict-rs's rewriting too, is refused."""
    same_file = select(Case.id).where(Case.sha256 == case.sha256)
    session.execute(
        update(KnownHash)
        .where(KnownHash.verdict == "allow", KnownHash.case_id.in_(same_file))
        .values(verdict="block", case_id=case.id, added_at=case.decided_at, added_by=by)
    )


def _confirmed_with(session: Session, case: Case, by: str) -> list[Case]:
    """Confirms what the gate has released of the same bytes; what has expired is only taken away."""
    query = select(Case).where(
        *(Case.sha256 == case.sha256, Case.id != case.id, Case.decided_by == GATE),
        Case.state.in_((CaseState.RELEASED, CaseState.EXPIRED)),
    )
    found = []
    for one in session.scalars(query.order_by(Case.created_at, Case.id)).all():
        facts = {**_facts(one), "same file as": case.id}
        if one.state is CaseState.RELEASED:
            move(session, one, allowed(one, Act.CONFIRM, actor_of(by)), by, facts)
            memory.remember_picture(session, one, by=by)
        elif any(promise.is_in_pictrs for promise in one.promises):
            ledger.append(session, "taken from pict-rs", actor=by, case_id=one.id, facts=facts)
        else:
            continue
        for known in one.stored_as or ():
            _remember(session, case, known, "block", by)
        one.overtaken_at = datetime.now(UTC)
        found.append(one)
    return found


def _remember(session: Session, case: Case, sha256: str, verdict: str, by: str) -> None:
    session.merge(
        KnownHash(sha256=sha256, verdict=verdict, case_id=case.id, added_at=case.decided_at, added_by=by)
    )
