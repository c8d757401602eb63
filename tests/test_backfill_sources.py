"""Stores that are read directly: pict-rs's own folder, the same in S3, the same behind SSH."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from proxy.backfill.options import Options
from proxy.backfill.run import Work, pages_of
from proxy.backfill.sources import Entry, Source, Unreadable
from proxy.backfill.sources.files import FilesSource
from proxy.backfill.sources.names import may_be_media, time_in
from proxy.backfill.sources.opening import checked, opened
from proxy.backfill.sources.pictrs import PictrsSource
from proxy.backfill.sources.s3 import S3Error, S3Source
from proxy.backfill.sources.sftp import SftpError, SftpSource
from proxy.database import BackfillRun, Database
from proxy.database import backfill as runs
from proxy.errors import ConfigError
from proxy.media import Kind
from proxy.pictrs import Pictrs
from proxy.sections import BackfillSection
from proxy.stored import stored_as
from tests import pictrs, pictures
from tests.backfill import Eye, Store, means
from tests.client import form, send, upload
from tests.fake import Asked, Fake, Reply, json_reply
from tests.stores import s3_server, ssh_host

HIT = pictures.png((90, 60), seed=761)  # a PNG without metadata, which pict-rs keeps as it is
OTHERS = [
    pictures.jpeg((80, 60)),
    pictures.animation(),
    pictures.video(),
    pictures.encode(pictures.draw(), "WEBP"),
]


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[pictrs.Pictrs]:
    """A pict-rs with a file of two aliases, and others of all kinds."""
    made = pictrs.Pictrs(tmp_path_factory.mktemp("pictrs"), real=pictrs.find())
    for name in ("first-name.png", "second-name.png"):
        content_type, body = form([(name, HIT)])
        headers = {"Content-Type": content_type, "X-Api-Token": made.api_key}
        assert send(made.url, "POST", "/internal/import", headers=headers, body=body).status == 201
    for content in OTHERS:
        assert upload(made.url, content).status == 201
    yield made
    made.stop()


@pytest.fixture(scope="module")
def folder(running: pictrs.Pictrs, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its store with more in it: a broken picture, one that is none, a link, somebody's note.

    The stand-in has no store on the disk; what it would have is put there.
    """
    copy = tmp_path_factory.mktemp("copy") / "files"
    if running.is_real:
        shutil.copytree(running.store, copy)
    else:
        for number, content in enumerate([HIT, *OTHERS]):
            at = copy / f"01/a2/04/52/00/5c/74/1e/a4/1c/03d2324eb5b{number}.png"
            at.parent.mkdir(parents=True, exist_ok=True)
            at.write_bytes(content)
    (copy / "ff").mkdir()
    (copy / "ff" / "empty.png").write_bytes(b"")
    (copy / "ff" / "text.png").write_bytes(b"no picture")
    (copy / "ff" / "notes.txt").write_bytes(b"a note")
    (copy / "ff" / "link.png").symlink_to("/etc/passwd")
    (copy / "gg").symlink_to("/etc")
    return copy


@asynccontextmanager
async def client_of(running: pictrs.Pictrs) -> AsyncIterator[Pictrs]:
    client = Pictrs(running.url, running.api_key, 30.0)
    yield client
    await client.close()


async def gone_over(database: Database, source: Source, running: pictrs.Pictrs | None = None) -> BackfillRun:
    """A whole run over `source`, which takes `HIT` for one."""
    import asyncio
    import dataclasses

    run = runs.begin(database, kind="run", options=Options(source="files:/x").to_json(), newest=None)
    async with (
        means(database, Store(0), Eye({HIT: 0.9}), budget=2**25) as made,
        client_of(running or UNREACHABLE) as client,
    ):
        made = dataclasses.replace(
            made,
            source=source,
            largest=2**24,
            resolve=lambda sha256, size: stored_as(client, sha256, size),
        )
        work = Work(
            made,
            run,
            Options.from_json(run.options),
            ensembles=frozenset({"eye 1"}),
            stop=asyncio.Event(),
            on_batch=lambda _: None,
        )
        assert await work.over(pages_of(source, None))
    await source.close()
    return runs.record(database, run.id, runs.Batch(), finished=True)


class _Unreachable:
    url, api_key = "http://127.0.0.1:9", "key"


UNREACHABLE: Any = _Unreachable()


def check(database: Database, run: BackfillRun, running: pictrs.Pictrs) -> None:
    """That a run has found the hit with its aliases, looked at all others, and listed what is none."""
    (hit,) = runs.hits_of(database, run.id)
    assert (hit.aliases, hit.signals) == (["first-name.png", "second-name.png"], {"sexual": 0.9})
    assert len(hit.hex) == 78 and hit.stored_at is not None
    # pict-rs keeps a still picture beside a video, as a variant of it.
    assert run.looked_at >= 1 + len(OTHERS)
    lost = {file.place.rpartition("/")[2]: file.reason for file in runs.unreadable_of(database, run.id)}
    assert set(lost) == {"empty.png", "text.png"}


