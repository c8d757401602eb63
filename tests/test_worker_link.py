"""A classifier that dials in is a channel like any other: same answers, bounded, and no look lost with it."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from classifier import connect
from classifier.connect import Dialler, Dialling
from classifier.decoding import Hashes, Media
from classifier.engine import FrameSignals, Result
from classifier.errors import SetupError, undecodable
from classifier.metrics import Metrics as ClassifierMetrics
from classifier.service import Bounds, Service
from classifier.turns import Priority as Turn
from proxy.channels import websocket, worker
from proxy.channels.http import HttpChannel
from proxy.channels.lookout import Lookout
from proxy.channels.looks import File, Look, Priority, Seen, Undecodable, Unseen
from proxy.channels.worker import SUBPROTOCOL, Workers
from proxy.internal.listener import InternalListener
from proxy.internal.server import Internal
from proxy.media import recognise
from proxy.metrics import Metrics
from tests import pictures
from tests.fake import SEEN, classifier, json_reply

TOKEN = "a-token-for-tests-only"
NEEDED = frozenset({"sexual", "minor"})
HELLO = {"ensemble": "own", "signals": ["sexual", "minor"], "limits": {"files": 64}}


def file(content: bytes | None = None, *, size: int | None = None) -> File:
    content = content or pictures.png()
    media = recognise(content)
    assert media is not None
    content = content if size is None else content.ljust(size, b"\0")
    return File(content, media, hashlib.sha256(content).hexdigest())


class Looker:
    """In place of an engine: says what it is told, when it is told."""

    name, about, version, signals = "own", "for tests", "1", ("minor", "sexual")

    def __init__(self) -> None:
        self.ensemble = self
        self.contents: list[bytes] = []
        self.left = 0
        self.may_answer = asyncio.Event()
        self.may_answer.set()

    async def look(self, content: bytes, *, priority: Turn, deadline: float) -> Result:
        self.contents.append(content)
        try:
            await self.may_answer.wait()
        except asyncio.CancelledError:
            self.left += 1
            raise
        if content.endswith(b"broken"):
            raise undecodable("it is broken")
        signals = {"sexual": len(content) % 97 / 100, "minor": 0.25}
        return Result(
            Media("image", "png", 320, 200, 1, 1),
            Hashes(hashlib.sha256(content).hexdigest(), None, None),
            signals,
            [FrameSignals(0, signals)],
            {},
        )


class Gate:
    """The gate's side: a listener, and the lookout that asks whoever comes."""

    def __init__(self, *http: HttpChannel, port: int = 0) -> None:
        metrics = Metrics()
        self.lookout = Lookout(http, NEEDED, metrics)
        internal = Internal(metrics, self._ready, workers=Workers([TOKEN, "another"], NEEDED, self.lookout))
        self.listener = InternalListener("internal", f"127.0.0.1:{port}", internal, shutdown_s=1)

    async def __aenter__(self) -> Gate:
        host, self.port = await self.listener.start()
        self.url = f"ws://{host}:{self.port}/worker"
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.listener.stop()
        await self.lookout.close()

    async def look(
        self, of: File | None = None, *, priority: Priority = Priority.LIVE, within_s: float = 10
    ) -> Look:
        return await self.lookout.look(of or file(), priority=priority, within_s=within_s)

    async def until_somebody_looks(self) -> None:
        async with asyncio.timeout(20):
            while isinstance(await self.look(within_s=5), Unseen):
                await asyncio.sleep(0.02)

    async def _ready(self) -> bool:
        return True


@asynccontextmanager
async def dialled(
    gate: Gate, looker: Looker, *, files: int = 64, token: str = TOKEN
) -> AsyncIterator[asyncio.Event]:
    """The real worker's side, linked; the event stops it."""
    metrics = ClassifierMetrics()
    service = Service(looker, Bounds(most_files=files), metrics)  # type: ignore[arg-type]
    stop = asyncio.Event()
    running = asyncio.create_task(Dialler(Dialling(gate.url, token), service, metrics).run(stop))
    try:
        await gate.until_somebody_looks()
        looker.contents.clear()
        yield stop
    finally:
        stop.set()
        async with asyncio.timeout(20):
            await running


