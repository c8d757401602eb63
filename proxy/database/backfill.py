"""Progress and findings of runs over what is stored, and the files that were looked at."""

from __future__ import annotations

import math
import struct
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import insert, select, update
from sqlalchemy.orm import Session

from proxy.database import ledger, taking
from proxy.database.engine import Database
from proxy.database.models import (
    BackfillFile,
    BackfillHit,
    BackfillRun,
    BackfillUnreadable,
    BackfillVersion,
    Case,
)
from proxy.errors import GateError

AGAIN = "; to be tried again"  # ends the reason of what may pass
_ROWS = 200  # of a long list in memory at once
_STEPS = 10_000
BINS = 20  # of a histogram


@dataclass(frozen=True, slots=True)
class Looked:
    """What is kept of one look at a stored file.

    Attributes:
        key: of the file; see `BackfillFile`.
        content: SHA-256 of its bytes, where `key` is not that.
        ensemble: what looked; None where the hash was known.
        signals: name to 0..1.
        run_id: of the run that did it.
    """

    key: bytes
    content: bytes | None = None
    ensemble: str | None = None
    signals: Mapping[str, float] = field(default_factory=dict)
    run_id: int = 0


@dataclass(slots=True)
class Batch:
    """What becomes durable together.

    Attributes:
        looked_at: how many files were looked at, or known by their hash.
        looked: what is kept of them.
        reused, skipped: how many files of the pages that are through now.
        findings: hits, and files that nobody could look at.
        readable: keys of files that nobody could look at before.
        signals: of every file, for the histogram.
        cursor: where the source goes on, once a page is through; None where none is.
    """

    looked_at: int = 0
    looked: list[Looked] = field(default_factory=list)
    findings: list[BackfillHit | BackfillUnreadable] = field(default_factory=list)
    readable: list[str] = field(default_factory=list)
    signals: list[Mapping[str, float]] = field(default_factory=list)
    reused: int = 0
    skipped: int = 0
    fetched_bytes: int = 0
    cursor: str | None = None


def open_run(database: Database, *, kind: str = "run") -> BackfillRun | None:
    """The newest run that is to be gone on with; None where there is none."""
    query = select(BackfillRun).where(BackfillRun.state == "open", BackfillRun.kind == kind)
    with database.reading() as session:
        return session.scalars(query.order_by(BackfillRun.id.desc()).limit(1)).first()


def begin(
    database: Database,
    *,
    kind: str,
    options: Mapping[str, Any],
    newest: Mapping[str, Any] | None,
    at: datetime | None = None,
) -> BackfillRun:
    """A new run, of now or of `at`. Those that were open before are left."""
    with database.writing() as session:
        session.execute(
            update(BackfillRun)
            .where(BackfillRun.state == "open", BackfillRun.kind == kind)
            .values(state="left")
        )
        run = BackfillRun(
            kind=kind,
            started_at=at or datetime.now(UTC),
            source=options["source"],
            options=dict(options),
            newest=None if newest is None else dict(newest),
        )
        session.add(run)
    return run


def changed(database: Database, run_id: int, options: Mapping[str, Any]) -> BackfillRun:
    """A run goes on, at another rate or in other hours."""
    with database.writing() as session:
        run = session.get_one(BackfillRun, run_id)
        run.options = dict(options)
    return run


def get(database: Database, run_id: int | None) -> BackfillRun:
    """The run of that number, or the newest one.

    Raises:
        GateError: there is none.
    """
    query = select(BackfillRun).order_by(BackfillRun.id.desc()).limit(1)
    with database.reading() as session:
        run = session.scalars(query if run_id is None else query.where(BackfillRun.id == run_id)).first()
    if run is None:
        which = "" if run_id is None else f" {run_id}"
        raise GateError(f"backfill: there is no run{which}; `pictrs-gate backfill status` shows them")
    return run


def where_runs_began(database: Database) -> Mapping[str, Any] | None:
    """`newest` of the newest run over all of pict-rs; None where there was none."""
    query = select(BackfillRun.newest).where(
        BackfillRun.kind == "run", BackfillRun.source == "pictrs", BackfillRun.newest["places"].is_not(None)
    )
    with database.reading() as session:
        return session.scalars(query.order_by(BackfillRun.id.desc()).limit(1)).first()


def listed(database: Database, *, limit: int = 20) -> list[BackfillRun]:
    """The newest runs."""
    with database.reading() as session:
        return list(session.scalars(select(BackfillRun).order_by(BackfillRun.id.desc()).limit(limit)))


def record(database: Database, run_id: int, batch: Batch, *, finished: bool = False) -> BackfillRun:
    """Makes a batch durable: all of it, or nothing."""
    with database.writing() as session:
        run = _recorded(session, run_id, batch)
        if finished:
            run.state, run.finished_at = "finished", run.changed_at
    return run


def held(database: Database, run_id: int, batch: Batch, case: Case, *, facts: dict[str, Any]) -> None:
    """Makes durable, together, what a file was found to be and the case that is made of it.

    Args:
        batch: of this file alone.
        case: new, with promises for its aliases, which pict-rs has still.
        facts: for the ledger.
    """
    with database.writing() as session:
        taking.put_in_place(session, case)
        ledger.append(session, case.state.value, actor="gate", case_id=case.id, facts=facts)
        _recorded(session, run_id, batch)


