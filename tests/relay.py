"""A long line on loopback: what goes in at one end comes out at the other some time later, in order."""

from __future__ import annotations

import asyncio
import threading
from contextlib import suppress
from types import TracebackType
from typing import Self


class Relay:
    """Between whoever connects to `port` and a server on loopback."""

    def __init__(self, to_port: int, delay_s: float = 0.0) -> None:
        """
        Args:
            delay_s: of each direction; a round trip takes twice as long.
        """
        self.is_silent = False  # from then on nothing comes out, and nobody hangs up
        self.connections = 0
        self._silenced = 0  # connections; those of before
        self._open: set[asyncio.StreamWriter] = set()
        self._to_port, self._delay_s = to_port, delay_s
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self._server = asyncio.run_coroutine_threadsafe(self._listen(), self._loop).result(10)
        self.port: int = self._server.sockets[0].getsockname()[1]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        asyncio.run_coroutine_threadsafe(self._end(), self._loop).result(10)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()

    def silence(self) -> None:
        """Nothing comes out of the connections that there are now, and nobody hangs up."""
        self._silenced = self.connections

    def cut(self) -> None:
        """Breaks off the connections that there are now."""
        for end in list(self._open):
            self._loop.call_soon_threadsafe(end.transport.abort)

    async def _listen(self) -> asyncio.Server:
        return await asyncio.start_server(self._connected, "127.0.0.1", 0)

    async def _end(self) -> None:
        self._server.close()
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        number = self.connections
        far_reader, far_writer = await asyncio.open_connection("127.0.0.1", self._to_port)
        self._open |= {writer, far_writer}
        try:
            await asyncio.gather(
                self._carry(reader, far_writer, number), self._carry(far_reader, writer, number)
            )
        except asyncio.CancelledError:
            pass  # it is the end; asyncio would print it
        finally:
            self._open -= {writer, far_writer}
            for end in (writer, far_writer):
                end.transport.abort()

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, number: int) -> None:
        under_way: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue()
        taking = asyncio.ensure_future(self._take(reader, under_way))
        with suppress(OSError):
            while True:
                due, piece = await under_way.get()
                await asyncio.sleep(due - self._loop.time())
                if self.is_silent or number <= self._silenced:
                    continue
                if not piece:
                    writer.write_eof()
                    break
                writer.write(piece)
                await writer.drain()
        await taking

    async def _take(
        self, reader: asyncio.StreamReader, under_way: asyncio.Queue[tuple[float, bytes]]
    ) -> None:
        piece = b"start"
        while piece:
            try:
                piece = await reader.read(65536)
            except OSError:
                piece = b""
            under_way.put_nowait((self._loop.time() + self._delay_s, piece))
