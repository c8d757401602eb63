"""The life of a case, transition by transition, and the table in the documentation."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest

from proxy.cases.life import TABLE, Act, Actor, CaseState, Standing, Transition, after
from proxy.errors import CaseError

D, P, G, R, C, T, E = CaseState  # deferred, pending, releasing, released, confirmed, reported, expired
BY_GATE = {"by_gate": True}

# Every act by everybody who may do it, in every state from which it leads, with what has to be true besides.
ALLOWED: list[tuple[Act, Actor, CaseState, dict[str, bool], CaseState]] = [
    (Act.SUSPECT, Actor.GATE, D, {}, P),
    (Act.BEGIN_RELEASE, Actor.GATE, D, {}, G),
    (Act.BEGIN_RELEASE, Actor.GATE, G, BY_GATE, G),
    (Act.BEGIN_RELEASE, Actor.REVIEWER, D, {}, G),
    (Act.BEGIN_RELEASE, Actor.REVIEWER, P, {}, G),
    (Act.BEGIN_RELEASE, Actor.REVIEWER, G, {}, G),
    (Act.END_RELEASE, Actor.GATE, G, BY_GATE, R),
    (Act.END_RELEASE, Actor.REVIEWER, G, {}, R),
    (Act.TAKE_BACK, Actor.GATE, G, BY_GATE, P),
    (Act.TAKE_BACK, Actor.REVIEWER, G, {}, P),
    (Act.CONFIRM, Actor.REVIEWER, D, {}, C),
    (Act.CONFIRM, Actor.REVIEWER, P, {}, C),
    (Act.CONFIRM, Actor.REVIEWER, G, {}, C),
    (Act.CONFIRM, Actor.REVIEWER, R, BY_GATE, C),
    (Act.CONFIRM, Actor.REVIEWER, R, {"confirmed_elsewhere": True}, C),
    (Act.REPORT, Actor.REVIEWER, C, {}, T),
    (Act.EXPIRE, Actor.RETENTION, R, {"period_over": True}, E),
    (Act.EXPIRE, Actor.RETENTION, C, {"period_over": True}, E),
    (Act.EXPIRE, Actor.RETENTION, T, {"period_over": True}, E),
]


@pytest.mark.parametrize(("act", "actor", "state", "besides", "to"), ALLOWED)
def test_what_is_allowed_leads_where_the_table_says(
    act: Act, actor: Actor, state: CaseState, besides: dict[str, bool], to: CaseState
) -> None:
    assert after(Standing(state, **besides), act, actor) is to


def test_nothing_else_is_allowed() -> None:
    possible = {(act, actor, state) for act, actor, state, _, _ in ALLOWED}
    everything = {"by_gate": True, "period_over": True}
    for act, actor, state in itertools.product(Act, Actor, CaseState):
        if (act, actor, state) in possible:
            continue
        with pytest.raises(CaseError):
            after(Standing(state, **everything), act, actor)


@pytest.mark.parametrize(
    ("act", "actor", "standing"),
    [
        (Act.BEGIN_RELEASE, Actor.GATE, Standing(G)),  # a human's, which did not end
        (Act.END_RELEASE, Actor.GATE, Standing(G)),
        (Act.BEGIN_RELEASE, Actor.REVIEWER, Standing(G, by_gate=True, may_be_under_way=True)),
        (Act.CONFIRM, Actor.REVIEWER, Standing(G, may_be_under_way=True)),
        (Act.CONFIRM, Actor.REVIEWER, Standing(R)),  # a human's
        *(
            (Act.EXPIRE, Actor.RETENTION, Standing(state, legal_hold=True, period_over=True))
            for state in (R, C, T)
        ),
        *((Act.EXPIRE, Actor.RETENTION, Standing(state)) for state in (R, C, T)),
    ],
)
def test_what_the_row_allows_may_still_be_refused(act: Act, actor: Actor, standing: Standing) -> None:
    with pytest.raises(CaseError):
        after(standing, act, actor)


def test_a_release_is_never_refused_for_being_young_to_the_one_who_repeats_it() -> None:
    assert after(Standing(G, may_be_under_way=True), Act.BEGIN_RELEASE, Actor.REVIEWER) is G
    assert after(Standing(G, by_gate=True, may_be_under_way=True), Act.BEGIN_RELEASE, Actor.GATE) is G


def row(one: Transition) -> str:
    def names(some: object) -> str:
        return ", ".join(f"`{state}`" for state in CaseState if state in some)  # type: ignore[operator]

    who = ", ".join(actor.value for actor in Actor if actor in one.who)
    cells = [
        one.act.value,
        names(one.before),
        f"`{one.after}`",
        who,
        one.means,
        one.pictrs,
        one.memory,
        one.sealed,
    ]
    return f"| {' | '.join(cells)} |"


def test_the_documentation_shows_the_table() -> None:
    text = (Path(__file__).parent.parent / "docs" / "cases.md").read_text()
    shown = text.partition("| act |")[2].partition("\n\n")[0].splitlines()[2:]
    assert shown == [row(one) for one in TABLE]
