"""From bytes to what the heads take, in processes that can be killed.

A file is untrusted until it is an array of pixels. Decoding it, and whatever else looks at its pixels
one by one, happens in a worker process; the server only ever sees what comes back.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Array: TypeAlias = NDArray[np.generic]
# Whether a frame of so many pixels, width and height, is enough.
Suffices: TypeAlias = Callable[[int, int], bool]


@dataclass(frozen=True, slots=True)
class Frame:
    """One decoded frame: RGB, upright, over white.

    Attributes:
        index: its place in the file, from 0.
        file_sha256: of the whole file, in hexadecimal.
    """

    image: Image.Image
    index: int
    file_sha256: str


class Preparation(Protocol):
    """Turns a frame into what one head takes. Runs in a worker process, so it is small and picklable.

    Every worker imports its module: that may need a model's own preprocessing, but never torch.

    Equal preparations are made once a frame, however many heads want them: implementations are frozen
    dataclasses, so that equality is that of their settings.
    """

    def prepare(self, frame: Frame) -> Array:
        """The head's input: shape (k, …), k items of the frame (one for the whole, or one a face)."""
        ...

    def suffices(self, width: int, height: int) -> bool:
        """Whether a frame that was reduced to so many pixels gives what the whole one would."""
        ...

    def __hash__(self) -> int: ...


@dataclass(frozen=True, slots=True)
class Media:
    """What a file turned out to be.

    Attributes:
        kind: `image` or `animation`.
        format: `jpeg`, `png`, `apng`, …
        width, height: pixels, once upright.
        frames: in the file; `frames_scored` of them are looked at.
    """

    kind: str
    format: str
    width: int
    height: int
    frames: int
    frames_scored: int


@dataclass(frozen=True, slots=True)
class Hashes:
    """
    Attributes:
        sha256: of the bytes.
        pdq: 256 bits in hexadecimal, of the first scored frame; None where `pdqhash` is not installed.
        pdq_quality: 0..100; below 50 the hash says little (PDQ's own documentation).
    """

    sha256: str
    pdq: str | None
    pdq_quality: int | None


@dataclass(frozen=True, slots=True)
class Prepared:
    """One scored frame, ready for the heads.

    Attributes:
        index: its place in the file, from 0.
        inputs: what each preparation made of it.
        digest: of all inputs together.
    """

    index: int
    inputs: Mapping[Preparation, Array]
    digest: bytes


@dataclass(frozen=True, slots=True)
class Decoded:
    """A file, ready for the heads; `frames` are those that are scored."""

    media: Media
    hashes: Hashes
    frames: Sequence[Prepared]


@dataclass(frozen=True, slots=True)
class Limits:
    """
    Attributes:
        pixels: of one frame. pict-rs takes 40 million by default.
        frames: that are scored, at most.
        memory_bytes: of address space that one worker process may have.
    """

    pixels: int = 64_000_000
    frames: int = 32
    memory_bytes: int = 4 * 1024**3


def within(size: tuple[int, int], longest_side: int) -> tuple[int, int]:
    """A size in pixels reduced to fit, in the same shape; no side becomes nothing."""
    scale = longest_side / max(size)
    return max(1, round(size[0] * scale)), max(1, round(size[1] * scale))
