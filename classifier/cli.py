"""The command `pictrs-classifier`: its door only, as decoder processes import the main program too."""

from __future__ import annotations

from collections.abc import Sequence


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command; returns the exit status."""
    from classifier.commands import main as run

    return run(argv)
