"""`make bench-cases`: what holding an upload costs beside the disk's own fsync, and lists of many cases.

Everything in one process and in a folder of its own; bounded, and it ends by itself. Quote ratios and
differences, not single times: a busy machine is slow in all of them.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import json
import os
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from sqlalchemy import insert

from proxy.aliases import alias_key
from proxy.cases.keeping import Wanted
from proxy.cases.quarantine import Quarantine
from proxy.cases.sealing import Sealer, write_new_identity
from proxy.channels.looks import Seen
from proxy.database import Case, CaseState, Database, Promise
from proxy.database.listing import Filter, page
from proxy.intake.uploads import Upload
from proxy.media import Size, recognise
from proxy.policy import Decision, Verdict
from tests import pictures
from tests.kept import ORIGIN, keeper_of

CASES, HELD, LISTED, LARGE = 100_000, 60, 15, 2_000_000
_FIRST = datetime(2026, 1, 1, tzinfo=UTC)


Times = list[tuple[float, float]]


def ms(work: Callable[[], object]) -> tuple[float, float]:
    """How long it takes, and how long it keeps a processor at work."""
    began, worked = time.perf_counter(), time.process_time()
    work()
    return (time.perf_counter() - began) * 1000, (time.process_time() - worked) * 1000


def spread(values: Times) -> dict[str, float]:
    """Median, worst but one in twenty, and median of the processor's time, which neighbours change less."""
    ordered = sorted(wall for wall, _ in values)
    return {
        "p50": round(statistics.median(ordered), 2),
        "p95": round(ordered[max(0, int(len(ordered) * 0.95) - 1)], 2),
        "cpu_p50": round(statistics.median(worked for _, worked in values), 2),
    }


def plain_write(folder: Path, number: int, content: bytes) -> None:
    """As many bytes, written and synced, and nothing else."""
    with (folder / f"{number}.plain").open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def small_sync(folder: Path) -> None:
    """The least that the disk takes to make anything durable."""
    with (folder / "small").open("ab") as file:
        file.write(b"x")
        file.flush()
        os.fsync(file.fileno())


async def hold(folder: Path, recipients: int) -> dict[str, Any]:
    """One 2 MB upload held, side by side with plain writes of the same bytes."""
    rng = random.Random(7)
    keys = [write_new_identity(folder / f"{number}.key") for number in range(recipients)]
    database = Database(f"sqlite:///{folder}/gate.db")
    quarantine = Quarantine(folder / "cases", Sealer(keys), lambda _: None)
    keeper = keeper_of(database, quarantine, folder / "cases")
    start = pictures.jpeg((64, 64))
    media = recognise(start)
    assert media is not None
    times: dict[str, Times] = {"hold": [], "plain": [], "small": []}
    signals = {"sexual": 0.9, "minor": 0.8}
    look = Seen(signals, [{"index": 0, "signals": signals}], "costless 1", "jpeg", 64, 64)
    wanted = Wanted(lambda: (Size(64, 64), None))
    for number in range(HELD):
        content = start + rng.randbytes(LARGE - len(start))
        upload = Upload(content, hashlib.sha256(content).hexdigest(), media, "a.jpg", "image/jpeg")
        began, worked = time.perf_counter(), time.process_time()
        await keeper.keep(upload, Decision(Verdict.HOLD, "rule: one", "one"), look, ORIGIN, wanted)
        ended = time.perf_counter() - began, time.process_time() - worked
        times["hold"].append((ended[0] * 1000, ended[1] * 1000))
        times["plain"].append(ms(lambda: plain_write(folder, number, content)))  # noqa: B023 — at once
        times["small"].append(ms(lambda: small_sync(folder)))
    keeper.close()
    sealing = [ms(lambda: Sealer(keys).seal(_Nowhere(), {}, content)) for _ in range(10)]
    hashing = [
        ms(lambda: [hashlib.new(name, content, usedforsecurity=False) for name in ("md5", "sha1")])
        for _ in range(10)
    ]
    database.close()
    found = {name: spread(values[5:]) for name, values in times.items()}
    return {
        "hold_2mb_ms": found["hold"],
        "write_and_fsync_2mb_ms": found["plain"],
        "fsync_of_a_byte_ms": found["small"],
        "hold_against_write_and_fsync": round(found["hold"]["p50"] / found["plain"]["p50"], 2),
        "encrypt_2mb_ms": spread(sealing),
        "md5_and_sha1_2mb_ms": spread(hashing),
        "recipients": recipients,
    }


class _Nowhere:
    """Takes what is written, and keeps nothing."""

    def write(self, data: bytes) -> int:
        return len(data)

    def flush(self) -> None:
        """There is nothing to flush."""


