"""A look at pict-rs's small variant spares the line. Only what is plainly harmless ends there."""

from __future__ import annotations

import re
from collections.abc import Mapping

from proxy.errors import PictrsError
from proxy.intake.target import write_target
from proxy.pictrs import Pictrs
from proxy.policy import Policy

LEAST, MOST = 64, 2048  # pixels of a side
WORTH_BYTES = 64 * 1024  # a smaller original is fetched at once
_NEAR = 0.5  # of a threshold; from there on the original is looked at
_MARK = re.compile(r"(.*) @(\d{2,4})", re.DOTALL)


async def thumbnail_of(pictrs: Pictrs, alias: str, side: int) -> bytes | None:
    """pict-rs's variant that fits into a square of `side` pixels; None where it makes none.

    As WebP, which keeps transparency.

    Raises:
        PictrsError: pict-rs cannot be reached.
    """
    target = write_target(["image", "process.webp"], [("src", alias), ("thumbnail", str(side))])
    try:
        answer = await pictrs.get(target)
    except PictrsError as error:
        if error.status is None and not error.timed_out:
            raise
        return None
    return answer.body if answer.status == 200 else None


def is_near(policy: Policy, signals: Mapping[str, float]) -> bool:
    """Whether a rule comes near to matching: each of its signals has half of what it takes."""
    return any(
        all(signals.get(name, 1.0) >= _NEAR * threshold for name, threshold in rule.at_least.items())
        for rule in policy.rules
    )


def marked(ensemble: str, side: int) -> str:
    """The ensemble's name for looks at variants of `side` pixels: they tell less than one at the original."""
    return f"{ensemble} @{side}"


def side_of(ensemble: str) -> tuple[str, int | None]:
    """The ensemble itself, and the `side` of the variants that it has looked at; None for originals."""
    match = _MARK.fullmatch(ensemble)
    return (match[1], int(match[2])) if match else (ensemble, None)
