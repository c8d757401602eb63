"""Answers in pict-rs's shapes."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from aiohttp import web

from proxy.database import Promise
from proxy.errors import Refusal
from proxy.pictrs import Answer

# Also what keeps caches and other servers from keeping a placeholder.
NO_STORE = "no-store"
_RANGE = re.compile(r"bytes=(\d{0,18})-(\d{0,18})")
SERVER = "pictrs-gate"  # instead of the versions of Python and aiohttp


def json_answer(status: int, content: Mapping[str, Any], **headers: str) -> web.Response:
    """A JSON answer, written as compactly as pict-rs writes it."""
    body = json.dumps(content, separators=(",", ":"), ensure_ascii=False).encode()
    return web.Response(status=status, body=body, content_type="application/json", headers=headers)


def refusal(error: Refusal, *, is_06: bool) -> web.Response:
    """`{"code", "msg"}`."""
    headers = {} if error.retry_after_s is None else {"Retry-After": str(error.retry_after_s)}
    status, msg = error.in_06 if is_06 and error.in_06 else (error.status, error.msg)
    return json_answer(status, {"code": error.code, "msg": msg}, **headers)


def relayed(answer: Answer) -> web.Response:
    """pict-rs's own answer to an upload, byte for byte."""
    response = web.Response(status=answer.status, body=answer.body)
    response.headers["Content-Type"] = answer.headers.get("Content-Type", "application/json")
    return response


def picture_answer(content_type: str, content: bytes, wanted: str | None) -> web.Response:
    """A picture, or the part of it that a `Range` asks for.

    pict-rs 0.5 gives one range only, and the whole where it cannot read what is asked for; so does this.
    """
    headers = {"Accept-Ranges": "bytes"}
    match = _RANGE.fullmatch(wanted or "")
    if match is None or match[0] == "bytes=-":
        return web.Response(body=content, content_type=content_type, headers=headers)
    if match[1]:
        first, last = int(match[1]), min(int(match[2] or len(content)), len(content) - 1)
    else:  # the last so many
        first, last = max(len(content) - int(match[2]), 0), len(content) - 1
    if first >= len(content):
        return web.Response(status=416, headers={"Content-Range": f"bytes */{len(content)}"})
    if first > last:
        return web.Response(body=content, content_type=content_type, headers=headers)
    headers["Content-Range"] = f"bytes {first}-{last}/{len(content)}"
    return web.Response(
        status=206, body=content[first : last + 1], content_type=content_type, headers=headers
    )


def upload_entry(promise: Promise, *, is_06: bool) -> dict[str, Any]:
    """What pict-rs would say about one stored file, about one that is held."""
    if is_06:
        return {
            "file": promise.alias,
            "alias": promise.alias,
            "delete_token": promise.delete_token,
            "details": promise.details,
        }
    details = dict(sorted(promise.details.items()))
    return {"delete_token": promise.delete_token, "details": details, "file": promise.alias}


def upload_answer(entries: Sequence[Mapping[str, Any]], *, is_06: bool, status: int = 201) -> web.Response:
    """pict-rs's answer to an upload, or (200) to a claim: the entries in order, keys in its order."""
    if is_06:
        return json_answer(status, {"msg": "ok", "files": entries, "uploads": entries})
    return json_answer(status, {"files": entries, "msg": "ok"})


def backgrounded_answer(entries: Sequence[Mapping[str, Any]]) -> web.Response:
    """pict-rs's answer to a backgrounded upload: an upload id a file, in their order."""
    return json_answer(202, {"msg": "ok", "uploads": entries})


def read_answer(content: Mapping[str, Any], *, is_06: bool) -> web.Response:
    """pict-rs's answer with the details or the blurhash of one file; 0.6 says `msg` in every answer."""
    return json_answer(200, {"msg": "ok", **content} if is_06 else content)
