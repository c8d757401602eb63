"""What the `internal` listener answers: pict-rs's validation hook, workers that poll or dial in, metrics.

The hook's second address and the workers' are those of pictrs-safety, so that its users change one URL. What
that program answered with "OK" when it was busy is a 503 here.
"""

from __future__ import annotations

import asyncio
import enum
import functools
import hmac
import json
from collections.abc import Awaitable, Callable, Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network
from typing import Protocol

from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from proxy.channels.pop import PopChannel
from proxy.channels.worker import LARGEST_MESSAGE, SUBPROTOCOL, Workers
from proxy.errors import Refusal
from proxy.intake.target import read_target
from proxy.internal.hook_body import OVERHEAD_BYTES, media_of
from proxy.internal.messages import Growth, Handler, Request, Response, Takeover, json_answer, text
from proxy.internal.upgrading import takeover
from proxy.metrics import Metrics

# Instead of an id: whoever calls from a private or listed address.
_BY_ADDRESS = "IPADDR"
_LARGEST_ANSWER = 4 * 1024
_RETRY_AFTER_S = 5


class HookAnswer(enum.Enum):
    """What pict-rs is told about a file that it is about to keep."""

    KEEP = "keep"
    REFUSE = "refuse"
    UNSEEN = "unseen"


class Hook(Protocol):
    """Answers pict-rs's question about one file."""

    async def validate(self, content: bytes) -> HookAnswer:
        """What is to become of a file.

        Args:
            content: as pict-rs has it, after its own processing.

        Returns:
            `UNSEEN` where nobody could look and that is not to pass.
        """
        ...


@dataclass(frozen=True, slots=True)
class HookSettings:
    """Who may ask by pictrs-safety's address, and what asking may cost.

    Attributes:
        ids: words that a caller may have in its URL.
        networks: beside private ones, from where a caller without such a word may come.
        largest_bytes: of one file.
        at_once: files in memory; each costs up to twice its size while it is read.
        small_bytes: of these only one at a time may be larger than so many.
        within_s: seconds for one answer, waiting for a turn included. pict-rs itself gives up after 30.
    """

    ids: frozenset[str] = frozenset()
    networks: tuple[IPv4Network | IPv6Network, ...] = ()
    largest_bytes: int = 40 * 1024 * 1024
    at_once: int = 4
    small_bytes: int = 8 * 1024 * 1024
    within_s: float = 25.0


