"""Ensembles: recipes that name their heads, and the heads together."""

from __future__ import annotations

import hashlib
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from classifier.decoding import Preparation, Prepared
from classifier.errors import SetupError
from classifier.heads import Finish, Head, Inputs, Plan, Signals, plan
from classifier.heads.weights import NotHere


class Ensemble:
    """A named list of heads, which together give every signal once."""

    def __init__(self, name: str, about: str, heads: Sequence[Head], version: str) -> None:
        self.name, self.about, self.version, self.heads = name, about, version, heads

    @property
    def signals(self) -> list[str]:
        """The names of all signals."""
        return sorted(name for head in self.heads for name in head.signals)

    @property
    def preparations(self) -> list[Preparation]:
        """What the heads take, each once."""
        return list(dict.fromkeys(head.preparation for head in self.heads))

    @property
    def warnings(self) -> list[str]:
        """What has to be said loudly at start-up."""
        return [head.warning for head in self.heads if head.warning]

    def begin(self, frames: Sequence[Prepared]) -> Finish:
        """Has every head begin with a batch; what it returns gives each frame's signals. See `Head.begin`."""
        inputs = {
            preparation: Inputs([frame.inputs[preparation] for frame in frames])
            for preparation in self.preparations
        }
        finishes = [head.begin(inputs[head.preparation]) for head in self.heads]

        def finish() -> Sequence[Signals]:
            merged: list[dict[str, float]] = [{} for _ in frames]
            for one in finishes:
                for signals, own in zip(merged, one(), strict=True):
                    signals.update(own)
            return merged

        return finish


@dataclass(frozen=True, slots=True)
class Recipe:
    """A recipe that has been understood; nothing is loaded.

    Attributes:
        where: its name or path, as it was asked for.
        text: of its file.
        heads: what it asks for.
        weak: what its author says each head is weak at; None where he says nothing.
    """

    where: str
    name: str
    about: str
    text: str
    heads: Sequence[Plan]
    weak: Sequence[str | None]

    def load(self) -> Ensemble:
        """The ensemble, its weights loaded. Blocks, for seconds.

        Raises:
            NotHere: weights have not been fetched.
            SetupError: it cannot be used.
        """
        try:
            heads = [planned.load() for planned in self.heads]
        except NotHere as error:
            raise NotHere(f"{error}; fetch them: pictrs-classifier fetch {self.where}") from None
        digest = hashlib.sha256(self.text.encode())
        for head in heads:
            for fingerprint in head.fingerprints():
                digest.update(fingerprint)
        return Ensemble(self.name, self.about, heads, digest.hexdigest()[:16])


def strongest(frames: Sequence[Signals]) -> Signals:
    """The signals of a file: the maximum of each over its scored frames."""
    return {name: max(frame[name] for frame in frames) for name in frames[0]}


def load(name_or_path: str, device: str | None = None) -> Ensemble:
    """Builds an ensemble from a shipped recipe's name or the path of one's own.

    Args:
        device: where heads compute whose recipe does not say, as torch names it; None lets them choose.

    Raises:
        SetupError: there is no such recipe, or it cannot be used.
    """
    return read(name_or_path, device).load()


def read(name_or_path: str, device: str | None = None) -> Recipe:
    """Understands a recipe, down to every key of its heads, and loads nothing. See `load`.

    Raises:
        SetupError: there is no such recipe, or it is not understood.
    """
    text = _text(name_or_path)
    try:
        recipe = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise SetupError(f"{name_or_path}: not TOML: {error}") from None
    name, about, tables = (recipe.pop(key, None) for key in ("name", "about", "heads"))
    if not isinstance(name, str) or not isinstance(tables, list) or not tables or recipe:
        raise SetupError(f"{name_or_path}: needs name, about and [[heads]], and nothing else")
    weak = [_weak(name_or_path, table) for table in tables]
    heads = [
        plan(f"{name_or_path}: heads {number}", table, device) for number, table in enumerate(tables, start=1)
    ]
    names = [signal for planned in heads for signal in planned.signals]
    if len(set(names)) < len(names):
        raise SetupError(f"{name_or_path}: two heads give the same signal")
    return Recipe(name_or_path, name, str(about or ""), text, heads, weak)


def shipped() -> list[str]:
    """The names of the recipes that come with the package."""
    return sorted(
        path.name.removesuffix(".toml")
        for path in resources.files(__package__).iterdir()
        if path.name.endswith(".toml")
    )


def about(name: str) -> str:
    """What a shipped recipe says of itself; reads nothing else."""
    return str(tomllib.loads(_text(name))["about"])


def _weak(where: str, table: dict[str, Any]) -> str | None:
    """Takes `weak` out of a head's table: it is for people, and no head needs to know it."""
    weak = table.pop("weak", None)
    if weak is not None and not isinstance(weak, str):
        raise SetupError(f"{where}: weak: {weak!r}: has to be a text")
    return weak


def _text(name_or_path: str) -> str:
    if name_or_path in shipped():
        return (resources.files(__package__) / f"{name_or_path}.toml").read_text()
    try:
        return Path(name_or_path).read_text()
    except OSError:
        raise SetupError(
            f"{name_or_path}: neither a recipe's file nor one of {', '.join(shipped())}"
        ) from None
