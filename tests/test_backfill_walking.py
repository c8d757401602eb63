"""Listings that go on from page to page, and walks over folders that take their time."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator

import pytest

from proxy.backfill.sources import Entry
from proxy.backfill.sources.pages import Pages
from proxy.backfill.sources.walking import AT_ONCE, Found, NotListed, walked

# --- pages ---


async def test_a_page_that_takes_long_is_given_as_it_is_and_its_listing_goes_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("proxy.backfill.sources.pages._SOON_S", 0.05)
    begun, more = [], asyncio.Event()

    async def listing(after: str | None) -> AsyncGenerator[Entry]:
        begun.append(after)
        for number in range(5):
            if number == 3:
                await more.wait()
            yield Entry(f"{number}")

    pages = Pages(listing)
    early = await pages.page(None)
    assert [entry.place for entry in early.entries] == ["0", "1", "2"] and early.next == "2"
    more.set()
    rest = await pages.page("2")
    assert [entry.place for entry in rest.entries] == ["3", "4"] and rest.next is None
    assert begun == [None]
    await pages.page("9")
    assert begun == [None, "9"]
    await pages.close()


async def test_a_page_that_was_cancelled_or_failed_is_listed_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("proxy.backfill.sources.pages._SOON_S", 60.0)
    begun: list[str | None] = []
    is_waiting = asyncio.Event()

    async def listing(after: str | None) -> AsyncGenerator[Entry]:
        begun.append(after)
        if len(begun) == 2:
            raise OSError
        for number in range(int(after or "-1") + 1, 150):
            yield Entry(f"{number}")
        if len(begun) == 1:
            is_waiting.set()
            await asyncio.Event().wait()

    pages = Pages(listing)
    assert (await pages.page(None)).next == "99"
    asking = asyncio.ensure_future(pages.page("99"))
    await is_waiting.wait()
    asking.cancel()
    await asyncio.gather(asking, return_exceptions=True)
    with pytest.raises(OSError):
        await pages.page("99")
    last = await pages.page("99")
    assert [entry.place for entry in last.entries] == [f"{number}" for number in range(100, 150)]
    assert begun == [None, "99", "99"] and last.next is None
    await pages.close()


# --- a walk over folders ---


class Tree:
    """Folders that take their time; `closed` ones may not be read, `gone` ones were just deleted."""

    def __init__(self, names: list[str], *, closed: str = "-", gone: str = "-") -> None:
        self.inside: dict[str, dict[str, Found]] = {"": {}}
        for name in names:
            parts = name.split("/")
            for depth, part in enumerate(parts):
                is_folder = depth < len(parts) - 1
                within = self.inside.setdefault("/".join(parts[:depth]), {})
                within[part] = Found(part, is_folder, 0 if is_folder else 7)
        self.closed, self.gone, self.scanned = closed, gone, Counter[str]()

    async def scan(self, folder: str) -> AsyncIterator[Found]:
        self.scanned[folder] += 1
        for _ in range(random.randint(0, 3)):
            await asyncio.sleep(0)
        if folder == self.closed:
            raise PermissionError
        if folder == self.gone:
            raise FileNotFoundError
        inside = list(self.inside[folder].values())
        random.shuffle(inside)
        for found in inside:
            yield found
            await asyncio.sleep(0)


async def test_a_walk_gives_every_file_in_the_order_of_names_from_any_place_on() -> None:
    numbers = random.Random(77)
    names = sorted(
        {
            "/".join(f"{numbers.randrange(12):x}" for _ in range(numbers.randrange(1, 6))) + f"/f{number}"
            for number in range(300)
        },
        key=lambda name: name.split("/"),
    )
    for after in (None, *names[::37], names[-1], "0/zz", "zz"):
        expected = [name for name in names if after is None or name.split("/") > after.split("/")]
        assert [name async for name, _ in walked(Tree(names).scan, after)] == expected


async def test_a_folder_that_may_not_be_read_is_told_of_and_one_that_is_gone_is_passed_over() -> None:
    names = ["a/1", "b/c/2", "b/d/3", "e/4"]
    walk = walked(Tree(names, closed="b/c", gone="e").scan)
    assert [(name, found is None) async for name, found in walk] == [
        ("a/1", False),
        ("b/c", True),
        ("b/d/3", False),
    ]
    for error, tree in ((PermissionError, Tree([], closed="")), (FileNotFoundError, Tree([], gone=""))):
        with pytest.raises(error):
            await anext(walked(tree.scan))


async def test_a_walk_is_only_so_far_ahead(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("proxy.backfill.sources.walking._AHEAD", 300)
    tree = Tree([f"{number // 30:03}/{number % 30:02}/file" for number in range(30_000)])
    walk = walked(tree.scan)
    assert (await anext(walk))[0] == "000/00/file"
    settled = -1
    while settled != len(tree.scanned):
        settled = len(tree.scanned)
        await asyncio.sleep(0.1)
    # Those ahead, what was being listed when there were as many, and no more of 31 000.
    assert 200 < settled < 300 + 31 * AT_ONCE
    await walk.aclose()


async def test_a_folder_that_cannot_be_listed_is_told_of_with_what_was_found_in_it() -> None:
    tree = Tree(["a/1", "b/2", "c/3"])

    async def scan(folder: str) -> AsyncIterator[Found]:
        async for found in tree.scan(folder):
            yield found
        if folder == "b":
            raise NotListed

    assert [(name, found is None) async for name, found in walked(scan)] == [
        ("a/1", False),
        ("b", True),
        ("b/2", False),
        ("c/3", False),
    ]


async def test_a_walk_that_has_failed_asks_for_no_more_folders_though_nobody_asks_it() -> None:
    tree, may_go = Tree([f"{number:03}/file" for number in range(900)]), asyncio.Event()
    ended = []

    async def scan(folder: str) -> AsyncIterator[Found]:
        async for found in tree.scan(folder):
            yield found
        if folder == "010":
            await may_go.wait()
            raise ConnectionError
        if folder > "010":
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                ended.append(folder)
                yield Found("late", is_folder=True)

    walk = walked(scan)
    assert (await anext(walk))[0] == "000/file"
    settled = -1
    while settled != len(tree.scanned):
        settled = len(tree.scanned)
        await asyncio.sleep(0.1)
    assert settled < 300
    may_go.set()
    await asyncio.sleep(0.1)
    assert len(tree.scanned) == settled and len(ended) == AT_ONCE - 1
    with pytest.raises(ConnectionError):
        await anext(walk)
