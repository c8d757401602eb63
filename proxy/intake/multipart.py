"""A strict push parser for `multipart/form-data` (RFC 7578), and the writer of what pict-rs gets.

One grammar, no second reading: whatever two parsers might read differently is an error here. The parser of
the `multipart` package was tried first; in its strict mode it still passes bare line feeds in headers, bytes
after the last boundary and unknown words among the parameters, so the gate keeps its own.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

_TOKEN = rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+"  # RFC 9110, 5.6.2
_QUOTED = rb'"(?:[^"\\\x00-\x1f\x7f]|\\["\\]|\\(?=[^"\\\x00-\x1f\x7f]))*"'
_PARAMETER = re.compile(rb"[ \t]*;[ \t]*(%b)=(%b|%b)" % (_TOKEN, _TOKEN, _QUOTED))
_TYPE = re.compile(rb"(%b/%b)" % (_TOKEN, _TOKEN))
_HEADER = re.compile(rb"(%b):([^\x00-\x08\x0a-\x1f\x7f]*)" % _TOKEN)
_BOUNDARY = re.compile(rb"[0-9A-Za-z'()+_,\-./:=? ]{0,69}[0-9A-Za-z'()+_,\-./:=?]")  # RFC 2046, 5.1.1
_IDENTITY_ENCODINGS = frozenset({b"binary", b"8bit", b"7bit"})
_CLOSING = b"--"
_LONGEST_NAME = 255  # of a file that is sent to pict-rs, in characters


class MultipartError(ValueError):
    """The body is not one that can be read in one way only. The message never quotes it."""


class TooLarge(MultipartError):
    """A part is larger than it may be."""


class TooMany(MultipartError):
    """There are more parts than there may be."""


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds of a body.

    Attributes:
        parts: how many parts.
        part_bytes: bytes of one part's content.
        header_bytes: bytes of one part's headers together.
        headers: how many headers a part.
        extended_names: whether a part may give its name as `name*` (RFC 8187) and only so. RFC 7578 forbids
            it, and pict-rs 0.6 does it in what it sends; of an upload it is refused.
    """

    parts: int
    part_bytes: int
    header_bytes: int = 8 * 1024
    headers: int = 16
    extended_names: bool = False


@dataclass(frozen=True, slots=True)
class Part:
    """The head of one part.

    Attributes:
        name: of the form field.
        file_name: as the client wrote it, decoded; None where it wrote none.
        content_type: lower case, without parameters; None where the client wrote none.
    """

    name: str
    file_name: str | None
    content_type: str | None
    declared_bytes: int | None = field(default=None, repr=False)


def boundary_of(content_type: str) -> bytes:
    """The boundary that a request's `Content-Type` names.

    Raises:
        MultipartError: it is not `multipart/form-data` with exactly one usable boundary.
    """
    value = content_type.encode("utf-8", "surrogateescape")
    kind, parameters = _parse_value(value)
    if not kind.startswith(b"multipart/"):
        raise MultipartError("Parsed Content-Type did not have 'multipart' top-level media type")
    if kind != b"multipart/form-data":
        raise MultipartError("only multipart/form-data is taken")
    if not parameters.keys() <= {b"boundary", b"charset"}:
        raise MultipartError("the Content-Type has parameters that are not understood")
    boundary = parameters.get(b"boundary")
    if not boundary:
        raise MultipartError("Multipart boundary is missing")
    if not _BOUNDARY.fullmatch(boundary):
        raise MultipartError("the boundary has characters or a length that no boundary may have")
    return boundary


