"""From signals to a verdict: thresholds, all of them, first match wins."""

from __future__ import annotations

from dataclasses import replace

import pytest

from proxy.channels.looks import Look, Seen, Undecodable, Unseen
from proxy.media.signatures import APNG, GIF, PNG
from proxy.policy import Earlier, Policy, Rule, Verdict, decide

POLICY = Policy(
    rules=[
        Rule("both", Verdict.HOLD, {"sexual": 0.5, "minor": 0.35}),
        Rule("extreme", Verdict.BLOCK, {"sexual": 0.99}),
        Rule("drawn", Verdict.ALLOW, {"drawing": 0.8}),
        Rule("alone", Verdict.HOLD, {"sexual": 0.9}),
    ],
    on_unavailable=Verdict.DEFER,
    on_undecodable=Verdict.HOLD,
)


def seen(**signals: float) -> Seen:
    return Seen(signals, [{"index": 0, "signals": signals}], "test 1", "png", 10, 10)


@pytest.mark.parametrize(
    ("look", "verdict", "rule"),
    [
        (seen(sexual=0.5, minor=0.35), Verdict.HOLD, "both"),
        (seen(sexual=0.499, minor=1.0), Verdict.ALLOW, None),
        (seen(sexual=1.0, minor=0.349), Verdict.BLOCK, "extreme"),
        (seen(sexual=1.0, minor=1.0), Verdict.HOLD, "both"),
        (seen(sexual=0.95, drawing=0.9), Verdict.ALLOW, "drawn"),
        (seen(sexual=0.95, drawing=0.1), Verdict.HOLD, "alone"),
        (seen(sexual=0.0), Verdict.ALLOW, None),
        (seen(minor=1.0), Verdict.ALLOW, None),
        (Undecodable("x"), Verdict.HOLD, None),
        (Unseen("x"), Verdict.DEFER, None),
    ],
)
def test_the_first_rule_whose_thresholds_are_all_reached_decides(
    look: Look, verdict: Verdict, rule: str | None
) -> None:
    decision = decide(POLICY, look, PNG)
    assert (decision.verdict, decision.rule) == (verdict, rule)


@pytest.mark.parametrize(
    ("look", "on_undecodable", "verdict", "rule"),
    [
        (seen(sexual=0.0), Verdict.HOLD, Verdict.HOLD, None),
        (seen(sexual=0.0), Verdict.ALLOW, Verdict.ALLOW, None),
        (seen(sexual=1.0, minor=1.0), Verdict.ALLOW, Verdict.HOLD, "both"),
        (seen(sexual=1.0), Verdict.HOLD, Verdict.BLOCK, "extreme"),
        (seen(sexual=1.0, minor=1.0), Verdict.BLOCK, Verdict.BLOCK, None),
    ],
)
def test_two_readings_of_one_file_get_the_sterner_verdict(
    look: Look, on_undecodable: Verdict, verdict: Verdict, rule: str | None
) -> None:
    decision = decide(replace(POLICY, on_undecodable=on_undecodable), look, GIF)
    assert (decision.verdict, decision.rule) == (verdict, rule)


def near(verdict: Verdict) -> Earlier:
    return Earlier("pdq", verdict, "case-1", None, "ann", 9)


@pytest.mark.parametrize(
    ("look", "earlier", "near_verdict", "verdict", "rule"),
    [
        (seen(sexual=0.0), Verdict.BLOCK, Verdict.HOLD, Verdict.HOLD, None),
        (seen(sexual=0.0), Verdict.BLOCK, Verdict.BLOCK, Verdict.BLOCK, None),
        (seen(sexual=0.0), Verdict.HOLD, Verdict.BLOCK, Verdict.HOLD, None),
        (seen(sexual=0.95, drawing=0.9), Verdict.BLOCK, Verdict.HOLD, Verdict.HOLD, None),
        (seen(sexual=1.0, minor=1.0), Verdict.BLOCK, Verdict.HOLD, Verdict.HOLD, "both"),
        (seen(sexual=1.0, minor=1.0), Verdict.BLOCK, Verdict.BLOCK, Verdict.BLOCK, None),
        (seen(sexual=1.0), Verdict.BLOCK, Verdict.HOLD, Verdict.BLOCK, "extreme"),
        (seen(sexual=1.0), Verdict.ALLOW, Verdict.HOLD, Verdict.BLOCK, "extreme"),
    ],
)
def test_what_looks_alike_makes_the_verdict_sterner_and_never_milder(
    look: Look, earlier: Verdict, near_verdict: Verdict, verdict: Verdict, rule: str | None
) -> None:
    decision = decide(replace(POLICY, near_verdict=near_verdict), look, PNG, near(earlier))
    assert (decision.verdict, decision.rule) == (verdict, rule)
    assert decision.earlier == near(earlier)  # the reviewer is told in any case
    assert ("looks like that of case case-1" in decision.reason) is (rule is None)


def test_what_looks_alike_holds_in_both_readings_of_one_file() -> None:
    lenient = replace(POLICY, on_undecodable=Verdict.ALLOW)
    decision = decide(lenient, seen(sexual=0.0), GIF, near(Verdict.BLOCK))
    assert (decision.verdict, decision.earlier) == (Verdict.HOLD, near(Verdict.BLOCK))
    decision = decide(POLICY, seen(sexual=0.0), GIF, near(Verdict.BLOCK))
    assert (decision.verdict, decision.earlier) == (Verdict.HOLD, near(Verdict.BLOCK))


def test_a_decoder_that_finds_an_animation_where_the_signature_tells_of_none_has_seen_it_all() -> None:
    animated = replace(seen(sexual=0.0), format="apng")
    assert decide(POLICY, animated, PNG).verdict is Verdict.ALLOW
    assert decide(POLICY, animated, APNG).verdict is Verdict.ALLOW


def test_a_decoder_that_finds_no_animation_where_the_signature_tells_of_one_has_not() -> None:
    decision = decide(POLICY, seen(sexual=0.0), APNG)
    assert decision.verdict is POLICY.on_undecodable is Verdict.HOLD
    assert "its signature says apng, its decoder png" in decision.reason


def test_a_signal_that_is_not_there_reaches_no_threshold_not_even_zero() -> None:
    rule = Rule("any", Verdict.HOLD, {"sexual": 0.0})
    assert not rule.matches({}) and rule.matches({"sexual": 0.0})


def test_the_policy_knows_which_signals_it_needs() -> None:
    assert POLICY.signals == {"sexual", "minor", "drawing"}
