"""The internal listener: every header as it came, an end to every wait, and nothing said of what came."""

from __future__ import annotations

import asyncio
import json
import logging
import logging.handlers
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from proxy.errors import ConfigError, Refusal
from proxy.internal.connection import Bounds
from proxy.internal.listener import InternalListener
from proxy.internal.messages import Handler, Request, Response, text

LONG_S = 20.0  # hang guard
SECRET = "s3cret-of-a-client"


@asynccontextmanager
async def listening(
    handler: Handler, *, bounds: Bounds | None = None, shutdown_s: float = 2.0
) -> AsyncIterator[int]:
    listener = InternalListener("internal", "127.0.0.1:0", handler, shutdown_s=shutdown_s, bounds=bounds)
    _, port = await listener.start()
    try:
        async with asyncio.timeout(LONG_S):
            yield port
    finally:
        await listener.stop()


async def talk(port: int, *pieces: bytes, pause_s: float = 0.0) -> bytes:
    """Sends the pieces and reads until the other side closes."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        for piece in pieces:
            writer.write(piece)
            await writer.drain()
            await asyncio.sleep(pause_s)
        return await reader.read()
    finally:
        writer.close()


async def answer(reader: asyncio.StreamReader) -> tuple[int, dict[str, str], bytes]:
    """One answer of a connection that stays open."""
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
    headers = dict(line.lower().split(": ", 1) for line in head[1:] if line)
    return int(head[0].split()[1]), headers, await reader.readexactly(int(headers.get("content-length", 0)))


async def tell(request: Request) -> Response:
    """A handler that says what it got."""
    body = await request.body(1000)
    told = [request.method, request.target, list(request.headers), str(request.peer), body.decode("latin-1")]
    return Response(200, json.dumps(told).encode())


async def read_all(request: Request) -> Response:
    return text(200, str(len(await request.body(10_000_000))))


async def read_nothing(_: Request) -> Response:
    return text(200, "fine")


async def test_headers_are_handed_over_as_they_came_repeated_ones_too() -> None:
    request = (
        b"POST /validate?a=%20b HTTP/1.1\r\nHost: x\r\nContent-Type: image/png\r\n"
        b"CONTENT-TYPE: multipart/form-data; boundary=b\r\nX-Latin: \xe4\r\n"
        b"Connection: close\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n4;x=y\r\ndefg\r\n0\r\n\r\n"
    )
    async with listening(tell) as port:
        head, _, body = (await talk(port, request)).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200 OK\r\n") and b"connection: close" in head.lower()
    method, target, headers, peer, content = json.loads(body)
    assert (method, target, peer, content) == ("POST", "/validate?a=%20b", "127.0.0.1", "abcdefg")
    assert headers == [
        ["host", "x"],
        ["content-type", "image/png"],
        ["content-type", "multipart/form-data; boundary=b"],
        ["x-latin", "ä"],
        ["connection", "close"],
        ["transfer-encoding", "chunked"],
    ]


async def test_a_connection_carries_one_request_after_another() -> None:
    one = b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\nabc"
    async with listening(read_all) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        for _ in range(3):
            writer.write(one)
            status, headers, body = await answer(reader)
            assert (status, body) == (200, b"3") and "connection" not in headers
        writer.write(one + one + b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")  # and without waiting for answers
        assert [(await answer(reader))[2] for _ in range(3)] == [b"3", b"3", b"0"]
        writer.close()


async def test_a_request_may_come_byte_by_byte() -> None:
    request = b"POST / HTTP/1.1\r\nHost: x\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n"
    pieces = [bytes([byte]) for byte in request + b"2\r\nab\r\n1\r\nc\r\n0\r\n\r\n"]
    async with listening(read_all) as port:
        assert (await talk(port, *pieces, pause_s=0.001)).endswith(b"\r\n\r\n3")


async def test_a_large_body_arrives_whole() -> None:
    content = bytes(range(256)) * 20_000
    got: list[bytes] = []

    async def keep(request: Request) -> Response:
        got.append(await request.body(len(content)))
        return text(200, "")

    async with listening(keep) as port:
        head = b"POST / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n"
        await talk(port, head + f"Content-Length: {len(content)}\r\n\r\n".encode(), content)
        chunks = [b"%x\r\n%b\r\n" % (len(piece), piece) for piece in (content[:99], content[99:])]
        await talk(port, head + b"Transfer-Encoding: chunked\r\n\r\n", *chunks, b"0\r\n\r\n")
    assert got == [content, content]


async def test_a_large_answer_arrives_whole() -> None:
    content = bytes(range(256)) * 20_000

    async def give(_: Request) -> Response:
        return Response(200, content)

    async with listening(give) as port:
        got = await talk(port, b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
    assert got.partition(b"\r\n\r\n")[2] == content


async def test_who_waits_before_sending_a_body_is_told_to_go_on() -> None:
    async with listening(read_all) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"POST / HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 3\r\n\r\n")
        assert await reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 \r\n\r\n"
        writer.write(b"abc")
        assert (await answer(reader))[::2] == (200, b"3")
        writer.close()


async def test_a_body_that_is_too_large_is_refused_before_it_is_sent_where_it_can_be() -> None:
    async with listening(tell) as port:
        head = b"POST / HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 1001\r\n\r\n"
        got = await talk(port, head)
        assert got.startswith(b"HTTP/1.1 413 ") and b'"too-large"' in got
        head = b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
        got = await talk(port, head + b"3e8\r\n" + b"x" * 1000 + b"\r\n1\r\nx\r\n")
        assert got.startswith(b"HTTP/1.1 413 ")


async def test_a_client_that_goes_on_sending_still_reads_why_it_was_refused() -> None:
    async def refuse(_: Request) -> Response:
        raise Refusal(401, "unauthorized", "No", retry_after_s=7)

    async with listening(refuse) as port:
        head = b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 3000000\r\n\r\n"
        got = await talk(port, head, *[b"x" * 100_000] * 30)
    head, _, body = got.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 401 ") and b"Retry-After: 7" in head
    assert b"connection: close" in head.lower()
    assert json.loads(body) == {"code": "unauthorized", "msg": "No"}


async def test_a_body_that_nobody_asks_for_does_not_become_the_next_request() -> None:
    smuggled = b"GET /smuggled HTTP/1.1\r\nHost: x\r\n\r\n"
    head = b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(smuggled)
    asked: list[str] = []

    async def note(request: Request) -> Response:
        asked.append(request.target)
        return text(200, "")

    async with listening(note) as port:
        await talk(port, head + smuggled + b"GET /next HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        await talk(port, head, smuggled, pause_s=0.05)
    assert asked == ["/", "/next", "/"]


HOST = b"Host: " + SECRET.encode() + b"\r\n"


@pytest.mark.parametrize(
    ("raw", "status"),
    [
        (b"\x89PNG\r\n\x1a\n" + SECRET.encode() + b"\r\n\r\n", 400),
        (b"GET /" + SECRET.encode() + b"\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\n" + HOST + HOST + b"\r\n", 400),
        (b"GET / HTTP/1.1\r\n" + HOST + b"no header\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\n" + HOST + b"X : y\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\n" + HOST + b"X: a\0b\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\n" + HOST + b"Content-Length: x\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\n" + HOST + b"Content-Length: 1\r\nContent-Length: 2\r\n\r\nab", 400),
        (b"POST / HTTP/1.1\r\n" + HOST + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\n" + HOST + b"Transfer-Encoding: gzip, chunked\r\n\r\n", 501),
        (b"POST / HTTP/1.1\r\n" + HOST + b"Transfer-Encoding: chunked\r\n\r\n-1\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\n" + HOST + b"Transfer-Encoding: chunked\r\n\r\n2\r\nabc\r\n", 400),
        (b"GET / HTTP/1.1\r\n" + HOST + b"X: " + b"y" * 50_000 + b"\r\n\r\n", 431),
    ],
)
async def test_what_is_no_request_is_refused_and_never_quoted(
    raw: bytes, status: int, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("DEBUG")
    async with listening(tell) as port:
        got = await talk(port, raw)
    assert got.startswith(b"HTTP/1.1 %d " % status) and b"connection: close" in got.lower()
    assert SECRET.encode() not in got and SECRET not in caplog.text


async def test_a_handler_that_fails_costs_its_own_request_a_500(caplog: pytest.LogCaptureFixture) -> None:
    async def fail(_: Request) -> Response:
        raise ValueError(SECRET)

    async with listening(fail) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        for _ in range(2):
            writer.write(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
            status, _, body = await answer(reader)
            assert status == 500 and SECRET.encode() not in body
        writer.close()
    assert "ValueError" in caplog.text and __file__ in caplog.text and SECRET not in caplog.text


async def test_head_and_204_have_no_body() -> None:
    async def either(request: Request) -> Response:
        return text(200, "four") if request.method == "HEAD" else Response(204)

    async with listening(either) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        for method, length in ((b"HEAD", b"4"), (b"GET", None), (b"HEAD", b"4")):
            writer.write(method + b" / HTTP/1.1\r\nHost: x\r\n\r\n")
            head = await reader.readuntil(b"\r\n\r\n")
            assert (b"Content-Length: " + length in head) if length else (b"Content-Length" not in head)
        writer.close()


async def test_http_1_0_is_answered_and_closed() -> None:
    async with listening(read_nothing) as port:
        got = await talk(port, b"GET / HTTP/1.0\r\n\r\n")
    assert got.startswith(b"HTTP/1.1 200 ") and got.endswith(b"\r\n\r\nfine")


async def test_an_offer_to_speak_another_protocol_is_passed_over() -> None:
    request = b"GET / HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n"
    async with listening(read_nothing) as port:
        got = await talk(port, request + b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
    assert got.count(b"HTTP/1.1 200 OK") == 2


@pytest.mark.parametrize(
    ("pieces", "expected"),
    [
        ((b"GET / HTTP/1.1\r\nHo",), b"HTTP/1.1 408 "),
        ((b"GET / HTTP/1.1\r\n", *[b"X: y\r\n"] * 100), b"HTTP/1.1 408 "),
        ((b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\na",), b"HTTP/1.1 408 "),
        ((b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 999\r\n\r\n", *[b"x"] * 100), b"HTTP/1.1 408 "),
        ((), b""),
    ],
    ids=["half a head", "a dripping head", "half a body", "a dripping body", "nothing"],
)
async def test_who_is_slow_is_not_waited_for(pieces: tuple[bytes, ...], expected: bytes) -> None:
    bounds = Bounds(head_s=0.5, idle_s=0.5, stall_s=0.5, body_s=1.0, linger_s=0.1)
    async with listening(tell, bounds=bounds) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)

        async def drip() -> None:
            with suppress(ConnectionError):
                for piece in pieces:
                    writer.write(piece)
                    await writer.drain()
                    await asyncio.sleep(0.05)

        dripping = asyncio.create_task(drip())
        line = await reader.read(13)
        assert line == expected
        assert len(pieces) < 2 or not dripping.done()  # what drips was not waited for to the end
        dripping.cancel()
        writer.close()


async def test_a_connection_that_is_not_used_again_is_closed() -> None:
    async with listening(read_nothing, bounds=Bounds(idle_s=0.2)) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        assert (await answer(reader))[0] == 200
        assert await reader.read() == b""
        writer.close()


async def test_a_client_that_does_not_take_its_answer_is_hung_up_on() -> None:
    async def give(_: Request) -> Response:
        return Response(200, bytes(50_000_000))

    async with listening(give, bounds=Bounds(connections=1, stall_s=0.2)) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        while not await is_served(port):  # there is room for one, so the first has to be gone
            await asyncio.sleep(0.05)
        got = 0
        with suppress(ConnectionError):
            while piece := await reader.read(1_000_000):
                got += len(piece)
        assert got < 50_000_000
        writer.close()


async def is_served(port: int) -> bool:
    """Whether somebody else gets at least the beginning of an answer now."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        return await reader.read(4) == b"HTTP"
    except ConnectionError:
        return False
    finally:
        writer.transport.abort()


