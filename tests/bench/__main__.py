"""`make bench`: what the gate costs an upload, a held upload and a read, side by side with doing without it.

Neighbours that cost nothing (`tests/bench/costless.py`) run in processes of their own; everything is on
loopback, bounded, and ends by itself. Quote ratios and differences, not single times.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import aiohttp
from rich.console import Console
from rich.table import Table

from tests import pictrs, pictures
from tests.bench.costless import FILE, HOLD
from tests.client import form, upload
from tests.gate import Gate
from tests.processes import Program, answers, free_port

ONE_BY_ONE, BURST, AT_ONCE, READS, LARGE_AT_ONCE = 200, 320, 32, 40, 64


def photograph() -> bytes:
    """A JPEG of about 670 kB, 1600×1200."""
    import numpy as np
    from PIL import Image

    rng = np.random.default_rng(7)
    noise = Image.fromarray(rng.integers(0, 256, (1200, 1600, 3), dtype=np.uint8))
    mixed = Image.blend(pictures.draw((1600, 1200)), noise, 0.184)
    return pictures.encode(mixed, "JPEG", quality=88)


class Client:
    """One kept connection an upload, as Lemmy's own client has them."""

    def __init__(self, session: aiohttp.ClientSession) -> None:
        self._session = session

    async def upload(self, url: str, content: bytes) -> tuple[float, int]:
        """Milliseconds and status of one upload."""
        content_type, body = form([("photo.jpg", content)])
        began = time.perf_counter()
        async with self._session.post(
            f"{url}/image", data=body, headers={"Content-Type": content_type}
        ) as answer:
            await answer.read()
            return (time.perf_counter() - began) * 1000, answer.status

    async def read(self, url: str) -> float:
        """Milliseconds of one read of the large file."""
        began = time.perf_counter()
        async with self._session.get(f"{url}/image/original/a.jpeg") as answer:
            assert len(await answer.read()) == len(FILE)
            return (time.perf_counter() - began) * 1000


def spread(values: list[float]) -> dict[str, float]:
    """Median and 99th percentile."""
    ordered = sorted(values)
    return {
        "p50": round(statistics.median(ordered), 2),
        "p99": round(ordered[int(len(ordered) * 0.99) - 1], 2),
    }


def cpu_ms(pid: int) -> float:
    """CPU time that a process has used, in milliseconds."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) * 1000 / os.sysconf("SC_CLK_TCK")


async def interleaved(rounds: int, *measured: Callable[[], Awaitable[float]]) -> list[list[float]]:
    """A B A B …, so that a drift of the machine's speed meets all; the figures of each."""
    figures: list[list[float]] = [[] for _ in measured]
    for _ in range(rounds):
        for values, one in zip(figures, measured, strict=True):
            values.append(await one())
    return figures


async def measure(gate: Gate, direct: str, relay: str, nginx: str | None) -> dict[str, Any]:
    """Times and CPU with neighbours that cost nothing.

    Args:
        gate: the gate.
        direct: URL of the neighbours.
        relay: URL of a program that makes the gate's two requests and does nothing else.
        nginx: URL of an nginx before the neighbours.
    """
    content, figures = photograph(), {}
    assert gate.program is not None
    connector = aiohttp.TCPConnector(limit=AT_ONCE)
    async with aiohttp.ClientSession(connector=connector) as session:
        client = Client(session)
        for _ in range(10):  # warm
            for url in (gate.url, relay, direct):
                await client.upload(url, content)

        async def through() -> float:
            ms, status = await client.upload(gate.url, content)
            assert status == 201
            return ms

        async def straight() -> float:
            return (await client.upload(direct, content))[0]

        async def relayed() -> float:
            return (await client.upload(relay, content))[0]

        ours, theirs, bare = await interleaved(ONE_BY_ONE, through, straight, relayed)
        figures["upload_through_gate_ms"], figures["upload_direct_ms"] = spread(ours), spread(theirs)
        figures["upload_added_ms"] = spread([a - b for a, b in zip(ours, theirs, strict=True)])
        figures["upload_added_by_bare_relay_ms"] = spread([a - b for a, b in zip(bare, theirs, strict=True)])

        before = cpu_ms(gate.program.process.pid)
        limit = asyncio.Semaphore(AT_ONCE)

        async def one() -> int:
            async with limit:
                return (await client.upload(gate.url, content))[1]

        began = time.perf_counter()
        statuses = await asyncio.gather(*(one() for _ in range(BURST)))
        seconds = time.perf_counter() - began
        figures["burst"] = {
            "uploads": BURST,
            "at_once": AT_ONCE,
            "refused": sum(status != 201 for status in statuses),
            "deferred": len(gate.cases()),
            "uploads_per_s": round(BURST / seconds, 1),
        }
        figures["gate_cpu_ms_per_upload"] = round((cpu_ms(gate.program.process.pid) - before) / BURST, 2)

        large = content + bytes(2_000_000 - len(content) - 1) + HOLD
        held = [(await client.upload(gate.url, large))[0] for _ in range(60)]
        figures["hold_2mb_ms"] = spread(held[10:])

        read, read_directly = await interleaved(
            READS, lambda: client.read(gate.url), lambda: client.read(direct)
        )
        figures["read_5mb_through_gate_ms"], figures["read_5mb_direct_ms"] = (
            spread(read),
            spread(read_directly),
        )
        if nginx is not None:
            read, by_nginx = await interleaved(
                READS, lambda: client.read(gate.url), lambda: client.read(nginx)
            )
            figures["read_5mb_nginx_ms"] = spread(by_nginx)
            ratio = statistics.median(by_nginx) / statistics.median(read)
            figures["read_throughput_of_nginx"] = round(ratio, 2)
    return figures