class Internal:
    """Finds out what a request is and has it answered."""

    def __init__(
        self,
        metrics: Metrics,
        is_ready: Callable[[], Awaitable[bool]],
        *,
        hook: Hook | None = None,
        hook_settings: HookSettings | None = None,
        pollers: PopChannel | None = None,
        workers: Workers | None = None,
    ) -> None:
        """
        Args:
            metrics: what `/metrics` shows.
            is_ready: whether the gate can do its work.
            hook: answers pict-rs; without one its addresses do not exist.
            hook_settings: other than the usual ones.
            pollers: has files for workers that poll; without one their address does not exist.
            workers: the door for workers that dial in; without one it does not exist.
        """
        self._metrics, self._is_ready = metrics, is_ready
        self._hook, self._pollers, self._workers = hook, pollers, workers
        self._settings = hook_settings or HookSettings()
        self._turns, self._large = asyncio.Semaphore(self._settings.at_once), asyncio.Lock()

    async def __call__(self, request: Request) -> Response | Takeover:
        """Answers one request.

        Raises:
            Refusal: it is not answered, and why.
        """
        answers = self._answers_at(read_target(request.target).segments)
        if not answers:
            return Response(404)
        answer = answers.get(request.method)
        if answer is None:
            return Response(405, headers=[("Allow", ", ".join(answers))])
        return await answer(request)

    def _answers_at(self, segments: tuple[str, ...]) -> Mapping[str, Handler]:
        """What answers which method there."""
        match segments:
            case ("healthz",):
                return {"GET": self._health, "HEAD": self._health}
            case ("readyz",):
                return {"GET": self._readiness, "HEAD": self._readiness}
            case ("metrics",):
                return {"GET": self._numbers, "HEAD": self._numbers}
            case ("validate",) if self._hook is not None:
                return {"POST": functools.partial(self._validate, self._hook)}
            case ("api", "v1", "scan", caller) if self._hook is not None:
                return {"POST": functools.partial(self._scan, self._hook, caller)}
            case ("api", "v1", "pop") if self._pollers is not None:
                return {
                    "GET": functools.partial(self._hand_out, self._pollers),
                    "POST": functools.partial(self._take_answer, self._pollers),
                }
            case ("worker",) if self._workers is not None:
                return {"GET": functools.partial(self._let_in, self._workers)}
        return {}

    async def _health(self, _: Request) -> Response:
        return text(200, "ok\n")

    async def _readiness(self, _: Request) -> Response:
        ready = await self._is_ready()
        return text(200 if ready else 503, "ready\n" if ready else "not ready\n")

    async def _numbers(self, _: Request) -> Response:
        return Response(200, generate_latest(self._metrics.registry), [("Content-Type", CONTENT_TYPE_LATEST)])

    async def _scan(self, hook: Hook, caller: str, request: Request) -> Response:
        """pictrs-safety's way to ask: the URL says who asks, and nothing is read of anybody else."""
        if not (self._is_near(request) if caller == _BY_ADDRESS else self._is_known(caller)):
            raise Refusal(401, "unauthorized", "You may not ask here")
        return await self._validate(hook, request)

    def _is_near(self, request: Request) -> bool:
        peer = request.peer
        if peer is None:
            return False
        return peer.is_private or peer.is_loopback or any(peer in one for one in self._settings.networks)

    def _is_known(self, caller: str) -> bool:
        # Every id is compared, and in constant time: whoever may guess shall not learn how near a guess is.
        return sum(hmac.compare_digest(caller.encode(), one.encode()) for one in self._settings.ids) > 0

    async def _validate(self, hook: Hook, request: Request) -> Response:
        try:
            # The body is left in the network until it is its turn: so memory has a bound.
            async with asyncio.timeout(self._settings.within_s), self._turns, AsyncExitStack() as room:
                grow = Growth(self._settings.small_bytes, lambda: room.enter_async_context(self._large))
                body = await request.body(self._settings.largest_bytes + OVERHEAD_BYTES, grow)
                content = media_of(request.headers, body)
                del body
                answer = await hook.validate(content)
        except TimeoutError:
            answer = HookAnswer.UNSEEN
        match answer:
            case HookAnswer.KEEP:
                return json_answer(200, {"msg": "ok"})
            case HookAnswer.REFUSE:
                raise Refusal(406, "failed-external-validation", "This file is not to be kept")
            case HookAnswer.UNSEEN:
                raise Refusal(
                    503, "scan-unavailable", "Nobody could look at it", retry_after_s=_RETRY_AFTER_S
                )

    async def _let_in(self, workers: Workers, request: Request) -> Takeover:
        tokens = [value[7:] for value in request.values("authorization") if value[:7].lower() == "bearer "]
        if len(tokens) != 1 or not workers.admits(tokens[0]):
            raise Refusal(401, "unauthorized", "The token is not that of this gate's workers")
        return takeover(request, SUBPROTOCOL, LARGEST_MESSAGE, workers.serve)

    async def _hand_out(self, pollers: PopChannel, request: Request) -> Response:
        self._check_key(pollers, request)
        job = pollers.hand_out()
        if job is None:
            return Response(204)
        headers = [
            ("Content-Type", job.content_type),
            # Unquoted, and nothing behind it: the worker takes all that follows the "=" for the name.
            ("Content-Disposition", f"attachment; filename={job.name}"),
            ("Cache-Control", "no-store"),
        ]
        return Response(200, job.content, headers)

    async def _take_answer(self, pollers: PopChannel, request: Request) -> Response:
        self._check_key(pollers, request)
        try:
            answer = json.loads(await request.body(_LARGEST_ANSWER))
            name, is_csam, is_nsfw = answer["image"], answer["is_csam"], answer["is_nsfw"]
        except (LookupError, RecursionError, TypeError, ValueError):
            name = is_csam = is_nsfw = None
        if not (isinstance(name, str) and isinstance(is_csam, bool) and isinstance(is_nsfw, bool)):
            raise Refusal(400, "malformed", "It has to be JSON with image, is_csam and is_nsfw")
        if not pollers.take_answer(name, is_csam=is_csam, is_nsfw=is_nsfw):
            raise Refusal(404, "not-found", "Nobody waits for an answer about this image")
        return json_answer(201, {"message": "OK"})

    def _check_key(self, pollers: PopChannel, request: Request) -> None:
        keys = request.values("apikey")
        if len(keys) != 1 or not pollers.admits(keys[0]):
            raise Refusal(401, "unauthorized", "The apikey is not that of this gate's workers")
