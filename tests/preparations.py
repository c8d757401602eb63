"""What heads of tests take of a frame."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from classifier.decoding import Array, Frame


@dataclass(frozen=True)
class Pixels:
    """The frame itself, whole."""

    def suffices(self, width: int, height: int) -> bool:
        return False

    def prepare(self, frame: Frame) -> Array:
        return np.asarray(frame.image)
