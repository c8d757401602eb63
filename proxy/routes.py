"""Every route of pict-rs, 0.5 and 0.6, as data. What is not in this table does not exist.

The gate's safety rests on this page: bytes enter pict-rs only where `Does.INGESTS` or `Does.FETCHES` stands,
and the server is built from nothing else.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from proxy.intake.target import Target


class Does(enum.Enum):
    """What a route does to pict-rs's store."""

    INGESTS = "takes bytes from the request"
    FETCHES = "makes pict-rs fetch bytes itself"
    READS = "reads what is stored"
    REMOVES = "removes what is stored"
    ADMINISTERS = "looks after the store"


class Treatment(enum.Enum):
    """What the gate does with a request for a route."""

    LOOK = "taken apart, looked at, written anew"
    PASS = "passed on, streamed"  # noqa: S105
    REFUSE = "refused until it is gated"


@dataclass(frozen=True, slots=True)
class Route:
    """One route.

    Attributes:
        name: for logs and metrics.
        path: the segments; `{word}` captures one whole segment or the end of one.
        methods: the methods that pict-rs has there.
        does: what it does.
        treatment: what the gate does with it.
        alias_keys: query keys that name an alias, in pict-rs's order of precedence; the path's `{alias}`
            goes before all of them.
        fetches: with `proxy=` pict-rs fetches that URL and keeps what it gets.
        takes_body: the request may carry a small JSON body.
        wrong_method: pict-rs's answer to another method: 405, or 404 where its routing hides the path.
    """

    name: str
    path: str
    methods: frozenset[str]
    does: Does
    treatment: Treatment
    alias_keys: tuple[str, ...] = ()
    fetches: bool = False
    takes_body: bool = False
    wrong_method: int = 405


@dataclass(frozen=True, slots=True)
class Match:
    """A route, and what its path captured."""

    route: Route
    captured: Mapping[str, str]


def _route(
    name: str,
    methods: str,
    path: str,
    does: Does,
    treatment: Treatment,
    alias_keys: tuple[str, ...] = (),
    *,
    fetches: bool = False,
    takes_body: bool = False,
    wrong_method: int = 405,
) -> Route:
    return Route(
        name,
        path,
        frozenset(methods.split()),
        does,
        treatment,
        alias_keys,
        fetches=fetches,
        takes_body=takes_body,
        wrong_method=wrong_method,
    )


_LOOK, _PASS, _REFUSE = Treatment.LOOK, Treatment.PASS, Treatment.REFUSE
_INGESTS, _FETCHES, _READS = Does.INGESTS, Does.FETCHES, Does.READS
_REMOVES, _ADMINISTERS = Does.REMOVES, Does.ADMINISTERS
_ALIAS, _SOURCE = ("alias",), ("src", "alias")

TABLE: Sequence[Route] = (
    _route("healthz", "GET", "healthz", _READS, _PASS, wrong_method=404),
    # by which bytes enter
    _route("upload", "POST", "image", _INGESTS, _LOOK, wrong_method=404),
    _route("upload-backgrounded", "POST", "image/backgrounded", _INGESTS, _REFUSE, wrong_method=404),
    _route("claim", "GET", "image/backgrounded/claim", _READS, _PASS),
    _route("download", "GET", "image/download", _FETCHES, _REFUSE),
    _route("import", "POST", "internal/import", _INGESTS, _REFUSE),
    # by which they are read
    _route("original", "GET HEAD", "image/original/{alias}", _READS, _PASS),
    _route("original-query", "GET HEAD", "image/original", _READS, _PASS, _ALIAS, fetches=True),
    _route("process", "GET HEAD", "image/process.{ext}", _READS, _PASS, _SOURCE, fetches=True),
    _route("process-later", "GET", "image/process_backgrounded.{ext}", _READS, _PASS, _SOURCE),
    _route("details", "GET", "image/details/original/{alias}", _READS, _PASS),
    _route("details-query", "GET", "image/details/original", _READS, _PASS, _ALIAS),
    _route("details-process", "GET", "image/details/process.{ext}", _READS, _PASS, _SOURCE),
    _route("blurhash", "GET", "image/blurhash", _READS, _PASS, _ALIAS, fetches=True),
    _route("aliases", "GET", "internal/aliases", _READS, _PASS, _ALIAS),
    _route("identifier", "GET", "internal/identifier", _READS, _PASS, _ALIAS),
    _route("hashes", "GET", "internal/hashes", _READS, _PASS),
    _route("limits", "GET", "internal/limits", _READS, _PASS),
    # by which they are removed
    _route("delete", "DELETE GET", "image/delete/{token}/{alias}", _REMOVES, _PASS),
    _route("delete-by-key", "POST", "internal/delete", _REMOVES, _PASS, _ALIAS),
    _route("purge", "POST", "internal/purge", _REMOVES, _PASS, _ALIAS),
    _route("variants", "DELETE", "internal/variants", _REMOVES, _PASS),
    _route("prune-missing", "POST", "internal/prune_missing", _ADMINISTERS, _PASS),
    _route("set-not-found", "POST", "internal/set_not_found", _ADMINISTERS, _PASS, takes_body=True),
    _route("export", "POST", "internal/export", _ADMINISTERS, _PASS),
)


def find(target: Target) -> Match | None:
    """The route that a target names, or None. Every path fits at most one line of the table."""
    for route in TABLE:
        captured = _capture(route.path.split("/"), target.segments)
        if captured is not None:
            return Match(route, captured)
    return None


def segments_of(match: Match) -> list[str]:
    """The path of a match, as segments for `write_target`."""
    written = []
    for pattern in match.route.path.split("/"):
        fixed, brace, name = pattern.partition("{")
        written.append(fixed + match.captured[name.removesuffix("}")] if brace else fixed)
    return written


def _capture(patterns: Sequence[str], segments: Sequence[str]) -> dict[str, str] | None:
    if len(patterns) != len(segments):
        return None
    captured = {}
    for pattern, segment in zip(patterns, segments, strict=True):
        fixed, brace, name = pattern.partition("{")
        if not brace:
            if segment != fixed:
                return None
            continue
        rest = segment.removeprefix(fixed)
        # An empty capture is no match to pict-rs; dots alone are a path to some clients.
        if not segment.startswith(fixed) or rest in ("", ".", "..") or "\0" in rest:
            return None
        captured[name.removesuffix("}")] = rest
    return captured
