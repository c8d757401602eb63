"""Heads: each computes named signals from prepared frames. A new kind is a new file and a line in `KINDS`."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol, cast

from classifier.decoding import Array, Preparation
from classifier.errors import SetupError

Signals = Mapping[str, float]


class Head(Protocol):
    """Computes one or more signals.

    Attributes:
        signals: their names.
        preparation: what it takes of a frame.
        warning: said loudly at start-up where the head is not to be trusted; None otherwise.
    """

    signals: tuple[str, ...]
    preparation: Preparation
    warning: str | None

    def score(self, inputs: Sequence[Array]) -> list[Signals]:
        """The signals (0..1) of each frame.

        Args:
            inputs: what `preparation` made of it, one array a frame, any number of frames.
        """
        ...

    def fingerprints(self) -> Iterator[bytes]:
        """A digest of each weight file that it uses, in a fixed order."""
        ...


# kind → the module with `build(options) -> Head`. Imported only when a recipe names it: torch is large.
KINDS: Mapping[str, str] = {
    "faces": "classifier.heads.faces",
    "open-nsfw": "classifier.heads.open_nsfw",
    "scripted": "classifier.heads.scripted",
    "timm": "classifier.heads.timm_model",
}


class Options:
    """The keys of one `[[heads]]` table, each to be taken exactly once."""

    def __init__(self, where: str, table: Mapping[str, Any]) -> None:
        self._where, self._left = where, dict(table)

    def take(self, key: str, kind: type | tuple[type, ...], *, default: Any = None) -> Any:
        """The value of `key`.

        Raises:
            SetupError: it has another type, or is missing and has no default.
        """
        value = self._left.pop(key, default)
        if value is None:
            raise SetupError(f"{self._where}: {key} is missing")
        if not isinstance(value, kind):
            raise SetupError(f"{self._where}: {key}: {value!r} has the wrong type")
        return value

    def done(self) -> None:
        """Says that every key has been taken.

        Raises:
            SetupError: one was not.
        """
        if self._left:
            raise SetupError(f"{self._where}: unknown key {', '.join(sorted(self._left))}")


def build(where: str, table: Mapping[str, Any]) -> Head:
    """The head that a recipe's table describes, its weights loaded.

    Raises:
        SetupError: the table is not understood, or what the head needs is not installed.
    """
    options = Options(where, table)
    kind = options.take("kind", str)
    if kind not in KINDS:
        raise SetupError(f"{where}: kind: {kind!r} is none of {', '.join(KINDS)}")
    try:
        module = importlib.import_module(KINDS[kind])
    except ImportError as error:
        raise SetupError(
            f"{where}: kind {kind} needs {error.name}, which is not installed; "
            "pip install 'pictrs-gate[starter]' or 'pictrs-gate[classifier]'"
        ) from None
    head = cast(Callable[[Options], Head], module.build)(options)
    options.done()
    return head
