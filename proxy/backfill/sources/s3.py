"""An S3-compatible store, for which the extra `s3` is needed. It is listed and read, nothing else.

boto3 lists, and signs the URL of each object, which aiohttp reads: boto3 would take a thread for each, and
nothing ends one where the store gives a byte now and then.
"""

from __future__ import annotations

import asyncio
import io
import logging
import re
import ssl
import threading
from collections.abc import AsyncGenerator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import TYPE_CHECKING, TypeVar, cast

import aiohttp
from yarl import URL

from proxy.backfill.sources import Entry, Page, Unreadable
from proxy.backfill.sources.names import may_be_media, time_in
from proxy.backfill.sources.pages import Pages
from proxy.backfill.sources.waiting import WAIT_S, whole_s
from proxy.errors import ConfigError, GateError
from proxy.sections import BackfillSection

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client
    from mypy_boto3_s3.type_defs import ListObjectsV2OutputTypeDef

_LISTED = 1000  # keys, the most that S3 gives at once
_AT_ONCE = 64  # objects
_PIECE = 256 * 1024
_PAUSES_S = (0.5, 2.0)  # before it is tried again
_SIGNED_S = 900  # how long a URL is good; clocks may differ a little
_CODE = re.compile(rb"<Code>(\w{1,64})</Code>")

T = TypeVar("T")


class S3Error(GateError):
    """The store cannot be reached or does not let the gate in."""


