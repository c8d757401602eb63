"""Recorded exchanges with the real pict-rs 0.5.25 and 0.6.0-rc.6, made into requests again.

The recordings hold requests without bodies and answers with aliases of their day. `Replay` sends the same
requests with pictures of our own, follows the aliases, and compares what has to be the same.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests import pictures
from tests.client import Answer, send

FOLDER = Path(__file__).parent
# What a stand-in can be held to; fetching, the validation hook and pict-rs's own settings are left out.
SECTIONS = (
    "health, unknown paths and methods",
    "uploads that succeed",
    "upload arguments",
    "uploads that fail",
    "reading",
    "backgrounded",
    "delete by token",
    "internal",
)
# Not comparable, each for its reason.
_SKIPPED = {
    "process.avif": "ImageMagick 6 cannot write AVIF and times out",
    "purge proxy": "nothing is proxied here",
    "hashes, timestamp": "pages by time are of no use to the gate",
    "original after purge": "a matter of tenths of a second",
    "purged sibling alias": "a matter of tenths of a second",
    "purge again": "a matter of tenths of a second",
    "import of purged bytes under the old name": "a matter of tenths of a second",
    "original of it": "a matter of tenths of a second",
    "method override header": "the header was not recorded",
}
_BOUNDARY = "replayed-boundary"
_UUID = r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}"


@dataclass(frozen=True)
class Exchange:
    """One recorded request and its answer."""

    name: str
    section: str
    method: str
    path: str
    status: int
    headers: Mapping[str, str]
    body: Mapping[str, Any]


def exchanges(version: str) -> list[Exchange]:
    """All exchanges of one version that can be replayed, in their order."""
    found, section = [], ""
    for recording in json.loads((FOLDER / f"pict-rs-{version}.json").read_text())["recordings"]:
        section = recording.get("section", section)
        if "request" in recording and section in SECTIONS and recording["name"] not in _SKIPPED:
            request = recording["request"]
            headers = {name.lower(): value for name, value in recording["headers"]}
            found.append(
                Exchange(
                    recording["name"],
                    section,
                    request["method"],
                    request["path"],
                    recording["status"],
                    headers,
                    recording["body"],
                )
            )
    return found


class Replay:
    """Sends recorded requests to a pict-rs, or to what stands for one."""

    def __init__(self, url: str, api_key: str) -> None:
        self._url, self._api_key = url, api_key
        self._today: dict[str, str] = {}  # recorded aliases, tokens and ids → today's
        self._etag = ""

    def send(self, exchange: Exchange) -> Answer:
        """Sends one exchange's request; to be called in the recorded order."""
        path = exchange.path.replace("http://127.0.0.1:18080", self._url)
        for recorded, today in self._today.items():
            path = path.replace(recorded, today).replace(
                recorded.replace("-", "%2D"), today.replace("-", "%2D")
            )
        headers, body = self._request(exchange)
        got = send(self._url, exchange.method, path, headers=headers, body=body)
        self._learn(exchange, got)
        return got

    def _request(self, exchange: Exchange) -> tuple[dict[str, str], bytes]:
        headers: dict[str, str] = {}
        name = exchange.name
        if exchange.path.startswith("/internal") and "no key" not in name:
            headers["X-Api-Token"] = "wrong" if "wrong key" in name else self._api_key
        if name.startswith("Range "):
            headers["Range"] = name.removeprefix("Range ")
        if name == "If-Range":
            headers |= {"Range": "bytes=0-9", "If-Range": self._etag}
        if name.startswith("If-None-Match"):
            headers["If-None-Match"] = self._etag if name.endswith("same") else '"other"'
        if name == "If-Modified-Since same":
            headers["If-Modified-Since"] = exchange.headers["last-modified"]
        if name == "set_not_found":
            known = next(iter(self._today))
            return {**headers, "Content-Type": "application/json"}, json.dumps(
                {"alias": self._today[known]}
            ).encode()
        if exchange.method != "POST":
            return headers, b""
        special = _SPECIAL.get(name)
        if special is not None:
            content_type, body = special
            return ({**headers, "Content-Type": content_type} if content_type else headers), body
        parts = b"".join(_part(*part) for part in _parts(exchange))
        content_type = f"multipart/form-data; boundary={_BOUNDARY}"
        return {**headers, "Content-Type": content_type}, parts + f"--{_BOUNDARY}--\r\n".encode()

    def _learn(self, exchange: Exchange, got: Answer) -> None:
        if exchange.name == "original png":
            self._etag = got.headers["etag"]
        recorded = exchange.body.get("json")
        if not isinstance(recorded, dict) or got.status != exchange.status:
            return
        for then, now in zip(_names(recorded), _names(got.json()), strict=True):
            if re.search(_UUID, then):
                self._today.setdefault(then, now)
        page = recorded.get("page")
        if page and page.get("next") and got.json()["page"].get("next"):
            self._today[page["next"]] = got.json()["page"]["next"]


def _names(answer: Mapping[str, Any]) -> Iterator[str]:
    for entry in answer.get("files") or []:
        yield entry["file"]
        yield entry["delete_token"]
    if "files" not in answer:
        for entry in answer.get("uploads") or []:
            yield entry["upload_id"]


