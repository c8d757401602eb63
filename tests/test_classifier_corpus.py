"""Thousands of broken files: each gets an answer of the protocol, and nobody else notices.

`make fuzz-classifier [EXAMPLES=50000]` goes deeper, with other files each time; some 120 a second.
"""

from __future__ import annotations

import asyncio
import os
import random
import time
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from pathlib import Path

import aiohttp
import pytest

from tests import pictures
from tests.gate import TOKEN, Classifier, scripted

EXAMPLES = int(os.environ.get("GATE_FUZZ_EXAMPLES", "2240"))
# The short version is the same every time; the long one looks for what nobody has thought of.
SEED = time.time_ns() if "GATE_FUZZ_EXAMPLES" in os.environ else 0
CLIENTS = 6
WITHIN_MS = 20_000
MEMORY_BYTES = 4 * 1024**3  # of address space, as `Limits` has it


@cache
def originals() -> Mapping[str, bytes]:
    """A small file of every kind."""
    import pillow_jxl  # noqa: F401 — teaches Pillow the format

    drawn = pictures.draw((96, 64), 1)
    return {
        "jpeg": pictures.encode(drawn, "JPEG"),
        "progressive jpeg": pictures.encode(drawn, "JPEG", progressive=True),
        "png": pictures.encode(drawn, "PNG"),
        "palette png": pictures.encode(drawn.quantize(16), "PNG"),
        "apng": pictures.animation("PNG", size=(96, 64)),
        "gif": pictures.animation("GIF", size=(96, 64)),
        "webp": pictures.encode(drawn, "WEBP"),
        "lossless webp": pictures.encode(drawn, "WEBP", lossless=True),
        "animated webp": pictures.animation("WEBP", size=(96, 64)),
        "avif": pictures.encode(drawn, "AVIF"),
        "animated avif": pictures.animation("AVIF", size=(96, 64)),
        "jxl": pictures.encode(drawn, "JXL"),
        "mp4": pictures.video("mp4", frames=8),
        "mov": pictures.video("mov", frames=8),
        "webm": pictures.video("webm", frames=8),
    }


# --- mutations ---


def _flip(content: bytearray, rng: random.Random) -> None:
    for _ in range(rng.choice([1, 1, 2, 4, 16])):
        content[rng.randrange(len(content))] ^= rng.choice([1 << rng.randrange(8), rng.randrange(1, 256)])


def _cut(content: bytearray, rng: random.Random) -> None:
    del content[rng.randrange(len(content)) :]


def _drop(content: bytearray, rng: random.Random) -> None:
    del content[_piece(content, rng)]


def _double(content: bytearray, rng: random.Random) -> None:
    piece = content[_piece(content, rng)]
    at = rng.randrange(len(content))
    content[at:at] = piece * rng.choice([1, 1, 2, 50])


def _move(content: bytearray, rng: random.Random) -> None:
    where = _piece(content, rng)
    piece = content[where]
    del content[where]
    at = rng.randrange(len(content) + 1)
    content[at:at] = piece


def _blank(content: bytearray, rng: random.Random) -> None:
    where = _piece(content, rng)
    content[where] = rng.choice([b"\0", b"\xff"]) * len(content[where])


def _blow_up(content: bytearray, rng: random.Random) -> None:
    """Writes another number over a size: where one is known to stand, or anywhere near the beginning."""
    places = [
        at + offset
        for mark, offset in _SIZES
        if (at := content.find(mark)) >= 0 and at + offset + 4 <= len(content)
    ]
    at = rng.choice([*places, rng.randrange(max(1, min(len(content), 400) - 4))])
    length = rng.choice([2, 4])
    number = rng.choice(
        [0, 1, 0xFFFF, 0x7FFF, 20_000, 65_000, 0x7FFFFFFF, 0xFFFFFFFF, 0x10000, rng.getrandbits(32)]
    )
    content[at : at + length] = (number % 256**length).to_bytes(length, rng.choice(["big", "big", "little"]))


def _piece(content: bytearray, rng: random.Random) -> slice:
    start = rng.randrange(len(content))
    return slice(start, start + rng.choice([1, 4, 16, 64, 512]))


# Where formats keep widths, heights, numbers of frames and lengths: bytes after a mark.
_SIZES = (
    (b"\xff\xc0", 5),
    (b"\xff\xc0", 7),
    (b"\xff\xc2", 5),
    (b"IHDR", 4),
    (b"IHDR", 8),
    (b"acTL", 4),
    (b"fcTL", 8),
    (b"fcTL", 12),
    (b"GIF8", 6),
    (b"GIF8", 8),
    (b"\x2c", 5),
    (b"VP8X", 12),
    (b"VP8X", 15),
    (b"VP8 ", 14),
    (b"VP8L", 9),
    (b"ANMF", 14),
    (b"ispe", 8),
    (b"ispe", 12),
    (b"iloc", 8),
    (b"tkhd", 80),
    (b"avc1", 28),
    (b"av01", 28),
    (b"stsz", 8),
    (b"stsz", 12),
    (b"stco", 8),
    (b"stts", 8),
    (b"mdhd", 16),
    (b"\xb0", 2),
    (b"\xba", 2),
    (b"\x2a\xd7\xb1", 4),
)
_MUTATIONS: tuple[Callable[[bytearray, random.Random], None], ...] = (
    *(_flip, _flip, _cut, _drop, _double, _move, _blank),
    *(_blow_up, _blow_up),
)