class Parser:
    """Parses one body, fed in chunks of any size.

    Events come in this order for each part: its `Part`, then its content as non-empty `bytes`, then None.
    After an error the parser is of no further use.
    """

    def __init__(self, boundary: bytes, limits: Limits) -> None:
        self._dashes = b"--" + boundary
        self._limits = limits
        # What has come and is not consumed: `_buffer` from `_at` on. The line break in front makes the first
        # boundary a delimiter like the others.
        self._buffer, self._at = b"\r\n", 0
        self._state: Callable[[], Iterator[Part | bytes | None]] = self._preamble
        self._parts = 0
        self._part: Part | None = None
        self._received = 0
        self._done = False

    def feed(self, chunk: bytes) -> Iterator[Part | bytes | None]:
        """Events that `chunk` completes. Must be exhausted before the next call.

        Raises:
            MultipartError: the body breaks the grammar.
            TooLarge, TooMany: it breaks a limit.
        """
        self._buffer, self._at = self._buffer[self._at :] + chunk, 0
        while True:
            before = self._state
            yield from self._state()
            if self._state == before:
                return

    def close(self) -> None:
        """Says that the body ends here.

        Raises:
            MultipartError: it ends too early.
        """
        if not self._done or self._buffer[self._at :] not in (b"", b"\r\n"):
            raise MultipartError("Multipart stream is incomplete")

    # Each state consumes what it can from the buffer and sets the next one, or returns to wait for more.

    def _preamble(self) -> Iterator[Part | bytes | None]:
        first = b"\r\n" + self._dashes
        if not first.startswith(self._buffer[: len(first)]):
            raise MultipartError("the body does not begin with its boundary")
        if len(self._buffer) >= len(first):
            self._at = len(first)
            self._state = self._after_boundary
        yield from ()

    def _after_boundary(self) -> Iterator[Part | bytes | None]:
        yield from ()
        follows = self._buffer[self._at : self._at + 2]
        if len(follows) < 2:
            return
        self._at += 2
        if follows == b"\r\n":
            self._parts += 1
            if self._parts > self._limits.parts:
                raise TooMany("Too many files in request")
            self._state = self._head
        elif follows == _CLOSING and self._parts:
            self._done = True
            self._state = self._epilogue
        elif follows == _CLOSING:
            raise MultipartError("the body has no parts")
        else:
            raise MultipartError("a boundary is followed by other bytes")

    def _head(self) -> Iterator[Part | bytes | None]:
        longest = self._limits.header_bytes
        end = self._buffer.find(b"\r\n\r\n", self._at, self._at + longest + 4)
        if end < 0:
            if len(self._buffer) - self._at >= longest + 4:
                raise MultipartError("a part's headers are too long")
            return
        head, self._at = self._buffer[self._at : end], end + 4
        if self._dashes in head:
            raise MultipartError("a boundary stands among a part's headers")
        self._part = _parse_head(head, self._limits)
        self._received = 0
        self._state = self._content
        yield self._part

    def _content(self) -> Iterator[Part | bytes | None]:
        boundary = self._buffer.find(self._dashes, self._at)
        if boundary < 0:
            # The end may be the beginning of a delimiter; all before it is content.
            end = len(self._buffer) - len(self._dashes) - 1
            if end > self._at:
                content, self._at = self._buffer[self._at : end], end
                yield self._take(content)
            return
        # A boundary anywhere but at the start of a line is one to some parsers and content to others.
        end = boundary - 2
        if end < self._at or not self._buffer.startswith(b"\r\n", end):
            raise MultipartError("a boundary stands inside a part")
        content, self._at = self._buffer[self._at : end], boundary + len(self._dashes)
        if content:
            yield self._take(content)
        assert self._part is not None
        if self._part.declared_bytes not in (None, self._received):
            raise MultipartError("a part's Content-Length is not its length")
        self._state = self._after_boundary
        yield None

    def _epilogue(self) -> Iterator[Part | bytes | None]:
        if not b"\r\n".startswith(self._buffer[self._at :]):
            raise MultipartError("bytes follow the last boundary")
        yield from ()

    def _take(self, content: bytes) -> bytes:
        self._received += len(content)
        if self._received > self._limits.part_bytes:
            raise TooLarge("File too large")
        return content


def _parse_value(value: bytes) -> tuple[bytes, Mapping[bytes, bytes]]:
    """`word/word; name=value; …`, or `word; …`: the words in lower case and the parameters, once each."""
    kind = _TYPE.match(value) or re.match(_TOKEN, value)
    if kind is None:
        raise MultipartError("a header has no value that can be read")
    parameters: dict[bytes, bytes] = {}
    at = kind.end()
    while at < len(value):
        match = _PARAMETER.match(value, at)
        if match is None:
            if value[at:].strip(b" \t;"):
                raise MultipartError("a header's parameters cannot be read in one way only")
            break
        name = match[1].lower()
        if name in parameters:
            raise MultipartError("a header has one parameter twice")
        parameters[name] = _unquote(match[2])
        at = match.end()
    return kind[0].lower(), parameters


def _unquote(value: bytes) -> bytes:
    if not value.startswith(b'"'):
        return value
    return re.sub(rb'\\(["\\])', rb"\1", value[1:-1])