class S3Source:
    """In the order of the keys, which in pict-rs's own layout is that of their coming."""

    def __init__(self, bucket: str, prefix: str, settings: BackfillSection) -> None:
        """
        Args:
            prefix: of the keys that are listed.

        Raises:
            ConfigError: the extra is not installed.
        """
        self._settings = settings
        self._client = self._connected(settings.s3_region)
        self._signer: S3Client | None = None
        self._bucket, self._prefix = bucket, prefix
        self._signing = ThreadPoolExecutor(1, "s3-signing")
        self._reading = asyncio.Semaphore(_AT_ONCE)
        self._session: aiohttp.ClientSession | None = None
        self._pages = Pages(self._listed)
        self._checking = asyncio.Lock()
        self._was_there_at = 0.0

    async def page(self, at: str | None) -> Page:
        """See `Source.page`. `at` is the last key before it.

        Raises:
            S3Error: the store cannot be asked.
        """
        return await self._pages.page(at)

    async def fetch(self, entry: Entry, most: int) -> bytes | Unreadable:
        """See `Source.fetch`.

        Raises:
            S3Error: the store cannot be asked any more.
        """
        async with self._reading:
            due = asyncio.get_running_loop().time() + whole_s(most)
            for pause_s in (*_PAUSES_S, None):
                try:
                    async with asyncio.timeout_at(due):
                        status, content = await self._read(entry.place, most)
                except TimeoutError:
                    status, content = None, Unreadable("the store did not give it in time", may_pass=True)
                    pause_s = None
                if status in (200, 404):
                    return content
                await self._check()  # it is gone or lets nobody in, which this raises, or it is this one file
                if pause_s is None or status == 403:
                    break
                await asyncio.sleep(pause_s)
        return content

    async def close(self) -> None:
        """Gives back its connections."""
        await self._pages.close()
        self._signing.shutdown(wait=False, cancel_futures=True)
        self._client.close()
        if self._session is not None:
            await self._session.close()

    def _connected(self, region: str | None) -> S3Client:
        """
        Raises:
            ConfigError: the extra is not installed.
        """
        try:
            import boto3
            from botocore.config import Config
        except ImportError:
            raise ConfigError("--source s3: needs boto3; pip install 'pictrs-gate[s3]'") from None
        for name in ("boto3", "botocore", "urllib3"):  # a signed URL is the picture to whoever reads it
            logging.getLogger(name).setLevel(logging.WARNING)
        key, secret = self._settings.s3_access_key, self._settings.s3_secret_key
        # Without keys of ours: those of the environment, of ~/.aws, of the machine.
        return boto3.client(
            "s3",
            endpoint_url=self._settings.s3_endpoint,
            region_name=region,
            aws_access_key_id=key,
            aws_secret_access_key=secret.get_secret_value() if secret else None,
            config=Config(
                connect_timeout=WAIT_S,
                read_timeout=WAIT_S,
                signature_version="s3v4",
                retries={"total_max_attempts": 4, "mode": "standard"},
                s3={"addressing_style": "path"} if self._settings.s3_endpoint else {},
            ),
        )

    # --- listing ---

    async def _listed(self, after: str | None) -> AsyncGenerator[Entry]:
        is_over = False
        while not is_over:
            listed = await self._list(after or "", _LISTED)
            found = listed.get("Contents", [])
            for one in found:
                if may_be_media(one["Key"]):
                    at = time_in(one["Key"]) or one.get("LastModified")
                    yield Entry(one["Key"], one.get("Size", 0), at=at, mark=one.get("ETag", ""))
            is_over = not found or not listed.get("IsTruncated")
            after = found[-1]["Key"] if found else after

    async def _list(self, after: str, most: int) -> ListObjectsV2OutputTypeDef:
        from botocore.exceptions import BotoCoreError, ClientError

        try:
            async with asyncio.timeout(4 * WAIT_S):
                return await _in_a_thread(
                    lambda: self._client.list_objects_v2(
                        Bucket=self._bucket, Prefix=self._prefix, StartAfter=after, MaxKeys=most
                    )
                )
        except (BotoCoreError, ClientError, TimeoutError) as error:
            # Never a store's own words, which may hold a key.
            answer = getattr(error, "response", {}).get("Error", {})
            words = f"the store answered {answer['Code']}" if "Code" in answer else type(error).__name__
            raise S3Error(f"s3://{self._bucket}: {words}") from None

    async def _check(self) -> None:
        """Whether the store is there. One request tells all that ask meanwhile.

        Raises:
            S3Error: it is not.
        """
        asked_at = asyncio.get_running_loop().time()
        async with self._checking:
            if self._was_there_at < asked_at:
                now = asyncio.get_running_loop().time()
                await self._list("", 1)
                self._was_there_at = now

    # --- reading ---

    async def _read(self, key: str, most: int) -> tuple[int | None, bytes | Unreadable]:
        """An object or why not, and the status of the answer; None where there was none."""
        from botocore.exceptions import BotoCoreError, ClientError
        from botocore.utils import get_environ_proxies

        try:
            signed = await asyncio.get_running_loop().run_in_executor(self._signing, self._sign, key)
            url = URL(signed, encoded=True)
            proxy = get_environ_proxies(signed).get(url.scheme)
            async with self._opened().get(url, allow_redirects=False, proxy=proxy) as answer:
                read = io.BytesIO()  # gives its bytes away without a copy
                async for piece in answer.content.iter_chunked(_PIECE):
                    read.write(piece)
                    if read.tell() > (most if answer.status == 200 else _PIECE):
                        break
        except (aiohttp.ClientError, OSError, BotoCoreError, ClientError) as error:
            return None, Unreadable(type(error).__name__, may_pass=True)
        if answer.status != 200:
            code = _CODE.search(read.getvalue())
            reason = f"the store answered {code[1].decode() if code else answer.status}"
            return answer.status, Unreadable(reason, answer.status == 429 or answer.status >= 500)
        if read.tell() > most:
            return 200, Unreadable(f"it has more than {most} bytes now")
        return 200, read.getvalue()

    def _opened(self) -> aiohttp.ClientSession:
        if self._session is None:
            import botocore.session
            from botocore.httpsession import get_cert_path

            # Whom boto3 believes.
            authorities = botocore.session.get_session().get_config_variable("ca_bundle") or get_cert_path(
                True
            )
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(
                    limit=_AT_ONCE, ssl=ssl.create_default_context(cafile=authorities)
                ),
                timeout=aiohttp.ClientTimeout(total=None, sock_connect=WAIT_S, sock_read=WAIT_S),
                cookie_jar=aiohttp.DummyCookieJar(),
                auto_decompress=False,
                headers={"Accept-Encoding": "identity"},
            )
        return self._session

    def _sign(self, key: str) -> str:
        if self._signer is None:
            self._signer = self._in_its_region()
        named = {"Bucket": self._bucket, "Key": key}
        return self._signer.generate_presigned_url("get_object", Params=named, ExpiresIn=_SIGNED_S)

    def _in_its_region(self) -> S3Client:
        """boto3 is led to Amazon's region of a bucket; a URL has to be signed for it from the first."""
        from botocore.exceptions import ClientError

        if self._settings.s3_endpoint is not None:
            return self._client
        try:
            told = self._client.head_bucket(Bucket=self._bucket)["ResponseMetadata"]
        except ClientError:
            return self._client
        region = told["HTTPHeaders"].get("x-amz-bucket-region")
        return self._connected(region) if region else self._client


async def _in_a_thread(work: Callable[[], T]) -> T:
    """The result of `work`, in a thread that keeps no program from ending: answers may have no end."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[T] = loop.create_future()

    def settle(result: T | None, error: Exception | None) -> None:
        if future.done():
            return
        if error is not None:
            future.set_exception(error)
        else:
            future.set_result(cast(T, result))

    def run() -> None:
        try:
            outcome: tuple[T | None, Exception | None] = (work(), None)
        except Exception as error:  # noqa: BLE001 — whoever waits has it
            outcome = (None, error)
        with suppress(RuntimeError):  # the loop is closed, and nobody waits
            loop.call_soon_threadsafe(settle, *outcome)

    threading.Thread(target=run, name="s3-listing", daemon=True).start()
    return await future
