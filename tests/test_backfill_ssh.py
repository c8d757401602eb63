"""A store behind SSH that is far away, slow, or stops answering: how it is read then."""

from __future__ import annotations

import asyncio
import os
import random
import shutil
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import asyncssh
import pytest

from proxy.backfill.sources import Entry, Unreadable
from proxy.backfill.sources.line import Line
from proxy.backfill.sources.sftp import SftpError, SftpSource
from proxy.backfill.sources.walking import AT_ONCE
from proxy.sections import BackfillSection
from tests.relay import Relay
from tests.stores import all_of, entries_of, known_host, ssh_host, until


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("ssh")


@pytest.fixture(scope="module")
def ssh(made: Path) -> Iterator[tuple[BackfillSection, int]]:
    with ssh_host(made) as host:
        yield host


@pytest.fixture(scope="module")
def names() -> list[str]:
    """As pict-rs gives them, one every minute or so."""
    numbers, at = random.Random(5), 1_700_000_000_000
    made = []
    for _ in range(200):
        at += numbers.randint(1, 120_000)
        digits = f"{at:012x}7{numbers.getrandbits(12):03x}a{numbers.getrandbits(60):015x}"
        made.append("/".join(digits[first : first + 2] for first in range(0, 20, 2)) + f"/{digits[20:]}.png")
    return made


