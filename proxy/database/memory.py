"""The memory of decisions: which files are known by their exact bytes, which pictures by their looks."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import CompoundSelect, bindparam, func, null, select, union_all
from sqlalchemy.orm import Session

from proxy.database.engine import Database
from proxy.database.models import Case, HashList, KnownHash, KnownPicture, ListedHash
from proxy.pdq import tells

_ROWS = 20_000  # read at once

_EXACTLY: CompoundSelect[Any] = union_all(
    select(
        KnownHash.verdict,
        KnownHash.added_by.label("by"),
        KnownHash.case_id,
        null().label("list_name"),
    ).where(KnownHash.sha256 == bindparam("hexadecimal")),
    select(HashList.verdict, HashList.added_by, null(), HashList.name)
    .join(ListedHash, ListedHash.list_number == HashList.number)
    .where(ListedHash.sha256 == bindparam("raw"), HashList.removed_at.is_(None)),
)
_STANDING = select(
    select(func.max(KnownPicture.number)).scalar_subquery(),
    select(func.count()).where(HashList.removed_at.is_not(None)).scalar_subquery(),
)
_OF_PICTURES = select(
    KnownPicture.number,
    func.coalesce(HashList.verdict, "block").label("verdict"),
    func.coalesce(HashList.added_by, KnownPicture.added_by).label("by"),
    KnownPicture.case_id,
    HashList.name.label("list_name"),
).outerjoin(HashList, HashList.number == KnownPicture.list_number)


@dataclass(frozen=True, slots=True)
class Remembered:
    """An earlier decision.

    Attributes:
        verdict: `block`, `allow` or `hold`.
        by: who decided, or imported the list.
        case_id: that was decided; None where it is a list's.
        list_name: on which it stands; None where it is a case's.
    """

    verdict: str
    by: str | None
    case_id: str | None
    list_name: str | None


# Of several decisions about the same bytes: what is refused is refused, and a human's word about this very
# file goes before a list that only suspects it.
_STRENGTH = {"hold": 0, "allow": 1, "block": 2}


def exactly(database: Database, sha256: str) -> Remembered | None:
    """What was decided about a file with exactly these bytes. Every upload asks.

    Args:
        sha256: lower-case hexadecimal.
    """
    with database.reading() as session:
        rows = session.execute(_EXACTLY, {"hexadecimal": sha256, "raw": bytes.fromhex(sha256)}).all()
    found = [Remembered(row.verdict, row.by, row.case_id, row.list_name) for row in rows]
    return max(found, key=lambda one: (_STRENGTH[one.verdict], one.case_id is not None), default=None)


def among(database: Database, sha256: Collection[str]) -> set[str]:
    """Those of many files about which `exactly` knows something."""
    raw = [bytes.fromhex(one) for one in sha256]
    listed = (
        select(ListedHash.sha256)
        .join(HashList, ListedHash.list_number == HashList.number)
        .where(ListedHash.sha256.in_(raw), HashList.removed_at.is_(None))
    )
    with database.reading() as session:
        known = set(session.scalars(select(KnownHash.sha256).where(KnownHash.sha256.in_(sha256))))
        return known | {one.hex() for one in session.scalars(listed)}


def standing(database: Database) -> tuple[int, int]:
    """What changes whenever a picture becomes known or is forgotten: the last number, the lists removed."""
    with database.reading() as session:
        last, removed = session.execute(_STANDING).one()
        return last or 0, removed


def pictures(database: Database, *, after: int, up_to: int) -> Iterator[tuple[Sequence[int], bytes]]:
    """Numbers and PDQ hashes (32 bytes each) of known pictures, some thousands at once, in their order.

    Those of lists that were removed are not among them.
    """
    query = (
        select(KnownPicture.number, KnownPicture.pdq)
        .outerjoin(HashList, HashList.number == KnownPicture.list_number)
        .where(KnownPicture.number <= up_to, HashList.removed_at.is_(None))
        .order_by(KnownPicture.number)
        .limit(_ROWS)
    )
    while True:
        with database.reading() as session:
            # Not `session.execute`: of a million rows, each would be looked at by the ORM.
            rows = session.connection().execute(query.where(KnownPicture.number > after)).all()
        if not rows:
            return
        numbers, hashes = zip(*rows, strict=True)
        yield numbers, b"".join(hashes)
        after = numbers[-1]


def of_pictures(database: Database, numbers: Sequence[int]) -> dict[int, Remembered]:
    """What was decided about known pictures; those that are known no more are left out."""
    query = _OF_PICTURES.where(KnownPicture.number.in_(numbers), HashList.removed_at.is_(None))
    with database.reading() as session:
        return {
            row.number: Remembered(row.verdict, row.by, row.case_id, row.list_name)
            for row in session.execute(query)
        }


def remember_picture(session: Session, case: Case, *, by: str | None) -> None:
    """What looks like a confirmed case is known from now on, once; not where it is too flat to be told.

    Args:
        by: who has confirmed it.
    """
    if not tells(case.pdq, case.pdq_quality):
        return
    known = select(KnownPicture.number).where(KnownPicture.case_id == case.id)
    if session.scalars(known).first() is None:
        session.add(KnownPicture(pdq=bytes.fromhex(str(case.pdq)), case_id=case.id, added_by=by))