def mutated(name: str, seed: str) -> bytes:
    """The original of that name, broken; the same for the same seed."""
    rng = random.Random(f"{name} {seed}")
    content = bytearray(originals()[name])
    for _ in range(rng.choice([1, 1, 1, 2, 3])):
        rng.choice(_MUTATIONS)(content, rng)
        if not content:
            return b"\0"
    if rng.random() < 0.7:  # or most PNGs would fail at their check sums, and nothing behind those be seen
        _mend_check_sums(content)
    return bytes(content)


def _mend_check_sums(content: bytearray) -> None:
    at = 8
    while content.startswith(b"\x89PNG") and at + 12 <= len(content):
        end = at + 8 + int.from_bytes(content[at : at + 4], "big")
        if end + 4 <= len(content):
            content[end : end + 4] = zlib.crc32(content[at + 4 : end]).to_bytes(4, "big")
        at = end + 4


# --- asking ---

_EXPECTED = {
    (200, "ok"),
    (400, "undecodable"),
    (413, "too-large"),
    (415, "unsupported-media"),
    (504, "deadline-exceeded"),
}


class Rig:
    """A running classifier, and what it has answered."""

    def __init__(self, classifier: Classifier) -> None:
        self._url = f"{classifier.url}/v1/classify"
        self.outcomes: Counter[tuple[int, str]] = Counter()
        self.unexpected: list[str] = []
        self.healthy = 0

    async def attack(self) -> None:
        """Sends the whole corpus over several connections, and healthy pictures all along."""
        names = sorted(originals())
        corpus = iter([(names[number % len(names)], f"{SEED} {number}") for number in range(EXAMPLES)])
        headers = {"Authorization": f"Bearer {TOKEN}", "X-Deadline-Ms": str(WITHIN_MS)}
        async with aiohttp.ClientSession(headers=headers) as session:
            healthy = asyncio.create_task(self._stay_healthy(session))
            await asyncio.gather(*(self._send(session, corpus) for _ in range(CLIENTS)))
            healthy.cancel()
            await asyncio.wait([healthy])

    async def _send(self, session: aiohttp.ClientSession, corpus: Iterator[tuple[str, str]]) -> None:
        for name, seed in corpus:
            try:
                outcome = await self._ask(session, mutated(name, seed))
            except aiohttp.ClientError as error:
                self.unexpected.append(f"{name} {seed}: {type(error).__name__}")
                continue
            self.outcomes[outcome] += 1
            if outcome not in _EXPECTED:
                self.unexpected.append(f"{name} {seed}: {outcome}")

    async def _stay_healthy(self, session: aiohttp.ClientSession) -> None:
        while True:
            status, code = await self._ask(session, pictures.png((120, 80), self.healthy))
            if status != 200:
                self.unexpected.append(f"healthy {self.healthy}: {status} {code}")
            self.healthy += 1
            await asyncio.sleep(0.05)

    async def _ask(self, session: aiohttp.ClientSession, content: bytes) -> tuple[int, str]:
        async with session.post(self._url, data=content) as answer:
            seen = await answer.json()
            return answer.status, seen["error"]["code"] if "error" in seen else "ok"


@pytest.fixture
def running(tmp_path: Path) -> Iterator[Classifier]:
    started = Classifier(tmp_path, ensemble=scripted(tmp_path, {}), options=["--workers", "2"])
    yield started
    started.stop()


def decoders(classifier: Classifier) -> list[Path]:
    """The folders in /proc of its decoders."""
    pid = classifier.program.process.pid
    tasks = Path(f"/proc/{pid}/task").iterdir()
    children = [Path("/proc") / child for task in tasks for child in (task / "children").read_text().split()]
    return [child for child in children if b"spawn_main" in (child / "cmdline").read_bytes()]


@pytest.mark.timeout(300 if EXAMPLES <= 5000 else 0)
async def test_a_broken_file_is_answered_and_costs_nobody_else_anything(running: Classifier) -> None:
    rig, before = Rig(running), len(decoders(running))
    await rig.attack()
    print(dict(rig.outcomes), "healthy:", rig.healthy)
    print(running.program.output().count("a decoder died"), "decoders died")
    assert rig.unexpected == []
    assert rig.outcomes.total() == EXAMPLES
    # the corpus is broken enough, and not so much that nothing but first bytes is looked at
    assert min(rig.outcomes[outcome] for outcome in [(200, "ok"), (400, "undecodable")]) >= EXAMPLES // 10
    assert rig.healthy >= 20
    assert running.program.process.poll() is None
    assert len(decoders(running)) == before >= 2
    for decoder in decoders(running):
        status = dict(line.split(":", 1) for line in (decoder / "status").read_text().splitlines())
        assert int(status["VmPeak"].split()[0]) * 1024 <= MEMORY_BYTES
    assert running.program.resident_mb(peak=True) < 1024
