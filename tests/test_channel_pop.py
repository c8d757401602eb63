"""A fedi-safety worker as a classifier: what it looked at was looked at, and nothing else was."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import io
import json
import threading
import time
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from urllib.parse import urlsplit

import pytest
from PIL import Image

from proxy.channels.lookout import Lookout
from proxy.channels.looks import ChannelError, File, Priority, Seen, Undecodable
from proxy.channels.pop import PopChannel
from proxy.internal.listener import InternalListener
from proxy.internal.server import Internal
from proxy.media import recognise
from proxy.metrics import Metrics
from tests import pictures
from tests.client import Answer, send

KEY = "the-workers-key"
LONG_S = 20.0  # hang guard
PNG = pictures.png((64, 48))


def file(content: bytes = PNG) -> File:
    media = recognise(content)
    assert media is not None
    return File(content, media)


class Worker:
    """What fedi-safety does: a poll every 0.1 s, each in a thread and on a connection of its own."""

    def __init__(self, url: str, is_csam: Callable[[Image.Image], bool], *, key: str = KEY) -> None:
        self._host, self._is_csam, self._headers = urlsplit(url).netloc, is_csam, {"apikey": key}
        self.statuses: list[tuple[str, int]] = []
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._poll, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._stop.set()
        self._thread.join()

    def _poll(self) -> None:
        with ThreadPoolExecutor(max_workers=10) as threads:
            while not self._stop.wait(0.1):
                threads.submit(self._pop_and_check)

    def _pop_and_check(self) -> None:
        with contextlib.suppress(Exception):  # it logs whatever comes and goes on
            status, headers, content = self._ask("GET", None)
            if status != 200 or "Content-Disposition" not in headers:
                return
            name = headers["Content-Disposition"].split("=", 1)[1]
            is_csam = self._is_csam(Image.open(io.BytesIO(content)))
            answer = {"image": name, "is_csam": is_csam, "is_nsfw": is_csam}
            self._ask("POST", json.dumps(answer).encode())

    def _ask(self, method: str, body: bytes | None) -> tuple[int, http.client.HTTPMessage, bytes]:
        connection = http.client.HTTPConnection(self._host, timeout=2)
        headers = {"Accept-Encoding": "gzip, deflate", "Accept": "*/*", "Connection": "keep-alive"}
        if body is not None:
            headers["Content-Type"] = "application/json"
        try:
            connection.request(method, "/api/v1/pop", body, {**headers, **self._headers})
            response = connection.getresponse()
            self.statuses.append((method, response.status))
            return response.status, response.headers, response.read()
        finally:
            connection.close()


async def never() -> bool:
    return False


@asynccontextmanager
async def serving(channel: PopChannel | None) -> AsyncIterator[str]:
    """The gate's internal listener, with the queue behind it."""
    listener = InternalListener(
        "internal", "127.0.0.1:0", Internal(Metrics(), never, pollers=channel), shutdown_s=1
    )
    _, port = await listener.start()
    try:
        async with asyncio.timeout(LONG_S):
            yield f"http://127.0.0.1:{port}"
    finally:
        await listener.stop()


async def ask(url: str, method: str = "GET", answer: object = None, *, key: str = KEY) -> Answer:
    """A request to the workers' address; bytes go as they are, anything else as JSON."""
    body = answer if isinstance(answer, bytes) else json.dumps(answer).encode() if answer else b""
    return await asyncio.to_thread(send, url, method, "/api/v1/pop", headers={"apikey": key}, body=body)


async def hear_from_a_worker(channel: PopChannel) -> None:
    assert channel.hand_out() is None


async def waiting(
    channel: PopChannel, content: bytes = PNG, *, priority: Priority = Priority.LIVE, within_s: float = LONG_S
) -> asyncio.Task[Seen | Undecodable]:
    """A look that has got as far as the queue."""
    look = asyncio.create_task(channel.look(file(content), priority=priority, within_s=within_s))
    await asyncio.sleep(0)
    return look


