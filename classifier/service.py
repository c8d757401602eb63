"""Protocol v1 (`docs/protocol.md`) without its transport: the same answers by HTTP and over a gate's link."""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from classifier.admission import Admission
from classifier.decoding.files import FORMATS, claimed
from classifier.engine import Engine, Result
from classifier.errors import Rejection, deadline_exceeded, error_place, too_large
from classifier.metrics import Metrics
from classifier.turns import Priority

log = logging.getLogger(__name__)

_LONGEST_DEADLINE_MS = 600_000
_DECODING = frozenset({"undecodable", "too-large", "unsupported-media"})


@dataclass(frozen=True, slots=True)
class Bounds:
    """
    Attributes:
        body_bytes: the largest file that is taken.
        deadline_ms: for a request that names none.
        most_files: of each priority that may be here at once; one more is refused at once.
        most_bytes: of the files of each priority together.
    """

    body_bytes: int = 64 * 1024 * 1024
    deadline_ms: int = 30_000
    most_files: int = 64
    most_bytes: int = 1024 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Reply:
    """An answer; `content` is a JSON object, `retry_after_s` seconds for `Retry-After`, or None."""

    status: int
    content: Mapping[str, Any]
    retry_after_s: int | None = None


@dataclass(frozen=True, slots=True)
class Asked:
    """A request before its body is read.

    Attributes:
        priority, deadline_ms: as they came, unchecked; None where they did not.
        size: of the body in bytes, or None where that is not known.
        read: the body, which may not be longer than the given bytes. Raises `Rejection` where it is.
    """

    priority: str | None
    deadline_ms: str | None
    size: int | None
    read: Callable[[int], Awaitable[bytes]]


class Service:
    """Answers what a gate asks."""

    def __init__(self, engine: Engine, bounds: Bounds, metrics: Metrics) -> None:
        self._engine, self._bounds, self._metrics = engine, bounds, metrics
        self._admission = Admission(bounds.most_files, bounds.most_bytes)
        self._is_empty = asyncio.Event()
        self._is_empty.set()
        metrics.waiting.set_function(lambda: self._admission.files)

    def info(self) -> Mapping[str, Any]:
        """What it is, and what it takes."""
        ensemble = self._engine.ensemble
        return {
            "protocol": 1,
            "ensemble": ensemble.name,
            "about": ensemble.about,
            "version": ensemble.version,
            "signals": ensemble.signals,
            "formats": list(FORMATS),
            "limits": {
                "body_bytes": self._bounds.body_bytes,
                "deadline_ms": _LONGEST_DEADLINE_MS,
                "files": self._bounds.most_files,
            },
        }

    async def classify(self, asked: Asked) -> Reply:
        """Looks at one file. Whatever happens to it is an answer, but for a client that is gone.

        Raises:
            ConnectionError: the client is gone.
        """
        loop = asyncio.get_running_loop()
        began = loop.time()
        priority = Priority.LIVE
        outcome, result = "gone", None
        self._is_empty.clear()
        try:
            priority = _priority(asked.priority)
            deadline = began + _deadline_ms(asked.deadline_ms, self._bounds.deadline_ms) / 1000
            result = await self._look(asked, priority, deadline)
            outcome = "ok"
            return Reply(200, self._answer(result))
        except Rejection as rejection:
            outcome = rejection.code
            return error_reply(rejection)
        except (ConnectionError, asyncio.CancelledError):
            raise
        except Exception as error:  # noqa: BLE001 — the border: a bug costs its own request a 500
            outcome = "internal-error"
            log.error("a look failed: %s", error_place(error))
            return error_reply(Rejection(500, outcome, "the classifier failed"))
        finally:
            if not self._admission.files:
                self._is_empty.set()
            self._metrics.requests.labels(outcome=outcome, priority=priority).inc()
            took_ms = (loop.time() - began) * 1000
            log.info("outcome=%s priority=%s ms=%.1f %s", outcome, priority, took_ms, _summary(result))

    async def until_empty(self) -> None:
        """Waits until no file is here any more."""
        await self._is_empty.wait()

    async def _look(self, asked: Asked, priority: Priority, deadline: float) -> Result:
        most = self._bounds.body_bytes
        if (asked.size or 0) > most:
            raise too_large(f"more than {most} bytes")
        with self._admission.place(priority, most if asked.size is None else asked.size):
            content = await self._read(asked, deadline)
            try:
                return await self._engine.look(content, priority=priority, deadline=deadline)
            except Rejection as rejection:
                if rejection.code in _DECODING:
                    labels = {"code": rejection.code, "format": claimed(content)}
                    self._metrics.not_decoded.labels(**labels).inc()
                raise

    async def _read(self, asked: Asked, deadline: float) -> bytes:
        try:
            async with asyncio.timeout_at(deadline):
                content = await asked.read(self._bounds.body_bytes)
        except TimeoutError:
            raise deadline_exceeded() from None
        if not content:
            raise Rejection(400, "undecodable", "there is no file in the request")
        return content

    def _answer(self, result: Result) -> Mapping[str, Any]:
        ensemble = self._engine.ensemble
        return {
            "ensemble": ensemble.name,
            "version": ensemble.version,
            "media": asdict(result.media),
            "signals": result.signals,
            "remembered": result.remembered,
            "frames": [{"index": frame.index, "signals": frame.signals} for frame in result.frames],
            "hashes": asdict(result.hashes),
            "timing_ms": result.timing_ms,
        }


def error_reply(rejection: Rejection) -> Reply:
    """An error in the protocol's shape, which tells nothing of a file."""
    content = {"error": {"code": rejection.code, "message": rejection.message}}
    return Reply(rejection.status, content, rejection.retry_after_s)


def _priority(given: str | None) -> Priority:
    try:
        return Priority.LIVE if given is None else Priority(given)
    except ValueError:
        raise Rejection(400, "bad-request", f"X-Priority is {' or '.join(Priority)}") from None


def _deadline_ms(given: str | None, default: int) -> int:
    if given is None:
        return default
    number = re.fullmatch(r"0*([1-9][0-9]*)", given)
    if number is None:
        raise Rejection(400, "bad-request", "X-Deadline-Ms is a whole number of milliseconds, 1 or more")
    # Whoever can wait longer than is promised may; nine digits are more than enough to see that.
    return min(int(number[1][:9]), _LONGEST_DEADLINE_MS)


def _summary(result: Result | None) -> str:
    """What the log may know of a file: neither content nor hash."""
    if result is None:
        return ""
    media = result.media
    return f"{media.kind}/{media.format} {media.width}x{media.height} frames={media.frames}"
