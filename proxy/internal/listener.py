"""A small HTTP/1.1 server on `h11`, for the `internal` listener alone.

pict-rs 0.6 sends its validation hook with two Content-Type headers, which aiohttp's server answers with 400
before anybody is asked; this one hands every header over as it came. It keeps nothing of a request for a log
or an error, and each of its waits has an end.
"""

from __future__ import annotations

import asyncio
import logging
import socket

from proxy.errors import ConfigError
from proxy.internal.connection import READ_BYTES, Bounds, Connection
from proxy.internal.messages import Handler
from proxy.sections import host_and_port

log = logging.getLogger(__name__)

# For a handler that was cancelled to give back what it holds.
_CANCEL_S = 1.0


class InternalListener:
    """One address that is listened on."""

    def __init__(
        self, name: str, listen: str, handler: Handler, *, shutdown_s: float, bounds: Bounds | None = None
    ) -> None:
        """
        Args:
            name: of the configuration's section, for messages.
            listen: `host:port`; port 0 takes any free one.
            handler: answers requests. A `Refusal` that it raises is an answer; anything else is a 500.
            shutdown_s: seconds that requests under way have to end, once it is stopped.
            bounds: other than the usual ones.
        """
        self.name, self._listen, self._handler = name, listen, handler
        self._shutdown_s, self._bounds = shutdown_s, bounds or Bounds()
        self._server: asyncio.Server | None = None
        self._is_stopping = False
        self._open: dict[asyncio.Task[None], Connection] = {}

    async def start(self) -> tuple[str, int]:
        """Starts listening.

        Returns:
            The address, with the port that was taken.

        Raises:
            ConfigError: the address is taken or not this machine's.
        """
        host, port = host_and_port(self._listen)
        try:
            self._server = await asyncio.start_server(self._accept, host, port, limit=READ_BYTES)
        except (OSError, socket.gaierror) as error:
            raise ConfigError(
                f"{self.name}.listen: {self._listen}: {error.strerror}; "
                "stop what listens there, or choose another port"
            ) from None
        bound = self._server.sockets[0].getsockname()
        return bound[0], bound[1]

    async def stop(self) -> None:
        """Takes no more requests and waits, within bounds, for those under way."""
        if self._server is None:
            return
        self._is_stopping = True
        self._server.close()
        for task, connection in self._open.items():
            connection.is_last = True
            if not (connection.is_busy or connection.is_taken_over):
                task.cancel()
        # Those that were taken over go last: what is still being answered may need them.
        for within_s in (self._shutdown_s, _CANCEL_S):
            answering = [task for task, connection in self._open.items() if not connection.is_taken_over]
            if answering:
                await asyncio.wait(answering, timeout=within_s)
            for task in answering:
                task.cancel()
        for task in self._open:
            task.cancel()
        if self._open:
            await asyncio.wait(self._open, timeout=_CANCEL_S)

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._is_stopping or len(self._open) >= self._bounds.connections:
            log.info("%s: a connection too many was closed; %s are open", self.name, len(self._open))
            writer.transport.abort()
            return
        connection = Connection(reader, writer, self._handler, self._bounds)
        task = asyncio.create_task(connection.converse())
        self._open[task] = connection
        task.add_done_callback(self._forget)

    def _forget(self, task: asyncio.Task[None]) -> None:
        # Also where it was cancelled before it had begun, and so could not do it itself.
        self._open.pop(task).abort()
