"""Batches: filled by many requests, live ones first; whoever fails or leaves costs nobody else an answer."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any, TypeAlias

import aiohttp
import pytest
from aiohttp.test_utils import TestServer

from classifier.batching import Batcher
from classifier.decoding import Limits
from classifier.engine import Batching, Engine
from classifier.errors import Rejection
from classifier.metrics import Metrics
from classifier.server import Server
from classifier.service import Bounds, Service
from classifier.turns import Priority
from tests import pictures
from tests.scored import Counting, Naming, ensemble, frames, in_s, until

LIVE, BACKFILL = Priority.LIVE, Priority.BACKFILL
FOREVER_MS = 600_000.0
Answer: TypeAlias = tuple[int, Any]  # status and JSON


@asynccontextmanager
async def batcher(
    *heads: Naming,
    most: int = 4,
    max_wait_ms: float = FOREVER_MS,
    mixed: bool = True,
    others_come: Callable[[], bool] = lambda: False,
) -> AsyncIterator[Batcher]:
    running = Batcher(
        [ensemble(head) for head in heads],
        most=most,
        max_wait_ms=max_wait_ms,
        mixed=mixed,
        others_come=others_come,
    )
    running.start()
    try:
        yield running
    finally:
        for head in heads:
            head.goes.set()
        await running.close()


async def names_of(
    running: Batcher, *names: int, priority: Priority = LIVE, within_s: float = 60
) -> list[int]:
    """The names that the models gave a file's frames."""
    scored = await running.score(frames(*names), priority=priority, deadline=in_s(within_s))
    return [round(signals["s"] * 1000) for signals in scored.signals]


async def asked(
    running: Batcher, *names: int, priority: Priority = LIVE, within_s: float = 60
) -> asyncio.Task[list[int]]:
    """Asks, and has its place in the queue when this returns."""
    task = asyncio.create_task(names_of(running, *names, priority=priority, within_s=within_s))
    await asyncio.sleep(0)
    return task


async def outcome(task: asyncio.Task[list[int]]) -> list[int] | str:
    """What a file got: its names, or the protocol's code."""
    try:
        async with asyncio.timeout(30):
            return await task
    except Rejection as rejection:
        return rejection.code


# --- when a batch leaves ---


async def test_a_batch_leaves_when_it_is_full() -> None:
    head = Naming()
    async with batcher(head, others_come=lambda: True) as running:
        files = [await asked(running, name) for name in (1, 2, 3, 4)]
        assert [await outcome(file) for file in files] == [[1], [2], [3], [4]]
    assert head.batches == [[1, 2, 3, 4]]


async def test_a_batch_leaves_when_its_oldest_has_waited_long_enough() -> None:
    head = Naming()
    async with batcher(head, max_wait_ms=300, others_come=lambda: True) as running:
        began = asyncio.get_running_loop().time()
        first = await asked(running, 1)
        await asyncio.sleep(0.1)
        second = await asked(running, 2)
        assert [await outcome(first), await outcome(second)] == [[1], [2]]
        assert asyncio.get_running_loop().time() - began >= 0.29
    assert head.batches == [[1, 2]]


async def test_a_batch_leaves_at_once_when_nothing_else_is_on_its_way() -> None:
    async with batcher(Naming(), others_come=lambda: False) as running:
        assert await outcome(await asked(running, 1)) == [1]


async def test_a_batch_leaves_when_what_was_on_its_way_does_not_come() -> None:
    coming, head = [True], Naming()
    async with batcher(head, others_come=lambda: bool(coming)) as running:
        file = await asked(running, 1)
        await asyncio.sleep(0.1)
        assert head.batches == []
        coming.clear()
        running.no_more_come()
        assert await outcome(file) == [1]


# --- who is in it ---


@pytest.mark.parametrize(
    ("mixed", "batches"),
    [(True, [[1], [20, 21, 10, 11], [12]]), (False, [[1], [20, 21], [10, 11, 12]])],
    ids=["on a card", "on a CPU"],
)
async def test_live_goes_before_backfill_which_gets_the_places_that_live_leaves(
    mixed: bool, batches: list[list[int]]
) -> None:
    head = Naming()
    head.goes.clear()
    async with batcher(head, mixed=mixed) as running:
        files = [await asked(running, 1, priority=BACKFILL)]
        await head.until_busy()
        files += [await asked(running, name, priority=BACKFILL) for name in (10, 11, 12)]
        files += [await asked(running, name) for name in (20, 21)]
        head.goes.set()
        for file in files:
            await outcome(file)
    assert head.batches == batches


async def test_a_file_of_more_frames_than_a_batch_comes_back_whole_and_in_order() -> None:
    head, long = Naming(), list(range(100, 111))
    head.goes.clear()
    async with batcher(head) as running:
        first = await asked(running, 1)
        await head.until_busy()
        files = [await asked(running, 2), await asked(running, *long), await asked(running, 3)]
        head.goes.set()
        assert [await outcome(file) for file in [first, *files]] == [[1], [2], long, [3]]
    assert head.batches == [[1], [2, 100, 101, 102], [103, 104, 105, 106], [107, 108, 109, 110], [3]]


