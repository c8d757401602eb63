"""A classifier reached by HTTP: protocol v1, `docs/protocol.md`."""

from __future__ import annotations

import asyncio
import json
import ssl
from collections.abc import Mapping
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import aiohttp

from proxy.channels.answers import ensemble_of, look_of, signals_of
from proxy.channels.looks import ChannelError, File, Priority, Seen, Undecodable
from proxy.sending import in_pieces

_LARGEST_ANSWER = 1024 * 1024
_CONNECTIONS = 64


@dataclass(slots=True)
class _Attempt:
    """Whether a request went out on a connection that had been used before."""

    was_reused: bool = False


class HttpChannel:
    """One classifier, asked over pooled connections."""

    def __init__(self, url: str, token: str | None, tls: ssl.SSLContext | None = None) -> None:
        """
        Args:
            url: of the classifier, without the protocol's path.
            token: for `Authorization: Bearer`, or None where it takes everybody.
            tls: whom to trust and how to introduce oneself; None for what the system trusts.
        """
        self.name = url
        headers = {"User-Agent": "pictrs-gate"}
        if token is not None:
            headers["Authorization"] = f"Bearer {token}"

        def session(*, is_fresh: bool) -> aiohttp.ClientSession:
            connector = aiohttp.TCPConnector(
                limit=_CONNECTIONS, force_close=is_fresh, ssl=True if tls is None else tls
            )
            return aiohttp.ClientSession(
                connector=connector,
                headers=headers,
                cookie_jar=aiohttp.DummyCookieJar(),
                trace_configs=[_noting_reuse()],
            )

        self._session, self._fresh = session(is_fresh=False), session(is_fresh=True)

    async def look(self, file: File, *, priority: Priority, within_s: float) -> Seen | Undecodable:
        """See `Channel.look`."""
        headers = {
            "Content-Type": file.media.content_type,
            "Content-Length": str(len(file.content)),
            "X-Priority": priority.value,
            "X-Deadline-Ms": str(max(1, int(within_s * 1000))),
        }
        status, retry_after, answer = await self._ask(
            "POST", "/v1/classify", within_s, headers=headers, body=file.content
        )
        return look_of(self.name, file, status, retry_after, answer)

    async def signals(self) -> frozenset[str]:
        """See `Channel.signals`."""
        status, _, answer = await self._ask("GET", "/v1/info", 5.0)
        return signals_of(self.name, status, answer)

    async def ensemble(self) -> str | None:
        """See `Channel.ensemble`."""
        status, _, answer = await self._ask("GET", "/v1/info", 5.0)
        return ensemble_of(answer) if status == 200 else None

    async def close(self) -> None:
        """See `Channel.close`."""
        await self._session.close()
        await self._fresh.close()

    async def _ask(
        self,
        method: str,
        path: str,
        within_s: float,
        *,
        headers: Mapping[str, str] | None = None,
        body: bytes | None = None,
    ) -> tuple[int, str | None, Mapping[str, Any]]:
        """Status, `Retry-After` and the JSON object of an answer."""
        try:
            async with (
                asyncio.timeout(within_s),
                await self._send(method, self.name + path, headers, body) as response,
            ):
                content = await response.content.read(_LARGEST_ANSWER + 1)
                while not response.content.at_eof() and len(content) <= _LARGEST_ANSWER:
                    content += await response.content.read(_LARGEST_ANSWER)
        except TimeoutError:
            raise ChannelError(f"{self.name} did not answer within {within_s:.1f} s") from None
        except (aiohttp.ClientError, OSError) as error:
            reason = _reason(error, is_https=self.name.startswith("https:"))
            raise ChannelError(f"{self.name} cannot be reached: {reason}") from None
        try:
            answer = json.loads(content)
        except (ValueError, RecursionError):
            answer = None
        if not isinstance(answer, dict):
            raise ChannelError(f"{self.name} answered {response.status} with something that is not JSON")
        return response.status, response.headers.get("Retry-After"), answer

    async def _send(
        self, method: str, url: str, headers: Mapping[str, str] | None, body: bytes | None
    ) -> aiohttp.ClientResponse:
        """The head of an answer.

        A classifier may close a kept connection just when the next request goes out. Looking twice does no
        harm, so that request is sent once more, on a connection that nobody has used. What breaks on such a
        one is broken.
        """
        attempt = _Attempt()

        async def sent(session: aiohttp.ClientSession) -> aiohttp.ClientResponse:
            data = None if body is None else in_pieces(body)
            return await session.request(
                method, url, allow_redirects=False, headers=headers, data=data, trace_request_ctx=attempt
            )

        try:
            return await sent(self._session)
        except (aiohttp.ServerDisconnectedError, aiohttp.ClientOSError, ConnectionResetError):
            if not attempt.was_reused:
                raise
        return await sent(self._fresh)


def _noting_reuse() -> aiohttp.TraceConfig:
    """Has aiohttp tell an `_Attempt`, which nothing else of its interface shows."""

    async def note(_: aiohttp.ClientSession, context: SimpleNamespace, __: Any) -> None:
        context.trace_request_ctx.was_reused = True

    tracing = aiohttp.TraceConfig()
    tracing.on_connection_reuseconn.append(note)
    return tracing


def _reason(error: Exception, *, is_https: bool) -> str:
    """Why there is no answer, in words that say what to mend where it is the certificates."""
    if isinstance(error, aiohttp.ClientConnectorCertificateError):
        why = getattr(error.certificate_error, "verify_message", "") or str(error.certificate_error)
        return f"its certificate is not trusted ({why}); see classifiers.ca_file in the configuration"
    cause = error.os_error if isinstance(error, aiohttp.ClientConnectorError) else error.__cause__
    asks = "if it asks the gate for a certificate, see classifiers.certificate_file in the configuration"
    if isinstance(cause, ssl.SSLError):
        return f"TLS failed ({cause.reason})" + (f"; {asks}" if "ALERT" in str(cause.reason) else "")
    # The alert is often lost, because the connection is reset behind it.
    if is_https and isinstance(cause or error, aiohttp.ServerDisconnectedError | ConnectionResetError):
        return f"it broke the connection off; {asks}"
    return type(error).__name__
