"""Identical files that are here at the same time are looked at once, and nobody depends on who came first."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import aiohttp
import pytest
from aiohttp.test_utils import TestServer

from classifier.decoding import Limits
from classifier.engine import Batching, Engine, Result
from classifier.errors import Rejection, deadline_exceeded
from classifier.metrics import Metrics
from classifier.server import Server
from classifier.service import Bounds, Service
from classifier.sharing import Shared
from classifier.turns import Priority
from tests import pictures
from tests.scored import Counting, Naming, ensemble, in_s, until

LIVE, BACKFILL = Priority.LIVE, Priority.BACKFILL
FILE, OTHER = pictures.png((50, 40)), pictures.png((60, 40))


class Rig:
    """An engine whose models are kept from computing until `goes` is set."""

    def __init__(self) -> None:
        self.head = Naming()
        self.pool = Counting(2, [self.head.preparation], Limits())
        self.metrics = Metrics()
        self.engine = Engine([ensemble(self.head)], self.pool, Batching(most=4), self.metrics)

    async def ask(
        self, content: bytes, *, priority: Priority = LIVE, within_s: float = 60
    ) -> asyncio.Task[Result]:
        look = self.engine.look(content, priority=priority, deadline=in_s(within_s))
        task = asyncio.create_task(look)
        await asyncio.sleep(0)
        return task


@pytest.fixture
async def rig() -> AsyncIterator[Rig]:
    running = Rig()
    await running.engine.start()
    running.head.batches.clear()
    running.pool.asked = running.pool.decoded = 0
    running.head.goes.clear()
    yield running
    running.head.goes.set()
    await running.engine.close()


async def test_identical_files_are_decoded_and_computed_once(rig: Rig) -> None:
    same = [await rig.ask(FILE) for _ in range(10)]
    other = await rig.ask(OTHER)
    await rig.head.until_busy()
    same.append(await rig.ask(FILE))  # while it is being computed
    rig.head.goes.set()
    results = [await task for task in same]
    assert all(result == results[0] for result in results)
    assert results[0].signals == {"s": 0.05} and (await other).signals == {"s": 0.06}
    assert (rig.pool.asked, sorted(rig.head.seen)) == (2, [50, 60])


async def test_identical_files_over_http_are_looked_at_once(rig: Rig) -> None:
    application = Server(Service(rig.engine, Bounds(), rig.metrics), [], rig.metrics).application()
    async with TestServer(application) as server:

        async def classify() -> int:
            async with (
                aiohttp.ClientSession() as client,
                client.post(server.make_url("/v1/classify"), data=FILE) as answer,
            ):
                return answer.status

        tasks = [asyncio.create_task(classify()) for _ in range(8)]
        waiting = "pictrs_classifier_waiting"
        await until(lambda: rig.metrics.registry.get_sample_value(waiting) == 8)
        await rig.head.until_busy()
        rig.head.goes.set()
        assert [await task for task in tasks] == [200] * 8
    assert (rig.pool.asked, rig.head.seen) == (1, [50])


async def test_a_file_that_comes_again_later_is_looked_at_again(rig: Rig) -> None:
    rig.head.goes.set()
    first = await (await rig.ask(FILE))
    again = await (await rig.ask(FILE))
    assert rig.pool.asked == 2
    assert (first.remembered, again.remembered) == (0, 1)


async def test_a_file_that_cannot_be_decoded_is_so_for_all_who_ask(rig: Rig) -> None:
    tasks = [await rig.ask(FILE[:200]) for _ in range(3)]
    for task in tasks:
        with pytest.raises(Rejection, match="undecodable"):
            await task
    assert rig.pool.asked == 1


async def test_the_hasty_deadline_of_the_first_is_not_that_of_the_second(rig: Rig) -> None:
    hasty, patient = await rig.ask(FILE, within_s=0.3), await rig.ask(FILE, within_s=60)
    with pytest.raises(Rejection, match="deadline-exceeded"):
        await hasty
    rig.head.goes.set()
    assert (await patient).signals == {"s": 0.05}


async def test_the_hasty_deadline_of_the_second_is_not_that_of_the_first(rig: Rig) -> None:
    patient, hasty = await rig.ask(FILE, within_s=60), await rig.ask(FILE, within_s=0.3)
    with pytest.raises(Rejection, match="deadline-exceeded"):
        await hasty
    rig.head.goes.set()
    assert (await patient).signals == {"s": 0.05}
    assert rig.pool.asked == 1


async def test_the_first_client_s_leaving_does_not_cost_the_second_its_answer(rig: Rig) -> None:
    leaving, staying = await rig.ask(FILE), await rig.ask(FILE)
    await rig.head.until_busy()
    leaving.cancel()
    await asyncio.wait([leaving])
    rig.head.goes.set()
    assert (await staying).signals == {"s": 0.05}
    assert rig.pool.asked == 1


async def test_when_all_have_left_the_look_ends(rig: Rig) -> None:
    first = await rig.ask(OTHER)
    await rig.head.until_busy()
    leaving = [await rig.ask(FILE) for _ in range(3)]
    await until(lambda: rig.pool.decoded == 2)  # it waits for the models
    for task in leaving:
        task.cancel()
    await asyncio.wait(leaving)
    rig.head.goes.set()
    await first
    assert (await (await rig.ask(pictures.png((70, 40))))).signals == {"s": 0.07}
    assert rig.head.seen == [60, 70]


async def test_who_comes_when_all_have_left_is_looked_at(rig: Rig) -> None:
    leaving = await rig.ask(FILE)
    await rig.head.until_busy()
    leaving.cancel()
    coming = await rig.ask(FILE)
    rig.head.goes.set()
    assert (await coming).signals == {"s": 0.05}


async def test_live_does_not_wait_for_a_backfill_s_look_at_the_same_bytes(rig: Rig) -> None:
    busy = await rig.ask(OTHER)
    await rig.head.until_busy()
    backfill = [await rig.ask(pictures.png((100 + place, 40)), priority=BACKFILL) for place in range(8)]
    backfill.append(await rig.ask(FILE, priority=BACKFILL))
    await until(lambda: rig.pool.decoded == 10)
    live = await rig.ask(FILE)
    await until(lambda: rig.pool.decoded == 11)
    rig.head.goes.set()
    await asyncio.gather(busy, live, *backfill)
    assert rig.head.seen[:2] == [60, 50]


# --- the sharing itself ---


async def test_a_look_that_has_just_run_out_of_time_is_begun_anew() -> None:
    """Who asks in the moment between a look's end and asyncio's telling so must not ask it for ever."""
    shared, begun = Shared[str](), 0

    async def start(until_s: float) -> str:
        nonlocal begun
        begun += 1
        if begun == 1:
            raise deadline_exceeded()
        return "seen"

    first = asyncio.create_task(shared.look("key", in_s(60), start))
    await asyncio.sleep(0)  # it waits; the look runs next, and ends
    second = asyncio.create_task(shared.look("key", in_s(2), start))
    with pytest.raises(Rejection, match="deadline-exceeded"):
        await first
    assert await second == "seen"
    assert begun == 2


async def test_an_error_of_the_look_is_everybody_s() -> None:
    shared = Shared[str]()

    async def start(until_s: float) -> str:
        await asyncio.sleep(0.01)
        raise ValueError("a bug")

    tasks = [asyncio.create_task(shared.look("key", in_s(60), start)) for _ in range(3)]
    outcomes = await asyncio.gather(*tasks, return_exceptions=True)
    assert [type(one) for one in outcomes] == [ValueError] * 3
