"""An S3 store that is far away, slow, or stops answering: how it is read then."""

from __future__ import annotations

import asyncio
import itertools
import logging
import subprocess
import sys
import threading
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import boto3
import pytest
from pydantic import SecretStr

from proxy.backfill.options import Options
from proxy.backfill.sources import Entry, Unreadable
from proxy.backfill.sources.opening import opened
from proxy.backfill.sources.s3 import S3Error, S3Source
from proxy.pictrs import Pictrs
from proxy.sections import BackfillSection
from tests.fake import Asked, Fake, Reply
from tests.stores import all_of, s3_server, until


def s3_at(url: str) -> BackfillSection:
    return BackfillSection(
        s3_endpoint=url, s3_region="us-east-1", s3_access_key="key", s3_secret_key=SecretStr("secret")
    )


def listing(asked: Asked, keys: list[str]) -> Reply:
    """What a bucket with these keys answers."""
    query = {name: values[0] for name, values in parse_qs(urlsplit(asked.target).query).items()}
    after, prefix, most = query.get("start-after", ""), query.get("prefix", ""), int(query["max-keys"])
    left = [key for key in keys if key > after and key.startswith(prefix)]
    contents = "".join(f"<Contents><Key>{key}</Key><Size>4</Size></Contents>" for key in left[:most])
    is_truncated = str(len(left) > most).lower()
    body = f"<ListBucketResult><IsTruncated>{is_truncated}</IsTruncated>{contents}</ListBucketResult>"
    return Reply(200, body.encode(), {"Content-Type": "application/xml"})


def error(status: int, code: str) -> Reply:
    return Reply(status, f"<Error><Code>{code}</Code></Error>".encode(), {"Content-Type": "application/xml"})


def test_where_amazon_keeps_a_bucket_elsewhere_its_objects_are_signed_for_there() -> None:
    from moto import mock_aws

    elsewhere = s3_at("http://127.0.0.1:9").model_copy(update={"s3_endpoint": None})
    with mock_aws():
        client = boto3.client("s3", "us-east-1", aws_access_key_id="key", aws_secret_access_key="secret")
        client.create_bucket(
            Bucket="far-away", CreateBucketConfiguration={"LocationConstraint": "eu-central-1"}
        )
        signed = parse_qs(urlsplit(S3Source("far-away", "", elsewhere)._sign("a.png")).query)
    assert "/eu-central-1/s3/" in signed["X-Amz-Credential"][0]


async def test_what_opens_a_picture_is_in_no_log_whatever_its_level(caplog: pytest.LogCaptureFixture) -> None:
    fake = Fake(lambda asked: Reply(200, b"look"))
    caplog.set_level(logging.DEBUG)
    source = S3Source("bucket", "", s3_at(fake.url))
    assert await source.fetch(Entry("a.png"), 4) == b"look"
    await source.close()
    (asked,) = fake.asked
    (signature,) = parse_qs(urlsplit(asked.target).query)["X-Amz-Signature"]
    assert signature not in caplog.text and "X-Amz-Credential" not in caplog.text
    fake.close()


_ASKS_FOR_A_SECOND = """
import asyncio, sys
from contextlib import suppress
from tests.test_backfill_s3 import S3Source, s3_at

async def main():
    source = S3Source("bucket", "", s3_at(sys.argv[1]))
    with suppress(TimeoutError):
        async with asyncio.timeout(1):
            await source.page(None)
    await source.close()

asyncio.run(main())
"""


def test_a_listing_without_an_end_keeps_no_program_from_ending() -> None:
    may_go = threading.Event()

    def answer(_: Asked) -> Reply:
        may_go.wait(100)
        return Reply(200)

    fake = Fake(answer)
    command = [sys.executable, "-c", _ASKS_FOR_A_SECOND, fake.url]
    subprocess.run(command, check=True, timeout=25, cwd=Path(__file__).parents[1])  # boto3 waits for 30 s
    may_go.set()
    fake.close()


async def test_sixty_four_objects_are_on_their_way_at_once_and_a_listing_comes_through() -> None:
    counting, on_their_way, may_go = threading.Lock(), itertools.count(1), threading.Event()
    most = [0]

    def answer(asked: Asked) -> Reply:
        if "list-type" in asked.target:
            return listing(asked, ["a.png"])
        with counting:
            most[0] = next(on_their_way)
        may_go.wait(30)
        return Reply(200, b"look")

    fake = Fake(answer)
    source = S3Source("bucket", "", s3_at(fake.url))
    fetching = [asyncio.ensure_future(source.fetch(Entry(f"{number}.png"), 4)) for number in range(100)]
    await until(lambda: most[0] == 64)
    assert await all_of(source) == ["a.png"]
    assert most[0] == 64
    may_go.set()
    assert await asyncio.gather(*fetching) == [b"look"] * 100
    await source.close()
    fake.close()


