"""The life of a case: which act leads from which state to which, who may do it, and what it does elsewhere.

One table and one pure function. Whatever changes a case's state asks `after` first, inside the transaction
that changes it; `docs/cases.md` shows the same table, and a test holds the two together.
"""

from __future__ import annotations

import enum
from collections.abc import Set
from dataclasses import dataclass

from proxy.errors import CaseError

# After this, whoever began a release is gone: pict-rs is given `pictrs.timeout_s` for it, 30 s by default.
RELEASE_S = 120.0


class CaseState(enum.StrEnum):
    """Where a case stands in its life."""

    DEFERRED = "deferred"  # nobody could look
    PENDING = "pending"  # somebody has to look
    RELEASING = "releasing"  # harmless; pict-rs is about to have it, or has it
    RELEASED = "released"  # harmless, and stored
    CONFIRMED = "confirmed"  # a human said: this is it
    REPORTED = "reported"  # a human has told an authority
    EXPIRED = "expired"  # its bytes are gone, by a rule that the admin has set; what was decided stays


class Actor(enum.StrEnum):
    """Who acts on a case."""

    GATE = "gate"  # the program by itself, after it has looked
    REVIEWER = "reviewer"
    RETENTION = "retention"  # the rule that the admin has set


class Act(enum.StrEnum):
    """What is done to a case."""

    SUSPECT = "suspect"
    BEGIN_RELEASE = "begin release"
    END_RELEASE = "end release"
    TAKE_BACK = "take back"
    CONFIRM = "confirm"
    REPORT = "report"
    EXPIRE = "expire"


@dataclass(frozen=True, slots=True)
class Transition:
    """One row of the table.

    Attributes:
        before: the states from which it leads.
        who: may do it.
        means: when it is done.
        pictrs, memory, sealed: what it does to pict-rs, to the memory of hashes, to the sealed bytes.
            The ledger gets an entry named after the state that it leads to, with who and why.
    """

    act: Act
    before: Set[CaseState]
    after: CaseState
    who: Set[Actor]
    means: str
    pictrs: str = "—"
    memory: str = "—"
    sealed: str = "kept"


_S, _A = CaseState, Actor
TABLE: tuple[Transition, ...] = (
    Transition(
        Act.SUSPECT,
        {_S.DEFERRED},
        _S.PENDING,
        {_A.GATE},
        "the gate has looked, and it is not harmless; or it cannot be looked at",
        sealed="sealed again, to the reviewers alone",
    ),
    Transition(
        Act.BEGIN_RELEASE,
        {_S.DEFERRED, _S.PENDING, _S.RELEASING},
        _S.RELEASING,
        {_A.GATE, _A.REVIEWER},
        "harmless: by the gate only what was deferred; a release that did not end may be begun again",
        pictrs="is sent the picture under every alias",
    ),
    Transition(
        Act.END_RELEASE,
        {_S.RELEASING},
        _S.RELEASED,
        {_A.GATE, _A.REVIEWER},
        "pict-rs has the picture under every alias",
        pictrs="shows the picture",
        memory="by a reviewer: the same bytes pass, as uploaded and as stored",
    ),
    Transition(
        Act.TAKE_BACK,
        {_S.RELEASING},
        _S.PENDING,
        {_A.GATE, _A.REVIEWER},
        "pict-rs has refused it, or the same bytes were confirmed in another case meanwhile",
        pictrs="loses what it was sent, before",
    ),
    Transition(
        Act.CONFIRM,
        {_S.DEFERRED, _S.PENDING, _S.RELEASING, _S.RELEASED},
        _S.CONFIRMED,
        {_A.REVIEWER},
        "this is it: also what the gate released by itself; what a reviewer released only where the same "
        "bytes were confirmed in another case",
        pictrs="loses what it was sent, before",
        memory="the same bytes are refused, what looks alike is held",
    ),
    Transition(
        Act.REPORT,
        {_S.CONFIRMED},
        _S.REPORTED,
        {_A.REVIEWER},
        "a human has told an authority, and notes its reference; the period begins anew",
    ),
    Transition(
        Act.EXPIRE,
        {_S.RELEASED, _S.CONFIRMED, _S.REPORTED},
        _S.EXPIRED,
        {_A.RETENTION},
        "its period is over, and no legal hold is on it",
        memory="stays",
        sealed="deleted",
    ),
)
_ROWS = {row.act: row for row in TABLE}


@dataclass(frozen=True, slots=True)
class Standing:
    """What decides whether an act is allowed.

    Attributes:
        state: where the case stands.
        by_gate: whether it was the gate itself that released it, or is doing so.
        may_be_under_way: whether a release was begun so lately that pict-rs may still be sent something.
        confirmed_elsewhere: whether the same bytes were confirmed in another case.
        legal_hold: whether it must not expire, whatever its period says.
        period_over: whether the period of its state has passed.
    """

    state: CaseState
    by_gate: bool = False
    may_be_under_way: bool = False
    confirmed_elsewhere: bool = False
    legal_hold: bool = False
    period_over: bool = False


def after(standing: Standing, act: Act, actor: Actor) -> CaseState:
    """The state that an act leads to.

    Raises:
        CaseError: the act is not allowed; the message says why, and does not name the case.
    """
    row = _ROWS[act]
    if actor not in row.who:
        raise CaseError(f"{act} is for {' or '.join(sorted(row.who))}, not for {actor}")
    if standing.state not in row.before:
        raise CaseError(f"is {standing.state} already")
    if (why := _objection(standing, act, actor)) is not None:
        raise CaseError(why)
    return row.after


def _objection(standing: Standing, act: Act, actor: Actor) -> str | None:
    """Why an act that its row allows is not allowed now."""
    under_way = standing.state is CaseState.RELEASING and standing.may_be_under_way
    match act:
        case Act.BEGIN_RELEASE if actor is Actor.GATE:
            if standing.state is CaseState.PENDING or (
                standing.state is CaseState.RELEASING and not standing.by_gate
            ):
                return "is a human's to decide"
        case Act.END_RELEASE if actor is Actor.GATE and not standing.by_gate:
            return "is a human's to decide"
        case Act.BEGIN_RELEASE if under_way and standing.by_gate:
            return "the gate is releasing it right now; look again in two minutes"
        case Act.CONFIRM if under_way:
            return "a release of it is under way; look again in two minutes"
        case Act.CONFIRM if standing.state is CaseState.RELEASED and not (
            standing.by_gate or standing.confirmed_elsewhere
        ):
            return "is released already"
        case Act.EXPIRE if standing.legal_hold:
            return "is under legal hold"
        case Act.EXPIRE if not standing.period_over:
            return "its period is not over"
        case _:
            pass
    return None
