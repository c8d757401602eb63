"""The gate's client of pict-rs, 0.5 and 0.6. Errors are told apart by `code`, never by their words."""

from __future__ import annotations

import asyncio
import base64
import enum
import json
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import aiohttp
from yarl import URL

from proxy.errors import PictrsError
from proxy.intake.multipart import Body, OutgoingFile, write
from proxy.intake.target import write_target
from proxy.sending import in_pieces

Query = Iterable[tuple[str, str]]

_LARGEST_JSON = 16 * 1024 * 1024
_CONNECT_S = 5.0
_PROBE_S = 2.0
_NOBODY = "nobody"
_LOST_PAUSES_S = (0.05, 0.2, 0.5, 1.0)
_STORED_KEY_BYTES = 39  # SHA-256, 6 bytes of size, 1 of format
# pict-rs (actix) closes an idle connection after 5 s; the gate has let go of it before.
_KEEP_ALIVE_S = 3.0


@dataclass(frozen=True, slots=True)
class Answer:
    """A whole answer of pict-rs."""

    status: int
    headers: Mapping[str, str]
    body: bytes = field(repr=False)

    def json(self) -> dict[str, Any]:
        """The JSON object that it holds, or an empty one."""
        try:
            value = json.loads(self.body)
        except ValueError:
            return {}
        return value if isinstance(value, dict) else {}


@dataclass(frozen=True, slots=True)
class StoredFile:
    """One entry of `/internal/hashes`.

    Attributes:
        hex: 39 bytes in hexadecimal: SHA-256 of the stored bytes, 6 bytes of size, 1 of format.
        aliases: every alias of the file.
        created_at: when it came, where pict-rs tells.
    """

    hex: str
    aliases: Sequence[str]
    created_at: datetime | None = None


@dataclass(frozen=True, slots=True)
class StoredPage:
    """One page of `/internal/hashes`, newest first.

    Attributes:
        current: the slug of its first entry, where it has one and pict-rs tells.
        next: the slug of the page after; None at the end.
    """

    files: Sequence[StoredFile]
    current: str | None
    next: str | None


class Entrance(enum.Enum):
    """A way by which files are stored; the value is its path."""

    UPLOAD = ("image",)
    BACKGROUNDED = ("image", "backgrounded")
    IMPORT = ("internal", "import")

    @property
    def segments(self) -> tuple[str, ...]:
        """Of its path."""
        path: tuple[str, ...] = self.value
        return path

    @property
    def is_backgrounded(self) -> bool:
        """Whether the answer promises upload ids to be claimed, rather than files."""
        return self is Entrance.BACKGROUNDED

    @property
    def names_are_aliases(self) -> bool:
        """Whether a file's name becomes its alias."""
        return self is Entrance.IMPORT

    @property
    def success(self) -> int:
        """The status that says that the files are taken."""
        return 202 if self.is_backgrounded else 201

    @property
    def bad_query_status_06(self) -> int:
        """What pict-rs 0.6 answers to a query that it cannot read."""
        return 500 if self is Entrance.UPLOAD else 400

    @property
    def listed_as(self) -> str:
        """The key of the answer that lists them in their order."""
        return "uploads" if self.is_backgrounded else "files"


