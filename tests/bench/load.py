"""Many connections that ask a classifier as fast as it answers, from a process of its own; prints JSON.

    python -m tests.bench.load HOST PORT CONNECTIONS SECONDS PRIORITY SIZE

Sockets by hand, because a client library would cost as much as what is measured. No two pictures are alike in
their pixels: else they would be looked at once, and remembered.
"""

from __future__ import annotations

import asyncio
import io
import itertools
import json
import sys
import time

import numpy as np
from PIL import Image

TOKEN = "a-token-for-tests-only"


def photograph(side: tuple[int, int], *, seed: int = 7, noise_part: float = 0.184) -> bytes:
    """A JPEG with as much detail as a photograph: 0.35 bytes a pixel, or less with less noise in it."""
    rng = np.random.default_rng(seed)
    noise = Image.fromarray(rng.integers(0, 256, (side[1], side[0], 3), dtype=np.uint8))
    smooth = noise.resize((16, 12)).resize(side, Image.Resampling.BICUBIC)
    file = io.BytesIO()
    Image.blend(smooth, noise, noise_part).save(file, "JPEG", quality=88)
    return file.getvalue()


class Variations:
    """A JPEG again and again with other quantisation: other pixels for three changed bytes, at no cost."""

    def __init__(self, content: bytes, first: int) -> None:
        self._content, self._numbers = bytearray(content), itertools.count(first)
        self._table = content.index(b"\xff\xdb") + 5  # marker, length, number; then 64 bytes
        self._least = content[self._table : self._table + 6]

    def next(self) -> bytes:
        """Another one."""
        number = next(self._numbers)
        for place, least in enumerate(self._least):  # the lowest frequencies, which every picture has
            self._content[self._table + place] = least + number % 9
            number //= 9
        return bytes(self._content)


async def ask(host: str, port: int, until: float, priority: str, variations: Variations) -> list[float]:
    """One connection; the milliseconds of each answer."""
    reader, writer = await asyncio.open_connection(host, port)
    head = f"POST /v1/classify HTTP/1.1\r\nHost: {host}\r\nAuthorization: Bearer {TOKEN}\r\n"
    head += f"X-Priority: {priority}\r\nX-Deadline-Ms: 120000\r\n"
    taken = []
    while time.perf_counter() < until:
        content = variations.next()
        began = time.perf_counter()
        writer.write(f"{head}Content-Length: {len(content)}\r\n\r\n".encode() + content)
        answer = await reader.readuntil(b"\r\n\r\n")
        length = next(line for line in answer.split(b"\r\n") if line.lower().startswith(b"content-length"))
        await reader.readexactly(int(length.split(b":")[1]))
        if not answer.startswith(b"HTTP/1.1 200 "):
            raise RuntimeError(answer.split(b"\r\n")[0].decode())
        taken.append((time.perf_counter() - began) * 1000)
    writer.close()
    return taken


async def main() -> None:
    """Asks, and prints what it took."""
    host, port, connections, seconds, priority, side, first = sys.argv[1:8]
    width, height = map(int, side.split("x"))
    content = photograph((width, height))
    began = time.perf_counter()
    variations = Variations(content, int(first))
    taken = await asyncio.gather(
        *(ask(host, int(port), began + float(seconds), priority, variations) for _ in range(int(connections)))
    )
    flat = [one for own in taken for one in own]
    print(json.dumps({"bytes": len(content), "seconds": time.perf_counter() - began, "ms": flat}))


if __name__ == "__main__":
    asyncio.run(main())
