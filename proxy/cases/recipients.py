"""To whom a case is sealed. The one place that says it: sealing, re-sealing and the doctor ask here."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence


def sealed_to(reviewers: Sequence[str], gate: str | None = None, *, gate_reads: bool = False) -> list[str]:
    """The public keys that a case is sealed to, each once, in the order of the configuration.

    Args:
        reviewers: `cases.recipients`.
        gate: the public half of the gate's own key; needed where `gate_reads`.
        gate_reads: whether the gate has to open the case once more, to have it looked at.

    Raises:
        ValueError: the gate is to read it, and has no key.
    """
    if not gate_reads:
        return list(dict.fromkeys(reviewers))
    if gate is None:
        raise ValueError("the gate has to be able to open this case, and its own key is not known")
    return list(dict.fromkeys([*reviewers, gate]))


def digest(recipients: Iterable[str]) -> str:
    """A name for a set of public keys, 64 hexadecimal digits; their order does not matter."""
    return hashlib.sha256("\n".join(sorted(set(recipients))).encode()).hexdigest()