async def test_a_live_file_goes_between_the_batches_of_a_long_backfill_s() -> None:
    head, long = Naming(), list(range(100, 110))
    head.goes.clear()
    async with batcher(head) as running:
        backfill = await asked(running, *long, priority=BACKFILL)
        await head.until_busy()
        live = await asked(running, 1)
        head.goes.set()
        assert [await outcome(backfill), await outcome(live)] == [long, [1]]
    assert head.batches == [[100, 101, 102, 103], [1, 104, 105, 106], [107, 108, 109]]


async def test_batches_give_what_singles_give() -> None:
    contents = [[number * 10 + frame for frame in range(1 + number % 7)] for number in range(1, 60)]
    async with batcher(Naming(), Naming(), max_wait_ms=1, others_come=lambda: True) as running:
        files = [
            await asked(running, *content, priority=BACKFILL if number % 3 else LIVE)
            for number, content in enumerate(contents)
        ]
        assert [await outcome(file) for file in files] == contents


async def test_several_replicas_share_the_work() -> None:
    heads = [Naming(), Naming()]
    for head in heads:
        head.goes.clear()
    async with batcher(*heads, most=1) as running:
        files = [await asked(running, name) for name in (1, 2)]
        await until(lambda: all(head.batches for head in heads))
        for head in heads:
            head.goes.set()
        assert [await outcome(file) for file in files] == [[1], [2]]
    assert sorted(head.seen for head in heads) == [[1], [2]]


# --- who does not wait for it ---


async def test_whose_deadline_passes_in_the_queue_is_told_and_not_computed() -> None:
    head = Naming()
    head.goes.clear()
    async with batcher(head) as running:
        first = await asked(running, 1)
        await head.until_busy()
        hasty, patient = await asked(running, 2, within_s=0.1), await asked(running, 3)
        assert await outcome(hasty) == "deadline-exceeded"
        head.goes.set()
        assert [await outcome(first), await outcome(patient)] == [[1], [3]]
    assert head.seen == [1, 3]


async def test_who_has_left_is_not_computed() -> None:
    head = Naming()
    head.goes.clear()
    async with batcher(head) as running:
        first = await asked(running, 1)
        await head.until_busy()
        leaving, staying = await asked(running, 2), await asked(running, 3)
        leaving.cancel()
        head.goes.set()
        assert [await outcome(first), await outcome(staying)] == [[1], [3]]
    assert head.seen == [1, 3]


async def test_of_a_long_file_whose_client_has_left_no_more_is_computed() -> None:
    head = Naming()
    head.goes.clear()
    async with batcher(head) as running:
        leaving = await asked(running, *range(100, 120))
        await head.until_busy()
        staying = await asked(running, 1)
        leaving.cancel()
        await asyncio.sleep(0)
        head.goes.set()
        assert await outcome(staying) == [1]
    assert head.batches == [[100, 101, 102, 103], [1]]


@pytest.mark.parametrize("fails", [False, True])
async def test_who_leaves_while_it_is_computed_takes_no_answer_along(
    fails: bool, unheard: list[object]
) -> None:
    coming, head = [True], Naming()
    head.goes.clear()
    head.fails_at_last = lambda names: fails and 2 in names
    async with batcher(head, most=3, others_come=lambda: bool(coming)) as running:
        first, leaving, last = [await asked(running, name) for name in (1, 2, 3)]
        await head.until_busy()
        leaving.cancel()
        await asyncio.sleep(0)
        coming.clear()
        head.goes.set()
        assert [await outcome(first), await outcome(last)] == [[1], [3]]
        assert await outcome(await asked(running, 4)) == [4]
    assert head.batches[0] == [1, 2, 3]
    assert unheard == []


@pytest.fixture
async def unheard() -> AsyncIterator[list[object]]:
    """What asyncio would have complained about: results and errors that nobody took."""
    complaints: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: complaints.append(context))
    yield complaints
    gc.collect()
    assert complaints == []


# --- models that fail ---


@pytest.mark.parametrize("when", ["fails_at_first", "fails_at_last"])
async def test_models_that_fail_on_one_file_fail_for_that_one_only(when: str, unheard: list[object]) -> None:
    head = Naming()
    head.goes.clear()
    setattr(head, when, lambda names: 13 in names)
    async with batcher(head, most=6) as running:
        first = await asked(running, 1)
        await head.until_busy()
        files = [await asked(running, *names) for names in ([2], [12, 13], [3, 4], [5])]
        head.goes.set()
        assert await outcome(first) == [1]
        assert [await outcome(file) for file in files] == [[2], "internal-error", [3, 4], [5]]


@pytest.mark.parametrize("when", ["fails_at_first", "fails_at_last"])
async def test_models_that_fail_always_say_so_and_work_again_once_they_recover(
    when: str, unheard: list[object]
) -> None:
    head = Naming()
    setattr(head, when, lambda names: True)
    async with batcher(head, max_wait_ms=1) as running:
        for _ in range(3):
            files = [await asked(running, name) for name in range(10)]
            assert {await outcome(file) for file in files} == {"internal-error"}
        setattr(head, when, lambda names: False)
        assert await outcome(await asked(running, 1)) == [1]


