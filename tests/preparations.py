"""What heads of tests take of a frame, and what a codec with a bug would do.

Decoder processes import this file, so it imports no more than they do anyway.
"""

from __future__ import annotations

import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from classifier.decoding import Array, Decoded, Frame


@dataclass(frozen=True)
class Pixels:
    """The frame itself, whole."""

    def suffices(self, width: int, height: int) -> bool:
        return False

    def prepare(self, frame: Frame) -> Array:
        return np.asarray(frame.image)


@dataclass(frozen=True)
class Width:
    """How many pixels wide the frame is, which serves as its name."""

    def suffices(self, width: int, height: int) -> bool:
        return False

    def prepare(self, frame: Frame) -> Array:
        return np.array([frame.image.width])


@dataclass(frozen=True)
class Misbehaves:
    """Hangs or dies on frames of one width, as a codec with a bug would."""

    hangs_at: int = 0
    dies_at: int = 0
    eats_at: int = 0

    def suffices(self, width: int, height: int) -> bool:
        return False

    def prepare(self, frame: Frame) -> Array:
        if frame.image.width == self.hangs_at:
            time.sleep(60)
        if frame.image.width == self.dies_at:
            os.kill(os.getpid(), signal.SIGSEGV)
        if frame.image.width == self.eats_at:
            bytearray(3 * 1024**3)
        return np.zeros((1, 1), np.uint8)


@dataclass(frozen=True)
class Scripted:
    """Does with each frame 40 pixels wide the next thing that the script says; `tally` counts them."""

    tally: Path
    script: tuple[str, ...]

    def suffices(self, width: int, height: int) -> bool:
        return False

    def prepare(self, frame: Frame) -> Array:
        if frame.image.width == 40:
            with self.tally.open("a") as tally:
                tally.write(".")
            step = self.script[self.count - 1]
            if step == "die":
                os.kill(os.getpid(), signal.SIGKILL)
            if step == "hang":
                time.sleep(60)
        return np.zeros((1, 1), np.uint8)

    @property
    def count(self) -> int:
        return len(self.tally.read_text())


@dataclass(frozen=True)
class Holds:
    """Keeps frames 40 pixels wide until there is a file at `until`."""

    until: Path

    def suffices(self, width: int, height: int) -> bool:
        return False

    def prepare(self, frame: Frame) -> Array:
        while frame.image.width == 40 and not self.until.exists():
            time.sleep(0.01)
        return np.zeros((1, 1), np.uint8)


@dataclass(frozen=True)
class Nice:
    """The niceness of the process that it runs in."""

    def suffices(self, width: int, height: int) -> bool:
        return True

    def prepare(self, frame: Frame) -> Array:
        return np.array([[os.nice(0)]], np.uint8)


def pixels_of(decoded: Decoded) -> list[Array]:
    """The scored frames, whole."""
    return [frame.inputs[Pixels()] for frame in decoded.frames]


def indices_of(decoded: Decoded) -> list[int]:
    """The places of the scored frames in their file."""
    return [frame.index for frame in decoded.frames]
