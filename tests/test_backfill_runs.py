"""Runs over many files: none missed, none looked at twice, no more in memory than is allowed."""

from __future__ import annotations

import asyncio
import dataclasses
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import ClassVar

import pytest

from proxy.backfill import run as running
from proxy.backfill.looking import Result
from proxy.backfill.options import Options, a_share, hours, quiet_for
from proxy.backfill.pace import Pace
from proxy.backfill.run import Work, pages_of
from proxy.backfill.sources import Entry, Page
from proxy.backfill.viewing import BackfillError, Brought
from proxy.channels.lookout import Lookout
from proxy.channels.looks import ChannelError, File, Priority, Seen, Undecodable
from proxy.database import Database
from proxy.database import backfill as runs
from proxy.database.backfill import Looked
from proxy.media import Kind, recognise
from proxy.metrics import Metrics
from proxy.moments import a_moment
from tests.backfill import PNG, Eye, Store, content, entry, gone_over, in_no_time, means


async def test_what_was_looked_at_with_the_same_ensemble_costs_no_transfer_and_is_reported_again(
    database: Database,
) -> None:
    store, eye = Store(250), Eye({content(7): 0.9, content(8): 0.49999})
    first = await gone_over(database, store, eye)
    assert (first.looked_at, first.hits, len(store.fetched)) == (250, 1, 250)
    again = await gone_over(database, store, eye)
    assert (again.id, again.looked_at, again.reused, again.hits) == (2, 0, 250, 1)
    assert len(store.fetched) == 250
    (hit,) = runs.hits_of(database, again.id)
    assert (hit.signals, hit.aliases) == ({"sexual": 0.9}, ["7.png"])
    assert again.histogram == first.histogram


async def test_stale_looks_again_at_what_an_older_ensemble_has_looked_at(database: Database) -> None:
    store = Store(30)
    await gone_over(database, store, Eye())
    newer = Eye({content(3): 0.9}, version="eye 2")
    lazy = await gone_over(database, store, newer)
    assert (lazy.reused, lazy.hits) == (30, 0)
    stale = await gone_over(database, store, newer, Options(stale=True))
    assert (stale.looked_at, stale.hits) == (30, 1)
    assert (await gone_over(database, store, newer, Options(stale=True))).reused == 30


async def test_a_rule_with_a_signal_that_the_older_ensemble_did_not_have_looks_again(
    database: Database,
) -> None:
    one = runs.Looked(entry(0).key, None, "older 1", {"other": 0.1})
    first = runs.begin(database, kind="run", options=Options().to_json(), newest=None)
    runs.record(database, first.id, runs.Batch(looked_at=1, looked=[one]), finished=True)
    assert (await gone_over(database, Store(1), Eye())).looked_at == 1


async def test_it_is_stopped_cleanly_and_goes_on_with_the_same_options(database: Database) -> None:
    stop, store = asyncio.Event(), Store(5000)
    stopped = await gone_over(
        database, store, Eye(look_s=0.03), Options(prefix="1"), stop=stop, on_batch=lambda _: stop.set()
    )
    assert (stopped.state, stopped.looked_at) == ("open", len(store.fetched)) and stopped.looked_at < 1111
    done = await gone_over(database, store, Eye(), Options())
    assert (done.id, done.state, done.looked_at) == (1, "finished", 1111)
    assert len(store.fetched) == len(set(store.fetched)) == 1111
    assert done.skipped == 5000 - 1111