def _parse_head(head: bytes, limits: Limits) -> Part:
    headers: dict[bytes, bytes] = {}
    lines = head.split(b"\r\n")
    if len(lines) > limits.headers:
        raise MultipartError("a part has too many headers")
    for line in lines:
        match = _HEADER.fullmatch(line)
        if match is None:
            raise MultipartError("a part has a line that is no header")
        if match[1].lower() in headers:
            raise MultipartError("a part has one header twice")
        headers[match[1].lower()] = match[2].strip(b" \t")

    if headers.get(b"content-transfer-encoding", b"binary").lower() not in _IDENTITY_ENCODINGS:
        raise MultipartError("a part's content is encoded")
    if b"content-encoding" in headers:
        raise MultipartError("a part's content is encoded")
    content_type = headers.get(b"content-type")
    kind = _parse_value(content_type)[0] if content_type else None
    if kind is not None and kind.startswith((b"multipart/", b"message/")):
        raise MultipartError("a part contains further parts")
    declared = headers.get(b"content-length")
    if declared is not None and not re.fullmatch(rb"[0-9]{1,12}", declared):
        raise MultipartError("a part's Content-Length is not a number")

    disposition, parameters = _parse_value(headers.get(b"content-disposition", b""))
    if disposition != b"form-data":
        raise MultipartError("a part is not a named form field")
    return Part(
        name=_name(parameters, limits),
        file_name=_file_name(parameters),
        content_type=kind.decode("ascii", "replace") if kind else None,
        declared_bytes=None if declared is None else int(declared),
    )


def _name(parameters: Mapping[bytes, bytes], limits: Limits) -> str:
    plain = parameters.get(b"name")
    extended = parameters.get(b"name*") if limits.extended_names else None
    if (plain is None) == (extended is None):
        raise MultipartError("a part is not a named form field")
    return plain.decode("utf-8", "replace") if plain is not None else _extended(extended or b"")


def _file_name(parameters: Mapping[bytes, bytes]) -> str | None:
    plain = parameters.get(b"filename")
    if plain is not None:
        return plain.decode("utf-8", "replace")
    extended = parameters.get(b"filename*")
    return None if extended is None else _extended(extended)


def _extended(value: bytes) -> str:
    """An extended parameter's value (RFC 8187): charset'language'percent-encoded."""
    charset, _, rest = value.partition(b"'")
    if charset.lower() != b"utf-8":
        raise MultipartError("a name is in a character set other than UTF-8")
    name = rest.partition(b"'")[2]
    return re.sub(rb"%([0-9A-Fa-f]{2})", lambda hexes: bytes([int(hexes[1], 16)]), name).decode(
        "utf-8", "replace"
    )


@dataclass(frozen=True, slots=True)
class OutgoingFile:
    """A file as pict-rs gets it.

    Attributes:
        file_name: of the gate's own making, or the alias that it is to have.
        content: the very buffer that was looked at.
    """

    file_name: str
    content_type: str
    content: bytes


@dataclass(frozen=True, slots=True)
class Body:
    """A body for pict-rs: the request's `Content-Type`, and the pieces that make it up, in order."""

    content_type: str
    pieces: Sequence[bytes]

    @property
    def length(self) -> int:
        """Bytes of the whole body."""
        return sum(map(len, self.pieces))


def write(files: Sequence[OutgoingFile]) -> Body:
    """A multipart body with one `images[]` part a file. No content is copied.

    Raises:
        ValueError: a file has a name that `can_be_sent` does not take.
    """
    if not all(can_be_sent(file.file_name) for file in files):
        raise ValueError("a file's name cannot be written in one way only")
    boundary = f"gate-{secrets.token_hex(24)}"
    pieces: list[bytes] = []
    for file in files:
        head = (
            f"--{boundary}\r\n"
            f'Content-Disposition: form-data; name="images[]"; filename="{file.file_name}"\r\n'
            f"Content-Type: {file.content_type}\r\n\r\n"
        )
        pieces += [head.encode(), file.content, b"\r\n"]
    pieces.append(f"--{boundary}--\r\n".encode("ascii"))
    return Body(f"multipart/form-data; boundary={boundary}", pieces)


def can_be_sent(name: str) -> bool:
    """Whether a file name can be written so that it reads the same everywhere, without any quoting."""
    return 0 < len(name) <= _LONGEST_NAME and name.isprintable() and not set(name) & set('"\\/')
