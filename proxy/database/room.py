"""What the sealed files of all cases take, counted; and the salt of the tags of uploaders."""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from sqlalchemy import func, select
from sqlalchemy.exc import IntegrityError

from proxy.cases.life import CaseState
from proxy.database.engine import Database
from proxy.database.models import Case, Salt

_ROWS = 500  # of one question or transaction


@dataclass(frozen=True, slots=True)
class Taken:
    """What the sealed files that the database knows of take.

    Attributes:
        by_uploader: bytes by tag; None for those without.
        recorded: ids of those cases that were asked about which are among them.
    """

    by_uploader: Mapping[str | None, int] = field(default_factory=dict)
    recorded: frozenset[str] = frozenset()


def taken(database: Database, sealed: Sequence[str] = ()) -> Taken:
    """Counts every case whose bytes are on the disk.

    Args:
        sealed: ids of which it is asked whether the database has their cases already.
    """
    counting = (
        select(Case.uploader, func.sum(Case.sealed_size))
        .where(Case.sealed_size.is_not(None))
        .group_by(Case.uploader)
    )
    with database.reading() as session:
        by_uploader = {tag: int(size or 0) for tag, size in session.execute(counting)}
        recorded: set[str] = set()
        for first in range(0, len(sealed), _ROWS):
            some = select(Case.id).where(Case.id.in_(sealed[first : first + _ROWS]))
            recorded.update(session.scalars(some))
    return Taken(by_uploader, frozenset(recorded))


def unsized(database: Database) -> list[tuple[str, str]]:
    """Id and file of cases whose size nobody has noted yet: older ones."""
    query = select(Case.id, Case.file).where(
        Case.sealed_size.is_(None), Case.state != CaseState.EXPIRED, Case.expired_at.is_(None)
    )
    with database.reading() as session:
        return [(row.id, row.file) for row in session.execute(query)]


def note_sizes(database: Database, sizes: Mapping[str, int]) -> None:
    """Notes the bytes of sealed files, by the ids of their cases."""
    ids = list(sizes)
    for first in range(0, len(ids), _ROWS):
        with database.writing() as session:
            for case in session.scalars(select(Case).where(Case.id.in_(ids[first : first + _ROWS]))):
                if case.sealed_size is None and case.state is not CaseState.EXPIRED:
                    case.sealed_size = sizes[case.id]


def salt(database: Database, name: str) -> bytes:
    """The salt of that name, 32 random bytes: made once, the same for every gate that shares the database."""
    with database.reading() as session:
        found = session.get(Salt, name)
    if found is not None:
        return found.value
    try:
        with database.writing() as session:
            found = session.get(Salt, name)
            if found is None:
                found = Salt(name=name, value=secrets.token_bytes(32))
                session.add(found)
    except IntegrityError:  # another gate was faster
        return salt(database, name)
    return found.value
