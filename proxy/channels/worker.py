"""Classifiers that dial in: one WebSocket carries many requests at once (`docs/protocol.md`, Dialling out).

A desktop behind NAT cannot be called, so it calls; from then on it is a channel like any other. Files go to
it in pieces, so that a large one does not hold up those behind it, and only as many as it says it takes.
"""

from __future__ import annotations

import asyncio
import hmac
import itertools
import json
import logging
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

from proxy.channels.answers import look_of
from proxy.channels.lookout import Lookout
from proxy.channels.looks import ChannelError, File, Priority, Seen, Undecodable
from proxy.channels.websocket import Closed, WebSocket

log = logging.getLogger(__name__)

SUBPROTOCOL = "pictrs-gate-worker.v1"
LARGEST_MESSAGE = 1024 * 1024
_PIECE_BYTES = 64 * 1024
_HELLO_S = 10.0
_MOST_WORKERS = 16
_MOST_AT_ONCE = 1024
_FULL_S = 0.25  # that is waited for a place at a worker which has as much as it takes


class WorkerChannel:
    """One worker that has dialled in."""

    def __init__(self, name: str, socket: WebSocket, names: frozenset[str], at_once: int) -> None:
        """
        Args:
            names: of the signals that it gives.
            at_once: files of each priority that it takes.
        """
        self.name = name
        self._socket, self._names = socket, names
        self._places = {priority: asyncio.Semaphore(at_once) for priority in Priority}
        self._numbers = itertools.count(1)
        self._asked: dict[int, asyncio.Future[Mapping[str, Any]]] = {}
        self._nobody_waits = asyncio.Event()
        self._nobody_waits.set()
        self._live_sending = 0
        self._telling: set[asyncio.Task[None]] = set()
        self._no_live = asyncio.Event()
        self._no_live.set()

    async def look(self, file: File, *, priority: Priority, within_s: float) -> Seen | Undecodable:
        """See `Channel.look`."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + within_s
        try:
            # In the order of coming, but not for long: another one may have room.
            async with asyncio.timeout(min(_FULL_S, within_s)):
                await self._places[priority].acquire()
        except TimeoutError:
            raise ChannelError(f"{self.name} has as many files as it takes", retry_after_s=0) from None
        try:
            return await self._look(file, priority, deadline - loop.time())
        finally:
            self._places[priority].release()

    async def _look(self, file: File, priority: Priority, within_s: float) -> Seen | Undecodable:
        number = next(self._numbers)
        answered: asyncio.Future[Mapping[str, Any]] = asyncio.get_running_loop().create_future()
        self._asked[number] = answered
        self._nobody_waits.clear()
        sending = asyncio.create_task(self._send_file(number, file, priority, within_s))
        try:
            async with asyncio.timeout(within_s):
                answer = await answered
        except TimeoutError:
            raise ChannelError(f"{self.name} did not answer within {within_s:.1f} s") from None
        finally:
            sending.cancel()
            del self._asked[number]
            if not self._asked:
                self._nobody_waits.set()
            if not answered.done() or answered.cancelled():
                self._forget(number)
        status, retry_after, content = (
            answer.get("status"),
            answer.get("retry_after_s"),
            answer.get("content"),
        )
        if not isinstance(status, int) or not isinstance(content, dict):
            raise ChannelError(f"{self.name} answered something that is not of the protocol")
        return look_of(self.name, file, status, None if retry_after is None else str(retry_after), content)

    async def signals(self) -> frozenset[str]:
        """See `Channel.signals`. It has said them when it came."""
        return self._names

    async def ensemble(self) -> str | None:
        """See `Channel.ensemble`. Its answers tell."""
        return None

    async def close(self) -> None:
        """See `Channel.close`."""
        await self._socket.close(1001, "the gate is stopping")

    async def converse(self) -> None:
        """Takes answers until the worker says that it wants to go, or is gone.

        Raises:
            Closed: it is gone.
            ValueError: it says something that is not of the protocol.
        """
        while True:
            message = _object(await self._socket.receive())
            if message.get("bye"):
                return
            number = message.get("answer")
            answered = self._asked.get(number) if isinstance(number, int) else None
            if answered is not None and not answered.done():  # else nobody waits for it any more
                answered.set_result(message)

    async def part(self) -> None:
        """Lets the worker go as soon as nobody waits for it."""
        await self._nobody_waits.wait()
        await self._socket.send(json.dumps({"bye": True}))

    def fail(self) -> None:
        """The link is gone: tells everybody who waits."""
        for answered in self._asked.values():
            if not answered.done():
                answered.set_exception(ChannelError(f"{self.name} is gone"))

    async def _send_file(self, number: int, file: File, priority: Priority, within_s: float) -> None:
        head = {
            "classify": number,
            "size": len(file.content),
            "content_type": file.media.content_type,
            "priority": priority.value,
            "deadline_ms": max(1, int(within_s * 1000)),
        }
        try:
            if priority is Priority.LIVE:
                self._live_sending += 1
                self._no_live.clear()
            await self._socket.send(json.dumps(head))
            mark, content = number.to_bytes(4, "big"), memoryview(file.content)
            for at in range(0, len(content), _PIECE_BYTES):
                if priority is not Priority.LIVE:
                    await self._no_live.wait()
                await self._socket.send(mark + content[at : at + _PIECE_BYTES])
        except Closed:
            pass  # whoever receives notices it, and tells all who wait
        finally:
            if priority is Priority.LIVE:
                self._live_sending -= 1
                if not self._live_sending:
                    self._no_live.set()

    def _forget(self, number: int) -> None:
        """Tells the worker that nobody waits for this answer."""

        async def tell() -> None:
            with suppress(Closed):
                await self._socket.send(json.dumps({"cancel": number}))

        task = asyncio.create_task(tell())
        self._telling.add(task)
        task.add_done_callback(self._telling.discard)


class Workers:
    """The door by which workers come."""

    def __init__(self, tokens: Sequence[str], needed: frozenset[str], lookout: Lookout) -> None:
        """
        Args:
            tokens: of which a worker bears one.
            needed: the signals that the policy names.
            lookout: asks those who have come.
        """
        self._tokens, self._needed, self._lookout = tokens, needed, lookout
        self._numbers = itertools.count(1)
        self._here = 0

    def admits(self, token: str) -> bool:
        """Whether a worker with this token may come."""
        # Every one is compared, and in constant time: whoever may guess shall not learn how near a guess is.
        return sum(hmac.compare_digest(token.encode(), one.encode()) for one in self._tokens) > 0

    async def serve(self, socket: WebSocket) -> None:
        """Has one worker do its work until it goes."""
        if self._here >= _MOST_WORKERS:
            await socket.close(1013, "there are enough workers")
            return
        self._here += 1
        try:
            await self._serve(socket)
        except Closed:
            pass
        except ValueError as error:
            log.warning("a worker is sent away: %s", error)
            await socket.close(1008, str(error)[:100])
        finally:
            self._here -= 1

    async def _serve(self, socket: WebSocket) -> None:
        try:
            async with asyncio.timeout(_HELLO_S):
                hello = _object(await socket.receive()).get("hello")
        except TimeoutError:
            raise ValueError("it does not introduce itself") from None
        channel = self._introduced(socket, hello)
        log.info("classifier %s is ready", channel.name)
        self._lookout.add(channel)
        parting = None
        try:
            await channel.converse()
            self._lookout.remove(channel)
            log.info("classifier %s takes no more", channel.name)
            parting = asyncio.create_task(channel.part())
            await channel.converse()
        except asyncio.CancelledError:
            await channel.close()
            raise
        finally:
            self._lookout.remove(channel)
            channel.fail()
            if parting is not None:
                parting.cancel()
                await asyncio.gather(parting, return_exceptions=True)
            log.info("classifier %s has gone", channel.name)

    def _introduced(self, socket: WebSocket, hello: Any) -> WorkerChannel:
        """The channel to a worker, by what it says of itself.

        Raises:
            ValueError: it is of no use, and why.
        """
        try:
            names = frozenset(str(name) for name in hello["signals"])
            ensemble, at_once = str(hello["ensemble"]), int(hello["limits"]["files"])
        except (ArithmeticError, LookupError, TypeError, ValueError):
            raise ValueError("its introduction is not of the protocol") from None
        missing = self._needed - names
        if missing:
            raise ValueError(f"its ensemble has no signal {', '.join(sorted(missing))}, which a rule names")
        if not ensemble.isprintable() or at_once < 1:
            raise ValueError("its introduction is not of the protocol")
        name = f"worker {next(self._numbers)}"
        return WorkerChannel(name, socket, names, min(at_once, _MOST_AT_ONCE))


def _object(message: str | bytes) -> Mapping[str, Any]:
    """The JSON object of a message.

    Raises:
        ValueError: it is none.
    """
    try:
        content = json.loads(message) if isinstance(message, str) else None
    except RecursionError:
        content = None
    if not isinstance(content, dict):
        raise ValueError("a message is not a JSON object")
    return content
