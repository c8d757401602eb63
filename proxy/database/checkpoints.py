"""Signed checkpoints in the database: made by one of the gates that share it, once a day."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from sqlalchemy import select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from proxy.database import ledger
from proxy.database.engine import Database
from proxy.database.models import SignedCheckpoint
from proxy.ledger.chain import FIRST
from proxy.ledger.checkpoints import Checkpoint
from proxy.ledger.signing import Signer


def listed(database: Database) -> list[Checkpoint]:
    """All of them, in order: one a day."""
    with database.reading() as session:
        rows = session.scalars(select(SignedCheckpoint).order_by(SignedCheckpoint.checkpoint))
        return [_value(row) for row in rows]


def newest(database: Database) -> Checkpoint | None:
    """The last one."""
    with database.reading() as session:
        return _newest(session)


def make(database: Database, signer: Signer, *, every: timedelta) -> Checkpoint | None:
    """Makes one of the ledger as it is, where the last one is older than `every`.

    Returns:
        The new one; None where none is due, or another gate has just made it.
    """
    if not _is_due(newest(database), every):  # without anybody's lock
        return None
    try:
        with database.writing() as session:
            before = _newest(session)
            number, hash_ = ledger.head(session)
            if not _is_due(before, every) or not number:
                return None
            made = signer.signed(
                Checkpoint(
                    checkpoint=before.checkpoint + 1 if before else 1,
                    number=number,
                    hash=hash_,
                    time=datetime.now(UTC).isoformat(timespec="microseconds"),
                    previous=before.digest if before else FIRST,
                    key=signer.key,
                )
            )
            session.add(
                SignedCheckpoint(
                    checkpoint=made.checkpoint,
                    number=made.number,
                    hash=made.hash,
                    time=made.time,
                    previous=made.previous,
                    key=made.key,
                    signature=made.signature,
                )
            )
            session.flush()
            # So that the ledger misses a checkpoint that somebody takes away.
            facts = {"checkpoint": made.checkpoint, "entry": made.number, "digest": made.digest}
            ledger.append(session, ledger.CHECKPOINT, actor="gate", facts=facts)
    except IntegrityError:  # another gate was faster
        return None
    return made


def _is_due(last: Checkpoint | None, every: timedelta) -> bool:
    if last is None:
        return True
    # A clock that was wrong once must not keep checkpoints from being made.
    return abs(datetime.now(UTC) - last.moment) >= every


def _newest(session: Session) -> Checkpoint | None:
    query = select(SignedCheckpoint).order_by(SignedCheckpoint.checkpoint.desc()).limit(1)
    row = session.scalars(query).first()
    return _value(row) if row else None


def _value(row: SignedCheckpoint) -> Checkpoint:
    number = row.number if isinstance(row.number, int) else 0  # whatever was put there is to be found
    texts = (row.hash, row.time, row.previous, row.key, row.signature)
    return Checkpoint(row.checkpoint, number, *map(str, texts))
