"""A classifier reached by HTTP: protocol v1, `docs/protocol.md`."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from typing import Any

import aiohttp

from proxy.channels.answers import look_of, signals_of
from proxy.channels.looks import ChannelError, File, Priority, Seen, Undecodable
from proxy.sending import in_pieces

_LARGEST_ANSWER = 1024 * 1024


class HttpChannel:
    """One classifier, asked over pooled connections."""

    def __init__(self, url: str, token: str | None) -> None:
        """
        Args:
            url: of the classifier, without the protocol's path.
            token: for `Authorization: Bearer`, or None where it takes everybody.
        """
        self.name = url
        headers = {"User-Agent": "pictrs-gate"}
        if token is not None:
            headers["Authorization"] = f"Bearer {token}"
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=64), headers=headers, cookie_jar=aiohttp.DummyCookieJar()
        )

    async def look(self, file: File, *, priority: Priority, within_s: float) -> Seen | Undecodable:
        """See `Channel.look`."""
        headers = {
            "Content-Type": file.media.content_type,
            "Content-Length": str(len(file.content)),
            "X-Priority": priority.value,
            "X-Deadline-Ms": str(max(1, int(within_s * 1000))),
        }
        status, retry_after, answer = await self._ask(
            "POST", "/v1/classify", within_s, headers=headers, data=in_pieces(file.content)
        )
        return look_of(self.name, file, status, retry_after, answer)

    async def signals(self) -> frozenset[str]:
        """See `Channel.signals`."""
        status, _, answer = await self._ask("GET", "/v1/info", 5.0)
        return signals_of(self.name, status, answer)

    async def close(self) -> None:
        """See `Channel.close`."""
        await self._session.close()

    async def _ask(
        self, method: str, path: str, within_s: float, **request: Any
    ) -> tuple[int, str | None, Mapping[str, Any]]:
        """Status, `Retry-After` and the JSON object of an answer."""
        try:
            async with (
                asyncio.timeout(within_s),
                self._session.request(method, self.name + path, allow_redirects=False, **request) as response,
            ):
                body = await response.content.read(_LARGEST_ANSWER + 1)
                while not response.content.at_eof() and len(body) <= _LARGEST_ANSWER:
                    body += await response.content.read(_LARGEST_ANSWER)
        except TimeoutError:
            raise ChannelError(f"{self.name} did not answer within {within_s:.1f} s") from None
        except (aiohttp.ClientError, OSError) as error:
            raise ChannelError(f"{self.name} cannot be reached: {type(error).__name__}") from None
        try:
            answer = json.loads(body)
        except (ValueError, RecursionError):
            answer = None
        if not isinstance(answer, dict):
            raise ChannelError(f"{self.name} answered {response.status} with something that is not JSON")
        return response.status, response.headers.get("Retry-After"), answer
