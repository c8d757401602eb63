"""From what is known and what was seen to a verdict: a pure function, first match wins."""

from __future__ import annotations

import enum
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from proxy.channels.looks import Look, Seen, Undecodable, Unseen
from proxy.media import Format


class Verdict(enum.StrEnum):
    """What becomes of an upload."""

    ALLOW = "allow"
    HOLD = "hold"
    BLOCK = "block"
    DEFER = "defer"


@dataclass(frozen=True, slots=True)
class Rule:
    """Gives its verdict when every signal in `at_least` reaches its threshold (0..1)."""

    name: str
    verdict: Verdict
    at_least: Mapping[str, float]

    def matches(self, signals: Mapping[str, float]) -> bool:
        """Whether all thresholds are reached. A signal that is not there reaches none."""
        return all(signals.get(name, -1.0) >= threshold for name, threshold in self.at_least.items())


@dataclass(frozen=True, slots=True)
class Policy:
    """The operator's choices."""

    rules: Sequence[Rule]
    on_unavailable: Verdict
    on_undecodable: Verdict

    @property
    def signals(self) -> frozenset[str]:
        """Every signal that a rule names."""
        return frozenset(name for rule in self.rules for name in rule.at_least)


@dataclass(frozen=True, slots=True)
class Decision:
    """A verdict and why.

    Attributes:
        rule: the rule that gave it, where one did.
        by_lockdown: whether nobody has looked because every upload is held now.
    """

    verdict: Verdict
    reason: str
    rule: str | None = None
    by_lockdown: bool = False


def decide_known(verdict: Verdict, source: str) -> Decision:
    """The verdict on a file whose exact bytes are known; nobody has to look at it."""
    return Decision(verdict, f"known: {source}")


def decide(policy: Policy, look: Look, claimed: Format) -> Decision:
    """The verdict on a file after somebody looked, or nobody could.

    Args:
        claimed: what the file's signature says it is. Where its decoder says otherwise, there are two
            readings of one file, and what was looked at need not be what pict-rs will show.
    """
    match look:
        case Seen(signals=signals, format=decoded):
            seen = _by_rules(policy.rules, signals)
            if _family(decoded) == _family(claimed.name):
                return seen
            reason = f"undecodable: its signature says {claimed.name}, its decoder {decoded}"
            return max(seen, Decision(policy.on_undecodable, reason), key=_severity)
        case Undecodable(reason=reason):
            return Decision(policy.on_undecodable, f"undecodable: {reason}")
        case Unseen(reason=reason):
            return Decision(policy.on_unavailable, f"unavailable: {reason}")


def _by_rules(rules: Sequence[Rule], signals: Mapping[str, float]) -> Decision:
    for rule in rules:
        if rule.matches(signals):
            return Decision(rule.verdict, f"rule: {rule.name}", rule.name)
    return Decision(Verdict.ALLOW, "no rule matched")


def _severity(decision: Decision) -> int:
    return (Verdict.ALLOW, Verdict.DEFER, Verdict.HOLD, Verdict.BLOCK).index(decision.verdict)


def _family(name: str) -> str:
    """One name for formats that only their number of frames, or a box at the start, tells apart."""
    return {"apng": "png", "mov": "mp4"}.get(name, name)
