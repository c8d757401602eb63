"""What the name of a file in pict-rs's store tells, wherever the store is.

`01/a2/04/52/00/5c/74/1e/a4/1c/03d2324eb5b9.png` is a UUIDv7 cut up: the first 48 bits are milliseconds since
1970. The name says nothing of the content, and a variant's is no other than an original's.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime

_CUT_UP = re.compile(r"(?:^|/)((?:[0-9a-f]{2}/){10}[0-9a-f]{12})(?:\.[0-9a-z]{1,8})?$")
# What pict-rs and its tools leave beside the files.
_EXTENSIONS = frozenset({"apng", "avif", "gif", "jpeg", "jpg", "jxl", "mov", "mp4", "png", "webm", "webp"})
_ESCAPED = re.compile(rb"\\x([89a-f][0-9a-f])")


def time_in(name: str) -> datetime | None:
    """When a file was stored, by its name; None where that is not pict-rs's own."""
    match = _CUT_UP.search(name)
    digits = match[1].replace("/", "") if match else ""
    if not digits or digits[12] != "7":
        return None
    return datetime.fromtimestamp(int(digits[:12], 16) / 1000, UTC)


def may_be_media(name: str) -> bool:
    """Whether a file of this name can be a picture or video: it has their extension, or none."""
    last = name.rpartition("/")[2]
    return "." not in last or last.rpartition(".")[2].lower() in _EXTENSIONS


def escaped(name: bytes) -> str:
    """A name as it can be kept and shown: bytes of it that are no UTF-8 become `\\xff`."""
    return name.decode(errors="backslashreplace")


def unescaped(place: str) -> bytes:
    """The name that `escaped` was given, but where that had such an escape in it already."""
    return _ESCAPED.sub(lambda match: bytes.fromhex(match[1].decode()), place.encode())
