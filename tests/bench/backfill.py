"""`make bench-backfill`: a backfill beside what the classifier takes alone; memory; beginning again.

The neighbours are one program that costs little: it lists synthetic files as pict-rs does, gives them, and
takes as many looks a second as it is told. Everything is on loopback, bounded, and ends by itself.
"""

from __future__ import annotations

import argparse
import asyncio
import dataclasses
import hashlib
import json
import os
import resource
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import aiohttp
from aiohttp import web
from rich.console import Console

from proxy.backfill.options import Options
from proxy.backfill.sources import Entry, Unreadable
from proxy.backfill.sources.pictrs import PictrsSource
from proxy.backfill.watch import new_pages, newest
from proxy.database import Database
from proxy.database import backfill as runs
from proxy.pictrs import Pictrs
from tests import pictrs
from tests.backfill import PNG, Eye, Store, content, gone_over
from tests.client import upload
from tests.gate import Gate
from tests.processes import Program, answers, free_port

FILES, SYNTHETIC, RECORDED = 20_000, 200_000, 1_000_000
PLACES, LOOK_S, FAST_S = 8, 0.08, 0.02  # 100 looks a second, and 400
_WAITING, _PADDING = 64, bytes(4096)


class Neighbours:
    """pict-rs and classifier."""

    def __init__(self, count: int, look_s: float) -> None:
        self.count, self.look_s = count, look_s
        self.places, self.here = asyncio.Semaphore(PLACES), 0

    async def hashes(self, request: web.Request) -> web.Response:
        slug = request.query.get("slug")
        first, limit = int(slug or 0), int(request.query["limit"])
        numbers = range(first, min(first + limit, self.count))
        files = [{"hex": _hex(number), "aliases": [f"{number}.png"], "details": None} for number in numbers]
        page: dict[str, Any] = {"limit": limit, "current": str(first), "hashes": files}
        if numbers.stop < self.count:
            page["next"] = str(numbers.stop)
        return web.json_response({"msg": "ok", "page": page})

    async def original(self, request: web.Request) -> web.Response:
        return web.Response(body=_file(request.match_info["alias"].removesuffix(".png")))

    async def classify(self, request: web.Request) -> web.Response:
        await request.read()
        if self.here >= PLACES + _WAITING:
            error = {"error": {"code": "overloaded", "message": "later"}}
            return web.json_response(error, status=429, headers={"Retry-After": "1"})
        self.here += 1
        try:
            async with self.places:
                await asyncio.sleep(self.look_s)
        finally:
            self.here -= 1
        signals = {"sexual": 0.01, "minor": 0.01}
        media = {"format": "png", "width": 9, "height": 9, "frames_scored": 1}
        frames = [{"index": 0, "signals": signals}]
        answer = {
            "ensemble": "costless",
            "version": "1",
            "media": media,
            "signals": signals,
            "frames": frames,
        }
        return web.json_response(answer)

    async def info(self, _: web.Request) -> web.Response:
        return web.json_response({"ensemble": "costless", "version": "1", "signals": ["sexual", "minor"]})

    def serve(self, port: int) -> None:
        application = web.Application(client_max_size=2**30)
        application.add_routes(
            [
                web.get("/internal/hashes", self.hashes),
                web.get("/image/original/{alias}", self.original),
                web.post("/v1/classify", self.classify),
                web.get("/v1/info", self.info),
            ]
        )
        web.run_app(application, host="127.0.0.1", port=port, print=None, access_log=None)


def _file(name: str) -> bytes:
    return PNG + name.encode() + _PADDING


def _hex(number: int) -> str:
    body = _file(str(number))
    return f"{hashlib.sha256(body).hexdigest()}{len(body):012x}07"


