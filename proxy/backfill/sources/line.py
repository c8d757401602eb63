"""A connection over SSH, made when it is needed and anew when it was lost; and how long is waited on it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from asyncssh import SFTPClient, SSHClientConnection

    Dialed = tuple[SSHClientConnection, SFTPClient]


class Line:
    """For any number at once. Where one is being made, all wait for that one."""

    def __init__(self, dial: Callable[[], Awaitable[Dialed]]) -> None:
        """
        Args:
            dial: what makes a connection, with its client.
        """
        self._dial = dial
        self._dialed: Dialed | None = None
        self._dialing: asyncio.Task[Dialed] | None = None
        self._is_closed = False

    async def connected(self) -> Dialed:
        """The connection that there is, or a new one.

        Raises:
            ConnectionAbortedError: it was closed by `close`.
            what `dial` raises, to all that have waited.
        """
        if self._is_closed:
            raise ConnectionAbortedError("closed")
        if self._dialed is not None and not self._dialed[0].is_closed():
            return self._dialed
        if self._dialing is None:
            self._dialing = asyncio.ensure_future(self._dial_once())
        return await asyncio.shield(self._dialing)

    async def close(self) -> None:
        """Hangs up, for good. Whatever waits for an answer ends here."""
        self._is_closed = True
        if self._dialing is not None:
            self._dialing.cancel()
            await asyncio.gather(self._dialing, return_exceptions=True)
        if self._dialed is not None:
            self._dialed[0].abort()
            await self._dialed[0].wait_closed()

    async def _dial_once(self) -> Dialed:
        try:
            self._dialed = await self._dial()
            return self._dialed
        finally:
            self._dialing = None


class Deadline:
    """Hangs up where the host does not answer in time, and then raises TimeoutError.

    asyncssh waits for the host even to tidy up after a request that was cancelled, so a cancel ends nothing.
    """

    def __init__(self, connection: SSHClientConnection, seconds: float) -> None:
        self._connection, self._seconds = connection, seconds
        self._loop = asyncio.get_running_loop()
        self._is_over = False

    def __enter__(self) -> Self:
        self.renew()
        self._timer = self._loop.call_at(self._until, self._look)
        return self

    def renew(self) -> None:
        """The host has answered; it has as long once more."""
        self._until = self._loop.time() + self._seconds

    def _look(self) -> None:
        if self._loop.time() < self._until:
            self._timer = self._loop.call_at(self._until, self._look)
        else:
            self._is_over = True
            self._connection.abort()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        self._timer.cancel()
        if self._is_over and isinstance(error, Exception):
            raise TimeoutError from None
