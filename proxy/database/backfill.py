"""Progress and findings of runs over what pict-rs stores."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime

from sqlalchemy import select

from proxy.database.engine import Database
from proxy.database.models import BackfillHit, BackfillRun


def open_run(database: Database) -> BackfillRun:
    """The newest run that is not finished, or a new one."""
    unfinished = (
        select(BackfillRun).where(BackfillRun.finished_at.is_(None)).order_by(BackfillRun.id.desc()).limit(1)
    )
    with database.writing() as session:
        run = session.scalars(unfinished).first()
        if run is None:
            run = BackfillRun(started_at=datetime.now(UTC))
            session.add(run)
    return run


def page_done(
    database: Database,
    run_id: int,
    *,
    next_slug: str | None,
    looked_at: int,
    unreadable: int,
    hits: Sequence[BackfillHit],
) -> BackfillRun:
    """Makes one page's findings and the place to go on from durable, together.

    Args:
        next_slug: of the next page; None where this was the last one, which finishes the run.
    """
    with database.writing() as session:
        run = session.get_one(BackfillRun, run_id)
        run.slug = next_slug
        run.looked_at += looked_at
        run.unreadable += unreadable
        if next_slug is None:
            run.finished_at = datetime.now(UTC)
        for hit in hits:
            session.merge(hit)  # a page may be looked at again after a crash
    return run


def hits_of(database: Database, run_id: int) -> list[BackfillHit]:
    """What a run found, in no order."""
    with database.reading() as session:
        return list(session.scalars(select(BackfillHit).where(BackfillHit.run_id == run_id)))
