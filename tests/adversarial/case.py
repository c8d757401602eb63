"""What a case is: a template of the bytes that one connection sends, and the answer that is right.

The templates are bytes as they go over the wire, but for these words, so that a table can be read:

    <1> … <4>                    the case's own pictures, which no other case has
    <1:base64> <1:gzip> …        one of them, encoded; see `_ENCODINGS`
    <1:length> <1:length+1>      its length in bytes, or a false one
    <chunk>…</chunk>             a chunk of a chunked body; `<chunk 0x%x>` writes its size in another way
    <length> <length-1>          the length of what follows the first empty line, or a false one
    <end>                        what comes from here on is not counted in it
    <name>                       a file name that no other case has: pict-rs imports each name once only
    <key>                        pict-rs's API key
    <url>                        where a server on this machine serves picture 5
"""

from __future__ import annotations

import base64
import gzip
import io
import quopri
import re
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from PIL import Image, PngImagePlugin

# What stands for "the connection was closed without an answer" among the statuses.
NO_ANSWER = 0
_SENT_AT_ONCE = 50_000


@dataclass(frozen=True)
class Case:
    """One attack.

    Attributes:
        name: what it tries, for the table and for the test's name.
        request: the template of everything that the connection sends.
        status: of the first answer, where there is a known right one; several where HTTP leaves the choice.
        then: the statuses of the answers that have to follow.
        ends: whether the client closes its side when it has sent all; for requests that are not whole.
    """

    name: str
    request: bytes
    status: int | tuple[int, ...] | None = None
    then: Sequence[int] = ()
    ends: bool = False

    @property
    def statuses(self) -> tuple[int, ...]:
        """The statuses that are right; none where any is."""
        if self.status is None:
            return ()
        known = self.status if isinstance(self.status, tuple) else (self.status,)
        # An answer to what is still being sent may be lost with the connection.
        return known if len(self.request) < _SENT_AT_ONCE else (*known, NO_ANSWER)


_ENCODINGS: Mapping[bytes, Callable[[bytes], bytes]] = {
    b"base64": base64.encodebytes,
    b"base64-in-one-line": base64.b64encode,
    b"quoted-printable": quopri.encodestring,
    b"gzip": lambda content: gzip.compress(content, mtime=0),
    b"deflate": zlib.compress,
    b"hex": lambda content: content.hex().encode(),
    b"first-half": lambda content: content[: len(content) // 2],
    b"second-half": lambda content: content[len(content) // 2 :],
}
_PICTURE = re.compile(rb"<([1-4])(?::([a-z0-9-]+?))?([+-][0-9]+)?>")
_CHUNK = re.compile(rb"<chunk(?: ([^>]*))?>(.*?)</chunk>", re.DOTALL)
_LENGTH = re.compile(rb"<length([+-][0-9]+)?>")


def fill(
    template: bytes, pictures: Sequence[bytes], *, name: str = "", key: str = "", url: str = ""
) -> bytes:
    """The bytes that a template stands for.

    Args:
        pictures: at least as many as it names.
        name: for `<name>`.
        key: for `<key>`.
        url: for `<url>`.
    """

    def picture(found: re.Match[bytes]) -> bytes:
        content, form = pictures[int(found[1]) - 1], found[2]
        if form not in (None, b"length", *_ENCODINGS):
            return found[0]  # a mutation of one
        if form == b"length":
            return b"%d" % (len(content) + int(found[3] or 0))
        return _ENCODINGS[form](content) if form else content

    def chunk(found: re.Match[bytes]) -> bytes:
        size = (found[1] or b"%x") % len(found[2])
        return size + b"\r\n" + found[2] + b"\r\n"

    words = {b"<name>": name, b"<key>": key, b"<url>": url}
    filled = re.sub(b"|".join(words), lambda found: words[found[0]].encode(), template)
    filled = _CHUNK.sub(chunk, _PICTURE.sub(picture, filled))
    counted, _, behind = filled.partition(b"<end>")
    follows = len(counted.partition(b"\r\n\r\n")[2])
    return _LENGTH.sub(lambda found: b"%d" % (follows + int(found[1] or 0)), counted) + behind


def tiny(mark: str) -> bytes:
    """A PNG of one pixel that says `mark`; another mark, other bytes."""
    said = PngImagePlugin.PngInfo()
    said.add_text("mark", mark)
    file = io.BytesIO()
    Image.new("RGB", (1, 1), "white").save(file, "PNG", pnginfo=said)
    return file.getvalue()


# --- the pieces that most templates are made of ---

NAMED = b'Content-Disposition: form-data; name="images[]"; filename="a.png"'
FORM = b"Content-Type: multipart/form-data; boundary=B"
LENGTH = b"Content-Length: <length>"
END = b"--B--\r\n"


def part(*lines: bytes, content: bytes = b"<1>") -> bytes:
    """A boundary, a part's header lines, an empty line, its content."""
    return b"--B\r\n" + b"".join(line + b"\r\n" for line in lines) + b"\r\n" + content + b"\r\n"


ONE_PART = part(NAMED, b"Content-Type: image/png")
BODY = ONE_PART + END


def request(*lines: bytes, body: bytes = b"") -> bytes:
    """A request line, header lines, an empty line, a body."""
    return b"\r\n".join([*lines, b"", b""]) + body


def upload(body: bytes, *lines: bytes, content_type: bytes = FORM) -> bytes:
    """An upload of `body` with an ordinary head and further header `lines`."""
    return request(b"POST /image HTTP/1.1", b"Host: x", content_type, LENGTH, *lines, body=body)