class Link:
    """A worker's side by hand, for one that misbehaves."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        self.socket = socket
        self.pieces: list[int] = []

    async def asked(self) -> dict[str, Any]:
        """The next thing that is said; pieces of files are noted by their number."""
        while True:
            message = await self.socket.receive(timeout=10)
            if message.type is aiohttp.WSMsgType.BINARY:
                self.pieces.append(int.from_bytes(message.data[:4], "big"))
            elif message.type is aiohttp.WSMsgType.TEXT:
                said: dict[str, Any] = json.loads(message.data)
                return said
            else:
                raise ConnectionError(f"{message.type.name} {message.data}")

    async def answer(self, number: int, **changed: Any) -> None:
        answer = {"answer": number, "status": 200, "retry_after_s": None, "content": SEEN, **changed}
        await self.socket.send_str(json.dumps(answer))


@asynccontextmanager
async def linked(gate: Gate, hello: Any = None, **options: Any) -> AsyncIterator[Link]:
    headers = {"Authorization": f"Bearer {TOKEN}"}
    async with (
        aiohttp.ClientSession() as session,
        session.ws_connect(gate.url, protocols=[SUBPROTOCOL], headers=headers, **options) as socket,
    ):
        await socket.send_str(json.dumps({"hello": hello or HELLO}))
        await asyncio.sleep(0.05)
        yield Link(socket)


async def until(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not holds():
            await asyncio.sleep(0.01)


async def test_nobody_looks_before_a_worker_has_come() -> None:
    async with Gate() as gate:
        assert isinstance(await gate.look(), Unseen)


async def test_each_of_many_files_at_once_gets_its_own_answer() -> None:
    async with Gate() as gate:
        looker = Looker()
        async with dialled(gate, looker):
            files = [file(pictures.png(seed=seed) + bytes(1000 * seed)) for seed in range(40)]
            looks = await asyncio.gather(*(gate.look(one) for one in files))
    for one, look in zip(files, looks, strict=True):
        assert isinstance(look, Seen) and look.signals["sexual"] == len(one.content) % 97 / 100
    assert sorted(looker.contents) == sorted(one.content for one in files)


async def test_an_error_means_what_it_means_over_http() -> None:
    async with Gate() as gate, dialled(gate, Looker()):
        assert isinstance(await gate.look(file(pictures.png() + b"broken")), Undecodable)
        assert isinstance(await gate.look(file(size=65 * 1024 * 1024)), Undecodable)  # more than it takes


async def test_a_large_file_does_not_hold_up_those_behind_it() -> None:
    async with Gate() as gate, linked(gate) as link:
        large = asyncio.create_task(gate.look(file(size=20 * 1024 * 1024)))
        first = await link.asked()
        small = asyncio.create_task(gate.look())
        second = await link.asked()
        assert len(link.pieces) < 20 * 16  # of its pieces of 64 KB
        await link.answer(second["classify"])
        assert isinstance(await small, Seen)
        await link.answer(first["classify"])
        assert isinstance(await large, Seen)


async def test_live_files_are_sent_before_the_backfill_s() -> None:
    async with Gate() as gate, linked(gate) as link:
        backfill = asyncio.create_task(gate.look(file(size=20 * 1024 * 1024), priority=Priority.BACKFILL))
        slow = (await link.asked())["classify"]
        live = asyncio.create_task(gate.look(file(size=20 * 1024 * 1024)))
        quick = (await link.asked())["classify"]
        before = len(link.pieces)
        while link.pieces[before:].count(quick) < 320:
            message = await link.socket.receive(timeout=10)
            link.pieces.append(int.from_bytes(message.data[:4], "big"))
        assert link.pieces[before:].count(slow) <= 1
        for number in (slow, quick):
            await link.answer(number)
        assert [type(look) for look in await asyncio.gather(backfill, live)] == [Seen, Seen]


async def test_no_more_is_asked_at_once_than_a_worker_takes_and_none_is_lost_for_it() -> None:
    async with Gate() as gate:
        looker = Looker()
        async with dialled(gate, looker, files=3):
            looker.may_answer.clear()
            looks = [asyncio.create_task(gate.look(file(pictures.png(seed=seed)))) for seed in range(9)]
            await until(lambda: len(looker.contents) == 3)
            await asyncio.sleep(0.3)
            assert len(looker.contents) == 3
            looker.may_answer.set()
            assert [type(look) for look in await asyncio.gather(*looks)] == [Seen] * 9


async def test_a_link_cut_in_the_middle_of_an_answer_moves_its_files_to_another() -> None:
    other = classifier(lambda _: json_reply(200, SEEN))
    try:
        async with Gate() as gate, linked(gate) as link:
            looks = [asyncio.create_task(gate.look(file(pictures.png(seed=seed)))) for seed in range(4)]
            for _ in looks:
                await link.asked()
            http = HttpChannel(other.url, None)
            gate.lookout.add(http)
            transport = link.socket._writer.transport  # type: ignore[attr-defined]
            transport.write(b"\x81\xfe\x10\x00half an ans")  # the head of a message, and not all of it
            transport.abort()
            assert [type(look) for look in await asyncio.gather(*looks)] == [Seen] * 4
            assert len(other.asked) >= 4
            await http.close()
    finally:
        other.close()


async def test_a_file_whose_only_worker_is_gone_was_looked_at_by_nobody_at_once() -> None:
    async with Gate() as gate, linked(gate) as link:
        look = asyncio.create_task(gate.look(within_s=60))
        await link.asked()
        await link.socket.close()
        assert isinstance(await asyncio.wait_for(look, 10), Unseen)


async def test_a_worker_comes_back_when_the_gate_does() -> None:
    looker = Looker()
    async with Gate() as gate:
        first = gate
        async with dialled(gate, looker):
            await gate.listener.stop()
            async with Gate(port=first.port) as second:
                await second.until_somebody_looks()


async def test_who_no_longer_waits_costs_no_look() -> None:
    async with Gate() as gate:
        looker = Looker()
        async with dialled(gate, looker):
            looker.may_answer.clear()
            look = asyncio.create_task(gate.look())
            await until(lambda: len(looker.contents) == 1)
            look.cancel()
            await until(lambda: looker.left == 1)
            late = await gate.look(file(pictures.png(seed=2)), within_s=0.2)
            assert isinstance(late, Unseen)
            await until(lambda: looker.left == 2)


async def test_a_worker_that_says_goodbye_answers_what_it_has_and_is_asked_nothing_more() -> None:
    async with Gate() as gate:
        looker = Looker()
        async with dialled(gate, looker) as stop:
            looker.may_answer.clear()
            looks = [asyncio.create_task(gate.look(file(pictures.png(seed=seed)))) for seed in range(5)]
            await until(lambda: len(looker.contents) == 5)
            stop.set()
            async with asyncio.timeout(10):
                while not isinstance(await gate.look(within_s=0.2), Unseen):
                    await asyncio.sleep(0.01)
            looker.may_answer.set()
            assert [type(look) for look in await asyncio.gather(*looks)] == [Seen] * 5
        assert len(looker.contents) <= 7


async def test_a_worker_that_falls_silent_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(websocket, "_HEARTBEAT_S", 0.1)
    monkeypatch.setattr(websocket, "_SILENCE_S", 0.3)
    async with Gate() as gate, linked(gate, autoping=False):
        assert isinstance(await asyncio.wait_for(gate.look(within_s=60), 10), Unseen)


async def test_a_worker_that_is_only_slow_is_kept_alive(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(websocket, "_HEARTBEAT_S", 0.05)
    monkeypatch.setattr(websocket, "_SILENCE_S", 0.2)
    async with Gate() as gate, linked(gate) as link:
        look = asyncio.create_task(gate.look())
        number = (await link.asked())["classify"]
        with suppress(TimeoutError):
            await link.socket.receive(timeout=1)  # pings are answered meanwhile
        await link.answer(number)
        assert isinstance(await look, Seen)


async def test_a_worker_that_takes_nothing_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(websocket, "_STALL_S", 0.3)
    async with Gate() as gate, linked(gate):
        looks = [asyncio.create_task(gate.look(file(size=30 * 1024 * 1024), within_s=60)) for _ in range(2)]
        assert [type(one) for one in await asyncio.wait_for(asyncio.gather(*looks), 20)] == [Unseen] * 2


@pytest.mark.parametrize(
    "said",
    [
        "not JSON",
        "[]",
        "[" * 100_000,
        b"binary",
        '{"answer": 1}',
        '{"answer": "1", "status": 200, "content": {}}',
        '{"answer": 1, "status": "200", "content": {}}',
        '{"answer": 1, "status": 200, "content": []}',
        '{"answer": 1, "status": 200, "content": {}}',
        '{"answer": 1, "status": 500, "content": {"error": {"code": "internal-error"}}}',
        json.dumps({"answer": 1, "status": 200, "content": {**SEEN, "hashes": {"sha256": "of another"}}}),
        '{"answer": 99, "status": 200, "content": {}}',
        "x" * (2 * 1024 * 1024),
    ],
)
async def test_nonsense_is_nobody_s_look(said: str | bytes) -> None:
    async with Gate() as gate, linked(gate) as link:
        look = asyncio.create_task(gate.look(within_s=2))
        await link.asked()
        with suppress(aiohttp.ClientError, OSError):
            await (link.socket.send_bytes(said) if isinstance(said, bytes) else link.socket.send_str(said))
        assert isinstance(await look, Unseen)
    async with Gate() as gate, linked(gate) as link:  # and whatever it was, a good one is welcome after it
        look = asyncio.create_task(gate.look())
        await link.answer((await link.asked())["classify"])
        assert isinstance(await look, Seen)


@pytest.mark.parametrize(
    "hello",
    [
        {"ensemble": "own", "signals": ["sexual"], "limits": {"files": 4}},
        {"ensemble": "own", "signals": ["sexual", "minor"], "limits": {"files": 0}},
        {"ensemble": "own", "signals": ["sexual", "minor"]},
        {"ensemble": "own", "signals": ["sexual", "minor"], "limits": {"files": float("inf")}},
        {"signals": 3},
        "hello",
    ],
)
async def test_a_worker_that_cannot_be_of_use_is_sent_away(hello: Any) -> None:
    async with Gate() as gate, linked(gate, hello) as link:
        with pytest.raises(ConnectionError, match="CLOSE 1008"):
            await link.asked()
        assert isinstance(await gate.look(), Unseen)


async def test_a_worker_that_does_not_introduce_itself_is_sent_away(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker, "_HELLO_S", 0.2)
    headers = {"Authorization": f"Bearer {TOKEN}"}
    async with (
        Gate() as gate,
        aiohttp.ClientSession() as session,
        session.ws_connect(gate.url, protocols=[SUBPROTOCOL], headers=headers) as socket,
    ):
        assert (await socket.receive(timeout=5)).type is aiohttp.WSMsgType.CLOSE


@pytest.mark.parametrize(
    "frames",
    [b"\x89\x80\0\0\0\0", b"\x8a\x80\0\0\0\0", b"\x00\x80\0\0\0\0", b"\x00\x82\0\0\0\0{{"],
    ids=["pings", "pongs", "empty fragments", "tiny fragments"],
)
async def test_a_flood_of_tiny_frames_neither_stops_the_gate_nor_fills_it(frames: bytes) -> None:
    async with Gate() as gate, linked(gate) as link:
        transport = link.socket._writer.transport  # type: ignore[attr-defined]
        if frames[0] == 0:
            transport.write(b"\x01\x80\0\0\0\0")  # a text begins, and goes on in fragments
        longest, sent = 0.0, 0
        loop = asyncio.get_running_loop()
        while not transport.is_closing() and sent < 60_000:
            if transport.get_write_buffer_size() < 100_000:
                transport.write(frames * 2_000)
                sent += 2_000
            before = loop.time()
            await asyncio.sleep(0.001)
            longest = max(longest, loop.time() - before)
        async with asyncio.timeout(30):
            while not isinstance(await gate.look(within_s=0.2), Unseen):
                pass
            await link.socket.close()
        assert longest < 1, "others had to wait"


async def test_there_is_a_bound_on_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker, "_MOST_WORKERS", 1)
    async with Gate() as gate, linked(gate), linked(gate) as second:
        with pytest.raises(ConnectionError, match="CLOSE 1013"):
            await second.asked()


@pytest.mark.parametrize("authorization", [None, "Bearer wrong", f"Basic {TOKEN}", "Bearer ", "Bearer \xff"])
async def test_without_a_token_that_it_knows_nobody_is_let_in(authorization: str | None) -> None:
    headers = {} if authorization is None else {"Authorization": authorization}
    async with Gate() as gate, aiohttp.ClientSession() as session:
        with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
            await session.ws_connect(gate.url, protocols=[SUBPROTOCOL], headers=headers)
    assert refused.value.status == 401


async def test_a_worker_whose_token_is_refused_says_so_and_ends() -> None:
    async with Gate() as gate:
        metrics = ClassifierMetrics()
        service = Service(Looker(), Bounds(), metrics)  # type: ignore[arg-type]
        dialler = Dialler(Dialling(gate.url, "wrong"), service, metrics)
        with pytest.raises(SetupError, match="--token-file"):
            await asyncio.wait_for(dialler.run(asyncio.Event()), 10)


async def test_every_token_of_the_list_is_good() -> None:
    async with Gate() as gate, dialled(gate, Looker(), token="another"):
        assert isinstance(await gate.look(), Seen)


@pytest.mark.parametrize(
    ("changed", "status"),
    [
        ({"Upgrade": "h2c"}, 426),
        ({"Connection": "keep-alive"}, 426),
        ({"Sec-WebSocket-Version": "8"}, 426),
        ({"Sec-WebSocket-Key": None}, 426),
        ({"Sec-WebSocket-Protocol": "another"}, 400),
        ({"Sec-WebSocket-Protocol": None}, 400),
        ({"Content-Length": "3"}, 400),
    ],
)
async def test_what_is_no_proper_request_for_it_is_answered_as_http(
    changed: dict[str, str | None], status: int
) -> None:
    headers: dict[str, str | None] = {
        "Host": "gate",
        "Authorization": f"Bearer {TOKEN}",
        "Upgrade": "websocket",
        "Connection": "Upgrade",
        "Sec-WebSocket-Version": "13",
        "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==",
        "Sec-WebSocket-Protocol": SUBPROTOCOL,
        **changed,
    }
    lines = [f"{name}: {value}" for name, value in headers.items() if value is not None]
    async with Gate() as gate:
        reader, writer = await asyncio.open_connection("127.0.0.1", gate.port)
        writer.write("\r\n".join(["GET /worker HTTP/1.1", *lines, "", ""]).encode() + b"abc")
        assert (await asyncio.wait_for(reader.readline(), 5)).startswith(f"HTTP/1.1 {status} ".encode())
        writer.close()


class Speaker:
    """A gate by hand, for a worker to meet."""

    def __init__(self) -> None:
        self.links = 0
        self.socket: asyncio.Future[web.WebSocketResponse] = asyncio.get_running_loop().create_future()

    async def serve(self, request: web.Request) -> web.WebSocketResponse:
        socket = web.WebSocketResponse(protocols=[SUBPROTOCOL])
        await socket.prepare(request)
        self.links += 1
        await socket.receive()  # hello
        if not self.socket.done():
            self.socket.set_result(socket)
        async for message in socket:
            if message.type is aiohttp.WSMsgType.TEXT and "bye" in message.data:
                break
        await socket.close()
        return socket


@asynccontextmanager
async def speaking(looker: Looker) -> AsyncIterator[tuple[Speaker, Dialler, asyncio.Task[None]]]:
    speaker, application = Speaker(), web.Application()
    application.router.add_get("/worker", speaker.serve)
    metrics = ClassifierMetrics()
    service = Service(looker, Bounds(), metrics)  # type: ignore[arg-type]
    async with TestServer(application) as server:
        url = str(server.make_url("/worker")).replace("http", "ws")
        dialler, stop = Dialler(Dialling(url, TOKEN), service, metrics), asyncio.Event()
        running = asyncio.create_task(dialler.run(stop))
        yield speaker, dialler, running
        stop.set()
        await asyncio.wait_for(running, 20)


@pytest.mark.parametrize(
    "said",
    [
        "[]",
        '"x"',
        "null",
        "no JSON",
        "[" * 100_000,
        '{"classify": 1, "size": 1e400}',
        '{"classify": {}}',
        "{}",
    ],
)
async def test_what_a_gate_says_that_is_not_of_the_protocol_ends_the_link_and_not_the_worker(
    said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connect, "_FIRST_WAIT_S", 0.01)
    async with speaking(Looker()) as (speaker, _, running):
        await (await asyncio.wait_for(speaker.socket, 10)).send_str(said)
        await until(lambda: speaker.links == 2)
        assert not running.done()


async def test_what_is_cancelled_before_it_has_begun_leaves_nothing_behind(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made: list[connect._Link] = []

    class Link(connect._Link):
        def __init__(self, *arguments: Any) -> None:
            super().__init__(*arguments)
            made.append(self)

    monkeypatch.setattr(connect, "_Link", Link)
    looker = Looker()
    looker.may_answer.clear()
    async with speaking(looker) as (speaker, _, _):
        socket = await asyncio.wait_for(speaker.socket, 10)
        for number in range(200):
            asked = {"classify": number, "size": 1000, "priority": "live", "deadline_ms": 60_000}
            await socket.send_str(json.dumps(asked))
            await socket.send_bytes(number.to_bytes(4, "big") + bytes(500))
            await socket.send_str(json.dumps({"cancel": number}))
        await asyncio.sleep(0.2)
        await until(lambda: not made[0]._answers and not made[0]._bodies)
        looker.may_answer.set()


async def test_what_comes_right_behind_the_request_is_not_lost() -> None:
    """RFC 6455 lets a client wait for the 101; one that does not loses nothing here."""
    hello = json.dumps({"hello": {**HELLO, "about": "x" * 100}}).encode()
    frame = b"\x81\xfe" + len(hello).to_bytes(2, "big") + bytes(4) + hello  # masked with zeros
    lines = [
        "GET /worker HTTP/1.1",
        "Host: gate",
        f"Authorization: Bearer {TOKEN}",
        "Upgrade: websocket",
        "Connection: Upgrade",
        "Sec-WebSocket-Version: 13",
        "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
        f"Sec-WebSocket-Protocol: {SUBPROTOCOL}",
    ]
    async with Gate() as gate:
        reader, writer = await asyncio.open_connection("127.0.0.1", gate.port)
        writer.write("\r\n".join([*lines, "", ""]).encode() + frame)
        head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 5)
        # the accept of RFC 6455's own example
        assert b"101 " in head and b"s3pPLMBiTxaQ9kYGzzhZRbK+xOo=" in head
        look = asyncio.create_task(gate.look(within_s=5))
        assert b"classify" in await asyncio.wait_for(reader.read(100), 5)
        writer.close()
        assert isinstance(await look, Unseen)
