"""HTTP/1.1 with one client, on `h11`: its requests one after the other, each wait with an end."""

from __future__ import annotations

import asyncio
import functools
import io
import logging
import traceback
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from email.utils import formatdate
from http import HTTPStatus
from ipaddress import IPv4Address, IPv6Address, ip_address

import h11

from proxy.errors import Refusal
from proxy.internal.messages import Growth, Handler, Request, Response, Takeover, refusal, text

log = logging.getLogger(__name__)

# How much is taken from a socket at once. Small, because a body of tiny chunks makes much work of few bytes,
# and other connections get their turn in between.
READ_BYTES = 16 * 1024
_WRITE_BYTES = 64 * 1024
_NO_BODY = frozenset({204, 304})


@dataclass(frozen=True, slots=True)
class Bounds:
    """What one listener may be made to hold, and for how long (seconds).

    Attributes:
        connections: at once; whoever comes then is hung up on. Each may hold 300 KB of unread bytes.
        idle_s: between two requests of a connection.
        head_s: for a request's head, and for the first request of a connection to begin.
        stall_s: without a byte of a body, or without the client taking a byte of an answer.
        body_s: for a whole body.
        write_s: for a whole answer.
        linger_s: that are waited for a client to read an answer that came before the end of its request.
    """

    connections: int = 128
    idle_s: float = 75.0
    head_s: float = 10.0
    stall_s: float = 10.0
    body_s: float = 60.0
    write_s: float = 60.0
    linger_s: float = 2.0


class _Gone(Exception):
    """The client hung up, or does not take its answer. There is nobody to tell."""


