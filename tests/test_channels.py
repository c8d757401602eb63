"""Having a file looked at: whatever a classifier does, the answer is a look, or that nobody could."""

from __future__ import annotations

import asyncio
import json
import re
import socket
import struct
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest

from proxy.channels.http import HttpChannel
from proxy.channels.lookout import Lookout
from proxy.channels.looks import Look, Priority, Seen, Undecodable, Unseen
from proxy.errors import ConfigError
from proxy.metrics import Metrics
from tests.fake import CONTENT, INFO, NEEDED, SEEN, Asked, Fake, Reply, classifier, file, json_reply


async def look(*fakes: Fake, within_s: float = 2.0, token: str | None = "t") -> Look:
    lookout = Lookout([HttpChannel(fake.url, token) for fake in fakes], NEEDED, Metrics())
    try:
        return await lookout.look(file(), priority=Priority.LIVE, within_s=within_s)
    finally:
        await lookout.close()
        for fake in fakes:
            fake.close()


def error(status: int, code: str, **headers: str) -> Callable[[Asked], Reply]:
    return lambda _: json_reply(status, {"error": {"code": code, "message": "…"}}, **headers)


def seen(_: Asked) -> Reply:
    return json_reply(200, SEEN)


async def test_the_request_is_that_of_protocol_v1() -> None:
    fake = classifier(seen)
    found = await look(fake)
    assert isinstance(found, Seen) and found.signals == {"sexual": 0.01, "minor": 0.01}
    (asked,) = fake.asked
    assert (asked.method, asked.target, asked.body) == ("POST", "/v1/classify", CONTENT)
    assert asked.header("Authorization") == "Bearer t"
    assert asked.header("Content-Type") == "image/png"
    assert asked.header("X-Priority") == "live"
    assert 0 < int(asked.header("X-Deadline-Ms") or 0) <= 2000


@pytest.mark.parametrize(
    "answer",
    [
        error(500, "internal-error"),
        error(503, "x"),
        error(504, "deadline-exceeded"),
        error(401, "unauthorized"),
        error(429, "overloaded", **{"Retry-After": "60"}),
        error(404, "no-such-thing"),
        error(400, "bad-request"),
        lambda _: Reply(200, b""),
        lambda _: Reply(200, b"not JSON"),
        lambda _: Reply(200, b"[]"),
        lambda _: Reply(200, b"null"),
        lambda _: Reply(302, b"{}", {"Location": "http://127.0.0.1:9/"}),
        lambda _: Reply(200, json.dumps(SEEN).encode(), cut=True),
        lambda _: json_reply(200, {}),
        lambda _: json_reply(200, {**SEEN, "signals": {}, "frames": [{"index": 0, "signals": {}}]}),
        lambda _: json_reply(200, {**SEEN, "signals": []}),
        lambda _: json_reply(200, {**SEEN, "signals": None}),
        lambda _: json_reply(200, {**SEEN, "frames": [0]}),
        lambda _: json_reply(200, {**SEEN, "frames": [{"index": float("inf"), "signals": {"sexual": 0}}]}),
        lambda _: json_reply(200, {**SEEN, "media": None}),
        lambda _: json_reply(200, {**SEEN, "hashes": {"sha256": "0" * 64}}),
        lambda _: Reply(200, b"[" * 100_000),
        lambda _: json_reply(
            200,
            {**SEEN, "signals": {"sexual": 0.1}, "frames": [{"index": 0, "signals": {"sexual": 0.1}}]},
        ),
        lambda _: json_reply(200, {**SEEN, "signals": {"sexual": 1.5, "minor": 0}}),
        lambda _: json_reply(200, {**SEEN, "signals": {"sexual": float("nan"), "minor": 0}}),
        lambda _: json_reply(200, {**SEEN, "signals": {"sexual": "high", "minor": 0}}),
        lambda _: json_reply(200, {**SEEN, "frames": []}),
        lambda _: json_reply(200, {**SEEN, "media": {**SEEN["media"], "frames_scored": 0}}),  # type: ignore[dict-item]
        lambda _: Reply(200, b'{"a": "' + b"x" * 3_000_000 + b'"}'),
    ],
)
async def test_a_classifier_that_does_not_answer_properly_has_not_looked(
    answer: Callable[[Asked], Reply],
) -> None:
    found = await look(classifier(answer))
    assert isinstance(found, Unseen) and found.reason


async def test_nobody_listening_is_nobody_looking() -> None:
    fake = classifier(seen)
    fake.close()
    assert isinstance(await look(fake), Unseen)


async def test_a_classifier_that_hangs_costs_no_more_than_the_time_limit() -> None:
    began = time.monotonic()

    def hang(_: Asked) -> Reply:
        time.sleep(3)
        return Reply(200)

    found = await look(classifier(hang), within_s=0.4)
    assert isinstance(found, Unseen) and time.monotonic() - began < 2


@pytest.mark.parametrize(
    ("status", "code"), [(400, "undecodable"), (413, "too-large"), (415, "unsupported-media")]
)
async def test_what_no_classifier_ever_can_decode_is_undecodable(status: int, code: str) -> None:
    assert isinstance(await look(classifier(error(status, code))), Undecodable)


async def test_what_one_classifier_cannot_decode_another_may() -> None:
    cannot = error(415, "unsupported-media")
    assert isinstance(await look(classifier(cannot), classifier(seen)), Seen)
    assert isinstance(await look(classifier(error(500, "x")), classifier(cannot)), Undecodable)


