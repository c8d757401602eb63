"""What a run is asked to do: which files, how fast, at which hours. Kept with it: it ends as it began."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import datetime, time, timedelta
from typing import Any, Self

from proxy.backfill.sources import Entry
from proxy.backfill.thumbnails import LEAST, MOST
from proxy.media import Kind

_HOURS = re.compile(r"([01]\d|2[0-3]):([0-5]\d)-([01]\d|2[0-3]):([0-5]\d)")
_PERCENT = re.compile(r"(\d{1,3}(?:\.\d+)?)\s*%")


@dataclass(frozen=True, slots=True)
class Options:
    """Of one run.

    Attributes:
        source: where files come from: `pictrs`, `files:/path`, `s3://bucket/prefix`, `sftp://host/path`.
        action: on a hit: `report` touches nothing, `hold` makes a case of it and takes it away from pict-rs.
        since, until: when a file was stored; one of which the source knows no time is looked at.
        prefix: of an alias, or of the name that the source gives a file.
        limit: files at most.
        kind: one kind of media only.
        sample: the share of all files, 0..1, chosen by hash: always the same ones.
        rate: files a second at most.
        quiet_hours: `HH:MM-HH:MM` in local time, in which nothing is fetched.
        via_thumbnails: pixels of pict-rs's own small variants, which are looked at first.
        stale: look again at what another version of the ensemble has looked at.
    """

    source: str = "pictrs"
    action: str = "report"
    since: datetime | None = None
    until: datetime | None = None
    prefix: str | None = None
    limit: int | None = None
    kind: Kind | None = None
    sample: float | None = None
    rate: float | None = None
    quiet_hours: str | None = None
    via_thumbnails: int | None = None
    stale: bool = False

    def to_json(self) -> dict[str, Any]:
        """What differs from the defaults, as JSON values; the source always."""
        kept = {name: value for name, value in asdict(self).items() if value not in (None, False)}
        return {
            name: value.isoformat() if isinstance(value, datetime) else value for name, value in kept.items()
        }

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Self:
        """What `to_json` gave."""
        options = dict(values)
        for name in ("since", "until"):
            if options.get(name):
                options[name] = datetime.fromisoformat(options[name])
        if options.get("kind"):
            options["kind"] = Kind(options["kind"])
        return cls(**options)

    def in_words(self) -> str:
        """The action, and what differs from the defaults."""
        rest = {name: value for name, value in self.to_json().items() if name not in ("action", "source")}
        words = [f"action {self.action}", *(f"{name.replace('_', '-')} {rest[name]}" for name in rest)]
        return ", ".join(word.removesuffix(" True") for word in words)

    @property
    def is_whole(self) -> bool:
        """Whether it leaves no file out."""
        return all(
            value is None
            for value in (self.since, self.until, self.prefix, self.limit, self.kind, self.sample)
        )

    def wants(self, entry: Entry) -> bool:
        """Whether a file is to be looked at, as far as its listing tells."""
        if entry.at is not None:
            if self.since is not None and entry.at < self.since:
                return False
            if self.until is not None and entry.at >= self.until:
                return False
        if self.kind is not None and entry.kind not in (None, self.kind):
            return False
        if self.sample is not None and int.from_bytes(entry.key[:8]) >= self.sample * 2**64:
            return False
        prefix = self.prefix
        if prefix is None:
            return True
        names = [entry.place] if entry.sha256 is None else entry.aliases
        return any(name.startswith(prefix) for name in names)


def a_share(word: str) -> float:
    """`1%` as 0.01.

    Raises:
        ValueError: it is no percentage above 0 and up to 100.
    """
    match = _PERCENT.fullmatch(word.strip())
    share = float(match[1]) / 100 if match else 0.0
    if not 0 < share <= 1:
        raise ValueError("must be a percentage, for example 1%")
    return share


def a_count(word: str) -> int:
    """A number from 1 on.

    Raises:
        ValueError: it is none.
    """
    if (number := int(word)) < 1:
        raise ValueError("must be at least 1")
    return number


def a_rate(word: str) -> float:
    """Files a second.

    Raises:
        ValueError: it is no number above 0.
    """
    if not 0 < (number := float(word)) <= 100_000:
        raise ValueError("must be above 0")
    return number


def seconds(word: str) -> float:
    """`30s` as 30.

    Raises:
        ValueError: it is no number of seconds in a day.
    """
    if not 1 <= (number := float(word.removesuffix("s"))) <= 86_400:
        raise ValueError("must be seconds, from 1 to 86400, for example 30s")
    return number


def a_side(word: str) -> int:
    """Of a small variant, in pixels.

    Raises:
        ValueError: it is none of one.
    """
    if not LEAST <= (side := int(word)) <= MOST:
        raise ValueError(f"must be {LEAST} to {MOST} pixels")
    return side


def hours(word: str) -> str:
    """`word`, if it is `HH:MM-HH:MM`.

    Raises:
        ValueError: it is not, or both are the same.
    """
    match = _HOURS.fullmatch(word)
    if match is None or match[1] + match[2] == match[3] + match[4]:
        raise ValueError("must be HH:MM-HH:MM, for example 08:00-23:00")
    return word


def quiet_for(quiet_hours: str | None, now: datetime) -> float:
    """Seconds from `now`, in local time, until the quiet hours end; 0 outside them."""
    match = _HOURS.fullmatch(quiet_hours or "")
    if match is None:
        return 0.0
    numbers = [int(number) for number in match.groups()]
    first, last = time(numbers[0], numbers[1]), time(numbers[2], numbers[3])
    of_day = now.time()
    is_quiet = first <= of_day < last if first < last else of_day >= first or of_day < last
    if not is_quiet:
        return 0.0
    end = now.replace(hour=last.hour, minute=last.minute, second=0, microsecond=0)
    if end <= now:
        end += timedelta(days=1)
    return (end - now).total_seconds()
