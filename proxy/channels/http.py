"""A classifier reached by HTTP: protocol v1, `docs/protocol.md`."""

from __future__ import annotations

import asyncio
import json
import math
import re
from collections.abc import Mapping
from typing import Any

import aiohttp

from proxy.channels.looks import ChannelError, File, Priority, Seen, Undecodable
from proxy.sending import in_pieces

_LARGEST_ANSWER = 1024 * 1024
# The classifier looked at the file and says that it is not for it; asking again changes nothing.
_NOT_FOR_IT = frozenset({"undecodable", "unsupported-media", "too-large"})


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
        if status == 200:
            return _seen(answer, file)
        code = _code(answer)
        if code in _NOT_FOR_IT and status in (400, 413, 415):
            return Undecodable(code)
        if status == 401:
            raise ChannelError(f"{self.name} refuses the token; see classifiers.token in the configuration")
        if status == 429:
            raise ChannelError(f"{self.name} is overloaded", retry_after_s=retry_after)
        raise ChannelError(f"{self.name} answered {status} {code}")

    async def signals(self) -> frozenset[str]:
        """See `Channel.signals`."""
        status, _, answer = await self._ask("GET", "/v1/info", 5.0)
        if status == 401:
            raise ChannelError(f"{self.name} refuses the token; see classifiers.token in the configuration")
        names = answer.get("signals") if status == 200 else None
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise ChannelError(f"{self.name} answered {status}; is it a pictrs-classifier?")
        return frozenset(names)

    async def close(self) -> None:
        """See `Channel.close`."""
        await self._session.close()

    async def _ask(
        self, method: str, path: str, within_s: float, **request: Any
    ) -> tuple[int, float, Mapping[str, Any]]:
        """Status, `Retry-After` in seconds and the JSON object of an answer."""
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
        return response.status, _seconds(response.headers.get("Retry-After")), answer


def _seen(answer: Mapping[str, Any], file: File) -> Seen:
    """A 200, checked: an answer that contradicts itself, or is about another file, is nobody's look."""
    try:
        signals = _signals(answer["signals"])
        frames = []
        for frame in answer["frames"]:
            own = _signals(frame["signals"])
            frames.append({"index": int(frame["index"]), "signals": own})
            for name, value in own.items():  # the file's are its frames' largest; believe the larger
                signals[name] = max(value, signals.get(name, 0.0))
        hashes = answer.get("hashes") or {}
        about = hashes.get("sha256")
        if about and file.sha256 and about != file.sha256:
            raise ValueError("the answer is about another file")
        media = answer["media"]
        ensemble = f"{answer['ensemble']} {answer['version']}"
        if not signals or not frames or int(media["frames_scored"]) < 1:
            raise ValueError("nothing was scored")
        size = int(media["width"]), int(media["height"])
        if min(size) < 1:
            raise ValueError("a picture without pixels")
        return Seen(signals, frames, ensemble, str(media["format"]), *size, *_pdq(hashes))
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError):
        raise ChannelError("the classifier's answer is not one of protocol v1") from None


def _signals(raw: Any) -> dict[str, float]:
    signals = {str(name): float(value) for name, value in raw.items()}
    if not all(math.isfinite(value) and 0 <= value <= 1 for value in signals.values()):
        raise ValueError("a signal is not within 0..1")
    return signals


def _pdq(hashes: Mapping[str, Any]) -> tuple[str, int] | tuple[None, None]:
    pdq, quality = hashes.get("pdq"), hashes.get("pdq_quality")
    if pdq is None or quality is None:
        return None, None
    if not re.fullmatch(r"[0-9a-f]{64}", pdq) or not 0 <= int(quality) <= 100:
        raise ValueError("a perceptual hash that is none")
    return str(pdq), int(quality)


def _code(answer: Mapping[str, Any]) -> str:
    """The code of an error. Its message is dropped: a codec's words may quote the file."""
    error = answer.get("error")
    code = error.get("code") if isinstance(error, dict) else None
    return code if isinstance(code, str) and re.fullmatch(r"[a-z-]{1,40}", code) else "unknown"


def _seconds(retry_after: str | None) -> float:
    try:
        return min(max(float(retry_after or 1), 0.05), 60.0)
    except ValueError:
        return 1.0
