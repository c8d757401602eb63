"""What heads of tests take of a frame."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from classifier.decoding import Array, Decoded, Frame


@dataclass(frozen=True)
class Pixels:
    """The frame itself, whole."""

    def suffices(self, width: int, height: int) -> bool:
        return False

    def prepare(self, frame: Frame) -> Array:
        return np.asarray(frame.image)


def pixels_of(decoded: Decoded) -> list[Array]:
    """The scored frames, whole."""
    return [frame.inputs[Pixels()] for frame in decoded.frames]


def indices_of(decoded: Decoded) -> list[int]:
    """The places of the scored frames in their file."""
    return [frame.index for frame in decoded.frames]
