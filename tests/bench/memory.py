"""`make bench-memory`: what a long memory costs: import of lists, matches, and resident memory.

Random hashes, which is what real ones are to an index. Needs no network and no gate; ends by itself.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import random
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from proxy import hash_files
from proxy.channels.looks import Seen
from proxy.commands.hashes import _add_all
from proxy.database import Database, memory
from proxy.known_hashes import KnownHashes

ASKED = 2000


def resident_mb(*, peak: bool = False) -> int:
    """Memory that this process has in use, or had at most, in MiB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(
        int(line.split()[1]) // 1024 for line in lines if line.startswith("VmHWM" if peak else "VmRSS")
    )


def timed(work: Callable[[], Any]) -> dict[str, float]:
    """Seconds that it takes, and seconds of processor time, which other work on the machine disturbs less."""
    began, cpu = time.perf_counter(), time.process_time()
    work()
    return {
        "s": round(time.perf_counter() - began, 2),
        "cpu_s": round(time.process_time() - cpu, 2),
    }


def spread(values: list[float]) -> dict[str, float]:
    """Of seconds: median, 99th percentile and least, in microseconds."""
    ordered = sorted(values)
    return {
        "p50": round(statistics.median(ordered) * 1e6),
        "p99": round(ordered[int(len(ordered) * 0.99) - 1] * 1e6),
        "least": round(ordered[0] * 1e6),
    }


def write_list(path: Path, column: str, count: int, source: random.Random) -> list[str]:
    """A list with `count` random hashes; a few of them."""
    some = []
    with path.open("w") as file:
        file.write(f"{column}\n")
        for number in range(count):
            value = source.randbytes(32).hex()
            file.write(f"{value}\n")
            if number % (count // 100) == 0:
                some.append(value)
    return some


def in_child(work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What `work` finds in a process of its own, whose memory nothing else has used before."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reading)
        with os.fdopen(writing, "w") as into:
            json.dump(work(), into)
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as out:
        found: dict[str, Any] = json.loads(out.read() or "{}")
    assert os.waitpid(child, 0)[1] == 0
    return found


def import_list(url: str, path: Path) -> dict[str, Any]:
    """Reading a list and adding it."""
    files: list[hash_files.HashFile] = []
    reading = timed(lambda: files.append(hash_files.read(path, "sha256")))
    database = Database(url)
    adding = timed(lambda: _add_all(database, files[0], path.stem, None, by="bench", told=lambda _: None))
    database.close()
    return {"read": reading, "add": adding, "peak_mb": resident_mb(peak=True)}


def look_alike(pdq: str, bits: int, source: random.Random) -> Seen:
    """What a classifier says of a picture whose hash differs from `pdq` in so many bits."""
    turned = int(pdq, 16) ^ sum(1 << bit for bit in source.sample(range(256), bits))
    return Seen({}, [], "bench", "png", 1, 1, f"{turned:064x}", 100)


async def match(url: str, sha256: list[str], pdq: list[str], source: random.Random) -> dict[str, Any]:
    """Exact and near matches, as an upload meets them: thread, database and all; half of them are hits."""
    database, before = Database(url), resident_mb()
    known = KnownHashes(database, [])
    began, cpu = time.perf_counter(), time.process_time()
    await known.read_ahead()
    figures: dict[str, Any] = {
        "index": {
            "s": round(time.perf_counter() - began, 2),
            "cpu_s": round(time.process_time() - cpu, 2),
        },
        "memory_added_mb": resident_mb() - before,
        "memory_peak_mb": resident_mb(peak=True) - before,
    }
    exact, plain, index = [], [], []
    near: dict[bool, list[float]] = {True: [], False: []}
    alikes = known._look_alikes
    searched = alikes.catch_up(database)
    assert searched is not None
    for number in range(ASKED):
        hit = number % 2 == 0
        asked = source.choice(sha256) if hit else source.randbytes(32).hex()
        look = look_alike(source.choice(pdq) if hit else source.randbytes(32).hex(), 31, source)
        began = time.perf_counter()
        assert (await known.find(asked) is not None) is hit
        exact.append(time.perf_counter() - began)
        began = time.perf_counter()
        memory.exactly(database, asked)
        plain.append(time.perf_counter() - began)
        began = time.perf_counter()
        assert (await known.find_near(look) is not None) is hit
        near[hit].append(time.perf_counter() - began)
        began = time.perf_counter()
        searched.within(bytes.fromhex(str(look.pdq)), 31)
        index.append(time.perf_counter() - began)
    figures["exact_us"], figures["exact_without_thread_us"] = spread(exact), spread(plain)
    figures["near_none_us"], figures["near_found_us"] = spread(near[False]), spread(near[True])
    figures["near_index_alone_us"] = spread(index)
    database.close()
    return figures


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(prog="make bench-memory", description=__doc__)
    parser.add_argument("--json", action="store_true", help="one JSON object of named figures")
    parser.add_argument(
        "--count", type=int, default=1_000_000, help="hashes of each kind (default: %(default)s)"
    )
    options = parser.parse_args()
    cpu = next(
        line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")
    )
    figures: dict[str, Any] = {
        "machine": f"{os.cpu_count()} × {cpu.partition(': ')[2]}",
        "load_average": round(os.getloadavg()[0], 1),
        "python": platform.python_version(),
        "hashes_of_each_kind": options.count,
    }
    source = random.Random(6)
    with tempfile.TemporaryDirectory(prefix="pictrs-gate-bench-") as name:
        folder = Path(name)
        url, some = f"sqlite:///{folder}/gate.db", {}
        for kind in hash_files.KINDS:
            path = folder / f"{kind}.csv"
            some[kind] = write_list(path, kind, options.count, source)
            figures[f"import_{kind}"] = in_child(lambda path=path: import_list(url, path))  # type: ignore[misc]
        figures["database_mb"] = (folder / "gate.db").stat().st_size // 1024**2
        figures |= in_child(lambda: asyncio.run(match(url, some["sha256"], some["pdq"], source)))
    if options.json:
        print(json.dumps(figures, indent=1))
        return
    table = Table(box=None, pad_edge=False, show_header=False)
    for key, value in figures.items():
        shown = ", ".join(f"{k} {v}" for k, v in value.items()) if isinstance(value, dict) else str(value)
        table.add_row(key, shown)
    Console().print(table)


if __name__ == "__main__":
    main()