@pytest.mark.parametrize("when", ["fails_at_first", "fails_at_last"])
async def test_a_file_of_more_frames_than_fit_at_once_is_computed_in_parts(
    when: str, unheard: list[object]
) -> None:
    head = Naming()
    setattr(head, when, lambda names: len(names) > 2)
    async with batcher(head, most=8) as running:
        assert await outcome(await asked(running, *range(8))) == list(range(8))
        setattr(head, when, lambda names: 5 in names)
        assert await outcome(await asked(running, *range(8))) == "internal-error"


async def test_a_replica_that_always_fails_leaves_the_work_to_the_other() -> None:
    good, bad = Naming(), Naming()
    bad.fails_at_first = lambda names: True
    async with batcher(bad, good) as running:
        outcomes = [await outcome(await asked(running, name)) for name in range(100)]
    assert bad.batches
    assert outcomes.count("internal-error") <= 20


# --- the end ---


@pytest.mark.parametrize("replicas", [1, 2])
async def test_when_it_closes_nobody_waits_any_longer(replicas: int, unheard: list[object]) -> None:
    heads = [Naming() for _ in range(replicas)]
    for head in heads:
        head.goes.clear()
    async with batcher(*heads) as running:
        files = [await asked(running, *names) for names in ([1], range(100, 140), [2], [3])]
        files.append(await asked(running, 4, priority=BACKFILL))
        await until(lambda: all(head.batches for head in heads))
        closing = asyncio.create_task(running.close())
        # while the models still compute
        assert [await outcome(file) for file in files] == ["overloaded"] * 5
        assert await outcome(await asked(running, 5)) == "overloaded"
        for head in heads:
            head.goes.set()
        await closing


# --- over HTTP ---


class Rig:
    """A classifier with a naming head, and clients with a connection for each request."""

    def __init__(self, server: TestServer, pool: Counting, metrics: Metrics) -> None:
        self._server, self._pool, self._metrics = server, pool, metrics
        self._tasks: list[asyncio.Task[Answer]] = []

    @property
    def waiting(self) -> int:
        """How many files are there."""
        return int(self._metrics.registry.get_sample_value("pictrs_classifier_waiting") or 0)

    async def ask(self, *widths: int) -> list[asyncio.Task[Answer]]:
        """Asks about a picture of each width; when this returns, they wait for the models, or have them."""
        self._tasks += (new := [asyncio.create_task(self._ask(width)) for width in widths])
        await until(lambda: self._pool.decoded == len(self._tasks))
        return new

    async def _ask(self, width: int) -> Answer:
        url = self._server.make_url("/v1/classify")
        async with (
            aiohttp.ClientSession() as client,
            client.post(url, data=pictures.png((width, 40))) as answer,
        ):
            return answer.status, await answer.json()


@asynccontextmanager
async def rig(head: Naming, most: int) -> AsyncIterator[Rig]:
    """The models are busy with nothing yet; a batch leaves when it is full or nothing is being decoded."""
    metrics, pool = Metrics(), Counting(1, [head.preparation], Limits())
    engine = Engine([ensemble(head)], pool, Batching(most, FOREVER_MS), metrics)
    await engine.start()
    head.batches.clear()
    pool.decoded = 0
    application = Server(Service(engine, Bounds(), metrics), [], metrics).application()
    try:
        async with TestServer(application) as server:
            yield Rig(server, pool, metrics)
    finally:
        head.goes.set()
        await engine.close()


async def test_requests_of_many_connections_fill_a_batch() -> None:
    head = Naming()
    async with rig(head, most=8) as running:
        head.goes.clear()
        tasks = await running.ask(40)
        await head.until_busy()
        tasks += await running.ask(*range(50, 58))
        head.goes.set()
        answers = [await task for task in tasks]
    assert [status for status, _ in answers] == [200] * 9
    assert [seen["signals"]["s"] for _, seen in answers] == [0.04, *(width / 1000 for width in range(50, 58))]
    assert [sorted(batch) for batch in head.batches] == [[40], list(range(50, 58))]


async def test_models_that_fail_are_an_internal_error_of_that_file() -> None:
    head = Naming()
    head.fails_at_last = lambda names: 50 in names
    async with rig(head, most=8) as running:
        head.goes.clear()
        tasks = await running.ask(40)
        await head.until_busy()
        tasks += await running.ask(50, 60)
        head.goes.set()
        answers = [await task for task in tasks]
    assert [status for status, _ in answers] == [200, 500, 200]
    assert answers[1][1]["error"]["code"] == "internal-error"


async def test_a_client_that_has_hung_up_is_not_computed() -> None:
    head = Naming()
    async with rig(head, most=8) as running:
        head.goes.clear()
        tasks = await running.ask(40)
        await head.until_busy()
        leaving, staying = await running.ask(50, 60)
        leaving.cancel()
        await asyncio.wait([leaving])
        await until(lambda: running.waiting == 2)
        head.goes.set()
        assert [(await task)[0] for task in [*tasks, staying]] == [200, 200]
    assert head.seen == [40, 60]