async def test_connections_beyond_the_bound_are_closed_and_those_within_it_stay() -> None:
    async with listening(read_nothing, bounds=Bounds(connections=2)) as port:
        kept = [await asyncio.open_connection("127.0.0.1", port) for _ in range(2)]
        for reader, writer in kept:
            writer.write(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
            assert (await answer(reader))[0] == 200
        assert not await is_served(port)
        for reader, writer in kept:
            writer.write(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
            assert (await answer(reader))[0] == 200
            writer.close()
        while not await is_served(port):
            await asyncio.sleep(0.02)


async def test_a_client_that_leaves_in_the_middle_leaves_nothing_behind(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with listening(tell, bounds=Bounds(connections=1)) as port:
        for raw in (b"GET / HT", b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\na", b""):
            _, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(raw)
            await writer.drain()
            writer.transport.abort()
            while not await is_served(port):
                await asyncio.sleep(0.02)
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


async def test_stopping_lets_what_is_under_way_end_and_nothing_begin() -> None:
    begun, go_on = asyncio.Event(), asyncio.Event()

    async def wait(_: Request) -> Response:
        begun.set()
        await go_on.wait()
        return text(200, "done")

    listener = InternalListener("internal", "127.0.0.1:0", wait, shutdown_s=LONG_S)
    _, port = await listener.start()
    idle_reader, idle_writer = await asyncio.open_connection("127.0.0.1", port)
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
    async with asyncio.timeout(LONG_S):
        await begun.wait()
        stopping = asyncio.create_task(listener.stop())
        with suppress(ConnectionError):
            assert await idle_reader.read() == b""
        with pytest.raises(ConnectionError):
            await asyncio.open_connection("127.0.0.1", port)
        assert not stopping.done()
        go_on.set()
        status, headers, body = await answer(reader)
        assert (status, headers["connection"], body) == (200, "close", b"done")
        assert await reader.read() == b""
        await stopping
    writer.close()
    idle_writer.close()


async def test_stopping_does_not_wait_for_ever() -> None:
    begun, was_cancelled = asyncio.Event(), asyncio.Event()

    async def hang(_: Request) -> Response:
        begun.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            was_cancelled.set()
            raise
        return text(200, "")

    listener = InternalListener("internal", "127.0.0.1:0", hang, shutdown_s=0.1)
    _, port = await listener.start()
    async with asyncio.timeout(LONG_S):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        await begun.wait()
        await listener.stop()
        assert was_cancelled.is_set()
        with suppress(ConnectionError):
            assert await reader.read() == b""
        writer.close()


async def test_an_address_that_cannot_be_had_is_said_in_words() -> None:
    async with listening(read_nothing) as port:
        other = InternalListener("internal", f"127.0.0.1:{port}", read_nothing, shutdown_s=1)
        with pytest.raises(ConfigError, match=rf"internal\.listen: 127\.0\.0\.1:{port}: .*another port"):
            await other.start()
    with pytest.raises(ConfigError, match=r"internal\.listen"):
        await InternalListener("internal", "203.0.113.1:0", read_nothing, shutdown_s=1).start()


@given(
    st.lists(
        st.one_of(
            st.binary(max_size=60),
            st.sampled_from(
                [
                    b"GET / HTTP/1.1\r\n",
                    b"POST /x HTTP/1.1\r\nHost: x\r\n",
                    b"Content-Length: 3\r\n",
                    b"Transfer-Encoding: chunked\r\n",
                    b"Expect: 100-continue\r\n",
                    b"Upgrade: websocket\r\nConnection: upgrade\r\n",
                    b"\r\n",
                    b"3\r\nabc\r\n",
                    b"0\r\n\r\n",
                ]
            ),
        ),
        max_size=8,
    )
)
@settings(max_examples=100, deadline=None)
def test_any_bytes_whatsoever_are_answered_or_hung_up_on(pieces: list[bytes]) -> None:
    said = logging.handlers.BufferingHandler(1000)
    said.setLevel(logging.ERROR)

    async def converse() -> None:
        bounds = Bounds(head_s=0.05, idle_s=0.05, stall_s=0.05, linger_s=0.05)
        async with listening(tell, bounds=bounds) as port:
            with suppress(ConnectionError):
                got = await talk(port, b"".join(pieces))
                assert got == b"" or got.startswith(b"HTTP/1.1 ")
                assert b" 500 " not in got.partition(b"\r\n")[0]

    log = logging.getLogger("proxy.internal.connection")
    log.addHandler(said)
    try:
        asyncio.run(converse())
    finally:
        log.removeHandler(said)
    assert not said.buffer
