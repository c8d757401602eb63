"""An S3-compatible store, for which the extra `s3` is needed. It is listed and read, nothing else."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from proxy.backfill.sources import Entry, Page, Unreadable
from proxy.backfill.sources.names import may_be_media, time_in
from proxy.errors import ConfigError, GateError
from proxy.sections import BackfillSection

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

_PAGE = 100
_CONNECTIONS = 64
_WAIT_S = 30.0
_PIECE = 256 * 1024


class S3Error(GateError):
    """The store cannot be reached or does not let the gate in."""


class S3Source:
    """In the order of the keys, which in pict-rs's own layout is that of their coming."""

    def __init__(self, bucket: str, prefix: str, settings: BackfillSection) -> None:
        """
        Raises:
            ConfigError: the extra is not installed.
        """
        try:
            import boto3
            from botocore.config import Config
        except ImportError:
            raise ConfigError("--source s3: needs boto3; pip install 'pictrs-gate[s3]'") from None
        key, secret = settings.s3_access_key, settings.s3_secret_key
        # Without keys of ours: those of the environment, of ~/.aws, of the machine.
        self._client: S3Client = boto3.client(
            "s3",
            endpoint_url=settings.s3_endpoint,
            region_name=settings.s3_region,
            aws_access_key_id=key,
            aws_secret_access_key=secret.get_secret_value() if secret else None,
            config=Config(
                connect_timeout=_WAIT_S,
                read_timeout=_WAIT_S,
                max_pool_connections=_CONNECTIONS,
                retries={"total_max_attempts": 4, "mode": "standard"},
                s3={"addressing_style": "path"} if settings.s3_endpoint else {},
            ),
        )
        self._bucket, self._prefix = bucket, prefix
        self._threads = asyncio.Semaphore(_CONNECTIONS)

    async def page(self, at: str | None) -> Page:
        """See `Source.page`. `at` is the last key before it.

        Raises:
            S3Error: the store cannot be asked.
        """
        return await asyncio.to_thread(self._page, at)

    async def fetch(self, entry: Entry, most: int) -> bytes | Unreadable:
        """See `Source.fetch`.

        Raises:
            S3Error: the store cannot be asked any more.
        """
        async with self._threads:
            return await asyncio.to_thread(self._read, entry.place, most)

    async def close(self) -> None:
        """Gives back its connections."""
        self._client.close()

    def _page(self, after: str | None) -> Page:
        from botocore.exceptions import BotoCoreError, ClientError

        try:
            listed = self._client.list_objects_v2(
                Bucket=self._bucket, Prefix=self._prefix, StartAfter=after or "", MaxKeys=_PAGE
            )
        except (BotoCoreError, ClientError) as error:
            raise S3Error(f"s3://{self._bucket}: {_in_words(error)}") from None
        found = listed.get("Contents", [])
        entries = [
            Entry(
                one["Key"],
                one.get("Size", 0),
                at=time_in(one["Key"]) or one.get("LastModified"),
                mark=one.get("ETag", ""),
            )
            for one in found
            if may_be_media(one["Key"])
        ]
        return Page(entries, found[-1]["Key"] if found and listed.get("IsTruncated") else None)

    def _read(self, key: str, most: int) -> bytes | Unreadable:
        from botocore.exceptions import BotoCoreError, ClientError

        try:
            body = self._client.get_object(Bucket=self._bucket, Key=key)["Body"]
            content = bytearray()
            with body:
                for piece in body.iter_chunks(_PIECE):
                    content += piece
                    if len(content) > most:
                        return Unreadable(f"it has more than {most} bytes now")
        except (BotoCoreError, ClientError) as error:
            status = _status(error)
            if status != 404:
                self._page(None)  # it is gone or lets nobody in, which this raises, or it is this one file
            return Unreadable(_in_words(error), status is None or status == 429 or status >= 500)
        return bytes(content)


def _status(error: Exception) -> int | None:
    """The HTTP status of an answer; None where there was none."""
    status = getattr(error, "response", {}).get("ResponseMetadata", {}).get("HTTPStatusCode")
    return status if isinstance(status, int) else None


def _in_words(error: Exception) -> str:
    """The code of an answer, or the kind of failure; never a store's own words, which may hold a key."""
    answer = getattr(error, "response", {}).get("Error", {})
    return f"the store answered {answer['Code']}" if "Code" in answer else type(error).__name__
