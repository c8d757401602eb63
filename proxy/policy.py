"""From what is known and what was seen to a verdict: a pure function, first match wins."""

from __future__ import annotations

import enum
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

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
    """The operator's choices.

    Attributes:
        near_verdict: on what looks like a confirmed case, or like a picture on a list that blocks.
    """

    rules: Sequence[Rule]
    on_unavailable: Verdict
    on_undecodable: Verdict
    near_verdict: Verdict = Verdict.HOLD

    @property
    def signals(self) -> frozenset[str]:
        """Every signal that a rule names."""
        return frozenset(name for rule in self.rules for name in rule.at_least)


@dataclass(frozen=True, slots=True)
class Earlier:
    """An earlier decision that a file has met.

    Attributes:
        kind: whether it was about exactly these bytes, or about a picture that looks like this one.
        verdict: that was given then.
        case: that was decided; None where it is a list's.
        list: on which it stands; None where it is a case's.
        by: who decided, or imported the list.
        distance: bits of 256 by which the pictures' PDQ hashes differ; 0 for the same bytes.
    """

    kind: Literal["sha256", "pdq"]
    verdict: Verdict
    case: str | None = None
    list: str | None = None
    by: str | None = None
    distance: int = 0

    def facts(self) -> dict[str, Any]:
        """As JSON values, for the case and the ledger."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Decision:
    """A verdict and why.

    Attributes:
        rule: the rule that gave it, where one did.
        earlier: a decision that the file has met.
        by_lockdown: whether nobody has looked because every upload is held now.
    """

    verdict: Verdict
    reason: str
    rule: str | None = None
    earlier: Earlier | None = None
    by_lockdown: bool = False


def decide_known(earlier: Earlier) -> Decision:
    """The verdict on a file whose exact bytes are known; nobody has to look at it."""
    source = f"on a list ({earlier.list})" if earlier.list is not None else f"decided by {earlier.by}"
    return Decision(earlier.verdict, f"known: {source}", earlier=earlier)


def decide(policy: Policy, look: Look, claimed: Format, near: Earlier | None = None) -> Decision:
    """The verdict on a file after somebody looked, or nobody could.

    Args:
        near: the earlier decision about a picture that looks like what was seen; it never makes the verdict
            milder.
        claimed: what the file's signature says it is. Where its decoder says otherwise, there are two
            readings of one file, and what was looked at need not be what pict-rs will show.
    """
    match look:
        case Seen(signals=signals, format=decoded):
            seen = _with_near(policy, _by_rules(policy.rules, signals), near)
            if _agree(claimed.name, decoded):
                return seen
            reason = f"undecodable: its signature says {claimed.name}, its decoder {decoded}"
            return max(seen, Decision(policy.on_undecodable, reason, earlier=near), key=_severity)
        case Undecodable(reason=reason):
            return Decision(policy.on_undecodable, f"undecodable: {reason}")
        case Unseen(reason=reason):
            return Decision(policy.on_unavailable, f"unavailable: {reason}")


def _by_rules(rules: Sequence[Rule], signals: Mapping[str, float]) -> Decision:
    for rule in rules:
        if rule.matches(signals):
            return Decision(rule.verdict, f"rule: {rule.name}", rule.name)
    return Decision(Verdict.ALLOW, "no rule matched")


def _with_near(policy: Policy, decision: Decision, near: Earlier | None) -> Decision:
    if near is None:
        return decision
    # A list that only suspects gets no stronger by being met nearly.
    verdict = min(near.verdict, policy.near_verdict, key=_SEVERITY.index)
    if _SEVERITY.index(verdict) <= _severity(decision):
        return replace(decision, earlier=near)
    source = f"one of the list {near.list}" if near.list is not None else f"that of case {near.case}"
    return Decision(verdict, f"known: looks like {source} (PDQ distance {near.distance})", earlier=near)


_SEVERITY = (Verdict.ALLOW, Verdict.DEFER, Verdict.HOLD, Verdict.BLOCK)


def _severity(decision: Decision) -> int:
    return _SEVERITY.index(decision.verdict)


def _agree(claimed: str, decoded: str) -> bool:
    """Whether a signature and a decoder name one reading of a file.

    A box at the start tells mov from mp4. A decoder may find an animation that a signature does not tell;
    where it finds none of which the signature tells, it has not seen what browsers play.
    """
    return claimed == decoded or (claimed, decoded) in (("png", "apng"), ("mov", "mp4"), ("mp4", "mov"))
