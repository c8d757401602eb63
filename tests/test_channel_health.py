"""Several classifiers, some of which fail: others get their uploads, and they come back by themselves."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator

import pytest

from proxy.channels.health import Health
from proxy.channels.http import HttpChannel
from proxy.channels.lookout import Lookout
from proxy.channels.looks import Look, Priority, Seen, Unseen
from proxy.metrics import Metrics
from tests.fake import INFO, NEEDED, SEEN, Asked, Fake, Reply, classifier, file, json_reply

LONG_S = 20.0  # hang guard

Answer = Callable[[Asked], Reply]


def seen(_: Asked) -> Reply:
    return json_reply(200, SEEN)


def broken(_: Asked) -> Reply:
    return json_reply(500, {"error": {"code": "internal-error", "message": "…"}})


def overloaded(retry_after: str) -> Answer:
    error = {"error": {"code": "overloaded", "message": "…"}}
    return lambda _: json_reply(429, error, **{"Retry-After": retry_after})


def files_asked(fake: Fake) -> int:
    return sum(asked.method == "POST" for asked in fake.asked)


class Looking:
    """A lookout over some classifiers, and what an operator sees of it."""

    def __init__(self, *urls: str) -> None:
        self.metrics = Metrics()
        self.channels = [HttpChannel(url, None) for url in urls]
        self.lookout = Lookout(self.channels, NEEDED, self.metrics)

    async def look(self, within_s: float = LONG_S) -> Look:
        return await self.lookout.look(file(), priority=Priority.LIVE, within_s=within_s)

    def fit(self, fake: Fake) -> float | None:
        labels = {"classifier": fake.url}
        return self.metrics.registry.get_sample_value("pictrs_gate_classifier_fit", labels)

    @property
    def ejections(self) -> float | None:
        return self.metrics.registry.get_sample_value("pictrs_gate_classifier_ejections_total")


@pytest.fixture
def fakes() -> Iterator[Callable[[Answer], Fake]]:
    made: list[Fake] = []

    def make(answer: Answer) -> Fake:
        made.append(classifier(answer))
        return made[-1]

    yield make
    for one in made:
        one.close()


@pytest.fixture
def hung() -> Iterator[threading.Event]:
    """Whoever waits for it hangs until the test is over, or says otherwise."""
    event = threading.Event()
    yield event
    event.set()


@contextlib.asynccontextmanager
async def looking(*fakes: Fake) -> AsyncIterator[Looking]:
    made = Looking(*(fake.url for fake in fakes))
    try:
        yield made
    finally:
        await made.lookout.close()


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(LONG_S):
        while not condition():
            await asyncio.sleep(0.02)


NewFake = Callable[[Answer], Fake]


async def test_one_that_dies_while_it_looks_leaves_its_uploads_to_another(fakes: NewFake) -> None:
    held: list[asyncio.StreamWriter] = []

    async def hold(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        held.append(writer)

    dying = await asyncio.start_server(hold, "127.0.0.1", 0)
    other = fakes(seen)
    made = Looking(f"http://127.0.0.1:{dying.sockets[0].getsockname()[1]}", other.url)
    looks = asyncio.gather(*(made.look() for _ in range(6)))
    await until(lambda: len(held) >= 3 and files_asked(other) >= 3)
    began = time.monotonic()
    dying.close()
    for writer in held:
        writer.transport.abort()
    assert all(isinstance(found, Seen) for found in await looks)
    assert time.monotonic() - began < 5
    assert files_asked(other) == 6
    await made.lookout.close()


async def test_those_that_hang_leave_time_for_another(fakes: NewFake, hung: threading.Event) -> None:
    def hang(_: Asked) -> Reply:
        hung.wait(LONG_S)
        return Reply(200)

    hanging = [Fake(hang), Fake(hang)]
    async with looking(*hanging, fakes(seen)) as made:
        began = time.monotonic()
        assert isinstance(await made.look(within_s=3), Seen)
        assert 1.5 < time.monotonic() - began < 3  # a third of it each
        began = time.monotonic()
        assert isinstance(await made.look(within_s=3), Seen)
        assert time.monotonic() - began < 1
        assert [files_asked(fake) for fake in hanging] == [1, 1]
    for fake in hanging:
        fake.close()


async def test_the_last_one_left_has_all_the_time_that_is_left(fakes: NewFake) -> None:
    def slow(_: Asked) -> Reply:
        time.sleep(1.4)
        return json_reply(200, SEEN)

    async with looking(fakes(broken), fakes(slow)) as made:
        assert isinstance(await made.look(within_s=2), Seen)


async def test_what_fails_is_asked_last_and_comes_back_once_it_answers(
    fakes: NewFake, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    is_broken = True
    failing = Fake(lambda asked: broken(asked) if is_broken else json_reply(200, answer_to(asked)))
    async with looking(failing, fakes(seen)) as made:
        assert made.fit(failing) == 1
        assert isinstance(await made.look(), Seen)
        assert (made.fit(failing), made.ejections) == (0, 1)
        assert f"{failing.url} is asked last" in caplog.text
        assert isinstance(await made.look(), Seen)
        assert files_asked(failing) == 1
        is_broken = False
        await until(lambda: made.fit(failing) == 1)
        assert f"{failing.url} is back" in caplog.text
        assert isinstance(await made.look(), Seen)
        assert (files_asked(failing), made.ejections) == (2, 1)
    failing.close()


def answer_to(asked: Asked) -> object:
    return INFO if asked.method == "GET" else SEEN


async def test_on_trial_it_looks_at_one_file_at_a_time(fakes: NewFake, hung: threading.Event) -> None:
    answers: Iterator[Answer] = iter([broken])

    def slow(_: Asked) -> Reply:
        hung.wait(LONG_S)
        return json_reply(200, SEEN)

    tried = fakes(lambda asked: next(answers, slow)(asked))
    other = fakes(slow)
    async with looking(tried, other) as made:
        first = asyncio.create_task(made.look())
        await until(lambda: made.fit(tried) == 0)
        await until(lambda: made.fit(tried) == 1)
        assert (files_asked(tried), files_asked(other)) == (1, 1)
        looks = [first, *(asyncio.create_task(made.look()) for _ in range(5))]
        await until(lambda: files_asked(tried) + files_asked(other) == 7)
        assert (files_asked(tried), files_asked(other)) == (2, 5)
        hung.set()
        assert all(isinstance(found, Seen) for found in await asyncio.gather(*looks))
        # It has proved itself, so that it is busy like the other one again.
        hung.clear()
        looks = [asyncio.create_task(made.look()) for _ in range(4)]
        await until(lambda: files_asked(tried) + files_asked(other) == 11)
        assert (files_asked(tried), files_asked(other)) == (4, 7)
        hung.set()
        await asyncio.gather(*looks)


async def test_what_fails_its_trial_is_ejected_again(fakes: NewFake) -> None:
    failing = fakes(broken)
    async with looking(failing, fakes(seen)) as made:
        for ejections in (1, 2):
            assert isinstance(await made.look(), Seen)
            assert (made.fit(failing), made.ejections) == (0, ejections)
            await until(lambda: made.fit(failing) == 1)


async def test_the_only_one_is_asked_about_the_next_file_although_it_failed(fakes: NewFake) -> None:
    answers: Iterator[Answer] = iter([broken])
    only = fakes(lambda asked: next(answers, seen)(asked))
    async with looking(only) as made:
        assert isinstance(await made.look(), Unseen)
        assert made.fit(only) == 0
        began = time.monotonic()
        assert isinstance(await made.look(), Seen)
        assert time.monotonic() - began < 0.9  # sooner than any probe
        assert made.fit(only) == 1
        await asyncio.sleep(1.3)
        assert len(only.asked) == files_asked(only) == 2  # and then none is needed


async def test_an_ejected_one_is_asked_where_the_others_fail(fakes: NewFake) -> None:
    first_answers: Iterator[Answer] = iter([broken])
    other_answers: Iterator[Answer] = iter([seen, broken])
    first = fakes(lambda asked: next(first_answers, seen)(asked))
    other = fakes(lambda asked: next(other_answers)(asked))
    async with looking(first, other) as made:
        assert isinstance(await made.look(), Seen)
        assert isinstance(await made.look(), Seen)
        assert (files_asked(first), files_asked(other)) == (2, 2)


async def test_while_the_others_are_overloaded_an_ejected_one_costs_no_time(
    fakes: NewFake, hung: threading.Event
) -> None:
    answers: Iterator[Answer] = iter([seen, overloaded("0.9")])

    def hang(_: Asked) -> Reply:
        hung.wait(LONG_S)
        return Reply(200)

    hanging_answers: Iterator[Answer] = iter([broken])
    hanging = fakes(lambda asked: next(hanging_answers, hang)(asked))
    async with looking(hanging, fakes(lambda asked: next(answers, seen)(asked))) as made:
        assert isinstance(await made.look(), Seen)
        began = time.monotonic()
        assert isinstance(await made.look(within_s=6), Seen)
        assert time.monotonic() - began < 2
        assert files_asked(hanging) == 2


async def test_while_the_others_are_overloaded_what_is_well_again_gets_the_time_it_needs(
    fakes: NewFake,
) -> None:
    def slow(_: Asked) -> Reply:
        time.sleep(1)
        return json_reply(200, SEEN)

    answers: Iterator[Answer] = iter([broken])
    recovering = fakes(lambda asked: next(answers, slow)(asked))
    async with looking(recovering, fakes(overloaded("0.25"))) as made:
        assert isinstance(await made.look(within_s=0.8), Unseen)
        looks = await asyncio.gather(*(made.look(within_s=8) for _ in range(10)))
        assert [type(look) for look in looks] == [Seen] * 10
        assert files_asked(recovering) < 30


async def test_nobody_waits_for_a_dead_one_and_one_probe_at_a_time_finds_it_alive(
    fakes: NewFake, hung: threading.Event
) -> None:
    probes, most = 0, 0

    def dead(asked: Asked) -> Reply:
        nonlocal probes, most
        probes += asked.method == "GET"
        most = max(most, probes)
        hung.wait(LONG_S)
        probes -= asked.method == "GET"
        return json_reply(200, answer_to(asked))

    only = Fake(dead)
    async with looking(only) as made:
        first = await made.look(within_s=1.5)
        assert isinstance(first, Unseen) and first.failed
        began = time.monotonic()
        looks = await asyncio.gather(*(made.look() for _ in range(50)))
        assert set(looks) == {Unseen("no classifier answers")}
        await asyncio.sleep(2)  # it is being probed, and hangs
        assert await made.look() == Unseen("no classifier answers")
        assert time.monotonic() - began < LONG_S / 2
        assert (files_asked(only), most) == (1, 1)
        hung.set()
        await until(lambda: made.fit(only) == 1)
        assert isinstance(await made.look(), Seen)
    only.close()


async def test_one_that_answers_probes_and_then_hangs_makes_one_file_wait_and_no_other(
    fakes: NewFake, hung: threading.Event
) -> None:
    def hang(_: Asked) -> Reply:
        hung.wait(LONG_S)
        return json_reply(200, SEEN)

    only = fakes(hang)
    async with looking(only) as made:
        assert isinstance(await made.look(within_s=1.2), Unseen)
        await until(lambda: made.fit(only) == 1)
        trial = asyncio.create_task(made.look())
        await until(lambda: files_asked(only) == 2)
        looks = await asyncio.gather(*(made.look() for _ in range(20)))
        assert set(looks) == {Unseen("no classifier answers")} and not trial.done()
        hung.set()
        assert isinstance(await trial, Seen)
        looks = await asyncio.gather(*(made.look() for _ in range(20)))
        assert all(isinstance(look, Seen) for look in looks)


async def test_a_file_that_takes_too_long_takes_the_classifier_from_nobody_else(
    fakes: NewFake, hung: threading.Event
) -> None:
    first = threading.Lock()

    def one_is_slow(_: Asked) -> Reply:
        if first.acquire(blocking=False):
            hung.wait(LONG_S)
        return json_reply(200, SEEN)

    only = fakes(one_is_slow)
    async with looking(only) as made:
        slow = asyncio.create_task(made.look(within_s=1.2))
        await until(lambda: files_asked(only) == 1)
        assert isinstance(await made.look(), Seen)
        look = await slow
        assert isinstance(look, Unseen) and look.failed
        assert (made.fit(only), made.ejections) == (1, 0)
        assert isinstance(await made.look(), Seen)


async def test_a_full_one_is_no_failure_of_a_file_and_a_broken_one_is(fakes: NewFake) -> None:
    for answer, failed in ((overloaded("60"), False), (broken, True)):
        async with looking(fakes(answer)) as made:
            look = await made.look(within_s=1)
            assert isinstance(look, Unseen) and look.failed is failed


async def test_a_failure_of_many_at_once_is_one(fakes: NewFake) -> None:
    together = threading.Barrier(8, timeout=LONG_S)

    def break_together(asked: Asked) -> Reply:
        together.wait()
        return broken(asked)

    async with looking(fakes(break_together)) as made:
        assert all(
            isinstance(found, Unseen) for found in await asyncio.gather(*(made.look() for _ in range(8)))
        )
        assert made.ejections == 1


async def test_neither_a_full_queue_nor_a_file_that_is_none_is_a_failure(fakes: NewFake) -> None:
    undecodable = {"error": {"code": "undecodable", "message": "…"}}
    full, cannot = fakes(overloaded("60")), fakes(lambda _: json_reply(400, undecodable))
    async with looking(full, cannot) as made:
        await made.look(within_s=2)
        assert (made.fit(full), made.fit(cannot), made.ejections) == (1, 1, 0)
        assert (files_asked(full), files_asked(cannot)) == (1, 1)


async def test_an_upload_that_has_no_time_left_says_nothing_of_the_classifier(
    fakes: NewFake, hung: threading.Event
) -> None:
    def hang(_: Asked) -> Reply:
        hung.wait(LONG_S)
        return Reply(200)

    slow = fakes(hang)
    async with looking(slow) as made:
        assert isinstance(await made.look(within_s=0.2), Unseen)
        assert (made.fit(slow), made.ejections) == (1, 0)


async def test_one_that_comes_back_without_a_signal_stays_ejected(
    fakes: NewFake, caplog: pytest.LogCaptureFixture
) -> None:
    lacking = Fake(lambda a: json_reply(200, {"signals": ["sexual"]}) if a.method == "GET" else broken(a))
    async with looking(lacking, fakes(seen)) as made:
        assert isinstance(await made.look(), Seen)
        await until(lambda: "has no signal minor" in caplog.text)
        assert made.fit(lacking) == 0
        assert isinstance(await made.look(), Seen)
        assert files_asked(lacking) == 1
    lacking.close()


async def test_one_that_is_not_there_at_start_up_is_asked_last_until_it_is(fakes: NewFake) -> None:
    is_there = False
    late = Fake(lambda asked: json_reply(200, answer_to(asked)) if is_there else broken(asked))
    async with looking(late, fakes(seen)) as made:
        await made.lookout.check()
        assert isinstance(await made.look(), Seen)
        assert files_asked(late) == 0
        is_there = True
        await until(lambda: made.fit(late) == 1)
        assert isinstance(await made.look(), Seen)
        assert files_asked(late) == 1
    late.close()


async def test_without_a_classifier_nobody_looks_and_one_that_comes_does(fakes: NewFake) -> None:
    fake = fakes(seen)
    async with looking() as made:
        assert await made.look() == Unseen("no classifier is connected")
        channel = HttpChannel(fake.url, None)
        made.lookout.add(channel)
        assert isinstance(await made.look(), Seen) and made.fit(fake) == 1
        made.lookout.remove(channel)
        assert await made.look() == Unseen("no classifier is connected")
        assert made.fit(fake) is None
        await channel.close()


async def test_one_that_comes_is_asked_about_files_that_wait(fakes: NewFake) -> None:
    full, coming = fakes(overloaded("15")), fakes(seen)
    async with looking(full) as made:
        waiting = asyncio.create_task(made.look())
        await until(lambda: files_asked(full) == 1)
        made.lookout.add(HttpChannel(coming.url, None))
        async with asyncio.timeout(5):
            assert isinstance(await waiting, Seen)


async def test_one_that_goes_ends_what_it_has_and_is_not_asked_again(
    fakes: NewFake, hung: threading.Event
) -> None:
    def slow(_: Asked) -> Reply:
        hung.wait(LONG_S)
        return json_reply(200, SEEN)

    going = fakes(slow)
    async with looking(going) as made:
        (channel,) = made.channels
        looks = [asyncio.create_task(made.look()) for _ in range(2)]
        await until(lambda: files_asked(going) == 2)
        made.lookout.remove(channel)
        assert await made.look() == Unseen("no classifier is connected")
        hung.set()
        assert all(isinstance(found, Seen) for found in await asyncio.gather(*looks))
        await channel.close()


async def test_one_that_fails_after_it_has_gone_is_forgotten(fakes: NewFake, hung: threading.Event) -> None:
    def fail(asked: Asked) -> Reply:
        hung.wait(LONG_S)
        return broken(asked)

    going, other = fakes(fail), fakes(seen)
    async with looking(going, other) as made:
        waiting = asyncio.create_task(made.look())
        await until(lambda: files_asked(going) == 1)
        made.lookout.remove(made.channels[0])
        hung.set()
        assert isinstance(await waiting, Seen)
        assert (made.fit(going), made.ejections) == (None, 0)
        await made.channels[0].close()


@pytest.mark.parametrize("ending", ["close", "remove"])
async def test_nothing_is_probed_any_more_at_the_end(fakes: NewFake, ending: str) -> None:
    failing = fakes(broken)
    made = Looking(failing.url)
    assert isinstance(await made.look(), Unseen)
    assert len(asyncio.all_tasks()) == 2
    if ending == "remove":
        made.lookout.remove(made.channels[0])
        await asyncio.sleep(0.1)
    else:
        await made.lookout.close()
    assert asyncio.all_tasks() == {asyncio.current_task()}
    await made.channels[0].close()


def test_the_time_until_a_probe_doubles_up_to_a_minute_and_starts_over_after_a_success() -> None:
    health, waits = Health(), []
    assert health.failed(began=0.0, now=10.0)
    for _ in range(9):
        waits.append(health.probe_at - 10.0)
        health.probe_failed(10.0)
    assert waits == [1, 2, 4, 8, 16, 32, 60, 60, 60]
    health.probe_succeeded()
    assert health.failed(began=11.0, now=12.0) and health.probe_at == 72.0
    assert health.succeeded(12.5) and not health.succeeded(12.5)
    assert health.failed(began=13.0, now=14.0) and health.probe_at == 15.0


def test_what_fails_at_once_is_ejected_whatever_it_has_answered_meanwhile() -> None:
    health = Health()
    health.succeeded(1.0)
    assert health.failed(began=0.9, now=1.5)
    health.succeeded(2.0)
    assert not health.failed(began=1.9, now=12.0) and health.failed(began=2.1, now=12.0)


def test_what_is_asked_for_want_of_a_better_and_fails_again_is_probed_no_later() -> None:
    health = Health()
    assert health.failed(began=0.0, now=10.0)
    assert not health.failed(began=10.5, now=10.9) and health.probe_at == 11.0


def test_what_was_under_way_before_an_ejection_does_not_fail_a_trial() -> None:
    health = Health()
    assert health.failed(began=0.0, now=2.0)
    health.probe_succeeded()
    assert not health.failed(began=1.0, now=4.0) and not health.is_ejected
    assert health.failed(began=3.0, now=4.0) and health.is_ejected