class Pictrs:
    """One pict-rs. Every call ends within `timeout_s`, or within what it is given."""

    def __init__(self, url: str, api_key: str | None, timeout_s: float) -> None:
        self._url, self._api_key, self._timeout_s = url, api_key, timeout_s
        self._pooled = _session(aiohttp.TCPConnector(limit=256, keepalive_timeout=_KEEP_ALIVE_S), timeout_s)
        # Uploads are not repeated, so they must not meet a connection that pict-rs is just closing.
        self._fresh = _session(aiohttp.TCPConnector(limit=256, force_close=True), timeout_s)
        self._is_06: bool | None = None

    async def close(self) -> None:
        """Gives back all connections."""
        await self._pooled.close()
        await self._fresh.close()

    @asynccontextmanager
    async def open(
        self, method: str, target: str, *, headers: Mapping[str, str], body: bytes | None = None
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """A request passed on, its answer to be streamed.

        Args:
            target: path and query, written by `write_target`.

        Raises:
            PictrsError: no answer began within the time limit.
        """
        request = self._pooled.request(
            method, self._at(target), headers=headers, data=body, allow_redirects=False
        )
        try:
            async with asyncio.timeout(self._timeout_s):
                response = await request
        except TimeoutError:
            raise _too_late(self._timeout_s) from None
        except (aiohttp.ClientError, OSError) as error:
            raise PictrsError(f"pict-rs cannot be reached: {type(error).__name__}") from None
        async with response:
            yield response

    async def upload(
        self,
        entrance: Entrance,
        files: Sequence[OutgoingFile],
        query: Query,
        *,
        within_s: float,
        deadline: str | None = None,
    ) -> Answer:
        """Sends files in a body of the gate's own making. Any answer is returned as it is.

        Args:
            deadline: the client's own, for pict-rs to keep.

        Raises:
            PictrsError: there was none within `within_s` seconds.
        """
        headers = self._key() if entrance is Entrance.IMPORT else {}
        if deadline is not None:
            headers["X-Request-Deadline"] = deadline
        answer = await self._send(write_target(entrance.segments, query), write(files), headers, within_s)
        if answer.status == 201:
            self._is_06 = "uploads" in answer.json()
        return answer

    async def import_file(self, file: OutgoingFile, query: Query) -> dict[str, Any]:
        """`POST /internal/import`: stores `file`, whose name becomes its alias.

        Returns:
            pict-rs's entry for it: `file`, `delete_token`, `details`.

        Raises:
            PictrsError: refused (`code` says why; `duplicate-alias` where the alias is taken), or no answer.
        """
        answer = await self._send(
            write_target(["internal", "import"], query), write([file]), self._key(), self._timeout_s
        )
        entries = self._checked(answer, 201).get("files")
        if not isinstance(entries, list) or len(entries) != 1 or not isinstance(entries[0], dict):
            raise PictrsError("pict-rs answered an import without a file", status=answer.status)
        return entries[0]

    async def delete(self, alias: str) -> None:
        """`POST /internal/delete`: takes an alias away; one that is not there is gone already.

        Raises:
            PictrsError: no such answer.
        """
        await self._delete([("alias", alias)])

    async def _delete(self, query: Query) -> None:
        request = self._pooled.post(
            self._at(write_target(["internal", "delete"], query)),
            headers=self._key(),
            allow_redirects=False,
        )
        answer = await self._whole(request, self._timeout_s, _LARGEST_JSON)
        if answer.status not in (200, 204, 404):
            self._checked(answer, 200)

    async def stored_sha256(self, alias: str) -> str | None:
        """SHA-256 (hexadecimal) of what is stored under `alias`, which its ETag begins with; None if untold.

        Raises:
            PictrsError: no answer.
        """
        request = self._pooled.head(
            self._at(write_target(["image", "original", alias])), allow_redirects=False
        )
        answer = await self._whole(request, self._timeout_s, _LARGEST_JSON)
        try:
            tag = base64.b64decode(answer.headers.get("ETag", "").strip('"'), validate=True)
        except ValueError:
            return None
        return tag[:32].hex() if answer.status == 200 and len(tag) == _STORED_KEY_BYTES else None

    async def get(self, target: str) -> Answer:
        """Any answer to a GET of small JSON, as it is.

        Args:
            target: written by `write_target`.

        Raises:
            PictrsError: there was none.
        """
        return await self._whole(
            self._pooled.get(self._at(target), allow_redirects=False), self._timeout_s, _LARGEST_JSON
        )

    async def has_proxied(self, url: str) -> bool:
        """Whether pict-rs keeps what it once fetched from `url`."""
        answer = await self._get(["image", "details", "original"], [("proxy", url)], {})
        return answer.status == 200

    async def delete_proxied(self, url: str) -> None:
        """Has pict-rs forget what it fetched from `url`.

        Raises:
            PictrsError: no such answer.
        """
        await self._delete([("proxy", url)])

    async def has(self, alias: str) -> bool:
        """Whether pict-rs itself knows `alias`."""
        answer = await self._get(["image", "details", "original", alias], (), {})
        if answer.status == 404:
            return False
        self._checked(answer, 200)
        return True

    async def aliases(self, alias: str) -> list[str]:
        """Every alias of the file that `alias` names; none where there is no such file.

        Raises:
            PictrsError: no such answer.
        """
        answer = await self._get(["internal", "aliases"], [("alias", alias)], self._key())
        if answer.status == 404:
            return []
        found = self._checked(answer, 200).get("aliases")
        return [str(one) for one in found] if isinstance(found, list) else []

    async def is_06(self) -> bool:
        """Whether this is pict-rs 0.6, whose upload answers have another shape.

        Known from its last upload answer; before the first one it is asked for an alias that nobody has, of
        which the two versions speak with different codes.
        """
        if self._is_06 is None:
            try:
                answer = await self._get(["image", "details", "original", _NOBODY], (), {}, within_s=_PROBE_S)
            except PictrsError:
                return False
            code = answer.json().get("code")
            if code in ("alias-not-found", "not-found"):
                self._is_06 = code == "not-found"
        return bool(self._is_06)

    async def stored(
        self, *, slug: str | None = None, timestamp: datetime | None = None, limit: int
    ) -> StoredPage:
        """One page of what is stored, newest first.

        Args:
            slug: of its first entry. Where pict-rs has that no more, it begins with the newest.
            timestamp: the page begins with what came before it.
            limit: entries a page.

        Raises:
            PictrsError: no such answer; `invalid-api-token` where the key is wrong.
        """
        query = [("limit", str(limit))]
        if timestamp is not None:
            query.append(("timestamp", timestamp.astimezone(UTC).isoformat().replace("+00:00", "Z")))
        elif slug is not None:
            query.append(("slug", slug))
        page = (await self._listed(query)).get("page")
        if not isinstance(page, dict) or not isinstance(page.get("hashes"), list):
            raise PictrsError("pict-rs answered /internal/hashes without a page")
        return StoredPage([_stored(entry) for entry in page["hashes"]], page.get("current"), page.get("next"))

    async def _listed(self, query: Sequence[tuple[str, str]]) -> dict[str, Any]:
        """pict-rs's answer; once more, a few times, where it trips over a file that it is just deleting."""
        for pause_s in _LOST_PAUSES_S:
            try:
                return self._checked(await self._get(["internal", "hashes"], query, self._key()), 200)
            except PictrsError as error:
                if error.code != "lost-file":
                    raise
            await asyncio.sleep(pause_s)
        return self._checked(await self._get(["internal", "hashes"], query, self._key()), 200)

    async def original(self, alias: str, *, largest: int) -> bytes:
        """The stored bytes behind `alias`.

        Raises:
            PictrsError: not there, larger than `largest` bytes, or cut off.
        """
        answer = await self._get(["image", "original", alias], (), {}, largest=largest)
        if answer.status != 200:
            raise PictrsError(f"pict-rs answered {answer.status} for an original", status=answer.status)
        return answer.body

    # --- the wire ---

    def _key(self) -> dict[str, str]:
        if self._api_key is None:
            raise PictrsError("pictrs.api_key is not set; pict-rs's internal routes need it")
        return {"X-Api-Token": self._api_key}

    def _at(self, target: str) -> URL:
        return URL(self._url + target, encoded=True)

    async def _get(
        self,
        segments: Sequence[str],
        query: Query,
        headers: Mapping[str, str],
        *,
        largest: int = _LARGEST_JSON,
        within_s: float | None = None,
    ) -> Answer:
        url = self._at(write_target(segments, query))
        request = self._pooled.get(url, headers=headers, allow_redirects=False)
        return await self._whole(request, within_s or self._timeout_s, largest)

    async def _send(self, target: str, body: Body, headers: Mapping[str, str], within_s: float) -> Answer:
        request = self._fresh.post(
            self._at(target),
            data=in_pieces(*body.pieces),
            headers={
                **headers,
                "Content-Type": body.content_type,
                "Content-Length": str(body.length),
            },
            allow_redirects=False,
        )
        return await self._whole(request, within_s, _LARGEST_JSON)

    async def _whole(self, request: Any, within_s: float, largest: int) -> Answer:
        status: int | None = None
        try:
            async with asyncio.timeout(within_s), request as response:
                status = response.status
                body = bytearray()
                async for chunk in response.content.iter_any():
                    body += chunk
                    if len(body) > largest:
                        words = f"pict-rs answered with more than {largest} bytes"
                        raise PictrsError(words, status=status, code="too-large")
                return Answer(status, response.headers, bytes(body))
        except TimeoutError:
            raise _too_late(within_s, status) from None
        except (aiohttp.ClientError, OSError) as error:
            what = "cannot be reached" if status is None else "broke off its answer"
            raise PictrsError(f"pict-rs {what}: {type(error).__name__}", status=status) from None

    @staticmethod
    def _checked(answer: Answer, expected: int) -> dict[str, Any]:
        content = answer.json()
        if answer.status != expected:
            code, msg = content.get("code"), content.get("msg")
            raise PictrsError(
                f"pict-rs answered {answer.status} {code}: {msg}",
                status=answer.status,
                code=code if isinstance(code, str) else None,
            )
        return content


def _stored(entry: Mapping[str, Any]) -> StoredFile:
    details = entry.get("details") or {}
    try:
        created_at = datetime.fromisoformat(details["created_at"])
    except (LookupError, TypeError, ValueError):
        created_at = None
    return StoredFile(entry["hex"], tuple(entry["aliases"]), created_at)


def _too_late(within_s: float, status: int | None = None) -> PictrsError:
    return PictrsError(f"pict-rs did not answer within {within_s:.1f} s", status=status, timed_out=True)


def _session(connector: aiohttp.TCPConnector, stall_s: float) -> aiohttp.ClientSession:
    return aiohttp.ClientSession(
        connector=connector,
        # No total: a large picture may take a slow reader long. But it may not stand still.
        timeout=aiohttp.ClientTimeout(total=None, sock_connect=_CONNECT_S, sock_read=stall_s),
        cookie_jar=aiohttp.DummyCookieJar(),
        auto_decompress=False,
        skip_auto_headers=("User-Agent", "Accept-Encoding", "Accept"),
    )
