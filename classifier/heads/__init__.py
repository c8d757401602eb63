"""Heads: each computes named signals from prepared frames. A new kind is a new file and a line in `KINDS`."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from typing import Any, Protocol, TypeAlias, TypeVar, cast

from classifier.decoding import Array, Preparation
from classifier.errors import SetupError
from classifier.heads.weights import Source

Signals: TypeAlias = Mapping[str, float]
# Waits for what was begun, and gives the signals (0..1) of each frame.
Finish: TypeAlias = Callable[[], Sequence[Signals]]

T = TypeVar("T")


class Inputs:
    """What one preparation made of each frame of a batch, for all heads that take it.

    Attributes:
        arrays: one a frame.
    """

    def __init__(self, arrays: Sequence[Array]) -> None:
        self.arrays = arrays
        self._made: dict[Hashable, Any] = {}

    def once(self, key: Hashable, make: Callable[[], T]) -> T:
        """What `make` gives, made by the first head that asks and shared by the others."""
        if key not in self._made:
            self._made[key] = make()
        return cast(T, self._made[key])


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

    def begin(self, inputs: Inputs) -> Finish:
        """Begins to compute, and returns without waiting for a card that computes by itself.

        Called from one thread; what it returns is called from another one, in the same order.

        Args:
            inputs: what `preparation` made of the frames, any number of them.
        """
        ...

    def fingerprints(self) -> Iterator[bytes]:
        """A digest of each weight file that it uses, in a fixed order."""
        ...


class Plan(Protocol):
    """What one `[[heads]]` table asks for: every key understood, nothing loaded.

    So that a recipe can be checked and explained where its weights are not.
    """

    @property
    def signals(self) -> tuple[str, ...]:
        """The names of what it gives."""
        ...

    @property
    def sources(self) -> Sequence[Source]:
        """Where its models' files come from, as far as that is known; none where a package brings them."""
        ...

    def load(self) -> Head:
        """The head, its weights loaded.

        Raises:
            NotHere: its weights have not been fetched.
            SetupError: they cannot be used.
        """
        ...

    def explain(self, head: Head | None) -> Iterator[tuple[str, str]]:
        """What there is to know about it, as label and text; `head` where it could be loaded."""
        ...


# kind → the module with `plan(options) -> Plan`. Imported only when a recipe names it: torch is large.
KINDS: Mapping[str, str] = {
    "concepts": "classifier.heads.concepts",
    "faces": "classifier.heads.faces",
    "open-nsfw": "classifier.heads.open_nsfw",
    "scripted": "classifier.heads.scripted",
    "timm": "classifier.heads.timm_model",
}


class Options:
    """The keys of one `[[heads]]` table, each to be taken exactly once.

    Attributes:
        where: the table, for messages.
        device: where the caller wants it computed, as torch names it; None leaves it to the head.
    """

    def __init__(self, where: str, table: Mapping[str, Any], device: str | None = None) -> None:
        self.where, self.device = where, device
        self._left = dict(table)

    def take(self, key: str, kind: type | tuple[type, ...], *, default: Any = None) -> Any:
        """The value of `key`.

        Raises:
            SetupError: it has another type, or is missing and has no default.
        """
        value = self.find(key, kind)
        if value is None:
            value = default
        if value is None:
            raise SetupError(f"{self.where}: {key} is missing")
        return value

    def find(self, key: str, kind: type | tuple[type, ...]) -> Any:
        """The value of `key`, or None where there is none.

        Raises:
            SetupError: it has another type.
        """
        value = self._left.pop(key, None)
        if value is not None and not isinstance(value, kind):
            raise SetupError(f"{self.where}: {key}: {value!r} has the wrong type")
        return value

    def done(self) -> None:
        """Says that every key has been taken.

        Raises:
            SetupError: one was not.
        """
        if self._left:
            raise SetupError(f"{self.where}: unknown key {', '.join(sorted(self._left))}")


def plan(where: str, table: Mapping[str, Any], device: str | None = None) -> Plan:
    """What a recipe's table asks for.

    Args:
        where: the table, for messages.
        device: see `Options`.

    Raises:
        SetupError: the table is not understood, or what the head needs is not installed.
    """
    options = Options(where, table, device)
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
    planned = cast(Callable[[Options], Plan], module.plan)(options)
    options.done()
    return planned
