"""A gate that does not run, with cases that nobody has uploaded: for what is done at the terminal."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from proxy import faults
from proxy.cases.keeping import Keeper, Origin, Wanted
from proxy.cases.quarantine import Quarantine
from proxy.cases.quota import Limits, Quota
from proxy.cases.sealing import Sealer
from proxy.channels.looks import Seen
from proxy.database import Case, Database
from proxy.faults import FaultPoint
from proxy.intake.uploads import Upload
from proxy.media import Size, recognise
from proxy.metrics import Metrics
from proxy.policy import Decision, Verdict
from tests.gate import Gate

NOWHERE = "http://127.0.0.1:9"
SEEN = {"sexual": 0.9, "minor": 0.8}
ORIGIN = Origin("POST /image", [("resize", "160")], {"address": "192.0.2.7", "claimed_user_id": "42"})


def still_gate(folder: Path, **changes: Any) -> Gate:
    """A gate's folder, keys and configuration; its neighbours are nowhere."""
    usual = {"pictrs_url": NOWHERE, "api_key": "k", "classifier_url": NOWHERE, "start": False}
    return Gate(folder, **{**usual, **changes})


def keep(
    database: Database,
    folder: Path,
    recipients: Sequence[str],
    content: bytes,
    *,
    signals: Mapping[str, float] = SEEN,
    file_name: str = "photo.png",
    origin: Origin = ORIGIN,
    **row: Any,
) -> str:
    """Has the gate's own keeper make a case, then sets columns of its row; returns its id."""
    media = recognise(content)
    assert media is not None
    upload = Upload(content, hashlib.sha256(content).hexdigest(), media, file_name, "image/png")
    frames = [{"index": 0, "signals": dict(signals)}]
    look = Seen(signals, frames, "own 0123456789abcdef", media.name, 320, 200, "ab" * 32, 90)
    decision = Decision(Verdict.HOLD, "rule: a suspicion", "a suspicion")
    quarantine = Quarantine(folder, Sealer(recipients), faults.from_environment())
    keeper = keeper_of(database, quarantine, folder)

    async def run() -> None:
        await keeper.keep(upload, decision, look, origin, Wanted(lambda: (Size(320, 200), None)))

    asyncio.run(run())
    keeper.close()
    with database.writing() as session:
        case: Case = (
            session.query(Case).filter_by(sha256=upload.sha256).order_by(Case.created_at.desc()).first()
        )
        for name, value in row.items():
            setattr(case, name, value)
        return case.id


def held(gate: Gate, content: bytes, **changes: Any) -> str:
    """A case of a gate that does not run."""
    with gate.database() as database:
        return keep(database, gate.folder / "cases", [gate.recipient], content, **changes)


def keeper_of(
    database: Database, quarantine: Quarantine, folder: Path, fault: FaultPoint = faults.nowhere
) -> Keeper:
    """One that has all the room of its disk."""
    metrics = Metrics()
    quota = Quota(database, folder, Limits(quota=1 << 50, of_uploader=1 << 50, keep_free=0), metrics)
    return Keeper(database, quarantine, quota, metrics, fault)