async def dropped(*looks: asyncio.Task[Seen | Undecodable]) -> None:
    for look in looks:
        look.cancel()
    await asyncio.gather(*looks, return_exceptions=True)


async def test_an_unmodified_worker_looks() -> None:
    jpeg = pictures.jpeg((200, 100))

    def is_csam(image: Image.Image) -> bool:
        image.load()
        return image.size == (64, 48)

    channel = PopChannel(KEY)
    async with serving(channel) as url:
        worker = Worker(url, is_csam)
        while ("GET", 204) not in worker.statuses:
            await asyncio.sleep(0.01)
        lookout = Lookout([channel], frozenset({"is_csam"}), Metrics())
        await lookout.check()
        looks = await asyncio.gather(
            *(lookout.look(file(one), priority=Priority.LIVE, within_s=LONG_S) for one in (PNG, jpeg) * 8)
        )
        await asyncio.to_thread(worker.stop)
    for number, look in enumerate(looks):
        expected = 0.0 if number % 2 else 1.0
        assert isinstance(look, Seen)
        assert look.signals == {"is_csam": expected, "is_nsfw": expected}
        assert list(look.frames) == [{"index": 0, "signals": look.signals}]
        assert look.ensemble == "fedi-safety"
        size = (200, 100) if number % 2 else (64, 48)
        assert (look.format, look.width, look.height) == ("jpeg" if number % 2 else "png", *size)
    assert worker.statuses.count(("POST", 201)) == 16


async def test_the_worker_gets_the_very_bytes_under_a_name_to_answer_by() -> None:
    channel = PopChannel(KEY)
    async with serving(channel) as url:
        assert (await ask(url)).status == 204
        look = await waiting(channel)
        got = await ask(url)
        assert (got.status, got.body, got.headers["content-type"]) == (200, PNG, "image/png")
        disposition, _, name = got.headers["content-disposition"].partition("=")
        assert disposition == "attachment; filename" and name.removesuffix(".png").isalnum()
        assert (await ask(url)).status == 204  # it is with a worker already
        said = await ask(url, "POST", {"image": name, "is_csam": False, "is_nsfw": True})
        assert said.status == 201
        seen = await look
        assert isinstance(seen, Seen) and seen.signals == {"is_csam": 0.0, "is_nsfw": 1.0}
        again = await ask(url, "POST", {"image": name, "is_csam": True, "is_nsfw": True})
        assert again.status == 404


@pytest.mark.parametrize("headers", [{}, {"apikey": ""}, {"apikey": "the-workers-keys"}, {"apikey": "ä"}])
async def test_nobody_gets_a_file_without_the_key_nor_counts_as_a_worker(headers: dict[str, str]) -> None:
    channel = PopChannel(KEY)
    async with serving(channel) as url:
        for method in ("GET", "POST"):
            refused = await asyncio.to_thread(send, url, method, "/api/v1/pop", headers=headers, body=b"{}")
            assert refused.status == 401 and refused.json()["code"] == "unauthorized"
        with pytest.raises(ChannelError):
            await channel.look(file(), priority=Priority.LIVE, within_s=LONG_S)


async def test_two_keys_are_none() -> None:
    async with serving(PopChannel(KEY)) as url:
        reader, writer = await asyncio.open_connection("127.0.0.1", urlsplit(url).port)
        writer.write(b"GET /api/v1/pop HTTP/1.1\r\nHost: x\r\n" + f"apikey: {KEY}\r\n".encode() * 2 + b"\r\n")
        assert (await reader.readline()).startswith(b"HTTP/1.1 401 ")
        writer.close()


