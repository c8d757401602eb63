"""A request target, read once: path segments and query pairs; and their way back into a target.

pict-rs decodes paths in two steps of which the second may find what the first one made. The gate decodes
once, matches, and writes a target that leaves pict-rs nothing to find.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from urllib.parse import parse_qsl, quote, urlencode

from proxy.errors import Refusal

_ABSOLUTE = re.compile(r"https?://[^/?#\\]*", re.ASCII | re.IGNORECASE)
_PATH = re.compile(r"/(?:[^%\x00-\x20\x7f\\]|%[0-9A-Fa-f]{2})*")
_LONGEST = 8 * 1024
_MOST_PAIRS = 64


@dataclass(frozen=True, slots=True)
class Target:
    """What a client asked for.

    Attributes:
        segments: the path between its slashes, each percent-decoded exactly once.
        query: (key, value) pairs in their order, decoded as an HTML form's.
    """

    segments: tuple[str, ...]
    query: tuple[tuple[str, str], ...]

    def only(self, key: str) -> str | None:
        """The value of `key`, or None where the query lacks it.

        Raises:
            Refusal: 400 where it stands there twice; one of the two would be somebody else's choice.
        """
        values = [value for name, value in self.query if name == key]
        if len(values) > 1:
            raise Refusal(400, "invalid-query", f"{key} is given more than once")
        return values[0] if values else None


def read_target(raw: str) -> Target:
    """Reads the target of a request line.

    Args:
        raw: as it came, in origin form or absolute form.

    Raises:
        Refusal: 400 for a target that is too long or that can be read in more than one way.
    """
    if len(raw) > _LONGEST:
        raise Refusal(414, "invalid-path", "the address is too long")
    if not raw.startswith("/") and (absolute := _ABSOLUTE.match(raw)):
        raw = raw[absolute.end() :]
    path, _, query = raw.partition("?")
    if "#" in raw or not _PATH.fullmatch(path):
        raise Refusal(400, "invalid-path", "the address cannot be read in one way only")
    try:
        segments = tuple(_decode(segment) for segment in path[1:].split("/"))
        pairs = parse_qsl(
            query.encode("utf-8", "surrogateescape").decode("utf-8"),
            keep_blank_values=True,
            max_num_fields=_MOST_PAIRS,
        )
    except ValueError:
        raise Refusal(400, "invalid-path", "the address is not UTF-8, or has too many parts") from None
    return Target(segments, tuple(pairs))


def write_target(segments: Sequence[str], query: Iterable[tuple[str, str]] = ()) -> str:
    """A target for pict-rs that it can read in one way only."""
    path = "".join("/" + quote(segment, safe="") for segment in segments)
    written = urlencode(list(query))
    return f"{path}?{written}" if written else path


def _decode(segment: str) -> str:
    raw = segment.encode("utf-8", "surrogateescape")
    return re.sub(rb"%([0-9A-Fa-f]{2})", lambda hexes: bytes.fromhex(hexes[1].decode()), raw).decode("utf-8")
