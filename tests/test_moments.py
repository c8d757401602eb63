"""What people write for spans and moments."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from proxy.moments import a_moment, a_span

NOW = datetime(2026, 11, 23, 12, tzinfo=UTC)


@pytest.mark.parametrize(
    ("word", "span"),
    [
        ("90s", timedelta(seconds=90)),
        ("30m", timedelta(minutes=30)),
        ("30min", timedelta(minutes=30)),
        ("2 h", timedelta(hours=2)),
        ("7d", timedelta(days=7)),
        ("2w", timedelta(days=14)),
    ],
)
def test_a_span_is_a_number_and_a_unit_and_so_long_ago_where_a_moment_is_asked_for(
    word: str, span: timedelta
) -> None:
    assert a_span(word) == span
    assert a_moment(word, NOW) == NOW - span


@pytest.mark.parametrize(
    ("word", "moment"),
    [
        ("2026-11-01", datetime(2026, 11, 1, tzinfo=UTC)),
        ("2026-11-01T08:30", datetime(2026, 11, 1, 8, 30, tzinfo=UTC)),
        ("2026-11-02T03:04:05+02:00", datetime(2026, 11, 2, 1, 4, 5, tzinfo=UTC)),
    ],
)
def test_a_moment_is_utc(word: str, moment: datetime) -> None:
    assert a_moment(word) == moment and a_moment(word).tzinfo is UTC


@pytest.mark.parametrize(
    "word",
    ["", "soon", "0d", "99999w", "-3d", "2026-13-01", "0001-01-01", "0001-01-01T00:00+02:00", "9999-12-31"],
)
def test_what_is_no_moment_is_refused_in_words(word: str) -> None:
    with pytest.raises(ValueError, match="must be a"):
        a_moment(word)
