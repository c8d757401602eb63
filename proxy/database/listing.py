"""Which cases a reviewer asks for, and in which order. Few at a time: a page of many must come at once."""

from __future__ import annotations

import enum
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any

from sqlalchemy import ColumnElement, Select, func, select, union_all
from sqlalchemy.orm import selectinload

from proxy.aliases import alias_key
from proxy.cases.life import CaseState
from proxy.database.engine import Database
from proxy.database.models import Case, Promise


class Order(enum.StrEnum):
    """What comes first. `signal:NAME` is an order too, see `page`."""

    NEWEST = "newest"
    OLDEST = "oldest"
    LARGEST = "largest"
    DECIDED = "decided"  # lately


@dataclass(frozen=True, slots=True)
class Filter:
    """Cases that meet all of it; what is empty or None asks for nothing.

    Attributes:
        states: one of them.
        since, until: uploaded at that moment or after it, before that moment.
        rule: the name of the rule that held it.
        signals_at_least: signal to the least that it has to be, 0..1; all of them.
        alias: promised for it, now or once, in any of pict-rs's spellings.
        sha256: of the original.
        under_hold: whether a legal hold is on it.
    """

    states: Collection[CaseState] = ()
    since: datetime | None = None
    until: datetime | None = None
    rule: str | None = None
    signals_at_least: Mapping[str, float] = field(default_factory=dict)
    alias: str | None = None
    sha256: str | None = None
    under_hold: bool | None = None


def page(
    database: Database, wanted: Filter, *, order: str = Order.NEWEST, limit: int = 100, number: int = 1
) -> tuple[list[Case], bool]:
    """One page of the cases that meet a filter.

    Args:
        order: an `Order`, or `signal:NAME`, whose highest values come first.
        limit: cases a page.
        number: of the page, from 1.

    Returns:
        The cases, and whether there are more behind them.
    """
    first, last = (number - 1) * limit, number * limit + 1
    if len(wanted.states) > 1 and order in (Order.NEWEST, Order.OLDEST):
        query = select(Case).where(Case.id.in_(_first_of_each_state(wanted, order, last)))
    else:
        query = select(Case).where(*_meets(wanted))
    query = query.order_by(*_ordered(order)).limit(limit + 1).offset(first)
    # Its case is at hand already.
    query = query.options(selectinload(Case.promises).lazyload(Promise.case))
    with database.reading() as session:
        found = list(session.scalars(query))
    return found[:limit], len(found) > limit


def chosen(database: Database, wanted: Filter) -> list[tuple[str, CaseState]]:
    """Id and state of every case that meets a filter, oldest first: who has waited longest comes first."""
    query = select(Case.id, Case.state).where(*_meets(wanted)).order_by(Case.created_at, Case.id)
    with database.reading() as session:
        return [(row.id, row.state) for row in session.execute(query)]


def states_of(database: Database, ids: Sequence[str]) -> list[tuple[str, CaseState | None]]:
    """The states of the cases with these ids; None where there is no such case."""
    found: dict[str, CaseState] = {}
    with database.reading() as session:
        for start in range(0, len(ids), 500):
            query = select(Case.id, Case.state).where(Case.id.in_(ids[start : start + 500]))
            found.update((row.id, row.state) for row in session.execute(query))
    return [(one, found.get(one)) for one in ids]


def _first_of_each_state(wanted: Filter, order: str, count: int) -> Select[tuple[str]]:
    """The ids of the first `count` of each state: an index has them in order, but not those of several."""
    of_each = [
        select(Case.id)
        .where(*_meets(replace(wanted, states=(state,))))
        .order_by(*_ordered(order))
        .limit(count)
        .subquery()
        for state in wanted.states
    ]
    together = union_all(*(select(one.c.id) for one in of_each)).subquery()
    return select(together.c.id)


def _meets(wanted: Filter) -> list[ColumnElement[bool]]:
    meets: list[ColumnElement[bool]] = []
    if wanted.states:
        one, *others = wanted.states
        meets.append(Case.state.in_(wanted.states) if others else Case.state == one)
    if wanted.since is not None:
        meets.append(Case.created_at >= wanted.since)
    if wanted.until is not None:
        meets.append(Case.created_at < wanted.until)
    if wanted.rule is not None:
        meets.append(Case.rule == wanted.rule[:200])  # as long as the column is
    for name, least in wanted.signals_at_least.items():
        meets.append(_signal(name) >= least)
    if wanted.alias is not None:
        promised = select(Promise.case_id).where(Promise.alias_key == alias_key(wanted.alias))
        meets.append(Case.id.in_(promised))
    if wanted.sha256 is not None:
        meets.append(Case.sha256 == wanted.sha256)
    if wanted.under_hold is not None:
        meets.append(Case.hold_at.is_not(None) if wanted.under_hold else Case.hold_at.is_(None))
    return meets


def _ordered(order: str) -> list[ColumnElement[Any]]:
    newest: list[ColumnElement[Any]] = [Case.created_at.desc(), Case.id.desc()]
    match order:
        case Order.NEWEST:
            return newest
        case Order.OLDEST:
            return [Case.created_at.asc(), Case.id.asc()]
        case Order.LARGEST:
            return [func.coalesce(Case.size, 0).desc(), *newest]
        case Order.DECIDED:
            return [Case.decided_at.is_(None), Case.decided_at.desc(), *newest]
        case _:
            return [func.coalesce(_signal(order.removeprefix("signal:")), -1.0).desc(), *newest]


def _signal(name: str) -> ColumnElement[float]:
    value: ColumnElement[float] = Case.signals[name].as_float()
    return value