async def test_without_workers_there_is_no_such_address_and_only_two_methods_with_them() -> None:
    async with serving(None) as url:
        assert (await ask(url)).status == 404
    channel = PopChannel(KEY)
    async with serving(channel) as url:
        await hear_from_a_worker(channel)
        look = await waiting(channel)
        for method in ("HEAD", "PUT", "DELETE"):
            assert (await ask(url, method)).status == 405
        assert (await ask(url)).status == 200  # HEAD took nothing away
        await dropped(look)


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"no JSON",
        b"[" * 4000,
        b"\xff",
        b"null",
        [1],
        {"image": "NAME"},
        {"image": "NAME", "is_csam": False},
        {"image": "NAME", "is_csam": 0, "is_nsfw": 0},
        {"image": "NAME", "is_csam": "false", "is_nsfw": "false"},
        {"image": "NAME", "is_csam": None, "is_nsfw": False},
        {"image": ["NAME"], "is_csam": False, "is_nsfw": False},
        {"image": "NAME", "is_csam": False, "is_nsfw": False, "more": "x" * 5000},
    ],
)
async def test_what_is_no_answer_is_not_taken_for_one(answer: object) -> None:
    channel = PopChannel(KEY)
    async with serving(channel) as url:
        await hear_from_a_worker(channel)
        look = await waiting(channel)
        handed = channel.hand_out()
        assert handed is not None
        if not isinstance(answer, bytes):
            answer = json.dumps(answer).replace("NAME", handed.name).encode()
        assert (await ask(url, "POST", answer)).status in (400, 413)
        assert not look.done()
        await dropped(look)


async def test_an_answer_about_another_file_is_none() -> None:
    channel = PopChannel(KEY)
    await hear_from_a_worker(channel)
    look = await waiting(channel)
    assert not channel.take_answer("another.png", is_csam=False, is_nsfw=False)
    assert not look.done()
    await dropped(look)


async def test_where_no_worker_asks_nobody_looks_and_nobody_waits() -> None:
    channel = PopChannel(KEY)
    with pytest.raises(ChannelError, match="no worker"):
        async with asyncio.timeout(LONG_S / 2):
            await channel.look(file(), priority=Priority.LIVE, within_s=LONG_S * 10)


async def test_a_worker_that_leaves_is_missed_before_the_time_is_up() -> None:
    channel = PopChannel(KEY, absent_s=0.1)
    await hear_from_a_worker(channel)
    with pytest.raises(ChannelError, match="no worker"):
        async with asyncio.timeout(LONG_S):
            await channel.look(file(), priority=Priority.LIVE, within_s=LONG_S * 10)


async def test_a_worker_that_is_busy_with_a_file_is_not_missed() -> None:
    channel = PopChannel(KEY, absent_s=0.3, answer_s=LONG_S)
    await hear_from_a_worker(channel)
    first = await waiting(channel)
    handed = channel.hand_out()
    assert handed is not None
    await asyncio.sleep(0.6)
    second = await waiting(channel)
    await asyncio.sleep(0.4)
    assert not first.done() and not second.done()
    assert channel.take_answer(handed.name, is_csam=False, is_nsfw=False)
    assert isinstance(await first, Seen)
    await dropped(second)


async def test_a_file_that_one_worker_does_not_answer_about_goes_to_another() -> None:
    channel = PopChannel(KEY, answer_s=0.1)
    await hear_from_a_worker(channel)
    look = await waiting(channel)
    first = channel.hand_out()
    assert first is not None and channel.hand_out() is None
    async with asyncio.timeout(LONG_S):
        while (second := channel.hand_out()) is None:
            await asyncio.sleep(0.01)
        assert (second.name, second.content) == (first.name, PNG)
        assert channel.take_answer(first.name, is_csam=True, is_nsfw=True)  # whichever comes first
        assert not channel.take_answer(first.name, is_csam=False, is_nsfw=False)
        seen = await look
    assert isinstance(seen, Seen) and seen.signals["is_csam"] == 1.0


async def test_a_file_that_nobody_waits_for_any_more_is_not_handed_out() -> None:
    channel = PopChannel(KEY, answer_s=0.01)
    await hear_from_a_worker(channel)
    look = await waiting(channel, within_s=0.5)
    handed = channel.hand_out()
    with pytest.raises(ChannelError, match="in time"):
        await look
    assert channel.hand_out() is None
    assert handed and not channel.take_answer(handed.name, is_csam=False, is_nsfw=False)
    given_up = await waiting(channel)
    await dropped(given_up)
    assert channel.hand_out() is None