def _recorded(session: Session, run_id: int, batch: Batch) -> BackfillRun:
    now = datetime.now(UTC)
    run = session.get_one(BackfillRun, run_id)
    run.changed_at = now
    run.looked_at += batch.looked_at
    run.reused += batch.reused
    run.skipped += batch.skipped
    run.fetched_bytes += batch.fetched_bytes
    run.cursor = batch.cursor or run.cursor
    if batch.signals:
        run.histogram = _counted(run.histogram, batch.signals)
    for hex_ in batch.readable:
        if (lost := session.get(BackfillUnreadable, (run_id, hex_))) is not None:
            session.delete(lost)
            run.unreadable -= 1
    for finding in batch.findings:
        before = session.get(type(finding), (run_id, finding.hex))
        if isinstance(finding, BackfillUnreadable):
            run.unreadable += before is None
        else:
            run.hits += before is None
            case_before = before.case_id if isinstance(before, BackfillHit) else None
            run.held += finding.case_id not in (None, case_before)
        session.merge(finding)  # a file may come up twice while the store changes
    _keep(session, run_id, batch.looked, int(now.timestamp()))
    return run


def watched(database: Database, run_id: int, newest: Mapping[str, Any]) -> BackfillRun:
    """A watch has seen everything down to where it was; its next round goes down to `newest`."""
    with database.writing() as session:
        run = session.get_one(BackfillRun, run_id)
        run.newest, run.changed_at = dict(newest), datetime.now(UTC)
    return run


def files(database: Database, keys: Collection[bytes]) -> dict[bytes, Looked]:
    """Those of some files that were looked at, or known, whenever that was."""
    if not keys:
        return {}
    query = select(BackfillFile, BackfillVersion).outerjoin(
        BackfillVersion, BackfillVersion.id == BackfillFile.version_id
    )
    with database.reading() as session:
        rows = session.execute(query.where(BackfillFile.key.in_(keys))).all()
    return {file.key: _looked(file, version) for file, version in rows}


def unreadable_among(database: Database, run_id: int, hexes: Collection[str]) -> dict[str, bool]:
    """Those of some files that nobody could look at in this run, and whether that may pass."""
    query = select(BackfillUnreadable.hex, BackfillUnreadable.reason).where(
        BackfillUnreadable.run_id == run_id, BackfillUnreadable.hex.in_(hexes)
    )
    with database.reading() as session:
        return {hex_: reason.endswith(AGAIN) for hex_, reason in session.execute(query)}


def behind(database: Database, run_id: int, *, with_hits: bool, most: int = 1000) -> list[str]:
    """Keys of files of a run that are worth another try.

    Args:
        with_hits: also those of hits that were only reported, or could not be held just then.
    """
    lost = select(BackfillUnreadable.hex).where(
        BackfillUnreadable.run_id == run_id, BackfillUnreadable.reason.endswith(AGAIN)
    )
    is_open = BackfillHit.not_held.is_(None) | BackfillHit.not_held.endswith(AGAIN)
    hits = select(BackfillHit.hex).where(BackfillHit.run_id == run_id, BackfillHit.case_id.is_(None), is_open)
    with database.reading() as session:
        found = list(session.scalars(hits.order_by(BackfillHit.hex).limit(most))) if with_hits else []
        return found + list(session.scalars(lost.order_by(BackfillUnreadable.hex).limit(most)))


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


def _keep(session: Session, run_id: int, looked: Sequence[Looked], at: int) -> None:
    """Writes down the files, over what an earlier look has left."""
    if not looked:
        return
    rows = {}
    for one in looked:
        version = None if one.ensemble is None else _version(session, one.ensemble, sorted(one.signals))
        rows[one.key] = {
            "key": one.key,
            "content": one.content,
            "run_id": run_id,
            "version_id": version,
            "at": at,
            "scores": _packed([one.signals[name] for name in sorted(one.signals)]),
        }
    there = set(session.scalars(select(BackfillFile.key).where(BackfillFile.key.in_(rows))))
    if new := [row for key, row in rows.items() if key not in there]:
        session.execute(insert(BackfillFile), new)
    if old := [row for key, row in rows.items() if key in there]:
        session.execute(update(BackfillFile), old)


def _version(session: Session, ensemble: str, names: list[str]) -> int:
    for version in session.scalars(select(BackfillVersion).where(BackfillVersion.ensemble == ensemble[:200])):
        if version.signals == names:
            return version.id
    version = BackfillVersion(ensemble=ensemble[:200], signals=names)
    session.add(version)
    session.flush()
    return version.id


def _looked(file: BackfillFile, version: BackfillVersion | None) -> Looked:
    names = version.signals if version else []
    signals = dict(zip(names, _unpacked(file.scores), strict=True))
    return Looked(file.key, file.content, version.ensemble if version else None, signals, file.run_id)


def _packed(values: Sequence[float]) -> bytes:
    # The inner rounding keeps 0.9 at 9000, whatever a float makes of nine tenths.
    return struct.pack(f">{len(values)}H", *(math.floor(round(value * _STEPS, 4)) for value in values))


def _unpacked(scores: bytes) -> list[float]:
    return [score / _STEPS for score in struct.unpack(f">{len(scores) // 2}H", scores)]


def _counted(histogram: Mapping[str, Any], signals: Sequence[Mapping[str, float]]) -> dict[str, Any]:
    counted = {name: list(counts) for name, counts in histogram.items()}
    for one in signals:
        for name, value in one.items():
            counts = counted.setdefault(name, [0] * BINS)
            counts[min(int(value * BINS), BINS - 1)] += 1
    return counted