async def test_a_file_s_signals_are_at_least_those_of_its_frames() -> None:
    frames = [{"index": 0, "signals": {"sexual": 0.1}}, {"index": 1, "signals": {"sexual": 0.9}}]
    found = await look(classifier(lambda _: json_reply(200, {**SEEN, "frames": frames})))
    assert isinstance(found, Seen) and found.signals == {"sexual": 0.9, "minor": 0.01}


async def test_where_one_fails_another_looks() -> None:
    gone = classifier(seen)
    gone.close()
    assert isinstance(await look(gone, classifier(error(500, "x")), classifier(seen)), Seen)


async def test_an_overloaded_classifier_is_asked_again_within_the_time() -> None:
    answers = iter([error(429, "overloaded", **{"Retry-After": "0.1"})] * 3 + [seen])
    fake = classifier(lambda asked: next(answers)(asked))
    assert isinstance(await look(fake), Seen)
    assert len(fake.asked) == 4


async def test_the_least_busy_one_is_asked() -> None:
    def slow(_: Asked) -> Reply:
        time.sleep(0.5)
        return json_reply(200, SEEN)

    fakes = [classifier(slow), classifier(slow)]
    lookout = Lookout([HttpChannel(fake.url, None) for fake in fakes], NEEDED, Metrics())
    await asyncio.gather(*(lookout.look(file(), priority=Priority.LIVE, within_s=5) for _ in range(4)))
    await lookout.close()
    assert [len(fake.asked) for fake in fakes] == [2, 2]
    for fake in fakes:
        fake.close()


async def test_a_rule_about_a_signal_that_the_classifier_lacks_is_an_error_at_start_up() -> None:
    fake = Fake(lambda _: json_reply(200, {"signals": ["sexual"]}))
    lookout = Lookout([HttpChannel(fake.url, None)], NEEDED, Metrics())
    with pytest.raises(ConfigError, match="minor"):
        await lookout.check()
    await lookout.close()
    fake.close()


async def test_a_wrong_token_is_said_at_start_up(caplog: pytest.LogCaptureFixture) -> None:
    fake = Fake(lambda _: json_reply(401, {"error": {"code": "unauthorized", "message": "…"}}))
    lookout = Lookout([HttpChannel(fake.url, "hush-hush")], NEEDED, Metrics())
    await lookout.check()
    assert "refuses the token" in caplog.text and "hush" not in caplog.text
    await lookout.close()
    fake.close()


async def test_a_classifier_that_answers_is_said_to_be_ready(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    fake = Fake(lambda _: json_reply(200, INFO))
    lookout = Lookout([HttpChannel(fake.url, None)], NEEDED, Metrics())
    await lookout.check()
    assert "is ready" in caplog.text
    await lookout.close()
    fake.close()


@asynccontextmanager
async def dropping(*, kept: int, fresh: int, reset: bool = False) -> AsyncIterator[tuple[str, list[int]]]:
    """A classifier that answers the first request of a connection, and no other, like one whose time for kept
    connections is over; `fresh` connections are answered, then none is.

    Yields:
        Its URL, and the numbers of the connections in the order of their requests.
    """
    requests: list[int] = []
    connections = 0
    body = json.dumps(SEEN).encode()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal connections
        number, connections = connections, connections + 1
        left = kept if number < fresh else 0
        while True:
            try:
                head = await reader.readuntil(b"\r\n\r\n")
            except asyncio.IncompleteReadError:
                break
            length = re.search(rb"Content-Length: (\d+)", head)
            assert length is not None
            await reader.readexactly(int(length[1]))
            requests.append(number)
            if not left:
                if reset:
                    linger = struct.pack("ii", 1, 0)
                    writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
                break
            left -= 1
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", requests
    server.close()


async def looks_of(url: str, *at_once: int) -> list[Look]:
    lookout = Lookout([HttpChannel(url, None)], NEEDED, Metrics())
    looks: list[Look] = []
    for count in at_once:
        some = (lookout.look(file(), priority=Priority.LIVE, within_s=5) for _ in range(count))
        looks += await asyncio.gather(*some)
    await lookout.close()
    return looks


@pytest.mark.parametrize("reset", [False, True])
async def test_a_kept_connection_that_turns_out_closed_costs_nothing(reset: bool) -> None:
    async with dropping(kept=1, fresh=9, reset=reset) as (url, requests):
        assert all(isinstance(found, Seen) for found in await looks_of(url, 1, 1))
    assert requests == [0, 0, 1]


async def test_where_one_kept_connection_is_closed_the_others_are_not_relied_on() -> None:
    async with dropping(kept=1, fresh=9) as (url, requests):
        assert all(isinstance(found, Seen) for found in await looks_of(url, 2, 1))
    assert sorted(requests[:2]) == [0, 1] and requests[3:] == [2]


async def test_beyond_that_nothing_is_asked_twice() -> None:
    async with dropping(kept=1, fresh=1) as (url, requests):
        assert [type(found) for found in await looks_of(url, 1, 1)] == [Seen, Unseen]
    assert requests == [0, 0, 1]  # the second one was sent once more
    async with dropping(kept=0, fresh=9) as (url, requests):
        assert [type(found) for found in await looks_of(url, 1)] == [Unseen]
    assert requests == [0]  # what breaks on a fresh connection is broken
    answers = iter([Reply(200, json.dumps(SEEN).encode()), Reply(200, json.dumps(SEEN).encode(), cut=True)])
    fake = classifier(lambda _: next(answers))
    assert [type(found) for found in await looks_of(fake.url, 1, 1)] == [Seen, Unseen]
    assert len(fake.asked) == 2  # and so is what breaks in an answer
    fake.close()
