"""Ensembles: recipes that name their heads, and the heads together."""

from __future__ import annotations

import hashlib
import tomllib
from collections.abc import Sequence
from importlib import resources
from pathlib import Path

from classifier.decoding import Preparation, Prepared
from classifier.errors import SetupError
from classifier.heads import Finish, Head, Inputs, Signals, build


class Ensemble:
    """A named list of heads, which together give every signal once."""

    def __init__(self, name: str, about: str, heads: Sequence[Head], version: str) -> None:
        self.name, self.about, self.version = name, about, version
        self._heads = heads

    @property
    def signals(self) -> list[str]:
        """The names of all signals."""
        return sorted(name for head in self._heads for name in head.signals)

    @property
    def preparations(self) -> list[Preparation]:
        """What the heads take, each once."""
        return list(dict.fromkeys(head.preparation for head in self._heads))

    @property
    def warnings(self) -> list[str]:
        """What has to be said loudly at start-up."""
        return [head.warning for head in self._heads if head.warning]

    def begin(self, frames: Sequence[Prepared]) -> Finish:
        """Has every head begin with a batch; what it returns gives each frame's signals. See `Head.begin`."""
        inputs = {
            preparation: Inputs([frame.inputs[preparation] for frame in frames])
            for preparation in self.preparations
        }
        finishes = [head.begin(inputs[head.preparation]) for head in self._heads]

        def finish() -> Sequence[Signals]:
            merged: list[dict[str, float]] = [{} for _ in frames]
            for one in finishes:
                for signals, own in zip(merged, one(), strict=True):
                    signals.update(own)
            return merged

        return finish


def strongest(frames: Sequence[Signals]) -> Signals:
    """The signals of a file: the maximum of each over its scored frames."""
    return {name: max(frame[name] for frame in frames) for name in frames[0]}


def load(name_or_path: str, device: str | None = None) -> Ensemble:
    """Builds an ensemble from a shipped recipe's name or the path of one's own.

    Raises:
        SetupError: there is no such recipe, or it cannot be used.
    """
    where, text = _read(name_or_path)
    try:
        recipe = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise SetupError(f"{where}: not TOML: {error}") from None
    name, about, tables = (recipe.pop(key, None) for key in ("name", "about", "heads"))
    if not isinstance(name, str) or not isinstance(tables, list) or not tables or recipe:
        raise SetupError(f"{where}: needs name, about and [[heads]], and nothing else")
    heads = [build(f"{where}: heads {number}", table) for number, table in enumerate(tables, start=1)]
    names = [signal for head in heads for signal in head.signals]
    if len(set(names)) < len(names):
        raise SetupError(f"{where}: two heads give the same signal")
    digest = hashlib.sha256(text.encode())
    for head in heads:
        for fingerprint in head.fingerprints():
            digest.update(fingerprint)
    return Ensemble(name, str(about or ""), heads, digest.hexdigest()[:16])


def shipped() -> list[str]:
    """The names of the recipes that come with the package."""
    return sorted(
        path.name.removesuffix(".toml")
        for path in resources.files(__package__).iterdir()
        if path.name.endswith(".toml")
    )


def _read(name_or_path: str) -> tuple[str, str]:
    if name_or_path in shipped():
        return name_or_path, (resources.files(__package__) / f"{name_or_path}.toml").read_text()
    try:
        return name_or_path, Path(name_or_path).read_text()
    except OSError:
        raise SetupError(
            f"{name_or_path}: neither a recipe's file nor one of {', '.join(shipped())}"
        ) from None
