"""Live before backfill, always: where decoders and models are waited for, and where places run out."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager

import aiohttp
import pytest
from aiohttp.test_utils import TestServer

from classifier.decoding import Decoded, Limits
from classifier.decoding.pool import DecodingPool
from classifier.engine import Batching, Engine
from classifier.ensembles import Ensemble
from classifier.errors import Rejection
from classifier.heads import Finish, Inputs
from classifier.metrics import Metrics
from classifier.server import Server
from classifier.service import Bounds, Service
from classifier.turns import Priority, Turns
from tests import pictures
from tests.preparations import Misbehaves, Width

LIVE, BACKFILL = Priority.LIVE, Priority.BACKFILL


def in_s(seconds: float) -> float:
    return asyncio.get_running_loop().time() + seconds


async def waiter(turns: Turns[str], priority: Priority, within_s: float = 60) -> asyncio.Task[str]:
    """Waits for its turn from now on."""
    task = asyncio.create_task(turns.take(priority, in_s(within_s)))
    await asyncio.sleep(0)
    return task


async def test_live_comes_before_backfill_and_the_first_before_the_second() -> None:
    turns = Turns[str]()
    backfill = [await waiter(turns, BACKFILL) for _ in range(2)]
    live = [await waiter(turns, LIVE) for _ in range(2)]
    for thing in ("1st", "2nd", "3rd", "4th"):
        turns.put(thing)
    assert [await task for task in [*live, *backfill]] == ["1st", "2nd", "3rd", "4th"]


async def test_who_comes_alone_does_not_wait() -> None:
    turns = Turns(["one", "two"])
    assert {await turns.take(BACKFILL, in_s(60)), await turns.take(LIVE, in_s(60))} == {"one", "two"}


async def test_who_is_cancelled_while_waiting_takes_no_turn() -> None:
    turns = Turns[str]()
    leaving, staying = await waiter(turns, LIVE), await waiter(turns, LIVE)
    leaving.cancel()
    turns.put("thing")  # before the one who leaves has noticed
    assert await staying == "thing"


async def test_a_turn_that_comes_together_with_the_cancelling_is_not_lost() -> None:
    turns = Turns[str]()
    leaving, staying = await waiter(turns, LIVE), await waiter(turns, BACKFILL)
    turns.put("thing")
    leaving.cancel()
    assert await staying == "thing"
    with pytest.raises(asyncio.CancelledError):
        await leaving


async def test_nobody_waits_longer_than_its_deadline() -> None:
    turns = Turns[str]()
    with pytest.raises(Rejection, match="deadline-exceeded"):
        await turns.take(LIVE, in_s(0.05))
    turns.put("thing")
    assert await turns.take(LIVE, in_s(60)) == "thing"


async def test_whose_deadline_has_passed_gets_no_turn() -> None:
    turns = Turns(["thing"])
    with pytest.raises(Rejection, match="deadline-exceeded"):
        await turns.take(LIVE, in_s(-1))
    assert await turns.take(LIVE, in_s(60)) == "thing"


class Slow:
    """A head that stays with files 40 pixels wide until it is released; `order` has the widths it saw."""

    signals, warning, preparation = ("s",), None, Width()

    def __init__(self) -> None:
        self.order: list[int] = []
        self.released = threading.Event()
        self.busy = threading.Event()

    def begin(self, inputs: Inputs) -> Finish:
        self.order.append(int(inputs.arrays[0][0]))
        if self.order[-1] == 40:
            self.busy.set()
            self.released.wait(60)
        return lambda: [{"s": 0.5} for _ in inputs.arrays]

    def fingerprints(self) -> Iterator[bytes]:
        yield b""


class Counting(DecodingPool):
    """Counts the files that have come out."""

    decoded = 0

    async def decode(self, content: bytes, *, priority: Priority, deadline: float) -> tuple[Decoded, float]:
        answer = await super().decode(content, priority=priority, deadline=deadline)
        self.decoded += 1
        return answer


@asynccontextmanager
async def engine(head: Slow) -> AsyncIterator[tuple[Engine, Counting]]:
    pool = Counting(1, [head.preparation], Limits())
    running = Engine([Ensemble("slow", "", [head], "0")], pool, Batching(most=1), Metrics())
    try:
        await running.start()
        head.order.clear()
        pool.decoded = 0
        yield running, pool
    finally:
        head.released.set()
        await running.close()


async def test_the_models_are_the_live_file_s_before_the_backfill_s() -> None:
    head = Slow()
    async with engine(head) as (running, pool):
        looks = []
        for width, priority in [(40, BACKFILL), (50, BACKFILL), (60, LIVE), (70, BACKFILL), (80, LIVE)]:
            look = running.look(pictures.png((width, 40)), priority=priority, deadline=in_s(60))
            looks.append(asyncio.create_task(look))
            while pool.decoded < len(looks):  # then it waits for the models, or has them
                await asyncio.sleep(0.01)
        head.released.set()
        await asyncio.gather(*looks)
    assert head.order == [40, 60, 80, 50, 70]


async def test_models_that_hang_keep_nobody_beyond_its_deadline() -> None:
    async with engine(Slow()) as (running, _):
        with pytest.raises(Rejection, match="deadline-exceeded"):
            await running.look(pictures.png((40, 40)), priority=LIVE, deadline=in_s(1))


async def test_the_turn_of_a_client_that_left_lasts_until_the_models_are_done() -> None:
    head = Slow()
    async with engine(head) as (running, pool):
        look = running.look(pictures.png((40, 40)), priority=LIVE, deadline=in_s(60))
        leaving = asyncio.create_task(look)
        await asyncio.to_thread(head.busy.wait, 60)
        leaving.cancel()
        looks = []
        for width, priority in [(50, BACKFILL), (60, LIVE)]:
            look = running.look(pictures.png((width, 40)), priority=priority, deadline=in_s(60))
            looks.append(asyncio.create_task(look))
            while pool.decoded < 1 + len(looks):
                await asyncio.sleep(0.01)
        head.released.set()
        await asyncio.gather(*looks)
    assert head.order == [40, 60, 50]


async def test_a_backfill_that_takes_every_place_turns_no_upload_away() -> None:
    head = Slow()
    async with engine(head) as (running, _):
        metrics = Metrics()
        service = Service(running, Bounds(most_files=1), metrics)
        application = Server(service, [], metrics).application()
        async with TestServer(application) as server, aiohttp.ClientSession() as client:

            async def classify(priority: str) -> int:
                url, headers = server.make_url("/v1/classify"), {"X-Priority": priority}
                async with client.post(url, data=pictures.png((40, 40)), headers=headers) as answer:
                    return answer.status

            backfill = asyncio.create_task(classify("backfill"))
            await asyncio.to_thread(head.busy.wait, 60)
            assert await classify("backfill") == 429
            live = asyncio.create_task(classify("live"))
            while metrics.registry.get_sample_value("pictrs_classifier_waiting") < 2:
                await asyncio.sleep(0.01)
            assert await classify("live") == 429
            head.released.set()
            assert [await backfill, await live] == [200, 200]


async def test_backfill_never_has_the_decoder_that_is_kept_for_live_files() -> None:
    async with hanging_decoders(2, live_only=1) as pool:
        films = [
            asyncio.create_task(pool.decode(pictures.png((40, 40)), priority=BACKFILL, deadline=in_s(60)))
            for _ in range(4)
        ]
        await asyncio.sleep(0.3)
        decoded, _ = await pool.decode(pictures.png((50, 40)), priority=LIVE, deadline=in_s(20))
        assert decoded.media.width == 50
        for film in films:
            film.cancel()
        await asyncio.gather(*films, return_exceptions=True)


@asynccontextmanager
async def hanging_decoders(workers: int, *, live_only: int) -> AsyncIterator[DecodingPool]:
    pool = DecodingPool(workers, [Misbehaves(hangs_at=40)], Limits(), live_only=live_only)
    try:
        await pool.start()
        yield pool
    finally:
        await pool.close()