@pytest.fixture(scope="module")
def store(names: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("store")
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(name.encode())
    return root


@pytest.fixture
def scans(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """How many folders a host is asked for, and at once."""
    seen: dict[str, Any] = {"of": Counter(), "now": 0, "most": 0, "on_scan": lambda: None}
    true_scandir = asyncssh.SFTPClient.scandir

    async def scandir(self: asyncssh.SFTPClient, path: str) -> AsyncIterator[Any]:
        seen["of"][path] += 1
        seen["now"] += 1
        seen["most"] = max(seen["most"], seen["now"])
        seen["on_scan"]()
        try:
            async for one in true_scandir(self, path):
                yield one
        finally:
            seen["now"] -= 1

    monkeypatch.setattr(asyncssh.SFTPClient, "scandir", scandir)
    return seen


@dataclass
class Far:
    """A host behind SSH, to be reached through a relay."""

    made: Path
    settings: BackfillSection
    port: int

    @asynccontextmanager
    async def source(self, store: Path, relay: Relay) -> AsyncIterator[SftpSource]:
        (self.made / "known_hosts").write_text(known_host(self.made, relay.port))
        source = SftpSource("127.0.0.1", str(store), self.settings, port=relay.port)
        try:
            async with asyncio.timeout(60):
                yield source
        finally:
            await source.close()


@pytest.fixture
def far(made: Path, ssh: tuple[BackfillSection, int]) -> Far:
    return Far(made, *ssh)


async def test_folders_of_a_far_host_are_listed_many_at_once_and_each_once(
    far: Far,
    store: Path,
    names: list[str],
    scans: dict[str, Any],
) -> None:
    with Relay(far.port, delay_s=0.025) as relay:
        async with far.source(store, relay) as source:
            assert await all_of(source) == names
            assert 100 <= scans["most"] <= AT_ONCE
            folders = sum(1 for path in store.rglob("*") if path.is_dir())
            assert set(scans["of"].values()) == {1} and len(scans["of"]) == folders + 1
            contents = await asyncio.gather(*(source.fetch(Entry(name), 10_000) for name in names))
            assert contents == [name.encode() for name in names]


async def test_a_host_that_stops_answering_ends_a_listing_by_the_deadline_of_an_answer(
    far: Far,
    store: Path,
    scans: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("proxy.backfill.sources.sftp.WAIT_S", 0.5)
    with Relay(far.port) as relay:

        def on_scan() -> None:
            relay.is_silent = relay.is_silent or len(scans["of"]) > 100

        scans["on_scan"] = on_scan
        async with far.source(store, relay) as source:
            async with asyncio.timeout(20):  # far less than what SSH itself takes to see it
                with pytest.raises(SftpError, match="sftp://127"):
                    await all_of(source)
            await until(lambda: "_Walk._list" not in repr(asyncio.all_tasks()))


async def test_a_file_that_does_not_come_in_time_is_one_file_and_others_are_asked_for_again(
    far: Far,
    store: Path,
    names: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("proxy.backfill.sources.sftp.whole_s", lambda most: 0.5 if most == 1000 else 20.0)
    with Relay(far.port) as relay:
        async with far.source(store, relay) as source:
            assert await source.fetch(Entry(names[0]), 10_000) == names[0].encode()
            relay.silence()  # this line; another one may be had
            hanging, waiting = await asyncio.gather(
                source.fetch(Entry(names[1]), 1000), source.fetch(Entry(names[2]), 2000)
            )
            assert isinstance(hanging, Unreadable) and hanging.may_pass and "in time" in hanging.reason
            assert waiting == names[2].encode()
            assert relay.connections == 3  # and the one to look round
            relay.is_silent = True
            monkeypatch.setattr("proxy.backfill.sources.sftp.WAIT_S", 0.5)
            async with asyncio.timeout(20):
                with pytest.raises(SftpError):
                    await source.fetch(Entry(names[3]), 1000)


async def test_a_line_that_is_cut_costs_neither_a_listing_nor_a_file(
    far: Far,
    store: Path,
    names: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("proxy.backfill.sources.pages._SOON_S", 60.0)
    with Relay(far.port) as relay:
        async with far.source(store, relay) as source:
            first = await source.page(None)
            relay.cut()
            second = await source.page(first.next)
            listed = [entry.place for page in (first, second) for entry in page.entries]
            assert len(first.entries) == 100 and listed == names[: len(listed)]
            relay.cut()
            assert await source.fetch(first.entries[7], 10_000) == names[7].encode()


async def test_a_file_that_has_become_a_link_is_not_followed_over_ssh(far: Far, tmp_path: Path) -> None:
    (tmp_path / "a.png").symlink_to("/etc/passwd")
    (tmp_path / "b").symlink_to("/etc")
    with Relay(far.port) as relay:
        async with far.source(tmp_path, relay) as source:
            assert await all_of(source) == []
            assert isinstance(await source.fetch(Entry("a.png"), 10_000), Unreadable)
            shutil.rmtree(tmp_path)
            with pytest.raises(SftpError, match="FileNotFoundError"):
                await source.page(None)


@pytest.mark.parametrize("failure", ["hangs", "fails"])
async def test_a_folder_that_cannot_be_listed_is_one_folder_and_others_are_asked_for_again(
    failure: str,
    far: Far,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("proxy.backfill.sources.sftp.WAIT_S", 1.5)
    for number in range(40):
        (tmp_path / f"{number:02}").mkdir()
        (tmp_path / f"{number:02}" / "a.png").write_bytes(b"look")
    true_scandir, bad = asyncssh.SFTPClient.scandir, {os.fsencode(tmp_path / "20")}
    held: set[asyncssh.SFTPClient] = set()

    async def scandir(self: asyncssh.SFTPClient, path: bytes) -> AsyncIterator[Any]:
        if path in bad and failure == "fails":
            raise asyncssh.SFTPFailure("Input/output error")
        if path in bad:
            held.add(self)
        if self in held:  # OpenSSH answers one after the other
            await self.wait_closed()
            raise asyncssh.SFTPConnectionLost("hung up")
        async for one in true_scandir(self, path):
            yield one

    monkeypatch.setattr(asyncssh.SFTPClient, "scandir", scandir)
    with Relay(far.port) as relay:
        async with far.source(tmp_path, relay) as source:
            entries = await entries_of(source)
            expected = [f"{number:02}/a.png" if number != 20 else "20" for number in range(40)]
            assert [entry.place for entry in entries] == expected
            given_up = await source.fetch(entries[20], 10_000)
            assert isinstance(given_up, Unreadable) and given_up.may_pass
            bad.add(os.fsencode(tmp_path))
            with pytest.raises(SftpError, match="the folder cannot be listed"):
                await source.page(None)


async def test_files_that_do_not_come_hold_up_no_listing(
    far: Far,
    store: Path,
    names: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("proxy.backfill.sources.sftp.WAIT_S", 3.0)
    with Relay(far.port) as relay:
        async with far.source(store, relay) as source:
            assert await source.fetch(Entry(names[0]), 10_000) == names[0].encode()
            relay.silence()  # the line of the files
            fetching = asyncio.ensure_future(source.fetch(Entry(names[1]), 10_000))
            assert await all_of(source) == names
            assert not fetching.done() and relay.connections == 2
            fetching.cancel()


async def test_a_run_that_stops_does_not_wait_for_a_mute_host_to_close_a_file(
    far: Far,
    store: Path,
    names: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("proxy.backfill.sources.sftp._TIDY_S", 0.2)
    is_reading, true_read = asyncio.Event(), asyncssh.SFTPClientFile.read
    with Relay(far.port) as relay:

        async def read(self: asyncssh.SFTPClientFile, size: int) -> Any:
            relay.silence()
            is_reading.set()
            return await true_read(self, size)

        monkeypatch.setattr(asyncssh.SFTPClientFile, "read", read)
        async with far.source(store, relay) as source:
            fetching = asyncio.ensure_future(source.fetch(Entry(names[0]), 40_000_000))
            await is_reading.wait()
            fetching.cancel()
            await asyncio.wait({fetching}, timeout=20)  # of three quarters of an hour
            assert fetching.cancelled()


async def test_a_new_connection_without_a_client_is_not_taken_for_one_with_the_old_client(
    far: Far,
    store: Path,
    names: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    true_start, failed = asyncssh.SSHClientConnection.start_sftp_client, []

    async def start(self: asyncssh.SSHClientConnection) -> asyncssh.SFTPClient:
        if failed:
            return await true_start(self)
        failed.append(self)
        raise asyncssh.ConnectionLost("not now")

    with Relay(far.port) as relay:
        async with far.source(store, relay) as source:
            assert await source.fetch(Entry(names[0]), 10_000) == names[0].encode()
            relay.cut()
            monkeypatch.setattr(asyncssh.SSHClientConnection, "start_sftp_client", start)
            assert await source.fetch(Entry(names[1]), 10_000) == names[1].encode()
            await until(failed[0].is_closed)


async def test_a_connection_that_cannot_be_had_is_tried_once_for_all_who_wait_and_not_after_the_end() -> None:
    dialed = []

    async def dial() -> Any:
        dialed.append(len(dialed))
        await asyncio.sleep(0.05)
        raise ConnectionRefusedError

    line = Line(dial)
    answers = await asyncio.gather(*(line.connected() for _ in range(100)), return_exceptions=True)
    assert {type(answer) for answer in answers} == {ConnectionRefusedError} and dialed == [0]
    waiting = asyncio.ensure_future(line.connected())
    await until(lambda: len(dialed) == 2)
    await line.close()
    await asyncio.wait({waiting}, timeout=10)
    assert waiting.done()
    with pytest.raises(ConnectionAbortedError):
        await line.connected()
    assert len(dialed) == 2


async def test_names_that_are_no_utf8_are_listed_escaped_and_read_by_their_bytes(
    far: Far, tmp_path: Path
) -> None:
    root = os.fsencode(tmp_path)
    (tmp_path / os.fsdecode(b"b\xff")).mkdir()
    for name in (b"a\xe9.png", b"b\xff/c.png", rb"d\xe9.png", "ü.png".encode()):
        with open(root + b"/" + name, "wb") as file:  # noqa: PTH123 — a path of bytes
            file.write(name)
    with Relay(far.port) as relay:
        async with far.source(tmp_path, relay) as source:
            places = await all_of(source)
            assert places == [r"a\xe9.png", r"b\xff/c.png", r"d\xe9.png", "ü.png"]
            contents = [await source.fetch(Entry(place), 100) for place in places]
            assert contents == [b"a\xe9.png", b"b\xff/c.png", rb"d\xe9.png", "ü.png".encode()]
