"""HTTP/1 framing that two servers read differently: where a head, a body or a request ends.

The second request that many of these hide is one to a door that the gate keeps shut.
"""

from __future__ import annotations

from collections.abc import Sequence

from tests.adversarial.case import BODY, FORM, LENGTH, NO_ANSWER, ONE_PART, Case, request

_POST = b"POST /image HTTP/1.1"
_HOST = b"Host: x"
_CHUNKED = b"Transfer-Encoding: chunked"
_LAST = b"0\r\n\r\n"
# Better refused, and taken by the gate's HTTP parser in one reading that pict-rs does not get to repeat.
_LAXLY = (201, 400, 501)
_CHUNKS = b"<chunk>" + BODY + b"</chunk>" + _LAST
_OTHER = BODY.replace(b"<1>", b"<2>").replace(b"a.png", b"<name>.png")
# What is smuggled: pict-rs would take it, the gate does not.
_HIDDEN = request(
    *(b"POST /internal/import HTTP/1.1", _HOST, b"X-Api-Token: <key>", FORM),
    *(b"Transfer-Encoding: chunked",),
    body=b"<chunk>" + _OTHER + b"</chunk>" + _LAST,
)
# What is answered only if nothing before it was taken for a request that was not one.
_GOODBYE = request(b"GET /healthz HTTP/1.1", _HOST, b"Connection: close")
_HEAD = _POST + b"\r\n" + _HOST + b"\r\n" + FORM + b"\r\n"


def _plain(*lines: bytes, body: bytes = BODY) -> bytes:
    return request(_POST, _HOST, FORM, *lines, body=body)


def _row(name: str, status: int | tuple[int, ...] | None, *lines: bytes, body: bytes = BODY) -> Case:
    return Case(name, _plain(*lines, body=body), status)


def _chunks(name: str, status: int | tuple[int, ...] | None, body: bytes, *, ends: bool = False) -> Case:
    return Case(name, _plain(_CHUNKED, body=body), status, ends=ends)


