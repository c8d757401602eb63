"""What an ensemble is, in words for an admin; also of one whose weights are not here."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence

from classifier.ensembles import about, read, shipped
from classifier.heads import Head
from classifier.heads.weights import NotHere

_WIDTH, _LABEL = 110, 10


def explain(name_or_path: str, device: str | None = None) -> Iterator[str]:
    """The lines of an explanation. Loads the weights where they are here, since the version is theirs, too.

    Raises:
        SetupError: the recipe is not understood, or its weights cannot be used.
    """
    recipe = read(name_or_path, device)
    heads: Sequence[Head | None]
    try:
        ensemble = recipe.load()
    except NotHere as error:
        heads, version, warnings = [None] * len(recipe.heads), f"not known yet: {error}", []
    else:
        heads, version, warnings = ensemble.heads, ensemble.version, ensemble.warnings
    yield f"{recipe.name}: {recipe.about}"
    yield from _labelled("version", version)
    for warning in warnings:
        yield from _labelled("WARNING", warning)
    for planned, head, weak in zip(recipe.heads, heads, recipe.weak, strict=True):
        yield ""
        for label, text in planned.explain(head):
            yield from _labelled(label, text)
        if weak:
            yield from _labelled("weak at", weak)


def overview() -> Iterator[str]:
    """A line for each shipped ensemble."""
    for name in shipped():
        yield from _labelled(name, about(name))


def _labelled(label: str, text: str) -> Iterator[str]:
    first = f"{label:{_LABEL}} "
    yield from textwrap.wrap(
        text,
        _WIDTH,
        initial_indent=first,
        subsequent_indent=" " * (_LABEL + 1),
        break_long_words=False,
        break_on_hyphens=False,  # commands and names of models are to be copied
    )