async def test_keys_are_listed_a_thousand_at_once_and_a_prefix_goes_to_the_store() -> None:
    keys = [f"store/{number:04}.png" for number in range(2500)]
    fake = Fake(lambda asked: listing(asked, [*keys, "zoo/a.png"]))
    pictrs = Pictrs("http://127.0.0.1:9", "key", 1.0)
    for options, expected, requests in (
        (Options(source="s3://bucket/store/"), keys, 3),
        (Options(source="s3://bucket/store/", prefix="store/01"), keys[100:200], 1),
        (Options(source="s3://bucket/store/", prefix="store"), keys, 3),
        # What is outside of the source is not listed, whatever else is asked for.
        (Options(source="s3://bucket/store/", prefix="zoo"), keys, 3),
    ):
        fake.asked.clear()
        source = opened(options, s3_at(fake.url), pictrs)
        first = await source.page(None)
        assert len(first.entries) == 100
        assert await all_of(source) == expected
        assert len(fake.asked) == requests + 1  # of the first page, which was asked for twice
        await source.close()
    await pictrs.close()
    fake.close()


@pytest.mark.parametrize("where", ["head", "body"])
async def test_an_object_that_comes_drop_by_drop_is_given_up(
    where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("proxy.backfill.sources.s3.whole_s", lambda _: 1.5)
    is_hung_up, is_open = asyncio.Event(), True

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            request = await reader.readuntil(b"\r\n\r\n")
        except asyncio.IncompleteReadError:  # nobody asks any more
            request = b""
        if b"list-type=2" in request:
            status, body = ("200 OK", b"<ListBucketResult/>") if is_open else ("403 No", b"")
            writer.write(f"HTTP/1.1 {status}\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body)
        else:
            writer.write(b"HTTP/1.1 200 OK\r\n")
            if where == "body":
                writer.write(b"Content-Length: 1000000\r\n\r\n")
            while not (reader.at_eof() or writer.transport.is_closing()):  # hung up on, in either way
                writer.write(b"x")
                await asyncio.sleep(0.02)
            is_hung_up.set()
        writer.close()

    async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        source = S3Source("bucket", "", s3_at(f"http://127.0.0.1:{port}"))
        async with asyncio.timeout(60):
            given_up = await source.fetch(Entry("a.png"), 2_000_000)
            assert isinstance(given_up, Unreadable) and given_up.may_pass and "in time" in given_up.reason
            await is_hung_up.wait()
            is_open = False
            with pytest.raises(S3Error, match="403"):
                await source.fetch(Entry("a.png"), 2_000_000)
        await source.close()


async def test_an_object_is_asked_for_again_where_the_store_is_busy_and_not_where_it_refuses(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("proxy.backfill.sources.s3._PAUSES_S", (0.0, 0.0))
    answers = [error(503, "SlowDown"), Reply(200, b"look", cut=True), Reply(200, b"look")]
    refused = [error(403, "AccessDenied")]
    busy = [error(503, "SlowDown")] * 3
    given: list[Reply] = []
    fake = Fake(lambda asked: listing(asked, []) if "list-type" in asked.target else given.pop(0))
    source = S3Source("bucket", "", s3_at(fake.url))
    for replies, expected in (
        (answers, b"look"),
        (refused, Unreadable("the store answered AccessDenied")),
        (busy, Unreadable("the store answered SlowDown", may_pass=True)),
    ):
        given[:] = replies
        assert await source.fetch(Entry("a.png"), 4) == expected
        assert given == []
    await source.close()
    fake.close()


async def test_odd_keys_are_asked_for_as_they_are() -> None:
    keys = ["a b+c%41/./..x/ü&?#.png", "a//b.png", "=;,'()!~*.png"]
    with s3_server() as (settings, client):
        client.create_bucket(Bucket="odd")
        for key in keys:
            client.put_object(Bucket="odd", Key=key, Body=key.encode())
        source = S3Source("odd", "", settings)
        assert sorted(await all_of(source)) == sorted(keys)
        contents = [await source.fetch(Entry(key), 100) for key in keys]
        assert contents == [key.encode() for key in keys]
        await source.close()