async def test_pict_rs_s_own_folder(database: Database, folder: Path, running: pictrs.Pictrs) -> None:
    before = {path: (path.stat().st_mtime_ns, path.stat().st_atime_ns) for path in folder.rglob("*.png")}
    run = await gone_over(database, FilesSource(folder), running)
    check(database, run, running)
    assert {path: path.stat().st_mtime_ns for path in before} == {path: at[0] for path, at in before.items()}
    again = await gone_over(database, FilesSource(folder), running)
    assert (again.looked_at, again.reused) == (0, run.looked_at)
    assert [hit.aliases for hit in runs.hits_of(database, again.id)] == [
        ["first-name.png", "second-name.png"]
    ]


async def test_where_pict_rs_is_away_a_hit_has_its_place(database: Database, folder: Path) -> None:
    run = await gone_over(database, FilesSource(folder))
    (hit,) = runs.hits_of(database, run.id)
    assert hit.aliases == [] and (folder / hit.place).read_bytes() == HIT


async def test_a_folder_is_listed_page_by_page_each_file_once(tmp_path: Path) -> None:
    names = [f"{a:02x}/{b:02x}/{c}.png" for a in range(5) for b in range(9) for c in range(7)]
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    source, at, listed = FilesSource(tmp_path), None, []
    while True:
        page = await source.page(at)
        listed += [entry.place for entry in page.entries]
        if page.next is None:
            break
        at = page.next
    assert listed == sorted(names)


async def test_a_name_that_is_no_text_is_looked_at_and_what_may_not_be_read_is_listed(
    database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "closed").mkdir()
    (tmp_path / "closed" / "a.png").write_bytes(OTHERS[0])
    (tmp_path / "open").mkdir()
    (tmp_path / "open" / os.fsdecode(b"\xff.png")).write_bytes(HIT)
    true_scandir = os.scandir

    def scandir(folder: Path) -> Any:  # root may read everything
        if Path(folder).name == "closed":
            raise PermissionError(errno.EACCES, "Permission denied")
        return true_scandir(folder)

    monkeypatch.setattr("proxy.backfill.sources.files.os.scandir", scandir)
    run = await gone_over(database, FilesSource(tmp_path))
    (hit,) = runs.hits_of(database, run.id)
    assert hit.place == "open/\\xff.png"
    assert [lost.place for lost in runs.unreadable_of(database, run.id)] == ["closed"]
    with pytest.raises(ConfigError, match="Permission denied"):
        await FilesSource(tmp_path / "closed").page(None)


async def test_what_has_become_a_link_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "a.png").symlink_to("/etc/passwd")
    os.mkfifo(tmp_path / "b.png")
    source = FilesSource(tmp_path)
    assert [
        isinstance(await source.fetch(Entry(name), 10_000), Unreadable) for name in ("a.png", "b.png")
    ] == [
        True,
        True,
    ]
    with pytest.raises(ConfigError, match="no folder"):
        FilesSource(tmp_path / "a.png")


# --- S3 ---


@pytest.fixture(scope="module")
def s3(folder: Path) -> Iterator[BackfillSection]:
    """moto's server with the store in a bucket."""
    with s3_server() as (settings, client):
        client.create_bucket(Bucket="pictures")
        for path in folder.rglob("*"):
            if path.is_file() and not path.is_symlink() and "gg" not in path.parts:
                name = str(path.relative_to(folder))
                client.put_object(Bucket="pictures", Key=f"store/{name}", Body=path.read_bytes())
        for number in range(150):
            client.put_object(Bucket="pictures", Key=f"many/{number:03}.png", Body=b"x")
        yield settings


async def test_an_s3_store(database: Database, s3: BackfillSection, running: pictrs.Pictrs) -> None:
    check(database, await gone_over(database, S3Source("pictures", "store/", s3), running), running)


async def test_an_s3_store_is_listed_page_by_page(s3: BackfillSection) -> None:
    source = S3Source("pictures", "many/", s3)
    first = await source.page(None)
    second = await source.page(first.next)
    assert [entry.place for page in (first, second) for entry in page.entries] == [
        f"many/{number:03}.png" for number in range(150)
    ]
    assert second.next is None
    gone = await source.fetch(Entry("many/gone.png"), 10)
    large = await source.fetch(first.entries[0], 0)
    assert isinstance(gone, Unreadable) and "NoSuchKey" in gone.reason
    assert isinstance(large, Unreadable) and "more than" in large.reason
    await source.close()
    with pytest.raises(S3Error, match="NoSuchBucket"):
        await S3Source("nobody", "", s3).page(None)


# --- SSH ---


