"""Spans and moments as people write them on a command line: `2h`, `30d`, `2026-11-23T08:00`."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta

_UNITS = {"s": "seconds", "m": "minutes", "min": "minutes", "h": "hours", "d": "days", "w": "weeks"}
_SPAN = re.compile(r"(\d{1,6})\s*(s|m|min|h|d|w)", re.ASCII)
_FIRST, _LAST = datetime(1970, 1, 1, tzinfo=UTC), datetime(9000, 1, 1, tzinfo=UTC)
_MOST = timedelta(days=3650)


def a_span(word: str) -> timedelta:
    """`90s`, `30m` or `30min`, `2h`, `7d`, `2w`.

    Raises:
        ValueError: it is none of these, nothing, or more than ten years.
    """
    match = _SPAN.fullmatch(word.strip())
    span = timedelta(**{_UNITS[match[2]]: int(match[1])}) if match else timedelta()
    if not timedelta() < span <= _MOST:
        raise ValueError("must be a time of at most ten years, as 90s, 30m, 2h, 7d or 2w")
    return span


def a_moment(word: str, now: datetime | None = None) -> datetime:
    """`2026-11-23`, `2026-11-23T08:00` (UTC where no zone is said), or a span, which is that long ago.

    Args:
        now: what a span is counted back from.

    Raises:
        ValueError: it is none of these, or before 1970.
    """
    if _SPAN.fullmatch(word.strip()):
        return (now or datetime.now(UTC)) - a_span(word)
    try:
        moment = datetime.fromisoformat(word)
        moment = moment.astimezone(UTC) if moment.tzinfo else moment.replace(tzinfo=UTC)
    except (ValueError, OverflowError):
        moment = _LAST
    if not _FIRST <= moment < _LAST:
        raise ValueError(
            "must be a date (2026-11-23), a moment (2026-11-23T08:00, in UTC where no zone is said), "
            "or how long ago (30m, 2h, 3d)"
        )
    return moment