@pytest.mark.parametrize(
    ("options", "count"),
    [
        (Options(limit=150), 150),
        (Options(kind=Kind.VIDEO), 500),
        (Options(since=datetime(2026, 1, 2, tzinfo=UTC)), 750),
        (Options(until=datetime(2026, 1, 2, tzinfo=UTC)), 500),
        (Options(prefix="99"), 11),
    ],
)
async def test_only_what_is_asked_for_is_looked_at(database: Database, options: Options, count: int) -> None:
    """A quarter of a thousand is of unknown time; half are videos."""

    def made(number: int) -> Entry:
        plain = entry(number)
        at = datetime(2026, 1, 1 + number % 2, tzinfo=UTC) if number % 4 > 1 else None
        at = datetime(2026, 1, 2, tzinfo=UTC) if number % 4 == 1 else at
        at = datetime(2026, 1, 1, tzinfo=UTC) if number % 4 == 2 else at
        kind = Kind.VIDEO if number % 2 else Kind.IMAGE
        return Entry(plain.place, plain.size, plain.sha256, plain.aliases, at, kind)

    store = Store(1000, entry=made)
    if options.kind is not None:
        store.content = lambda number: b"\0\0\0\x10ftypisom\0\0\0\0" + str(number).encode()
        store.entry = lambda number: Entry(made(number).place, 0, *_rest(made(number)))
    run = await gone_over(database, store, Eye(), options)
    assert len(store.fetched) == count
    assert run.looked_at == count


def _rest(one: Entry) -> tuple[str | None, tuple[str, ...], datetime | None, Kind | None]:
    return one.sha256, tuple(one.aliases), one.at, one.kind


async def test_a_sample_is_always_of_the_same_files(database: Database) -> None:
    chosen = [number for number in range(5000) if Options(sample=0.01).wants(entry(number))]
    assert 25 < len(chosen) < 80
    assert set(chosen) <= {number for number in range(5000) if Options(sample=0.02).wants(entry(number))}


async def test_no_more_bytes_are_read_ahead_than_the_budget_has(database: Database) -> None:
    size, held, most = 100_000, 0, 0

    class Large(Store):
        async def fetch(self, entry: Entry, most_bytes: int) -> bytes:
            nonlocal held, most
            held += size
            most = max(most, held)
            await asyncio.sleep(0.001)
            return content(int(entry.aliases[0].removesuffix(".png")))

    def seen(_: File) -> None:
        nonlocal held
        held -= size

    store = Large(60, entry=lambda n: Entry(entry(n).place, size, entry(n).sha256, entry(n).aliases))
    run = await gone_over(database, store, Eye(look_s=0.01, on_look=seen), budget=5 * size)
    assert run.looked_at == 60
    assert most <= 5 * size


def looked_at_in_no_time(eye: Eye, count: int) -> Pace:
    """What a pace has come to after so many files, by a clock that passes over the waiting."""

    async def work() -> Pace:
        pace, lookout = Pace(500), Lookout([eye], frozenset(), Metrics())
        png = recognise(PNG)
        assert png is not None

        async def look() -> None:
            async with pace.turn():
                await lookout.look(
                    File(PNG, png), priority=Priority.BACKFILL, within_s=120, on_overloaded=pace.overloaded
                )

        await asyncio.gather(*(look() for _ in range(count)))
        return pace

    return in_no_time(work())


def test_a_classifier_gets_as_many_at_once_as_it_takes() -> None:
    eye = Eye(look_s=0.1, places=24)
    looked_at_in_no_time(eye, 4000)
    assert eye.most_busy == 24  # it was found out by asking for more
    assert eye.looked == 4000 and eye.overloaded < 1000
    assert {priority.value for priority in eye.priorities} == {"backfill"}


def test_a_classifier_that_only_becomes_slower_is_not_buried() -> None:
    one_at_a_time = asyncio.Lock()

    class Slow(Eye):
        async def look(self, file: File, *, priority: Priority, within_s: float) -> Seen | Undecodable:
            self.busy += 1
            self.most_busy = max(self.most_busy, self.busy)
            async with one_at_a_time:
                await asyncio.sleep(0.02)
            self.busy -= 1
            return Seen({}, [], "slow 1", "png", 9, 9)

    eye = Slow()
    assert looked_at_in_no_time(eye, 4000).limit < 20
    assert eye.most_busy < 30