@pytest.fixture(scope="module")
def ssh(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[BackfillSection, int]]:
    """Debian's OpenSSH, which shows the same folder."""
    with ssh_host(tmp_path_factory.mktemp("ssh")) as host:
        yield host


async def test_a_store_behind_ssh(
    database: Database, folder: Path, ssh: tuple[BackfillSection, int], running: pictrs.Pictrs
) -> None:
    settings, port = ssh
    source = SftpSource("127.0.0.1", str(folder), settings, port=port)
    check(database, await gone_over(database, source, running), running)


async def test_a_host_that_is_not_known_is_not_believed(
    folder: Path, ssh: tuple[BackfillSection, int], tmp_path: Path
) -> None:
    settings, port = ssh
    (tmp_path / "none").write_text("")
    unknown = settings.model_copy(update={"sftp_known_hosts": tmp_path / "none"})
    with pytest.raises(SftpError, match="known hosts"):
        await SftpSource("127.0.0.1", str(folder), unknown, port=port).page(None)
    missing = settings.model_copy(update={"sftp_known_hosts": tmp_path / "missing"})
    with pytest.raises(ConfigError, match="no such file"):
        SftpSource("127.0.0.1", str(folder), missing, port=port)


# --- pict-rs ---


async def test_pict_rs_tells_kinds_times_and_sizes(running: pictrs.Pictrs) -> None:
    async with client_of(running) as client:
        page = await PictrsSource(client).page(None)
        assert len(page.entries) == 1 + len(OTHERS) and page.next is None
        kinds = {entry.kind for entry in page.entries}
        assert kinds == {Kind.IMAGE, Kind.ANIMATION, Kind.VIDEO}
        (hit,) = [entry for entry in page.entries if "first-name.png" in entry.aliases]
        assert (hit.size, hit.kind) == (len(HIT), Kind.IMAGE)
        assert hit.at is not None and abs((datetime.now(UTC) - hit.at).total_seconds()) < 600
        found = await stored_as(client, hit.sha256 or "", hit.size)
        assert found is not None and list(found.aliases) == list(hit.aliases)
        assert await stored_as(client, "0" * 64, 5) is None


async def test_where_the_next_page_has_begun_with_a_file_that_is_deleted_none_is_missed(
    tmp_path: Path,
) -> None:
    own = pictrs.Pictrs(tmp_path / "own", real=None, max_files=250)
    contents = [pictures.png((24, 16), seed=3000 + number) for number in range(250)]
    assert upload(own.url, *contents).status == 201
    async with client_of(own) as client:
        source = PictrsSource(client)
        everything = (await client.stored(limit=1000)).files
        first = await source.page(None)
        assert first.next is not None
        await client.delete(everything[100].aliases[0])
        listed, at = [entry.place for entry in first.entries], first.next
        while at is not None:
            page = await source.page(at)
            listed, at = [*listed, *(entry.place for entry in page.entries)], page.next
    assert set(listed) == {file.hex for number, file in enumerate(everything) if number != 100}
    own.stop()


def test_names_of_the_store_tell_a_time() -> None:
    at = time_in("01/a2/04/52/00/5c/74/1e/a4/1c/03d2324eb5b9.png")
    assert at is not None and at.year == 2026
    assert time_in("a/b.png") is None and time_in("01/a2/04/52/00/5c/44/1e/a4/1c/03d2324eb5b9.png") is None
    assert may_be_media("01/a2") and may_be_media("a/b.JPEG") and not may_be_media("a/db.sqlite")


@pytest.mark.parametrize(
    "word", ["pictrs", "s3://bucket/a/b", "s3://bucket", "sftp://me@host:2222/srv", "files:/a"]
)
def test_a_source_is_named(word: str) -> None:
    assert checked(word) == word


@pytest.mark.parametrize(
    "word", ["", "files:", "s3:///a", "sftp://host", "http://host/", "sftp://a:pw@host/srv"]
)
def test_what_names_no_source_is_refused(word: str) -> None:
    with pytest.raises(ValueError, match="must be"):
        checked(word)


async def test_opening_says_what_is_missing(tmp_path: Path) -> None:
    async with client_of(UNREACHABLE) as client:
        with pytest.raises(ConfigError, match="no folder"):
            opened(Options(source=f"files:{tmp_path}/none"), BackfillSection(), client)


async def test_a_page_is_asked_for_again_where_pict_rs_trips_over_what_it_is_deleting() -> None:
    lost = iter([True, True, False])

    def answer(_: Asked) -> Reply:
        if next(lost):
            return json_reply(
                500, {"msg": "Requested a file that pict-rs lost track of", "code": "lost-file"}
            )
        return json_reply(200, {"msg": "ok", "page": {"hashes": [], "next": None}})

    fake = Fake(answer)
    client = Pictrs(fake.url, "key", 5.0)
    assert (await client.stored(limit=1)).next is None
    await client.close()
    fake.close()