def fill(database: Database, count: int) -> None:
    """Rows of cases as a large site has them after a while, one promise each."""
    rng = random.Random(11)
    states = [CaseState.PENDING] * 2 + [CaseState.RELEASED] * 6 + [CaseState.CONFIRMED, CaseState.EXPIRED]
    rules = ["a suspicion", "nudity with a face", "drawn", "by name"]
    with database.writing() as session:
        for start in range(0, count, 5000):
            rows, promises = [], []
            for number in range(start, min(start + 5000, count)):
                case_id = f"{number:08d}-000000-{rng.randrange(16**8):08x}"
                signals = {"sexual": round(rng.random(), 4), "minor": round(rng.random(), 4)}
                rows.append(
                    {
                        "id": case_id,
                        "state": rng.choice(states),
                        "created_at": _FIRST + timedelta(seconds=97 * number),
                        "reason": "rule: a suspicion",
                        "rule": rng.choices(rules, [70, 20, 9.99, 0.01])[0],
                        "file": f"{case_id}.age",
                        "sha256": f"{number:064x}",
                        "size": rng.randrange(10_000, 20_000_000),
                        "content_type": "image/jpeg",
                        "pdq": f"{rng.randrange(16**64):064x}",
                        "pdq_quality": 100,
                        "signals": signals,
                        "ensemble": "standard 0123456789abcdef",
                    }
                )
                alias = f"{number:08x}-0000-4000-8000-000000000000.jpeg"
                promises.append(
                    {
                        "case_id": case_id,
                        "alias": alias,
                        "alias_key": alias_key(alias),
                        "delete_token": "t",
                        "details": {"width": 320, "height": 240},
                        "arguments": [],
                    }
                )
            session.execute(insert(Case), rows)
            session.execute(insert(Promise), promises)


def listing(folder: Path, count: int) -> dict[str, Any]:
    """First pages of 100, by what a reviewer asks for."""
    database = Database(f"sqlite:///{folder}/list.db")
    began = time.perf_counter()
    fill(database, count)
    filled = time.perf_counter() - began
    alias = f"{count // 2:08x}-0000-4000-8000-000000000000.jpeg"
    pending = (CaseState.PENDING,)
    asked: dict[str, Callable[[], object]] = {
        "newest": lambda: page(database, Filter()),
        "pending": lambda: page(database, Filter(states=pending)),
        "pending_oldest_first": lambda: page(database, Filter(states=pending), order="oldest"),
        "two_states": lambda: page(database, Filter(states=(*pending, CaseState.CONFIRMED))),
        "since_a_month_before_the_end": lambda: page(
            database, Filter(until=_FIRST + timedelta(seconds=97 * count / 2))
        ),
        "rare_rule": lambda: page(database, Filter(rule="by name")),
        "signals_at_least_that_many_have": lambda: page(database, Filter(signals_at_least={"sexual": 0.8})),
        "signals_at_least_that_few_have": lambda: page(
            database, Filter(signals_at_least={"sexual": 0.9995, "minor": 0.9})
        ),
        "alias": lambda: page(database, Filter(alias=alias)),
        "sha256": lambda: page(database, Filter(sha256=f"{count // 2:064x}")),
        "legal_hold_that_none_has": lambda: page(database, Filter(under_hold=True)),
        "pending_highest_signal_first": lambda: page(database, Filter(states=pending), order="signal:sexual"),
        "page_500": lambda: page(database, Filter(), number=500),
    }
    for one in asked.values():
        one()  # warm, as a running database is
    figures = {name: spread([ms(one) for _ in range(LISTED)]) for name, one in asked.items()}
    database.close()
    return {"cases": count, "filled_s": round(filled, 1), "first_page_of_100_ms": figures}


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(prog="make bench-cases", description=__doc__)
    parser.add_argument("--json", action="store_true", help="one JSON object of named figures")
    parser.add_argument("--cases", type=int, default=CASES)
    parser.add_argument("--folder", type=Path, help="on the disk to be measured (default: the temporary one)")
    options = parser.parse_args()
    cpu = next(
        line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")
    )
    figures: dict[str, Any] = {
        "machine": f"{os.cpu_count()} × {cpu.partition(': ')[2]}",
        "load": os.getloadavg()[0],
    }
    with tempfile.TemporaryDirectory(prefix="pictrs-gate-bench-", dir=options.folder) as name:
        figures["hold"] = asyncio.run(hold(Path(name), recipients=2))
        figures["list"] = listing(Path(name), options.cases)
    if options.json:
        json.dump(figures, sys.stdout, indent=1)
        print()
        return
    table = Table(box=None, pad_edge=False, show_header=False)
    for part in (figures["hold"], figures["list"]["first_page_of_100_ms"]):
        for key, value in part.items():
            shown = ", ".join(f"{k} {v}" for k, v in value.items()) if isinstance(value, dict) else str(value)
            table.add_row(key, shown)
    Console().print(table)


if __name__ == "__main__":
    main()