def throughput(folder: Path, count: int, look_s: float) -> dict[str, float]:
    """Files a second: a backfill's, and those of a client that only asks the classifier."""
    port = free_port()
    command = [sys.executable, "-m", "tests.bench.backfill", "--serve", str(port), str(count), str(look_s)]
    folder.mkdir(parents=True)
    neighbours = Program(command, folder / "neighbours.log", cwd=Path(__file__).parents[2])
    url = f"http://127.0.0.1:{port}"
    try:
        neighbours.wait_until(lambda: answers(f"{url}/v1/info"))
        alone = asyncio.run(_alone(url, count // 4))
        gate = Gate(folder / "gate", pictrs_url=url, api_key="key", classifier_url=url, start=False)
        command = [Path(sys.executable).parent / "pictrs-gate", "--log-level", "warning", "backfill", "run"]
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        program = Program([*command, "--json", "--config", gate.config], folder / "log")
        program.process.wait(900)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)  # of the backfill: no other child has ended
        cpu_s = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        with gate.database() as database:
            run = runs.get(database, None)
        assert run.finished_at is not None and run.looked_at == count, program.output()
        rate = count / (run.finished_at - run.started_at).total_seconds()
    finally:
        neighbours.stop()
    return {
        "alone": round(alone, 1),
        "backfill": round(rate, 1),
        "ratio": round(rate / alone, 3),
        "cpu_ms_a_file": round(1000 * cpu_s / count, 2),
    }


async def _alone(url: str, count: int) -> float:
    numbers = iter(range(count))
    headers = {"Content-Type": "image/png", "X-Priority": "backfill"}
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:

        async def ask() -> None:
            for number in numbers:
                async with session.post(
                    f"{url}/v1/classify", data=_file(str(number)), headers=headers
                ) as answer:
                    assert answer.status == 200
                    await answer.read()

        began = time.perf_counter()
        await asyncio.gather(*(ask() for _ in range(4 * PLACES)))
        return count / (time.perf_counter() - began)


class Forgetful(Store):
    """Notes nothing: what grows is not the bench."""

    async def fetch(self, entry: Entry, most: int) -> bytes | Unreadable:
        return content(int(entry.aliases[0].removesuffix(".png")))


def memory(folder: Path, count: int) -> dict[str, float]:
    """MB resident after a twentieth of a run, and at its end."""
    resident: dict[int, float] = {}

    def measure(run: Any) -> None:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        resident[run.looked_at] = pages * 4096 / 1e6

    database = Database(f"sqlite:///{folder}/memory.db")
    began = time.perf_counter()
    asyncio.run(gone_over(database, Forgetful(count), Eye(), on_batch=measure))
    took = time.perf_counter() - began
    database.close()
    early = next(size for done, size in sorted(resident.items()) if done >= count // 20)
    return {
        "early_mb": round(early, 1),
        "growth_mb": round(max(resident.values()) - early, 1),
        "files_a_second": round(count / took),
    }


def resume(folder: Path, recorded: int) -> dict[str, float]:
    """Seconds until a program that goes on with a run of so many files has the next one looked at."""
    file = folder / "resume.db"
    database = Database(f"sqlite:///{file}")
    run = runs.begin(database, kind="run", options=Options().to_json(), newest=None)
    runs.record(database, run.id, runs.Batch(looked_at=recorded, cursor=str(recorded)))
    database.close()
    with closing(sqlite3.connect(file)) as connection, connection:
        connection.executemany(
            "INSERT INTO backfill_files (key, run_id, version_id, at, scores) VALUES (?, 1, NULL, 0, x'')",
            ((hashlib.sha256(content(number)).digest(),) for number in range(recorded)),
        )
    command = [sys.executable, "-m", "tests.bench.backfill", "--resume", str(file), str(recorded + 100)]
    shown = subprocess.run(command, check=True, timeout=300, capture_output=True, text=True).stdout
    return {**json.loads(shown), "database_mb": round(file.stat().st_size / 1e6)}


def _resumed(file: str, count: int) -> None:
    """Prints seconds until the first file is looked at: since the imports, and since the program began."""
    since = time.perf_counter()
    looked: list[float] = []
    database = Database(f"sqlite:///{file}")
    run = asyncio.run(
        gone_over(database, Store(count), Eye(on_look=lambda _: looked.append(time.perf_counter())))
    )
    assert run.looked_at == count
    database.close()
    ticks = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
    up = float(Path("/proc/uptime").read_text().split()[0]) - ticks / os.sysconf("SC_CLK_TCK")
    whole = up - (time.perf_counter() - looked[0])
    print(json.dumps({"seconds": round(looked[0] - since, 3), "with_imports": round(whole, 2)}))


def recording(folder: Path, recorded: int) -> dict[str, float]:
    """What it costs to keep a batch of 64 beside so many files, whose keys are as random as hashes."""
    file = folder / f"recording-{recorded}.db"
    database = Database(f"sqlite:///{file}")
    run = runs.begin(database, kind="run", options=Options().to_json(), newest=None)
    first = runs.Looked(bytes(32), None, "costless 1", {"sexual": 0.01})
    runs.record(database, run.id, runs.Batch(looked_at=1, looked=[first]))
    database.close()
    with closing(sqlite3.connect(file)) as connection, connection:
        connection.executemany(
            "INSERT INTO backfill_files (key, run_id, version_id, at, scores) "
            "VALUES (?, 1, 1, 1764000000, x'0064')",
            ((key,) for key in sorted(os.urandom(32) for _ in range(recorded))),
        )
    database = Database(f"sqlite:///{file}")
    took = []
    for _ in range(100):
        looked = [dataclasses.replace(first, key=os.urandom(32)) for _ in range(64)]
        began = time.perf_counter()
        runs.files(database, [one.key for one in looked])
        runs.record(database, run.id, runs.Batch(looked_at=64, looked=looked))
        took.append(time.perf_counter() - began)
    database.close()
    size = file.stat().st_size
    file.unlink()
    return {"bytes_a_file": round(size / recorded), "ms_a_batch": round(1000 * statistics.median(took), 1)}


def listing(folder: Path, count: int) -> dict[str, float]:
    """Milliseconds that the real pict-rs takes for a page of 100, newest and oldest."""
    store = pictrs.Pictrs(folder / "listing", real=pictrs.find(), max_files=200, dummy=True)
    try:
        for at in range(0, count, 200):
            assert upload(store.url, *(content(number) for number in range(at, at + 200))).status == 201

        async def pages() -> list[float]:
            client = Pictrs(store.url, store.api_key, 30.0)
            source, at, took = PictrsSource(client), None, []
            while True:
                began = time.perf_counter()
                page = await source.page(at)
                took.append(1000 * (time.perf_counter() - began))
                if (at := page.next) is None:
                    break
            await client.close()
            return took

        took = asyncio.run(pages())
    finally:
        store.stop()
    tenth = max(len(took) // 10, 1)
    newest, oldest = statistics.median(took[1 : 1 + tenth]), statistics.median(took[-tenth:])
    return {"files": count, "newest_ms": round(newest, 1), "oldest_ms": round(oldest, 1)}


def idle_watch(count: int) -> dict[str, int]:
    """Requests to pict-rs of a round of `watch` in which nothing has come."""
    store = Store(count)

    async def look() -> int:
        before = newest((await store.page(None)).entries)
        store.pages.clear()
        pages = [page async for page in new_pages(store, await store.page(None), before)]
        assert pages == []
        return len(store.pages)

    return {"requests": asyncio.run(look())}


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(prog="make bench-backfill", description=__doc__)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--quick", action="store_true", help="a tenth of everything")
    parser.add_argument("--serve", nargs=3, help=argparse.SUPPRESS)
    parser.add_argument("--resume", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        port, count, look_s = options.serve
        return Neighbours(int(count), float(look_s)).serve(int(port))
    if options.resume:
        return _resumed(options.resume[0], int(options.resume[1]))
    share = 10 if options.quick else 1
    with tempfile.TemporaryDirectory(prefix="bench-backfill-") as name:
        folder = Path(name)
        figures = {
            "throughput": throughput(folder / "bounded", FILES // share, LOOK_S),
            "throughput, four times as fast a classifier": throughput(
                folder / "fast", FILES // share, FAST_S
            ),
            "throughput, a classifier that costs nothing": throughput(
                folder / "free", FILES // share // 2, 0.0
            ),
            "memory": memory(folder, SYNTHETIC // share),
            "resume": resume(folder, RECORDED // share),
            "idle watch": idle_watch(10_000),
            "recording beside 1,000,000": recording(folder, RECORDED // share),
            "recording beside 4,000,000": recording(folder, 4 * RECORDED // share),
            "listing": listing(folder, FILES // share),
        }
    if options.json:
        print(json.dumps(figures, indent=1))
        return None
    for what, values in figures.items():
        Console().print(f"{what}: " + ", ".join(f"{key} {value}" for key, value in values.items()))
    return None


if __name__ == "__main__":
    main()
