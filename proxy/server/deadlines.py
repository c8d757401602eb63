"""`X-Request-Deadline`: when a client does not want an answer any more, as pict-rs reads it."""

from __future__ import annotations

import re
import time
from collections.abc import Mapping
from dataclasses import dataclass

from proxy import refusals
from proxy.errors import Refusal

HEADER = "X-Request-Deadline"
_NUMBER = re.compile(r"[+-]?[0-9]{1,39}")  # as Rust reads an i128
# Of the `time` crate: the years −9999 to 9999, in nanoseconds.
_FIRST, _LAST = -377_705_116_800_000_000_000, 253_402_300_799_999_999_999


@dataclass(frozen=True, slots=True)
class Deadline:
    """A client's deadline.

    Attributes:
        header: as it came.
        at_ns: nanoseconds since 1970.
    """

    header: str
    at_ns: int

    @property
    def has_passed(self) -> bool:
        """Whether nobody waits any more."""
        return time.time_ns() >= self.at_ns


def read_deadline(headers: Mapping[str, str]) -> Deadline | None:
    """The deadline that a request's headers name, or None.

    Raises:
        Refusal: 400, it cannot be read.
    """
    header = headers.get(HEADER)
    if header is None:
        return None
    if not header.isascii() or not header.isprintable():
        raise _unreadable("Invalid header string")
    if not _NUMBER.fullmatch(header):
        raise _unreadable("Invalid deadline format")
    at_ns = int(header)
    if not _FIRST <= at_ns <= _LAST:
        raise refusals.DEADLINE_OUT_OF_RANGE()
    return Deadline(header, at_ns)


def _unreadable(msg: str) -> Refusal:
    return Refusal(400, "parse-deadline", msg)
