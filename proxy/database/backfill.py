"""Progress and findings of runs over what pict-rs stores."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import UTC, datetime

from sqlalchemy import func, select

from proxy.database.engine import Database
from proxy.database.models import BackfillHit, BackfillRun, BackfillUnreadable

_ROWS = 200  # of a long list in memory at once


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
    findings: Sequence[BackfillHit | BackfillUnreadable],
) -> BackfillRun:
    """Makes one page's findings and the place to go on from durable, together.

    Args:
        looked_at: files of the page that were looked at, or whose hash was known.
        findings: hits among them, and the files that nobody could look at.
        next_slug: of the next page; None where this was the last one, which finishes the run.
    """
    with database.writing() as session:
        run = session.get_one(BackfillRun, run_id)
        run.slug = next_slug
        run.looked_at += looked_at
        run.unreadable += sum(isinstance(finding, BackfillUnreadable) for finding in findings)
        if next_slug is None:
            run.finished_at = datetime.now(UTC)
        for finding in findings:
            session.merge(finding)  # a file may come up twice while the store changes
    return run


def hit_count(database: Database, run_id: int) -> int:
    """How many hits a run has found."""
    with database.reading() as session:
        return session.scalar(select(func.count()).where(BackfillHit.run_id == run_id)) or 0


def hits_of(database: Database, run_id: int) -> Iterator[BackfillHit]:
    """What a run has found, in the order of pict-rs's keys, read bit by bit."""
    query = select(BackfillHit).where(BackfillHit.run_id == run_id).order_by(BackfillHit.hex)
    with database.reading() as session:
        yield from session.scalars(query.execution_options(yield_per=_ROWS))


def unreadable_of(database: Database, run_id: int) -> Iterator[BackfillUnreadable]:
    """What nobody could look at in a run, likewise."""
    query = (
        select(BackfillUnreadable).where(BackfillUnreadable.run_id == run_id).order_by(BackfillUnreadable.hex)
    )
    with database.reading() as session:
        yield from session.scalars(query.execution_options(yield_per=_ROWS))