async def test_a_file_whose_time_is_up_is_not_handed_out_though_its_look_has_not_ended_yet() -> None:
    channel = PopChannel(KEY)
    await hear_from_a_worker(channel)
    look = await waiting(channel, within_s=0.05)
    time.sleep(0.1)  # a busy loop: the look cannot notice
    assert not look.done() and channel.hand_out() is None
    await dropped(look)


async def test_live_files_go_first_and_the_oldest_of_them() -> None:
    channel = PopChannel(KEY, answer_s=0.1)
    await hear_from_a_worker(channel)
    contents = [pictures.png((10, 10), seed=seed) for seed in range(4)]
    priorities = [Priority.BACKFILL, Priority.LIVE, Priority.BACKFILL, Priority.LIVE]
    looks = [
        await waiting(channel, content, priority=priority)
        for content, priority in zip(contents, priorities, strict=True)
    ]
    order = [handed.content for _ in looks if (handed := channel.hand_out())]
    assert order == [contents[number] for number in (1, 3, 0, 2)]
    async with asyncio.timeout(LONG_S):
        while (handed := channel.hand_out()) is None:
            await asyncio.sleep(0.01)
    assert handed.content == contents[1]
    await dropped(*looks)


async def test_a_file_on_which_workers_fail_does_not_keep_others_from_their_turn() -> None:
    channel = PopChannel(KEY, answer_s=0.01)
    await hear_from_a_worker(channel)
    bad = await waiting(channel)
    assert channel.hand_out() is not None
    await asyncio.sleep(0.05)
    good_content = pictures.png((10, 10), seed=1)
    good = await waiting(channel, good_content)
    handed = channel.hand_out()
    assert handed is not None and handed.content == good_content
    await dropped(bad, good)


async def test_a_full_queue_is_nobody_looking_and_backfill_never_fills_it() -> None:
    channel = PopChannel(KEY, most_waiting=4)
    await hear_from_a_worker(channel)
    looks = [await waiting(channel, priority=Priority.BACKFILL) for _ in range(2)]
    with pytest.raises(ChannelError, match="full") as full:
        await channel.look(file(), priority=Priority.BACKFILL, within_s=LONG_S)
    assert full.value.retry_after_s is not None
    looks += [await waiting(channel) for _ in range(2)]
    with pytest.raises(ChannelError, match="full"):
        await channel.look(file(), priority=Priority.LIVE, within_s=LONG_S)
    assert not any(look.done() for look in looks)
    await dropped(*looks)
    await dropped(await waiting(channel))  # there is room again


@pytest.mark.parametrize(
    "content", [pictures.animation("GIF"), pictures.animation("PNG"), pictures.animation("WEBP")]
)
async def test_an_animation_of_which_the_worker_would_see_one_frame_is_not_given_to_it(
    content: bytes,
) -> None:
    channel = PopChannel(KEY)
    await hear_from_a_worker(channel)
    look = await channel.look(file(content), priority=Priority.LIVE, within_s=LONG_S)
    assert isinstance(look, Undecodable)


async def test_what_the_worker_says_counts_also_where_the_headers_tell_no_size() -> None:
    channel = PopChannel(KEY)
    await hear_from_a_worker(channel)
    look = await waiting(channel, b"\xff\xd8\xff\xe0 no more of a picture than this")
    handed = channel.hand_out()
    assert handed is not None and channel.take_answer(handed.name, is_csam=True, is_nsfw=False)
    seen = await look
    assert isinstance(seen, Seen) and seen.signals["is_csam"] == 1.0 and min(seen.width, seen.height) > 0


async def test_its_signals_are_known_before_any_worker_is() -> None:
    assert await PopChannel(KEY).signals() == {"is_csam", "is_nsfw"}