async def test_one_file_at_which_nobody_can_look_does_not_stop_the_others(database: Database) -> None:
    def crash(file: File) -> None:
        if file.content == content(40):
            raise ChannelError("eye answered 500 unknown")

    run = await gone_over(database, Store(200), Eye(look_s=0.005, on_look=crash), at_once=4)
    assert (run.state, run.looked_at, run.unreadable) == ("finished", 199, 1)
    (lost,) = runs.unreadable_of(database, run.id)
    assert lost.aliases == ["40.png"] and "nobody could look" in lost.reason


async def test_where_nobody_looks_any_more_it_stops_and_keeps_what_it_has(database: Database) -> None:
    left = 150

    def tire(_: File) -> None:
        nonlocal left
        left -= 1
        if left < 0:
            raise ChannelError("eye is gone")

    store = Store(400)
    with pytest.raises(BackfillError, match="nobody could look"):
        await gone_over(database, store, Eye(on_look=tire), at_once=4)
    stopped = runs.get(database, None)
    assert (stopped.state, stopped.looked_at) == ("open", 150)
    eye = Eye()
    assert (await gone_over(database, store, eye)).looked_at == 400
    assert eye.looked == 250


async def test_a_batch_that_cannot_be_kept_leaves_nothing_behind_it_for_done(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    record, calls = runs.record, 0

    def fails_once(*args: object, **kwargs: object) -> object:
        nonlocal calls
        calls += 1
        if calls == 2:
            raise OSError("no room")
        return record(*args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(runs, "record", fails_once)
    store = Store(1000)
    with pytest.raises(OSError, match="no room"):
        await gone_over(database, store, Eye(look_s=0.001))
    monkeypatch.setattr(runs, "record", record)
    assert (await gone_over(database, store, Eye())).looked_at == 1000


async def test_files_that_come_twice_in_a_listing_are_looked_at_once(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = runs.files

    def slow(*args: object) -> object:
        found = files(*args)  # type: ignore[arg-type]
        time.sleep(0.03)  # meanwhile what was under way becomes durable
        return found

    monkeypatch.setattr(runs, "files", slow)
    eye = Eye(look_s=0.002)
    run = await gone_over(database, Store(500, entry=lambda number: entry(number % 120)), eye)
    assert (run.looked_at, eye.looked) == (120, 120)


async def test_a_rate_is_kept(database: Database) -> None:
    began = time.monotonic()
    await gone_over(database, Store(21), Eye(), Options(rate=100))
    assert time.monotonic() - began >= 0.2  # twenty of them waited


@pytest.mark.parametrize(
    ("clock", "minutes"), [("07:59", 0), ("08:00", 900), ("22:59", 1), ("23:00", 0), ("03:00", 0)]
)
def test_quiet_hours_of_a_day(clock: str, minutes: int) -> None:
    now = datetime.fromisoformat(f"2026-11-23T{clock}:00+01:00")
    assert quiet_for("08:00-23:00", now) == minutes * 60


@pytest.mark.parametrize(("clock", "minutes"), [("21:59", 0), ("22:00", 480), ("05:00", 60), ("06:00", 0)])
def test_quiet_hours_over_midnight(clock: str, minutes: int) -> None:
    now = datetime.fromisoformat(f"2026-11-23T{clock}:00+01:00")
    assert quiet_for("22:00-06:00", now) == minutes * 60


async def test_in_quiet_hours_nothing_is_fetched_until_it_is_told_to_stop(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("proxy.backfill.run.quiet_for", lambda *_: 3600.0)
    stop, store = asyncio.Event(), Store(10)
    asyncio.get_running_loop().call_later(0.1, stop.set)
    run = await gone_over(database, store, Eye(), Options(quiet_hours="08:00-23:00"), stop=stop)
    assert (run.state, store.fetched) == ("open", [])


async def test_in_quiet_hours_no_hit_of_an_earlier_look_is_held_and_none_is_forgotten(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Holding:
        held: ClassVar[list[str]] = []

        async def hold(self, entry: Entry, earlier: Looked | None, result: Result) -> Result:
            self.held.append(entry.aliases[0])
            return result

    eye = Eye({content(3): 0.9})
    await gone_over(database, Store(10), eye)
    with monkeypatch.context() as quiet:
        quiet.setattr("proxy.backfill.run.quiet_for", lambda *_: 3600.0)
        stop = asyncio.Event()
        asyncio.get_running_loop().call_later(0.2, stop.set)
        run = await gone_over(database, Store(10), eye, Options(), stop=stop, holding=Holding())
    assert (run.state, Holding.held) == ("open", [])
    run = await gone_over(database, Store(10), eye, holding=Holding())
    assert (run.state, run.hits, Holding.held) == ("finished", 1, ["3.png"])


async def test_what_is_skipped_after_it_was_fetched_does_not_count_for_the_limit(database: Database) -> None:
    store = Store(40, content=lambda number: b"GIF89a" + bytes(9) if number % 2 else content(number))
    run = await gone_over(database, store, Eye(), Options(kind=Kind.IMAGE, limit=5))
    assert (run.state, run.looked_at) == ("finished", 5)


async def test_told_to_stop_it_waits_for_no_page_that_does_not_come(database: Database) -> None:
    class Stuck(Store):
        async def page(self, at: str | None) -> Page:
            if at is not None:
                await asyncio.Event().wait()
            return await super().page(at)

    stop = asyncio.Event()
    asyncio.get_running_loop().call_later(0.2, stop.set)
    async with asyncio.timeout(20):
        run = await gone_over(database, Stuck(150), Eye(), stop=stop)
    assert (run.state, run.looked_at) == ("open", 100)


def test_options_survive_being_kept() -> None:
    options = Options(
        source="s3://bucket/a",
        since=a_moment("2026-11-01"),
        until=a_moment("2026-11-02T03:04:05+02:00"),
        kind=Kind.ANIMATION,
        sample=a_share("2.5%"),
        rate=7.5,
        quiet_hours=hours("08:00-23:00"),
        limit=5,
        stale=True,
    )
    import json

    assert Options.from_json(json.loads(json.dumps(options.to_json()))) == options


@pytest.mark.parametrize(
    ("read", "word"),
    [(a_share, "0%"), (a_share, "101%"), (a_share, "1"), (hours, "8-23"), (a_moment, "soon")],
)
def test_what_cannot_be_meant_is_refused(read: object, word: str) -> None:
    with pytest.raises(ValueError, match=r"\S"):
        read(word)  # type: ignore[operator]


async def test_told_to_stop_it_waits_for_nobody_who_never_answers(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not even for there to be room for one more file."""
    begun: list[str] = []

    class Mute:
        @asynccontextmanager
        async def brought(self, entry: Entry, most: int) -> AsyncIterator[Brought]:
            begun.append(entry.place)
            await asyncio.Event().wait()
            raise AssertionError
            yield

    monkeypatch.setattr(running, "_ENDING_S", 0.1)
    store, stop = Store(500), asyncio.Event()
    run = runs.begin(database, kind="run", options=Options().to_json(), newest=None)
    async with means(database, store, Eye(), at_once=4) as made, asyncio.timeout(20):
        work = Work(
            dataclasses.replace(made, viewer=Mute()),
            run,
            Options(),
            ensembles=frozenset(),
            stop=stop,
            on_batch=lambda _: None,
        )
        at_work = asyncio.create_task(work.over(pages_of(store, None)))
        before = -1
        while len(begun) != before:  # until there is room for no more
            before = len(begun)
            await asyncio.sleep(0.5)
        assert 0 < before < 500
        stop.set()
        with pytest.raises(BackfillError, match="took too long"):
            await at_work
    assert len(begun) == before
