"""From what is known and what was seen to a verdict: a pure function, first match wins."""

from __future__ import annotations

import enum
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from proxy.channels.looks import Look, Seen, Undecodable, Unseen


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
    """A verdict and why. `rule` is the rule that gave it, where one did."""

    verdict: Verdict
    reason: str
    rule: str | None = None


def decide_known(verdict: Verdict, source: str) -> Decision:
    """The verdict on a file whose exact bytes are known; nobody has to look at it."""
    return Decision(verdict, f"known: {source}")


def decide(policy: Policy, look: Look) -> Decision:
    """The verdict on a file after somebody looked, or nobody could."""
    match look:
        case Seen(signals=signals):
            for rule in policy.rules:
                if rule.matches(signals):
                    return Decision(rule.verdict, f"rule: {rule.name}", rule.name)
            return Decision(Verdict.ALLOW, "no rule matched")
        case Undecodable(reason=reason):
            return Decision(policy.on_undecodable, f"undecodable: {reason}")
        case Unseen(reason=reason):
            return Decision(policy.on_unavailable, f"unavailable: {reason}")
