"""What a request says about its body: types, boundaries, and two of each.

Each row: the right status, why it is here, and the header lines that stand for the type. The body is the
ordinary one with the boundary `B` where no other is given.
"""

from __future__ import annotations

from collections.abc import Sequence

from tests.adversarial.case import BODY, Case, upload

Row = tuple[int | tuple[int, ...], str, bytes]

_TYPES: Sequence[Row] = [
    (201, "as it should be", b"Content-Type: multipart/form-data; boundary=B"),
    (201, "the boundary in quotes", b'Content-Type: multipart/form-data; boundary="B"'),
    (201, "no space", b"Content-Type: multipart/form-data;boundary=B"),
    (201, "in upper case", b"CONTENT-TYPE: MULTIPART/FORM-DATA; BOUNDARY=B"),
    (201, "spaces before the semicolon", b"Content-Type: multipart/form-data  ;  boundary=B"),
    (201, "a tab before the parameter", b"Content-Type: multipart/form-data;\tboundary=B"),
    (201, "a charset", b"Content-Type: multipart/form-data; charset=utf-8; boundary=B"),
    (201, "a charset after", b"Content-Type: multipart/form-data; boundary=B; charset=utf-8"),
    (
        201,
        "a charset that would change everything",
        b"Content-Type: multipart/form-data; boundary=B; charset=utf-16",
    ),
    (201, "a charset of Japanese", b"Content-Type: multipart/form-data; boundary=B; charset=iso-2022-jp"),
    (
        201,
        "a charset that old browsers guess",
        b"Content-Type: multipart/form-data; boundary=B; charset=utf-7",
    ),
    ((201, 400), "a semicolon at the end", b"Content-Type: multipart/form-data; boundary=B;"),
    ((201, 400), "two semicolons", b"Content-Type: multipart/form-data;; boundary=B"),
    (400, "the boundary twice, the same", b"Content-Type: multipart/form-data; boundary=B; boundary=B"),
    (
        400,
        "the boundary twice, the first right",
        b"Content-Type: multipart/form-data; boundary=B; boundary=C",
    ),
    (400, "the boundary twice, the last right", b"Content-Type: multipart/form-data; boundary=C; boundary=B"),
    (
        400,
        "the boundary twice, in another case",
        b"Content-Type: multipart/form-data; boundary=B; Boundary=C",
    ),
    (400, "boundary*", b"Content-Type: multipart/form-data; boundary*=utf-8''B"),
    (400, "boundary* beside boundary", b"Content-Type: multipart/form-data; boundary=B; boundary*=utf-8''C"),
    (400, "boundary* before boundary", b"Content-Type: multipart/form-data; boundary*=utf-8''C; boundary=B"),
    (400, "boundary*0", b"Content-Type: multipart/form-data; boundary*0=B"),
    (
        400,
        "boundary*0 and boundary*1",
        b"Content-Type: multipart/form-data; boundary*0=A; boundary*1=B; boundary=B",
    ),
    (400, "no boundary", b"Content-Type: multipart/form-data"),
    (400, "an empty boundary", b"Content-Type: multipart/form-data; boundary="),
    (400, "an empty boundary in quotes", b'Content-Type: multipart/form-data; boundary=""'),
    (400, "a boundary without its sign", b"Content-Type: multipart/form-data; boundary"),
    (400, "a boundary without its semicolon", b"Content-Type: multipart/form-data boundary=B"),
    (400, "a comma for the semicolon", b"Content-Type: multipart/form-data, boundary=B"),
    (400, "spaces around the sign", b"Content-Type: multipart/form-data; boundary = B"),
    (400, "a space after the sign", b"Content-Type: multipart/form-data; boundary= B"),
    (400, "a space in the boundary", b"Content-Type: multipart/form-data; boundary=B C"),
    (400, "a comma after the boundary", b"Content-Type: multipart/form-data; boundary=B, text/plain"),
    (400, "a comma in the boundary", b"Content-Type: multipart/form-data; boundary=B,C"),
    (400, "half a quote", b'Content-Type: multipart/form-data; boundary="B'),
    (400, "the other half", b'Content-Type: multipart/form-data; boundary=B"'),
    (400, "quotes inside", b'Content-Type: multipart/form-data; boundary=B"B"'),
    (400, "bytes behind the quote", b'Content-Type: multipart/form-data; boundary="B"C'),
    (400, "an escaped letter", b'Content-Type: multipart/form-data; boundary="\\B"'),
    (400, "an escaped quote", b'Content-Type: multipart/form-data; boundary="B\\"; x=\\"y"'),
    (400, "single quotes, which are of the boundary", b"Content-Type: multipart/form-data; boundary='B'"),
    (400, "a comment", b"Content-Type: multipart/form-data (a comment); boundary=B"),
    (400, "a comment after the boundary", b"Content-Type: multipart/form-data; boundary=B (a comment)"),
    (400, "a comment before the boundary", b"Content-Type: multipart/form-data; boundary=(a comment)B"),
    (400, "an encoded word", b"Content-Type: multipart/form-data; boundary==?utf-8?q?B?="),
    (400, "percent encoding", b"Content-Type: multipart/form-data; boundary=%42"),
    (400, "another case of the boundary", b"Content-Type: multipart/form-data; boundary=b"),
    (400, "a boundary of 71 characters", b"Content-Type: multipart/form-data; boundary=" + b"B" * 71),
    (400, "a boundary of 10 kB", b"Content-Type: multipart/form-data; boundary=" + b"B" * 7000),
    (400, "a boundary that ends in a space", b'Content-Type: multipart/form-data; boundary="B "'),
    (400, "a boundary of a space", b'Content-Type: multipart/form-data; boundary=" "'),
    (400, "a boundary with a tab", b'Content-Type: multipart/form-data; boundary="B\t"'),
    (400, "a boundary with NUL", b"Content-Type: multipart/form-data; boundary=B\x00"),
    (400, "a boundary with a bare LF", b"Content-Type: multipart/form-data; boundary=B\nX: y"),
    (400, "a boundary with a bare CR", b"Content-Type: multipart/form-data; boundary=B\rX: y"),
    (400, "a boundary on a folded line", b"Content-Type: multipart/form-data;\r\n boundary=B"),
    (400, "a boundary on a folded line, in quotes", b'Content-Type: multipart/form-data; boundary="B\r\n C"'),
    (400, "a boundary in Latin-1", b"Content-Type: multipart/form-data; boundary=\xc4"),
    (400, "a boundary in UTF-8", b"Content-Type: multipart/form-data; boundary=\xc3\x84"),
    (400, "a boundary with a semicolon in quotes", b'Content-Type: multipart/form-data; boundary="B;C"'),
    (400, "a boundary with an at sign", b'Content-Type: multipart/form-data; boundary="B@C"'),
    (400, "a parameter nobody knows", b"Content-Type: multipart/form-data; x=y; boundary=B"),
    (
        400,
        "a parameter that holds a boundary",
        b'Content-Type: multipart/form-data; x="; boundary=C"; boundary=B',
    ),
    (400, "a type of related parts", b'Content-Type: multipart/form-data; type="image/png"; boundary=B'),
    (400, "mixed", b"Content-Type: multipart/mixed; boundary=B"),
    (400, "related", b"Content-Type: multipart/related; boundary=B"),
    (400, "alternative", b"Content-Type: multipart/alternative; boundary=B"),
    (400, "digest", b"Content-Type: multipart/digest; boundary=B"),
    (400, "byteranges", b"Content-Type: multipart/byteranges; boundary=B"),
    (400, "mixed-replace", b"Content-Type: multipart/x-mixed-replace; boundary=B"),
    (400, "any multipart", b"Content-Type: multipart/*; boundary=B"),
    (400, "no subtype", b"Content-Type: multipart/; boundary=B"),
    (400, "no type", b"Content-Type: /form-data; boundary=B"),
    (400, "only the word", b"Content-Type: multipart; boundary=B"),
    (400, "only the parameter", b"Content-Type: boundary=B"),
    (400, "form-data with more", b"Content-Type: multipart/form-data-x; boundary=B"),
    (400, "a space in the type", b"Content-Type: multipart / form-data; boundary=B"),
    (400, "a slash more", b"Content-Type: multipart/form-data/x; boundary=B"),
    (400, "an ordinary form", b"Content-Type: application/x-www-form-urlencoded"),
    (400, "an ordinary form with a boundary", b"Content-Type: application/x-www-form-urlencoded; boundary=B"),
    (400, "JSON", b"Content-Type: application/json"),
    (400, "a picture", b"Content-Type: image/png"),
    (400, "a picture with a boundary", b"Content-Type: image/png; boundary=B"),
    (400, "two types in one", b"Content-Type: image/png, multipart/form-data; boundary=B"),
    (400, "two types in one, the other way", b"Content-Type: multipart/form-data; boundary=B, image/png"),
    (
        400,
        "two headers, the same",
        b"Content-Type: multipart/form-data; boundary=B\r\nContent-Type: multipart/form-data; boundary=B",
    ),
    (
        400,
        "two headers, the first right",
        b"Content-Type: multipart/form-data; boundary=B\r\nContent-Type: multipart/form-data; boundary=C",
    ),
    (
        400,
        "two headers, the last right",
        b"Content-Type: multipart/form-data; boundary=C\r\nContent-Type: multipart/form-data; boundary=B",
    ),
    (
        400,
        "two headers, in another case",
        b"Content-Type: image/png\r\ncontent-type: multipart/form-data; boundary=B",
    ),
    (400, "two headers, one empty", b"Content-Type:\r\nContent-Type: multipart/form-data; boundary=B"),
    (400, "an empty header", b"Content-Type:"),
    (400, "no header", b"X: y"),
    (400, "an underscore in its name", b"Content_Type: multipart/form-data; boundary=B"),
    (400, "a name that is nearly it", b"Content-Typ: multipart/form-data; boundary=B"),
    (400, "a wide space before", b"Content-Type: \xa0multipart/form-data; boundary=B"),
    (400, "a byte order mark before", b"Content-Type: \xef\xbb\xbfmultipart/form-data; boundary=B"),
    (400, "a letter that is none", b"Content-Type: multipart/form-data; b\xd0\xbeundary=B"),
    (
        201,
        "a type beside it that says otherwise",
        b"Content-Type: multipart/form-data; boundary=B\r\nX-Content-Type: image/png",
    ),
    (
        201,
        "a disposition of the request",
        b"Content-Type: multipart/form-data; boundary=B\r\nContent-Disposition: attachment; filename=x",
    ),
    (201, "a MIME version", b"MIME-Version: 1.0\r\nContent-Type: multipart/form-data; boundary=B"),
    (
        (201, 400),
        "a transfer encoding of mail",
        b"Content-Transfer-Encoding: base64\r\nContent-Type: multipart/form-data; boundary=B",
    ),
]
# Boundaries that RFC 2046 allows and that some parser stumbles over: as written in the header, and as meant.
_BOUNDARIES: Sequence[tuple[int, bytes, bytes]] = [
    (201, b"-", b"-"),
    (201, b"--", b"--"),
    (201, b"B--", b"B--"),
    (201, b"--B", b"--B"),
    (201, b"." * 70, b"." * 70),
    (201, b"'B'", b"'B'"),
    (201, b"_+-.'", b"_+-.'"),
    (201, b'"B C"', b"B C"),
    (201, b'"(B)"', b"(B)"),
    (201, b'"B/C"', b"B/C"),
    (201, b'"B:C"', b"B:C"),
    (201, b'"B=C"', b"B=C"),
    (201, b'"B?C"', b"B?C"),
    (201, b'"B,C"', b"B,C"),
    (201, b'"=_B"', b"=_B"),
    (201, b'" B"', b" B"),
    (400, b"B#C", b"B#C"),
    (400, b"B%C", b"B%C"),
    (400, b"B&C", b"B&C"),
    (400, b"B*C", b"B*C"),
    (400, b"B|C", b"B|C"),
    (400, b"B~C", b"B~C"),
    (400, b"B^C", b"B^C"),
    (400, b"B`C", b"B`C"),
    (400, b"B$C", b"B$C"),
    (400, b"B!C", b"B!C"),
    (400, b'"B"', b'"B"'),
    (400, b"B", b"B "),
    (400, b"B", b" B"),
    (400, b"B", b"b"),
    (400, b"BC", b"B"),
    (400, b"B", b"BC"),
]


def _with_boundary(written: bytes, meant: bytes) -> bytes:
    return upload(
        BODY.replace(b"--B", b"--" + meant),
        content_type=b"Content-Type: multipart/form-data; boundary=" + written,
    )


CASES: Sequence[Case] = [
    *(Case(f"type: {about}", upload(BODY, content_type=lines), status) for status, about, lines in _TYPES),
    *(
        Case(
            f"boundary {written.decode()[:20]!r} as {meant.decode()[:20]!r}",
            _with_boundary(written, meant),
            status,
        )
        for status, written, meant in _BOUNDARIES
    ),
]