async def many_large(gate: Gate) -> dict[str, Any]:
    """64 clients that send 20 MB each, all at once: what the gate takes of memory then."""
    assert gate.program is not None
    before, content = gate.program.resident_mb(), photograph()
    content += bytes(20_000_000 - len(content))
    connector = aiohttp.TCPConnector(limit=LARGE_AT_ONCE)
    async with aiohttp.ClientSession(connector=connector) as session:
        client = Client(session)
        began = time.perf_counter()
        answered = await asyncio.gather(*(client.upload(gate.url, content) for _ in range(LARGE_AT_ONCE)))
    statuses = [status for _, status in answered]
    return {
        "clients": LARGE_AT_ONCE,
        "budget_mb": 256,
        "resident_before_mb": before,
        "resident_peak_mb": gate.program.resident_mb(peak=True),
        "stored": statuses.count(201),
        "told_to_come_again": statuses.count(503),
        "seconds": round(time.perf_counter() - began, 1),
    }


def real_uploads(folder: Path, binary: Path) -> dict[str, Any]:
    """Uploads to the real pict-rs, straight and through a gate, a few in turn."""
    running = pictrs.Pictrs(folder / "pict-rs", real=binary)
    port = free_port()
    program = Program([sys.executable, "-m", "tests.bench.costless", str(port)], folder / "looking.log")
    program.wait_until(lambda: answers(f"http://127.0.0.1:{port}/v1/info"))
    gate = Gate(
        folder / "gate-real",
        pictrs_url=running.url,
        api_key=running.api_key,
        classifier_url=f"http://127.0.0.1:{port}",
    )
    content = photograph()
    times: dict[str, list[float]] = {running.url: [], gate.url: []}
    try:
        for _ in range(6):
            for url, taken in times.items():
                began = time.perf_counter()
                assert upload(url, content).status == 201
                taken.append((time.perf_counter() - began) * 1000)
    finally:
        for one in (gate, running):
            one.stop()
        program.stop()
    straight, through = (statistics.median(taken[1:]) for taken in times.values())
    return {"upload_direct_ms": round(straight, 1), "upload_through_gate_ms": round(through, 1)}


def start_nginx(folder: Path, upstream: int) -> tuple[Program, str] | None:
    """nginx with a plain proxy_pass, for comparison; None where it is not installed."""
    binary = next((path for path in ("/usr/sbin/nginx", "/usr/bin/nginx") if Path(path).exists()), None)
    if binary is None:
        return None
    port = free_port()
    paths = "".join(
        f"{kind}_temp_path {folder}/{kind};\n"
        for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    config = (
        f"daemon off; master_process off; pid {folder}/pid; error_log stderr;\n"
        f"events {{}}\nhttp {{\n{paths}access_log off;\n"
        f"server {{ listen 127.0.0.1:{port}; location / {{ proxy_pass http://127.0.0.1:{upstream}; }} }} }}\n"
    )
    (folder / "nginx.conf").write_text(config)
    program = Program([binary, "-c", folder / "nginx.conf", "-p", folder], folder / "nginx.log")
    program.wait_until(lambda: answers(f"http://127.0.0.1:{port}/"))
    return program, f"http://127.0.0.1:{port}"


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(prog="make bench", description=__doc__)
    parser.add_argument("--json", action="store_true", help="one JSON object of named figures")
    options = parser.parse_args()
    cpu = next(
        line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")
    )
    figures: dict[str, Any] = {
        "machine": f"{os.cpu_count()} × {cpu.partition(': ')[2]}",
        "python": platform.python_version(),
        "upload_bytes": len(photograph()),
    }
    with tempfile.TemporaryDirectory(prefix="pictrs-gate-bench-") as name:
        folder, port = Path(name), free_port()
        started: list[Any] = []
        try:
            costless = Program(
                [sys.executable, "-m", "tests.bench.costless", str(port)], folder / "costless.log"
            )
            started.append(costless)
            costless.wait_until(lambda: answers(f"http://127.0.0.1:{port}/v1/info"))
            direct = f"http://127.0.0.1:{port}"
            gate = Gate(
                folder / "gate",
                pictrs_url=direct,
                api_key="k",
                classifier_url=direct,
                log_level="info",  # as an operator runs it
            )
            started.append(gate)
            relay_port = free_port()
            relay = Program(
                [sys.executable, "-m", "tests.bench.relay", str(relay_port), direct], folder / "relay.log"
            )
            started.append(relay)
            relay.wait_until(lambda: answers(f"http://127.0.0.1:{relay_port}/"))
            nginx = start_nginx(folder, port)
            if nginx is not None:
                started.append(nginx[0])
            bare = f"http://127.0.0.1:{relay_port}"
            figures |= asyncio.run(measure(gate, direct, bare, nginx[1] if nginx else None))
            figures["memory"] = asyncio.run(many_large(gate))
            binary = pictrs.find()
            if binary is not None:
                figures["real_pict_rs"] = {"version": pictrs.version(binary), **real_uploads(folder, binary)}
        finally:
            for one in reversed(started):
                one.stop()
    if options.json:
        print(json.dumps(figures, indent=1))
        return
    table = Table(box=None, pad_edge=False, show_header=False)
    for key, value in figures.items():
        shown = ", ".join(f"{k} {v}" for k, v in value.items()) if isinstance(value, dict) else str(value)
        table.add_row(key, shown)
    Console().print(table)


if __name__ == "__main__":
    try:
        main()
    except subprocess.SubprocessError as error:
        sys.exit(f"make bench: {error}")