class Connection:
    """One client, its requests one after the other, in one task.

    Attributes:
        is_busy: whether a request has begun and is not answered.
        is_last: whether the connection ends with the answer that is due.
        is_taken_over: whether another protocol has it.
    """

    def __init__(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        handler: Handler,
        bounds: Bounds,
    ) -> None:
        self._reader, self._writer, self._handler, self._bounds = reader, writer, handler, bounds
        self._http = h11.Connection(h11.SERVER)
        self._peer = _address(writer.get_extra_info("peername"))
        self.is_busy = False
        self.is_last = False
        self.is_taken_over = False
        # So that `drain` waits until the kernel has everything, and closing has nothing left to send.
        writer.transport.set_write_buffer_limits(high=0)

    async def converse(self) -> None:
        """Answers requests until one side ends it."""
        try:
            begin_within_s = self._bounds.head_s
            while await self._exchange(begin_within_s):
                begin_within_s = self._bounds.idle_s
            self._writer.close()
        except (_Gone, OSError):
            log.debug("a client left before its answer")
        except Exception as error:  # noqa: BLE001 — the border: a bug costs its own connection
            log.error("a connection failed: %s at %s", type(error).__name__, _where(error))

    def abort(self) -> None:
        """Hangs up, unless that is done already."""
        self._writer.transport.abort()

    async def _exchange(self, begin_within_s: float) -> bool:
        """One request and its answer; False where there is to be no other."""
        try:
            head = await self._head(begin_within_s)
        except h11.RemoteProtocolError as error:
            log.info("a request could not be read: %s", type(error).__name__)
            await self._send(_bare(error.error_status_hint), is_head=False)
            return await self._linger()
        except TimeoutError:
            await self._send(_bare(408), is_head=False)
            return await self._linger()
        if head is None:
            return False
        response = await self._answer(head)
        if isinstance(response, Takeover):
            return await self._hand_over(response)
        self._skip_body()
        await self._send(response, is_head=head.method == b"HEAD")
        if not self._is_all_read:
            return await self._linger()
        if self._http.our_state is not h11.DONE:
            return False
        self._http.start_next_cycle()
        self.is_busy = False
        return not self.is_last

    async def _head(self, begin_within_s: float) -> h11.Request | None:
        """The next request's line and headers; None where the client sends none.

        Raises:
            h11.RemoteProtocolError: it is no request.
            TimeoutError: it begins and does not end.
        """
        event = self._http.next_event()
        if event is h11.NEED_DATA and not self._http.trailing_data[0]:
            try:
                async with asyncio.timeout(begin_within_s):
                    await self._receive()
            except TimeoutError:
                return None
            event = self._http.next_event()
        self.is_busy = True
        async with asyncio.timeout(self._bounds.head_s):
            while event is h11.NEED_DATA:
                await self._receive()
                event = self._http.next_event()
        if not isinstance(event, h11.Request):
            return None
        names = {name for name, _ in event.headers}
        if {b"content-length", b"transfer-encoding"} <= names:
            raise h11.RemoteProtocolError("two lengths of one body", error_status_hint=400)
        return event

    async def _hand_over(self, takeover: Takeover) -> bool:
        """Says that the protocol changes, and lets the other one have the connection."""
        if self._http.their_state is h11.SEND_BODY:
            self._http.next_event()  # the end of a request without a body
        if self._http.next_event() is not h11.PAUSED:  # it has a body, or does not want another protocol
            await self._send(_bare(400), is_head=False)
            return await self._linger()
        try:
            async with asyncio.timeout(self._bounds.write_s):
                accepted = h11.InformationalResponse(status_code=101, headers=list(takeover.headers))
                await self._write(self._sent(accepted))
        except TimeoutError:
            raise _Gone from None
        self.is_busy, self.is_taken_over = False, True
        await takeover.run(self._reader, self._writer, self._http.trailing_data[0])
        return False

    async def _answer(self, head: h11.Request) -> Response | Takeover:
        request = Request(
            method=head.method.decode("ascii"),
            target=head.target.decode("ascii"),
            headers=[(name.decode("ascii"), value.decode("latin-1")) for name, value in head.headers],
            peer=self._peer,
            read_body=functools.partial(self._body, _length(head)),
        )
        try:
            return await self._handler(request)
        except Refusal as error:
            return refusal(error)
        except _Gone:
            raise
        except Exception as error:  # noqa: BLE001 — the border: a bug costs its own request a 500
            log.error("a request failed: %s at %s", type(error).__name__, _where(error))
            return _bare(500)

    async def _body(self, declared: int | None, limit: int, growth: Growth | None) -> bytes:
        """See `Request.body`. It is gathered in one buffer: a list of pieces may weigh far more than they."""
        if (declared or 0) > limit:
            raise _too_large()
        content = io.BytesIO()  # gives its bytes away without a copy
        try:
            async with asyncio.timeout(self._bounds.body_s):
                if self._http.they_are_waiting_for_100_continue:
                    await self._write(self._sent(h11.InformationalResponse(status_code=100, headers=[])))
                while not isinstance(event := self._http.next_event(), h11.EndOfMessage):
                    if isinstance(event, h11.Data):
                        content.write(event.data)
                    elif event is h11.NEED_DATA:
                        async with asyncio.timeout(self._bounds.stall_s):
                            await self._receive()
                        await asyncio.sleep(0)
                    else:
                        raise RuntimeError("a body is read once")
                    if content.tell() > limit:
                        raise _too_large()
                    if growth is not None and content.tell() > growth.free_bytes:
                        await growth.ask()
                        growth = None
        except TimeoutError:
            raise Refusal(408, "too-slow", "The body did not come in time") from None
        except h11.RemoteProtocolError:
            raise Refusal(400, "malformed", "The body cannot be read") from None
        except OSError:
            raise _Gone from None
        return content.getvalue()

    @property
    def _is_all_read(self) -> bool:
        return self._http.their_state not in (h11.IDLE, h11.SEND_BODY, h11.ERROR)

    def _skip_body(self) -> None:
        """Passes over a body that nobody asked for, as far as it is here already."""
        if self._http.their_state is h11.SEND_BODY:
            with suppress(h11.RemoteProtocolError):
                while isinstance(self._http.next_event(), h11.Data):
                    pass

    async def _receive(self) -> None:
        self._http.receive_data(await self._reader.read(READ_BYTES))

    async def _send(self, response: Response, *, is_head: bool) -> None:
        headers = [*response.headers, ("Date", formatdate(usegmt=True)), ("Server", "pictrs-gate")]
        has_body = response.status not in _NO_BODY
        if has_body:
            headers.append(("Content-Length", str(len(response.body))))
        if self.is_last or not self._is_all_read:
            headers.append(("Connection", "close"))
        reason = HTTPStatus(response.status).phrase
        head = self._sent(h11.Response(status_code=response.status, headers=headers, reason=reason))
        try:
            async with asyncio.timeout(self._bounds.write_s):
                await self._write(head)
                if has_body and not is_head:
                    await self._write(self._sent(h11.Data(data=response.body)))
                await self._write(self._sent(h11.EndOfMessage()))
        except TimeoutError:
            raise _Gone from None

    def _sent(self, event: h11.Event) -> bytes:
        return self._http.send(event) or b""

    async def _write(self, content: bytes) -> None:
        view = memoryview(content)
        for at in range(0, len(view), _WRITE_BYTES):
            self._writer.write(view[at : at + _WRITE_BYTES])
            async with asyncio.timeout(self._bounds.stall_s):
                await self._writer.drain()

    async def _linger(self) -> bool:
        """Lets the client read its answer: closing over bytes that it still sends would destroy it."""
        with suppress(TimeoutError):
            async with asyncio.timeout(self._bounds.linger_s):
                self._writer.write_eof()
                while await self._reader.read(_WRITE_BYTES):
                    pass
        return False


def _bare(status: int) -> Response:
    """An error about which there is no more to say than its number."""
    return text(status, f"{HTTPStatus(status).phrase}\n")


def _too_large() -> Refusal:
    return Refusal(413, "too-large", "The body is larger than it may be")


def _length(head: h11.Request) -> int | None:
    return next((int(value) for name, value in head.headers if name == b"content-length"), None)


def _where(error: BaseException) -> str:
    """File and line of an error: enough to find a bug, and never a value."""
    frame = traceback.extract_tb(error.__traceback__)[-1]
    return f"{frame.filename}:{frame.lineno}"


def _address(peername: Sequence[object] | None) -> IPv4Address | IPv6Address | None:
    try:
        address = ip_address(str(peername[0])) if peername else None
    except ValueError:
        return None
    if isinstance(address, IPv6Address):
        return address.ipv4_mapped or address
    return address