_LENGTHS: Sequence[Case] = [
    _row("a true length", 201, LENGTH),
    _row("no length at all", 400),
    _row("two lengths that agree", 400, LENGTH, LENGTH),
    _row("two lengths that differ", 400, LENGTH, b"Content-Length: 5"),
    _row("two lengths that differ, the other way", 400, b"Content-Length: 5", LENGTH),
    _row("a list of lengths that agree", 400, b"Content-Length: <length>, <length>"),
    _row("a list of lengths that differ", 400, b"Content-Length: <length>, 5"),
    _row("a length in lower case", 201, b"content-length: <length>"),
    _row("a length with a plus", 400, b"Content-Length: +<length>"),
    _row("a length with a minus", 400, b"Content-Length: -<length>"),
    _row("a length in hexadecimal", 400, b"Content-Length: 0x10"),
    _row("a length with a point", 400, b"Content-Length: <length>.0"),
    _row("a length with an exponent", 400, b"Content-Length: 1e3"),
    _row("a length in words", 400, b"Content-Length: many"),
    _row("an empty length", 400, b"Content-Length:"),
    _row("a length with a space inside", 400, b"Content-Length: 1 0"),
    _row("a length with an underscore", 400, b"Content-Length: 1_0"),
    _row("a length in quotes", 400, b'Content-Length: "<length>"'),
    _row("a length of Arabic digits", 400, b"Content-Length: \xd9\xa1\xd9\xa2"),
    _row("a length in full-width digits", 400, b"Content-Length: \xef\xbc\x91\xef\xbc\x92"),
    _row("a length with zeros before", (201, 400), b"Content-Length: 00000<length>"),
    _row("a length of 2^64 and 5", 400, b"Content-Length: 18446744073709551621"),
    _row("a length of 2^63", (400, 413), b"Content-Length: 9223372036854775808"),
    _row("a length of 100 digits", 400, b"Content-Length: " + b"9" * 100),
    _row("a length with NUL", 400, b"Content-Length: <length>\x00"),
    _row("a length with a comment", 400, b"Content-Length: <length> (bytes)"),
    _row("a length with a semicolon", 400, b"Content-Length: <length>;x"),
    _row("a length with spaces around", (201, 400), b"Content-Length:   <length>  "),
    _row("a length with tabs around", (201, 400), b"Content-Length:\t<length>\t"),
    _row("a length with a vertical tab", 400, b"Content-Length:\x0b<length>"),
    _row("a length of 0, and a body", 400, b"Content-Length: 0"),
    Case("a length too large, and the end", _plain(b"Content-Length: <length+1>"), NO_ANSWER, ends=True),
    Case("a length much too large", _plain(b"Content-Length: <length+999>"), NO_ANSWER, ends=True),
    _row("a length too small by the last line end", 201, b"Content-Length: <length-2>"),
    _row("a length too small by the closing hyphens", 400, b"Content-Length: <length-4>"),
    _row("a length too small by half a boundary", 400, b"Content-Length: <length-6>"),
    _row("a length far beyond every limit", 413, b"Content-Length: 99999999999"),
    Case(
        "a true length, and a request behind it",
        _plain(LENGTH, body=BODY + b"<end>" + _HIDDEN),
        201,
        then=[201],
    ),
    Case(
        "a length too large, into a request",
        _plain(b"Content-Length: <length+9>", body=BODY + b"<end>" + _HIDDEN),
        400,
    ),
    Case(
        "a length too small, out of a part",
        _plain(b"Content-Length: <length>", body=ONE_PART[:40] + b"<end>" + ONE_PART[40:] + _HIDDEN),
        400,
    ),
]
_BOTH: Sequence[Case] = [
    _row("length, then chunked", 400, LENGTH, _CHUNKED, body=_CHUNKS),
    _row("chunked, then length", 400, _CHUNKED, LENGTH, body=_CHUNKS),
    _row("chunked, and a length of 0", 400, _CHUNKED, b"Content-Length: 0", body=_CHUNKS),
    _row("length, and chunked that says nothing", 400, LENGTH, b"Transfer-Encoding:"),
    _row("length, and an encoding `identity`", 400, LENGTH, b"Transfer-Encoding: identity"),
    _row("a request behind CL.TE", 400, LENGTH, _CHUNKED, body=_LAST + _HIDDEN),
    _row(
        "a request behind TE.CL",
        400,
        b"Content-Length: 4",
        _CHUNKED,
        body=b"<chunk>" + _HIDDEN + b"</chunk>" + _LAST,
    ),
    _row(
        "length and chunked in lower case",
        400,
        b"content-length: <length>",
        b"transfer-encoding: chunked",
        body=_CHUNKS,
    ),
    _row(
        "length, and chunked with a space before its colon",
        400,
        LENGTH,
        b"Transfer-Encoding : chunked",
        body=_CHUNKS,
    ),
    _row(
        "length, and chunked on a folded line", 400, LENGTH, b"Transfer-Encoding:\r\n chunked", body=_CHUNKS
    ),
    _row("length, and chunked behind a folded header", 400, LENGTH, b"X: y\r\n Transfer-Encoding: chunked"),
    _row("length, and chunked behind a bare LF", 400, LENGTH, b"X: y\nTransfer-Encoding: chunked"),
    _row("length, and chunked behind a bare CR", 400, LENGTH, b"X: y\rTransfer-Encoding: chunked"),
    _row("length, and chunked behind a NUL", 400, LENGTH, b"X: y\x00Transfer-Encoding: chunked"),
    _row("length, and chunked with an underscore", 201, LENGTH, b"Transfer_Encoding: chunked"),
    _row("length with an underscore", 400, b"Content_Length: <length>"),
]
_ENCODINGS: Sequence[Case] = [
    _row(
        f"Transfer-Encoding: {value.decode('latin-1')!r}",
        status,
        b"Transfer-Encoding: " + value,
        body=_CHUNKS,
    )
    for value, status in (
        (b"chunked", 201),
        (b"Chunked", 201),
        (b"CHUNKED", 201),
        (b"  chunked  ", (201, 400)),
        (b"\tchunked", (201, 400)),
        (b"chunked\t", (201, 400)),
        (b"chunked, identity", 400),
        (b"identity, chunked", 400),
        (b"identity", 400),
        (b"chunked, chunked", 400),
        (b"chunked,", 400),
        (b",chunked", 400),
        (b"chunked;x=y", 400),
        (b"chunked x", 400),
        (b"xchunked", 400),
        (b"chunkedx", 400),
        (b"x-chunked", 400),
        (b'"chunked"', 400),
        (b"'chunked'", 400),
        (b"chunk", 400),
        (b"chunked\x00", 400),
        (b"\x0bchunked", 400),
        (b"\xa0chunked", 400),
        (b"chun\xc4\xb7ed", 400),
        (b"gzip, chunked", 400),
        (b"chunked, gzip", 400),
        (b"gzip", 400),
        (b"deflate", 400),
        (b"compress, chunked", 400),
        (b"cow", 400),
        (b"", 400),
        (b"trailers", 400),
    )
] + [
    _row("chunked twice, in two headers", 400, _CHUNKED, _CHUNKED, body=_CHUNKS),
    _row("chunked and identity, in two headers", 400, _CHUNKED, b"Transfer-Encoding: identity", body=_CHUNKS),
    _row("identity and chunked, in two headers", 400, b"Transfer-Encoding: identity", _CHUNKED, body=_CHUNKS),
    _row("chunked with a space before its colon", 400, b"Transfer-Encoding : chunked", body=_CHUNKS),
    _row("chunked with a tab before its colon", 400, b"Transfer-Encoding\t: chunked", body=_CHUNKS),
    _row("chunked without a colon", 400, b"Transfer-Encoding chunked", body=_CHUNKS),
    _row("chunked without a space", 201, b"Transfer-Encoding:chunked", body=_CHUNKS),
    _row("chunked on a folded line", 400, b"Transfer-Encoding:\r\n chunked", body=_CHUNKS),
    _row("chunked behind a space", 400, b" Transfer-Encoding: chunked", body=_CHUNKS),
    _row("chunked as TE", 400, b"TE: chunked", body=_CHUNKS),
    _row("chunked as Content-Encoding", 400, b"Content-Encoding: chunked", LENGTH, body=_CHUNKS),
    _row("gzip as Content-Encoding", 400, b"Content-Encoding: gzip", LENGTH),
    _row("identity as Content-Encoding", 201, b"Content-Encoding: identity", LENGTH),
    _row("two Content-Encodings", 400, b"Content-Encoding: identity", b"Content-Encoding: gzip", LENGTH),
    _row("an empty Content-Encoding", 400, b"Content-Encoding:", LENGTH),
    _row("a Content-MD5 that is false", 201, b"Content-MD5: AAAAAAAAAAAAAAAAAAAAAA==", LENGTH),
    _row("a Content-Range", (201, 400), b"Content-Range: bytes 0-9/99", LENGTH),
]
_CHUNK_SIZES: Sequence[Case] = [
    _chunks("one chunk", 201, _CHUNKS),
    _chunks("a size in upper case", 201, b"<chunk %X>" + BODY + b"</chunk>" + _LAST),
    _chunks("a size with zeros before", (201, 400), b"<chunk 0000%x>" + BODY + b"</chunk>" + _LAST),
    _chunks("a size with 0x", 400, b"<chunk 0x%x>" + BODY + b"</chunk>" + _LAST),
    _chunks("a size with a plus", 400, b"<chunk +%x>" + BODY + b"</chunk>" + _LAST),
    _chunks("a size with a minus", 400, b"<chunk -%x>" + BODY + b"</chunk>" + _LAST),
    _chunks("a size with an underscore", 400, b"<chunk %x_0>" + BODY + b"</chunk>" + _LAST),
    _chunks("a size with a space before", 400, b"<chunk  %x>" + BODY + b"</chunk>" + _LAST),
    _chunks("a size with a space after", (201, 400), b"<chunk %x >" + BODY + b"</chunk>" + _LAST),
    _chunks("a size with a tab after", (201, 400), b"<chunk %x\t>" + BODY + b"</chunk>" + _LAST),
    _chunks("a size with NUL", 400, b"<chunk %x\x00>" + BODY + b"</chunk>" + _LAST),
    _chunks("a size in quotes", 400, b'<chunk "%x">' + BODY + b"</chunk>" + _LAST),
    _chunks("a size in other digits", 400, b"\xef\xbc\x91\r\nx\r\n" + _LAST),
    _chunks("no size", 400, b"\r\n" + BODY + b"\r\n" + _LAST),
    _chunks("a word for a size", 400, b"xyz\r\n" + BODY + b"\r\n" + _LAST),
    _chunks("a size of 2^64 and a little", 400, b"10000000000000005\r\n" + BODY + b"\r\n" + _LAST),
    _chunks("a size of 2^32 and a little", (400, 413, NO_ANSWER), b"100000005\r\n" + BODY + b"\r\n" + _LAST),
    _chunks("a size of 100 digits", (400, NO_ANSWER), b"f" * 100 + b"\r\n" + BODY + b"\r\n" + _LAST),
    _chunks(
        "a size with 1000 zeros before",
        (201, 400),
        b"<chunk " + b"0" * 1000 + b"%x>" + BODY + b"</chunk>" + _LAST,
    ),
    _chunks("an extension", 201, b"<chunk %x;a=b>" + BODY + b"</chunk>" + _LAST),
    _chunks("an extension in quotes", (201, 400), b'<chunk %x;a="b;c">' + BODY + b"</chunk>" + _LAST),
    _chunks(
        "an extension with a line end in quotes", 400, b'<chunk %x;a="\r\n">' + BODY + b"</chunk>" + _LAST
    ),
    _chunks("an extension with a bare LF", 400, b"<chunk %x;a\nb>" + BODY + b"</chunk>" + _LAST),
    _chunks("an extension with a bare CR", 400, b"<chunk %x;a\rb>" + BODY + b"</chunk>" + _LAST),
    _chunks("an extension with NUL", 400, b"<chunk %x;a\x00b>" + BODY + b"</chunk>" + _LAST),
    _chunks("an extension without a name", (201, 400), b"<chunk %x;>" + BODY + b"</chunk>" + _LAST),
    _chunks(
        "an extension of 100 kB", _LAXLY, b"<chunk %x;" + b"a" * 100_000 + b">" + BODY + b"</chunk>" + _LAST
    ),
    _chunks(
        "an extension that holds a request",
        400,
        b"<chunk %x;\n" + _HIDDEN[:20] + b">" + BODY + b"</chunk>" + _LAST,
    ),
    _chunks(
        "a chunk one byte too long", 400, BODY.join((b"<chunk>", b"</chunk>"))[:-8] + b"x</chunk>" + _LAST
    ),
    _chunks("a chunk that goes on behind its size", 400, b"5\r\n" + BODY + b"\r\n" + _LAST),
    _chunks("a chunk that ends before its size", (400, NO_ANSWER), b"fff\r\n" + BODY + b"\r\n" + _LAST),
    _chunks("chunks ended by bare LF", 400, b"<chunk>" + BODY[:20] + b"</chunk>" + b"4\nabcd\n" + _LAST),
    _chunks("a size ended by a bare CR", 400, b"4\rabcd\r\n" + _LAST),
    _chunks("a size ended by CR CR LF", 400, b"4\r\r\nabcd\r\n" + _LAST),
    _chunks("a last chunk of several zeros", (201, 400), b"<chunk>" + BODY + b"</chunk>" + b"000\r\n\r\n"),
    _chunks("a last chunk with an extension", (201, 400), b"<chunk>" + BODY + b"</chunk>" + b"0;a=b\r\n\r\n"),
    _chunks("a last chunk of minus zero", 400, b"<chunk>" + BODY + b"</chunk>" + b"-0\r\n\r\n"),
    _chunks("no last chunk", NO_ANSWER, b"<chunk>" + BODY + b"</chunk>", ends=True),
    _chunks("half a last chunk", NO_ANSWER, b"<chunk>" + BODY + b"</chunk>" + b"0\r\n", ends=True),
    _chunks("a last chunk ended by bare LF", (400, NO_ANSWER), b"<chunk>" + BODY + b"</chunk>" + b"0\n\n"),
    _chunks("the last chunk first", 400, _LAST + b"<chunk>" + BODY + b"</chunk>" + _LAST),
    _chunks(
        "the last chunk between two",
        400,
        b"<chunk>" + BODY + b"</chunk>" + _LAST + b"<chunk>" + _OTHER + b"</chunk>" + _LAST,
    ),
    _chunks(
        "a chunk a byte",
        201,
        b"".join(b"<chunk>%c</chunk>" % byte for byte in BODY[:20])
        + b"<chunk>"
        + BODY[20:]
        + b"</chunk>"
        + _LAST,
    ),
    _chunks(
        "a boundary across two chunks",
        201,
        b"<chunk>" + BODY[:-7] + b"</chunk><chunk>" + BODY[-7:] + b"</chunk>" + _LAST,
    ),
    _chunks("a body that is not chunked", 400, BODY),
    _chunks("a trailer", (201, 400), b"<chunk>" + BODY + b"</chunk>" + b"0\r\nX: y\r\n\r\n"),
    _chunks(
        "a trailer Content-Length",
        (201, 400),
        b"<chunk>" + BODY + b"</chunk>" + b"0\r\nContent-Length: 5\r\n\r\n",
    ),
    _chunks(
        "a trailer Transfer-Encoding",
        (201, 400),
        b"<chunk>" + BODY + b"</chunk>" + b"0\r\nTransfer-Encoding: x\r\n\r\n",
    ),
    _chunks(
        "a trailer Content-Type",
        (201, 400),
        b"<chunk>" + BODY + b"</chunk>" + b"0\r\nContent-Type: multipart/form-data; boundary=C\r\n\r\n",
    ),
    _chunks("a trailer without a colon", (201, 400), b"<chunk>" + BODY + b"</chunk>" + b"0\r\nabc\r\n\r\n"),
    _chunks("a folded trailer", (201, 400), b"<chunk>" + BODY + b"</chunk>" + b"0\r\nX: y\r\n z\r\n\r\n"),
    _chunks(
        "a trailer with a bare LF", (201, 400), b"<chunk>" + BODY + b"</chunk>" + b"0\r\nX: y\nZ: a\r\n\r\n"
    ),
    _chunks(
        "a trailer of 100 kB",
        (201, 400),
        b"<chunk>" + BODY + b"</chunk>" + b"0\r\nX: " + b"y" * 100_000 + b"\r\n\r\n",
    ),
    Case(
        "a trailer that is a request",
        _plain(_CHUNKED, body=b"<chunk>" + BODY + b"</chunk>0\r\n" + _HIDDEN),
        (201, 400),
    ),
    Case("a request behind a chunked one", _plain(_CHUNKED, body=_CHUNKS) + _HIDDEN, 201, then=[201]),
]
_HEADERS: Sequence[Case] = [
    Case("a space before a colon", _plain(LENGTH, b"X : y"), 400),
    Case(
        "a space before the colon of the type",
        request(_POST, _HOST, FORM.replace(b":", b" :"), LENGTH, body=BODY),
        400,
    ),
    Case("a folded header", _plain(LENGTH, b"X: y\r\n z"), 400),
    Case("a folded header, with a tab", _plain(LENGTH, b"X: y\r\n\tz"), 400),
    Case("a folded type", request(_POST, _HOST, FORM.replace(b"; ", b";\r\n "), LENGTH, body=BODY), 400),
    Case("a first header that is folded", request(_POST, b" X: y", _HOST, FORM, LENGTH, body=BODY), 400),
    Case("a header without a colon", _plain(LENGTH, b"X"), 400),
    Case("a header without a name", _plain(LENGTH, b": y"), 400),
    Case("a header without a value", _plain(LENGTH, b"X:"), 201),
    Case("a header with a bare LF", _plain(LENGTH, b"X: y\nZ: a"), 400),
    Case("a header with a bare CR", _plain(LENGTH, b"X: y\rZ: a"), 400),
    Case("a header with NUL", _plain(LENGTH, b"X: \x00"), 400),
    Case("a header with DEL", _plain(LENGTH, b"X: \x7f"), (201, 400)),
    Case("a header with a control character", _plain(LENGTH, b"X: \x01"), (201, 400)),
    Case("a header with Latin-1", _plain(LENGTH, b"X: \xe4"), 201),
    Case("a name with Latin-1", _plain(LENGTH, b"\xe4: y"), 400),
    Case("a name with a space", _plain(LENGTH, b"A B: y"), 400),
    Case("a name with a slash", _plain(LENGTH, b"A/B: y"), 400),
    Case("a name in brackets", _plain(LENGTH, b"(A): y"), 400),
    Case("a name with NUL", _plain(LENGTH, b"A\x00: y"), 400),
    Case("a header of 100 kB", _plain(LENGTH, b"X: " + b"y" * 100_000), (400, 431)),
    Case("a name of 100 kB", _plain(LENGTH, b"X" * 100_000 + b": y"), (400, 431)),
    Case("1000 headers", _plain(LENGTH, *(b"X-%d: y" % n for n in range(1000))), (400, 431)),
    Case("100 headers", _plain(LENGTH, *(b"X-%d: y" % n for n in range(100))), (201, 400, 431)),
    Case("a head that never ends", _HEAD + b"X: y\r\n" * 20_000, (400, 431)),
    Case("no host", request(_POST, FORM, LENGTH, body=BODY), (201, 400)),
    Case("two hosts", _plain(LENGTH, b"Host: y"), (201, 400)),
    Case(
        "a host with a path", request(_POST, b"Host: x/internal/import", FORM, LENGTH, body=BODY), (201, 400)
    ),
    Case("an empty host", request(_POST, b"Host:", FORM, LENGTH, body=BODY), (201, 400)),
    Case(
        "a head with bare LF only",
        _plain(LENGTH, body=b"").replace(b"\r\n", b"\n").replace(b"<length>", b"5") + BODY,
        400,
    ),
    Case(
        "a head with bare CR only",
        _plain(LENGTH, body=b"").replace(b"\r\n", b"\r").replace(b"<length>", b"5") + BODY,
        (400, NO_ANSWER),
    ),
    Case("one header line ended by a bare LF", _plain(LENGTH).replace(b"Host: x\r\n", b"Host: x\n"), 400),
    Case("one header line ended by a bare CR", _plain(LENGTH).replace(b"Host: x\r\n", b"Host: x\r"), 400),
    Case("one header line ended by CR CR LF", _plain(LENGTH).replace(b"Host: x\r\n", b"Host: x\r\r\n"), 400),
    Case("one header line ended by LF CR", _plain(LENGTH).replace(b"Host: x\r\n", b"Host: x\n\r"), 400),
    Case("a head ended by LF LF", _HEAD + b"Content-Length: 5\n\n" + BODY, 400),
    Case("a head ended by LF CR LF", _HEAD + b"Content-Length: 5\n\r\n" + BODY, 400),
    Case("a head ended by CR LF LF", _HEAD + b"Content-Length: 5\r\n\n" + BODY, 400),
    Case("a head ended by CR LF SP CR LF", _HEAD + b"Content-Length: 5\r\n \r\n" + BODY, 400),
    Case(
        "empty lines before the request",
        b"\r\n\r\n" + _plain(LENGTH).replace(b"<length>", b"5"),
        (400, NO_ANSWER),
    ),
    Case("bare LF before the request", b"\n" + _plain(LENGTH), (201, 400)),
    Case("an empty name among the headers", _plain(LENGTH, b" : y"), 400),
    Case("a second request line", _plain(LENGTH, b"POST /internal/import HTTP/1.1"), 400),
]
_VERSIONS: Sequence[Case] = [
    Case(
        f"version {version.decode('latin-1')!r}",
        request(b"POST /image " + version, _HOST, FORM, LENGTH, body=BODY),
        status,
    )
    for version, status in (
        (b"HTTP/1.1", 201),
        (b"HTTP/1.0", 201),
        (b"HTTP/0.9", 400),
        (b"HTTP/2.0", 400),
        (b"HTTP/2", 400),
        (b"HTTP/3", 400),
        (b"HTTP/1", 400),
        (b"HTTP/1.2", (201, 400, 505)),
        (b"HTTP/1.10", 400),
        (b"HTTP/01.1", 400),
        (b"HTTP/1.1x", 400),
        (b"HTTP/1.1 ", (201, 400)),
        (b"HTTP/1.1\t", 400),
        (b"HTTP/ 1.1", 400),
        (b"HTTP/1,1", 400),
        (b"HTTP/+1.1", 400),
        (b"HTTP/-1.1", 400),
        (b"HTTP/A.B", 400),
        (b"http/1.1", 400),
        (b"Http/1.1", 400),
        (b"HTTPS/1.1", 400),
        (b"RTSP/1.0", _LAXLY),
        (b"ICE/1.0", 400),
        (b"HTTP/1.1 HTTP/1.1", 400),
        (b"HTTP/\xd9\xa1.\xd9\xa1", 400),
    )
] + [
    Case("HTTP/0.9, a line only", b"GET /image/download?url=<url>\r\n", NO_ANSWER, ends=True),
    Case("HTTP/0.9, a POST", b"POST /image\r\n\r\n" + BODY, 400),
    Case("HTTP/1.0, chunked", request(b"POST /image HTTP/1.0", FORM, _CHUNKED, body=_CHUNKS), (201, 400)),
    Case("HTTP/1.0, no length", request(b"POST /image HTTP/1.0", FORM, body=BODY), 400),
    Case(
        "HTTP/1.0, kept alive, and another",
        request(
            b"POST /image HTTP/1.0", FORM, LENGTH, b"Connection: keep-alive", body=BODY + b"<end>" + _HIDDEN
        ),
        201,
        then=[201],
    ),
    Case("the preface of HTTP/2", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0\0\0\4\0\0\0\0\0", (400, 505)),
    Case("a TLS hello", bytes.fromhex("16030100a5010000a10303") + b"\x2a" * 160, (400, NO_ANSWER)),
    Case("a PROXY protocol line", b"PROXY TCP4 10.0.0.1 10.0.0.2 1 2\r\n" + _plain(LENGTH), 400),
    Case("SSH", b"SSH-2.0-OpenSSH_9.2\r\n", (400, NO_ANSWER)),
    Case("nothing", b"", NO_ANSWER, ends=True),
    Case("a NUL", b"\0", (400, NO_ANSWER)),
]
_CONNECTIONS: Sequence[Case] = [
    Case("Expect: 100-continue", _plain(LENGTH, b"Expect: 100-continue"), 201),
    Case("Expect: 100-Continue", _plain(LENGTH, b"Expect: 100-Continue"), 201),
    Case(
        "Expect: 100-continue, twice",
        _plain(LENGTH, b"Expect: 100-continue", b"Expect: 100-continue"),
        (201, 400, 417),
    ),
    Case("Expect: a word", _plain(LENGTH, b"Expect: a-miracle"), (201, 400, 417)),
    Case(
        "Expect: 100-continue, and a shut door",
        request(b"POST /internal/import HTTP/1.1", _HOST, FORM, LENGTH, b"Expect: 100-continue", body=BODY),
        401,
    ),
    Case(
        "Expect: 100-continue in HTTP/1.0",
        request(b"POST /image HTTP/1.0", FORM, LENGTH, b"Expect: 100-continue", body=BODY),
        201,
    ),
    Case(
        "two uploads in one go",
        _plain(_CHUNKED, body=_CHUNKS) + _plain(_CHUNKED, body=_CHUNKS).replace(b"<1>", b"<2>"),
        201,
        then=[201],
    ),
    Case(
        "a refused door, its body a request",
        request(b"POST /internal/import HTTP/1.1", _HOST, LENGTH, body=_HIDDEN + b"<end>" + _GOODBYE),
        401,
        then=[200],
    ),
    Case(
        "a body where none belongs, a request",
        request(b"GET /healthz HTTP/1.1", _HOST, LENGTH, body=_HIDDEN + b"<end>" + _GOODBYE),
        200,
        then=[200],
    ),
    Case(
        "a body of a DELETE, a request",
        request(b"DELETE /image HTTP/1.1", _HOST, LENGTH, body=_HIDDEN + b"<end>" + _GOODBYE),
        404,
        then=[200],
    ),
    Case(
        "a GET without a length, and a body",
        request(b"GET /healthz HTTP/1.1", _HOST, body=_HIDDEN),
        200,
        then=[201],
    ),
    Case(
        "a HEAD, and a request behind it",
        request(b"HEAD /image HTTP/1.1", _HOST, body=_HIDDEN),
        404,
        then=[201],
    ),
    Case(
        "Connection: close, and a request behind it",
        _plain(_CHUNKED, b"Connection: close", body=_CHUNKS) + _HIDDEN,
        (201, 400),
    ),
    Case(
        "a malformed body, a request behind it",
        _plain(_CHUNKED, body=b"<chunk>--C\r\n</chunk>" + _LAST) + _HIDDEN,
        400,
        then=[201],
    ),
    Case(
        "a body too long for its limit, chunked",
        _plain(_CHUNKED, body=b"<chunk>--B\r\n" + b"x" * 9000 + b"</chunk>" + _LAST),
        400,
    ),
    Case(
        "an Upgrade, the body behind it",
        request(b"GET /healthz HTTP/1.1", _HOST, b"Connection: Upgrade", b"Upgrade: websocket", body=_HIDDEN),
        200,
        then=[201],
    ),
    Case(
        "an Upgrade to h2c, the preface behind it",
        request(
            b"GET /healthz HTTP/1.1",
            _HOST,
            b"Connection: Upgrade, HTTP2-Settings",
            b"Upgrade: h2c",
            b"HTTP2-Settings: AAMAAABkAAQAAP__",
            body=b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        ),
        (200, 400),
    ),
    Case(
        "CONNECT, and a request behind it",
        request(b"CONNECT x:80 HTTP/1.1", _HOST, body=_HIDDEN),
        (400, 404, 405),
        then=[201],
    ),
    Case(
        "a body cut off in the picture", _plain(b"Content-Length: 5000", body=BODY[:90]), NO_ANSWER, ends=True
    ),
    Case(
        "a body cut off before its last boundary",
        _plain(b"Content-Length: <length+9>", body=BODY[: -len(b"--B--\r\n")]),
        NO_ANSWER,
        ends=True,
    ),
    Case(
        "a body cut off behind its last boundary", _plain(b"Content-Length: <length+9>"), NO_ANSWER, ends=True
    ),
]

CASES: Sequence[Case] = [*_LENGTHS, *_BOTH, *_ENCODINGS, *_CHUNK_SIZES, *_HEADERS, *_VERSIONS, *_CONNECTIONS]