def _parts(exchange: Exchange) -> list[tuple[str, str | None, bytes]]:
    """Field, file name and content of each part of a recorded upload, by the recording's name."""
    name = exchange.name
    png, other = pictures.png(), pictures.png(seed=7)
    side = _SIDES.get(name, 90)
    small = pictures.png((side, side), seed=len(name))
    if name.startswith("upload ") and name[7:] in _FILES:
        return [("images[]", "file", _FILES[name[7:]]())]
    if name == "backgrounded, two files":
        return [("images[]", "a.png", other), ("images[]", "b.png", pictures.png((64, 64)))]
    if name in ("two files at once", "import two"):
        first, second = ("two-1.png", "two-2.png") if name == "import two" else ("a.png", "b.jpg")
        return [("images[]", first, other), ("images[]", second, pictures.jpeg())]
    if name == "too many files":
        return [("images[]", f"{index}.png", small) for index in range(5)]
    if name == "one good, one bad":
        return [("images[]", "a.png", small), ("images[]", "b.png", b"this is no picture")]
    if name in ("no files at all", "backgrounded, no files"):
        return []
    for wrong, field in (
        ("wrong field name", "file"),
        ("images without brackets", "images"),
        ("images[0]", "images[0]"),
    ):
        if name == wrong:
            return [(field, "a.png", small)]
    if name == "an extra text field":
        return [("images[]", "a.png", small), ("text", None, b"hello")]
    if name == "text in images[] without a file name":
        return [("images[]", None, b"hello")]
    contents = {
        "too large (1.2 MB of 1 MB)": bytes(1_200_000),
        "empty file": b"",
        "not an image": b"this is no picture",
        "backgrounded, not an image": b"this is no picture",
        "import not an image": b"this is no picture",
        "truncated png": png[:1500],
        "truncated jpeg": pictures.jpeg()[:2000],
        "png magic then junk": png[:8] + b"junk" * 300,
        "svg": b'<svg xmlns="http://www.w3.org/2000/svg"/>',
        "args max_frame_count=1": pictures.animation(),
        "args allow_animation=false": pictures.animation(),
        "args allow_video=false": pictures.video(),
        "import a gif as .png": pictures.animation(),
        "import duplicate alias, other bytes": other,
        "import with resize": other,
    }
    file_name = "file"
    if name.startswith("import duplicate alias"):
        file_name = "chosen.png"
    elif name.startswith("import as ") and len(name) < 50:
        file_name = name.removeprefix("import as ")
    elif name.startswith("import") and exchange.status == 201:
        file_name = exchange.body["json"]["files"][0]["file"]
    content = contents.get(name, other if name.startswith("args ") else png)
    if name.startswith(("upload for delete", "backgrounded", "no content type")):
        content = contents.get(name, small)
    return [("images[]", file_name, content)]


_SIDES = {
    "no content type, no file name extension": 64,
    "upload for delete": 77,
    "upload for delete by GET": 78,
}
_FILES = {
    "png": pictures.png,
    "jpg": pictures.jpeg,
    "jpgx": pictures.turned_jpeg,
    "webp": lambda: pictures.encode(pictures.draw(), "WEBP", lossless=True),
    "gif": pictures.animation,
    "apng": lambda: pictures.animation("PNG", frames=2),
    "big": lambda: pictures.jpeg((1600, 1200)),
    "mp4": pictures.video,
    "webm": lambda: pictures.video("webm", frames=10),
    "mov": lambda: pictures.video("mov"),
}
_SPECIAL: dict[str, tuple[str | None, bytes]] = {
    "json body": ("application/json", b"{}"),
    "no content type": (None, b"x"),
    "no boundary": ("multipart/form-data", b"x"),
    "empty body": (f"multipart/form-data; boundary={_BOUNDARY}", b""),
    "raw image body": ("image/png", pictures.png()),
    "import by GET": (None, b""),
}


def _part(field: str, file_name: str | None, content: bytes) -> bytes:
    named = "" if file_name is None else f'; filename="{file_name}"'
    head = f'--{_BOUNDARY}\r\nContent-Disposition: form-data; name="{field}"{named}\r\n\r\n'
    return head.encode() + content + b"\r\n"


# --- comparing ---

_SAME_VALUE = ("accept-ranges", "allow", "cache-control", "content-type")
_SAME_PRESENCE = ("content-range", "etag", "last-modified")


def differences(exchange: Exchange, got: Answer) -> list[str]:
    """What differs from the recording among the things that may not."""
    found = []
    if got.status != exchange.status:
        found.append(f"status {got.status}, recorded {exchange.status}")
    for name in _SAME_VALUE:
        if got.headers.get(name) != exchange.headers.get(name):
            found.append(f"{name} {got.headers.get(name)}, recorded {exchange.headers.get(name)}")
    for name in _SAME_PRESENCE:
        if (name in got.headers) != (name in exchange.headers):
            found.append(f"{name} is there: {name in got.headers}, recorded {name in exchange.headers}")
    recorded = exchange.body.get("json")
    if recorded is not None and got.status == exchange.status:
        now, then = _shape(got.json()), _shape(recorded)
        # Other pictures, and not as many. And under load pict-rs names two uploads in either order.
        if exchange.name.startswith("hashes") or exchange.name == "claim of two":
            now, then = _keys(now), _keys(then)
        if now != then:
            found.append(f"JSON {now}, recorded {then}")
    if exchange.body.get("empty") and got.body:
        found.append("a body, recorded none")
    return found


def _shape(value: Any, key: str = "") -> Any:
    """JSON without what is of its day: values stay where they are the same every time."""
    if isinstance(value, dict):
        return {name: _shape(inner, name) for name, inner in value.items() if name != "msg"}
    if isinstance(value, list):
        return [_shape(value[0])] if value else []
    return (
        value
        if key in ("code", "content_type", "format", "frames", "width", "height", "limit")
        else type(value)
    )


def _keys(shape: Any) -> Any:
    if isinstance(shape, dict):
        return {name: _keys(inner) for name, inner in shape.items() if name not in ("next", "prev")}
    return [_keys(inner) for inner in shape] if isinstance(shape, list) else None
