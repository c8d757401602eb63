"""Signals from a table by SHA-256, for tests: it looks at nothing, and says so."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from classifier.decoding import Array, Frame
from classifier.errors import SetupError
from classifier.heads import Finish, Head, Inputs, Options, Signals


@dataclass(frozen=True, slots=True)
class FileDigest:
    """Not the pixels but the SHA-256 of the file that they came from: (1, 32) uint8."""

    def suffices(self, width: int, height: int) -> bool:
        """See `Preparation.suffices`."""
        return True

    def prepare(self, frame: Frame) -> Array:
        """See `Preparation.prepare`."""
        return np.frombuffer(bytes.fromhex(frame.file_sha256), np.uint8)[None]


class Scripted:
    """What the table says about a file, and `otherwise` about one that it does not name."""

    warning = "THE SCRIPTED HEAD LOOKS AT NOTHING: its signals come from a table. Use it for tests only."

    def __init__(self, table: Mapping[str, Signals], otherwise: Signals) -> None:
        self.signals = tuple(otherwise)
        self.preparation = FileDigest()
        self._table, self._otherwise = table, otherwise

    def begin(self, inputs: Inputs) -> Finish:
        """See `Head.begin`."""
        names = [digest.tobytes().hex() for digest in inputs.arrays]
        return lambda: [{**self._otherwise, **self._table.get(name, {})} for name in names]

    def fingerprints(self) -> Iterator[bytes]:
        """See `Head.fingerprints`: the table is all the weights it has."""
        script = json.dumps([self._table, self._otherwise], sort_keys=True)
        yield hashlib.sha256(script.encode()).digest()


@dataclass(frozen=True, slots=True)
class ScriptedPlan:
    """See `Scripted`."""

    table: Mapping[str, Signals]
    otherwise: Signals
    sources = ()

    @property
    def signals(self) -> tuple[str, ...]:
        """See `Plan.signals`."""
        return tuple(self.otherwise)

    def load(self) -> Scripted:
        """See `Plan.load`."""
        return Scripted(self.table, self.otherwise)

    def explain(self, head: Head | None) -> Iterator[tuple[str, str]]:
        """See `Plan.explain`."""
        for signal, value in self.otherwise.items():
            yield signal, f"from a table of {len(self.table)} files by SHA-256, otherwise {value:g}"


def plan(options: Options) -> ScriptedPlan:
    """From a recipe: `otherwise`, a table of signals; `files`, a table of such tables by SHA-256."""
    otherwise = _signals("otherwise", options.take("otherwise", dict))
    files = options.take("files", dict, default={})
    table = {str(sha256).lower(): _signals(sha256, signals) for sha256, signals in files.items()}
    unknown = {name for signals in table.values() for name in signals} - otherwise.keys()
    if not otherwise or unknown:
        raise SetupError(f"scripted: otherwise has to name every signal, also {', '.join(sorted(unknown))}")
    return ScriptedPlan(table, otherwise)


def _signals(where: str, table: Any) -> dict[str, float]:
    if not isinstance(table, dict) or not all(
        isinstance(value, int | float) and 0 <= value <= 1 for value in table.values()
    ):
        raise SetupError(f"scripted: {where}: has to be a table of signals, each 0..1")
    return {str(name): float(value) for name, value in table.items()}
