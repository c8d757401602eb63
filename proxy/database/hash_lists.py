"""Lists of hashes that an operator imports and removes, in steps so short that no upload waits for them."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, TypeVar, cast

from sqlalchemy import ColumnElement, Table, and_, delete, func, select
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.orm import InstrumentedAttribute, Session

from proxy.database import ledger
from proxy.database.engine import Database
from proxy.database.models import HashList, KnownHash, KnownPicture, ListedHash
from proxy.errors import HashesError

STEP = 10_000  # hashes that are added, or read, at once; 0.1 s
_PARTS = 64  # in which a list is deleted
# After each step. Whoever waits for SQLite's lock looks every 0.1 s, and would else find it taken again.
_PAUSE_S = 0.02


@dataclass(frozen=True, slots=True)
class Sizes:
    """How many hashes there are of each kind."""

    sha256: int
    pdq: int


def begin_import(
    database: Database, name: str, verdict: str | None, *, by: str, facts: dict[str, Any]
) -> HashList:
    """The list to import into, made where there is none; the ledger says that it has begun.

    Args:
        verdict: `block` or `hold`; None for that of the list, `block` for a new one.

    Raises:
        HashesError: the list is there with another verdict.
    """
    with database.writing() as session:
        found = _named(session, name)
        if found is not None and verdict not in (None, found.verdict):
            raise HashesError(
                f"{name}: is there with the verdict {found.verdict}; "
                "remove it first (`pictrs-gate hashes remove`), or name another list"
            )
        if found is None:
            found = HashList(name=name, verdict=verdict or "block", added_at=datetime.now(UTC), added_by=by)
            session.add(found)
        facts = {"list": name, "verdict": found.verdict, **facts}
        ledger.append(session, "hashes import begun", actor=by, facts=facts)
    return found


def add(database: Database, into: HashList, kind: str, hashes: Sequence[bytes]) -> None:
    """Adds hashes of 32 bytes to a list; what is on it stays. Best sorted, so that pages are met once.

    Blocks for a moment more, so that others get their turn.

    Args:
        kind: `sha256` or `pdq`.

    Raises:
        HashesError: somebody has removed the list meanwhile.
    """
    with database.writing() as session:
        if session.get_one(HashList, into.number).removed_at is not None:
            raise HashesError(f"{into.name}: was removed meanwhile")
        table = cast(Table, (ListedHash if kind == "sha256" else KnownPicture).__table__)
        connection = session.connection()
        insert = postgresql.insert if connection.dialect.name == "postgresql" else sqlite.insert
        made = (
            insert(table)
            .on_conflict_do_nothing()
            .inline()
            .compile(dialect=connection.dialect, column_keys=[kind, "list_number"])
        )
        # Past SQLAlchemy's own handling of parameters, which takes four times as long as the database does.
        number = into.number
        if made.positiontup is None:
            connection.exec_driver_sql(str(made), [{kind: one, "list_number": number} for one in hashes])
        else:
            assert list(made.positiontup) == [kind, "list_number"]
            connection.exec_driver_sql(str(made), [(one, number) for one in hashes])
    time.sleep(_PAUSE_S)


def end_import(database: Database, *, by: str, facts: dict[str, Any]) -> None:
    """Tells the ledger what has come of an import."""
    with database.writing() as session:
        ledger.append(session, "hashes imported", actor=by, facts=facts)


def listed(database: Database) -> list[tuple[HashList, Sizes]]:
    """All lists by name, and how large they are. Counts, so a million hashes take a while."""
    query = select(HashList).where(HashList.removed_at.is_(None)).order_by(HashList.name)
    with database.reading() as session:
        lists = list(session.scalars(query))
        sha256, pdq = (
            dict(session.execute(select(column, func.count()).group_by(column)).all())
            for column in (ListedHash.list_number, KnownPicture.list_number)
        )
    return [(one, Sizes(sha256.get(one.number, 0), pdq.get(one.number, 0))) for one in lists]


def size(database: Database, of: HashList) -> Sizes:
    """How large one list is."""
    with database.reading() as session:
        return Sizes(
            *(
                session.scalar(select(func.count()).where(model.list_number == of.number)) or 0
                for model in (ListedHash, KnownPicture)
            )
        )


def decided(database: Database) -> dict[str, int]:
    """How many hashes are known by decisions: `block` and `allow` by SHA-256, `pdq` by looks."""
    by_verdict = select(KnownHash.verdict, func.count()).group_by(KnownHash.verdict)
    with database.reading() as session:
        pictures = session.scalar(select(func.count()).where(KnownPicture.list_number.is_(None)))
        return {"block": 0, "allow": 0, **dict(session.execute(by_verdict).all()), "pdq": pictures or 0}


def exported(database: Database, name: str | None) -> Iterator[tuple[str, str]]:
    """Kind and hash (hexadecimal) of a list's hashes, or of all that was confirmed where `name` is None.

    What was released is not exported: elsewhere a list has one verdict.

    Raises:
        HashesError: there is no such list.
    """
    number = None if name is None else named(database, name).number
    if number is None:
        yield from (
            ("sha256", value)
            for value in _paged(database, KnownHash.sha256, KnownHash.verdict == "block", "")
        )
    else:
        for value in _paged(database, ListedHash.sha256, ListedHash.list_number == number, b""):
            yield "sha256", value.hex()
    of_list = KnownPicture.list_number == number  # IS NULL where it is None
    for value in _paged(database, KnownPicture.pdq, of_list, b""):
        yield "pdq", value.hex()


def named(database: Database, name: str) -> HashList:
    """The list of that name.

    Raises:
        HashesError: there is none.
    """
    with database.reading() as session:
        found = _named(session, name)
    if found is None:
        raise HashesError(f"{name}: no such list; `pictrs-gate hashes list` shows them")
    return found


def remove(database: Database, name: str, *, by: str) -> Sizes:
    """Removes a list: from the first commit on it has no effect. Then its hashes are deleted, bit by bit.

    Returns:
        How large it was.

    Raises:
        HashesError: there is no such list.
    """
    counted = size(database, named(database, name))
    with database.writing() as session:
        found = _named(session, name)
        if found is None:
            raise HashesError(f"{name}: was removed meanwhile")
        found.removed_at = datetime.now(UTC)
        facts = {"list": name, "verdict": found.verdict, "sha256": counted.sha256, "pdq": counted.pdq}
        ledger.append(session, "hashes removed", actor=by, facts=facts)
    sweep(database)
    return counted


def sweep(database: Database) -> None:
    """Deletes what is left of lists that were removed, by this command or by one that did not end."""
    removed = select(HashList.number).where(HashList.removed_at.is_not(None))
    for part in range(_PARTS):
        first, next_ = (
            bytes([value * (256 // _PARTS)]) if value < _PARTS else None for value in (part, part + 1)
        )
        with database.writing() as session:
            for model, column in ((ListedHash, ListedHash.sha256), (KnownPicture, KnownPicture.pdq)):
                within = column >= first if next_ is None else and_(column >= first, column < next_)
                session.execute(
                    delete(model).where(model.list_number.in_(removed), within),
                    execution_options={"synchronize_session": False},
                )
        time.sleep(_PAUSE_S)


def _named(session: Session, name: str) -> HashList | None:
    query = select(HashList).where(HashList.name == name, HashList.removed_at.is_(None))
    return session.scalars(query).first()


_Key = TypeVar("_Key", str, bytes)


def _paged(
    database: Database, column: InstrumentedAttribute[_Key], condition: ColumnElement[bool], first: _Key
) -> Iterator[_Key]:
    """Every value of a column once, in order, read some thousands at once."""
    query = select(column).where(condition).order_by(column).limit(STEP).distinct()
    while True:
        with database.reading() as session:
            values = session.scalars(query.where(column > first)).all()
        if not values:
            return
        yield from values
        first = values[-1]
