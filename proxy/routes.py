"""Every route of pict-rs, 0.5 and 0.6, as data. What is not in this table does not exist.

The gate's safety rests on this page: bytes enter pict-rs only where `Does.INGESTS` or `Does.FETCHES` stands,
or where a `proxy=` may be given, and the server is built from nothing else.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from proxy.errors import Refusal
from proxy.intake.target import Target
from proxy.media.geometry import STEPS

# What an upload may be limited by (pict-rs, struct UploadLimits).
LIMITS = frozenset(
    {"max_width", "max_height", "max_area", "max_frame_count", "max_file_size"}
    | {"allow_image", "allow_animation", "allow_video"}
)


class Does(enum.Enum):
    """What a route does to pict-rs's store."""

    INGESTS = "takes bytes from the request"
    FETCHES = "makes pict-rs fetch bytes itself"
    READS = "reads what is stored"
    REMOVES = "removes what is stored"
    ADMINISTERS = "looks after the store"


class Treatment(enum.Enum):
    """What the gate does with a request for a route."""

    UPLOAD = "taken apart, looked at, written anew"
    DOWNLOAD = "fetched by the gate, left to the validation hook, or refused"
    CLAIM = "answered once for what is held, else passed on"
    READ = "answered for what is held, else passed on"
    REMOVE = "noted for what is held, else passed on"
    PASS = "passed on"  # noqa: S105


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
        keys: query keys that pict-rs reads here besides `alias_keys`; others are not passed on.
        once: those of `keys` that may be given only once; processing steps may be repeated.
        fetches: with `proxy=` pict-rs fetches that URL and keeps what it gets (by GET; HEAD never does).
        takes_body: the request may carry a small JSON body.
        wrong_method: pict-rs's answer to another method: 405, or 404 where its routing hides the path.
    """

    name: str
    path: str
    methods: frozenset[str]
    does: Does
    treatment: Treatment
    alias_keys: tuple[str, ...] = ()
    keys: frozenset[str] = frozenset()
    once: frozenset[str] = frozenset()
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
    alias_keys: str = "",
    *,
    once: str = "",
    limits: bool = False,
    steps: bool = False,
    fetches: bool = False,
    takes_body: bool = False,
    wrong_method: int = 405,
) -> Route:
    single = frozenset(once.split()) | (LIMITS if limits else frozenset())
    return Route(
        name,
        path,
        frozenset(methods.split()),
        does,
        treatment,
        tuple(alias_keys.split()),
        keys=single | (STEPS if steps else frozenset()),
        once=single | frozenset(alias_keys.split()),
        fetches=fetches,
        takes_body=takes_body,
        wrong_method=wrong_method,
    )


_INGESTS, _FETCHES, _READS = Does.INGESTS, Does.FETCHES, Does.READS
_REMOVES, _ADMINISTERS = Does.REMOVES, Does.ADMINISTERS
_UPLOAD, _DOWNLOAD, _CLAIM = Treatment.UPLOAD, Treatment.DOWNLOAD, Treatment.CLAIM
_READ, _REMOVE, _PASS = Treatment.READ, Treatment.REMOVE, Treatment.PASS

TABLE: Sequence[Route] = (
    _route("healthz", "GET", "healthz", _READS, _PASS, wrong_method=404),
    # by which bytes enter
    _route("upload", "POST", "image", _INGESTS, _UPLOAD, limits=True, steps=True, wrong_method=404),
    _route(
        *("upload-backgrounded", "POST", "image/backgrounded", _INGESTS, _UPLOAD),
        limits=True,
        steps=True,
        wrong_method=404,
    ),
    _route("claim", "GET", "image/backgrounded/claim", _READS, _CLAIM, once="upload_id"),
    _route(
        *("download", "GET", "image/download", _FETCHES, _DOWNLOAD),
        once="url backgrounded",
        limits=True,
        steps=True,
    ),
    _route("import", "POST", "internal/import", _INGESTS, _UPLOAD, limits=True, steps=True),
    # by which they are read
    _route("original", "GET HEAD", "image/original/{alias}", _READS, _READ),
    _route("original-query", "GET HEAD", "image/original", _READS, _READ, "proxy alias", fetches=True),
    _route(
        *("process", "GET HEAD", "image/process.{ext}", _READS, _READ, "src alias proxy"),
        steps=True,
        fetches=True,
    ),
    _route(
        *("process-later", "GET", "image/process_backgrounded.{ext}", _READS, _READ, "src alias proxy"),
        steps=True,
    ),
    _route("details", "GET", "image/details/original/{alias}", _READS, _READ),
    _route("details-query", "GET", "image/details/original", _READS, _READ, "proxy alias"),
    _route(
        *("details-process", "GET", "image/details/process.{ext}", _READS, _READ, "src alias proxy"),
        steps=True,
    ),
    _route("blurhash", "GET", "image/blurhash", _READS, _READ, "proxy alias", fetches=True),
    _route("aliases", "GET", "internal/aliases", _READS, _READ, "proxy alias"),
    _route("identifier", "GET", "internal/identifier", _READS, _READ, "proxy alias"),
    _route("hashes", "GET", "internal/hashes", _READS, _PASS, once="slug timestamp limit"),
    _route("limits", "GET", "internal/limits", _READS, _PASS),
    # by which they are removed
    _route("delete", "DELETE GET", "image/delete/{token}/{alias}", _REMOVES, _REMOVE),
    _route("delete-by-key", "POST", "internal/delete", _REMOVES, _REMOVE, "proxy alias"),
    _route("purge", "POST", "internal/purge", _REMOVES, _REMOVE, "proxy alias"),
    _route("variants", "DELETE", "internal/variants", _REMOVES, _PASS),
    _route("prune-missing", "POST", "internal/prune_missing", _ADMINISTERS, _PASS, once="force"),
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


def known_pairs(route: Route, query: Iterable[tuple[str, str]]) -> list[tuple[str, str]]:
    """The pairs of a query that pict-rs reads on this route, in their order; it ignores others, so they go.

    Raises:
        Refusal: 400 where a key stands twice of which pict-rs reads one; which one would be somebody else's
            choice.
    """
    kept = [(key, value) for key, value in query if key in route.keys or key in route.alias_keys]
    seen: set[str] = set()
    for key, _ in kept:
        if key in seen and key in route.once:
            raise Refusal(400, "invalid-query", f"{key} is given more than once")
        seen.add(key)
    return kept


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
