"""A classifier that goes away and comes back as a test says, and remembers what it was shown."""

from __future__ import annotations

import hashlib
import io
import time
from collections.abc import Callable

from PIL import Image

from tests.fake import INFO, SEEN, Asked, Fake, Reply, json_reply

HIT = {"sexual": 0.9, "minor": 0.8}


class Looker:
    """Gives PNG files signals.

    Attributes:
        is_there: whether it looks at all.
        hits: `pixels` of what has to be held: pict-rs writes files anew.
        poison: SHA-256 of what it fails at.
        looks: SHA-256 of everything that it was asked about while it was there, in order.
    """

    def __init__(self, *, is_there: bool = False) -> None:
        self.is_there = is_there
        self.hits: set[str] = set()
        self.poison: set[str] = set()
        self.looks: list[str] = []
        self.fake = Fake(self._answer)
        self.url = self.fake.url

    def _answer(self, asked: Asked) -> Reply:
        if not self.is_there:
            return json_reply(503, {"error": {"code": "away", "message": "…"}})
        if asked.method == "GET":
            return json_reply(200, INFO)
        digest = sha256(asked.body)
        self.looks.append(digest)
        if digest in self.poison:
            return json_reply(500, {"error": {"code": "internal-error", "message": "…"}})
        # As good a perceptual hash as any, for pictures that are the same or have nothing in common.
        hashes = {"sha256": digest, "pdq": pixels(asked.body), "pdq_quality": 100}
        signals = HIT if pixels(asked.body) in self.hits else SEEN["signals"]
        frames = [{"index": 0, "signals": signals}]
        return json_reply(200, {**SEEN, "signals": signals, "frames": frames, "hashes": hashes})

    def close(self) -> None:
        """Ends it."""
        self.fake.close()


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def pixels(content: bytes) -> str:
    """The same for every lossless file of one picture."""
    with Image.open(io.BytesIO(content)) as image:
        return sha256(repr(image.size).encode() + image.convert("RGB").tobytes())


def until(holds: Callable[[], bool], *, within_s: float = 90.0, every_s: float = 0.1) -> None:
    """Waits until something has come to pass."""
    end = time.monotonic() + within_s
    while not holds():
        assert time.monotonic() < end, "it has not come to pass"
        time.sleep(every_s)
