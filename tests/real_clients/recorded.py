"""Bodies as libraries write them that do not run here: by their sources, byte for byte.

Where a library writes a name in its own way, there is a row with such a name.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Client:
    """One way to write a form.

    Attributes:
        name: of the client, and what is particular.
        boundary: as it makes them.
        lines: the part's header lines; `{length}` stands for the length of its content.
        content_type: of the request; `{boundary}` stands for the boundary.
        end: what follows the last boundary's closing hyphens.
        chunked: whether the body is sent in chunks, of no length known before.
    """

    name: str
    boundary: str
    lines: Sequence[str | bytes]
    content_type: str = "multipart/form-data; boundary={boundary}"
    end: bytes = b"\r\n"
    chunked: bool = False

    def body(self, content: bytes) -> bytes:
        """The form with one file."""
        lines = [line if isinstance(line, bytes) else line.encode() for line in self.lines]
        head = b"".join(line.replace(b"{length}", b"%d" % len(content)) + b"\r\n" for line in lines)
        boundary = b"--" + self.boundary.encode()
        return boundary + b"\r\n" + head + b"\r\n" + content + b"\r\n" + boundary + b"--" + self.end

    def headers(self) -> dict[str, str]:
        """The request's type."""
        return {"Content-Type": self.content_type.replace("{boundary}", self.boundary)}


def _named(parameters: str) -> str:
    return f'Content-Disposition: form-data; name="images[]"; {parameters}'


_PNG = "Content-Type: image/png"
_WEBKIT = "----WebKitFormBoundary7MA4YWxkTrZu0gW1"
_DART = "dart-http-boundary-zEDT_cKh5lXBX_ZzZw9ZYLB8wPP+Zf-njJ-Oz80+cHqm2Sb2y1."
_KTOR = "-5c6f8b9d1f2a47e6-7b31c0de42a8815e6d-41dd0b9c55f317ae-6b2e90d14c78a3f5"

CLIENTS: Sequence[Client] = [
    # Browsers (HTML, "multipart/form-data encoding algorithm"): raw UTF-8, `"` and line ends percent-encoded.
    Client("Safari, Chromium", _WEBKIT, [_named('filename="photo.png"'), _PNG]),
    Client("Chromium, a name in UTF-8", _WEBKIT, [_named('filename="«Noted» ä😀.png"'), _PNG]),
    Client("Chromium, quotes and line ends", _WEBKIT, [_named('filename="a%22b%22%0D%0A.png"'), _PNG]),
    Client("Chromium, a backslash", _WEBKIT, [_named('filename="a\\b.png"'), _PNG]),
    Client("Chromium, a semicolon", _WEBKIT, [_named('filename="a; b=c.png"'), _PNG]),
    Client("Chromium, a blob", _WEBKIT, [_named('filename="blob"'), _PNG]),
    Client("Chromium, a page in Latin-1", _WEBKIT, [_named('filename="').encode() + b'\xe4.png"', _PNG]),
    Client(
        "Chromium, a file of no type",
        _WEBKIT,
        [_named('filename="photo"'), "Content-Type: application/octet-stream"],
    ),
    Client(
        "Firefox",
        "---------------------------9051914041544843365972754266",
        [_named('filename="photo.png"'), _PNG],
    ),
    Client(
        "Firefox since 132",
        "----geckoformboundaryc63be8a1d1e5d5e2b5c8f8ae4d7f09a1",
        [_named('filename="photo.png"'), _PNG],
    ),
    # Android.
    Client(
        "OkHttp 3",
        "d3a1b2c4-5e6f-4a7b-8c9d-0e1f2a3b4c5d",
        [_named('filename="photo.png"'), _PNG, "Content-Length: {length}"],
    ),
    Client(
        "OkHttp 4, a name in UTF-8 and quotes",
        "d3a1b2c4-5e6f-4a7b-8c9d-0e1f2a3b4c5d",
        [_named('filename="«a%22.png"'), _PNG, "Content-Length: {length}"],
    ),
    Client(
        "OkHttp 4 in Jerboa: no type",
        "d3a1b2c4-5e6f-4a7b-8c9d-0e1f2a3b4c5d",
        [_named('filename="myPic"'), "Content-Length: {length}"],
    ),
    Client("OkHttp 5", "d3a1b2c4-5e6f-4a7b-8c9d-0e1f2a3b4c5d", [_named('filename="photo.png"'), _PNG]),
    Client(
        "Ktor, a length and a name without quotes",
        _KTOR,
        [_PNG, _named("filename=photo.png"), "Content-Length: {length}"],
    ),
    Client("Ktor, in chunks", _KTOR, [_named("filename=photo.png"), _PNG], chunked=True),
    Client("Ktor, with quotes", _KTOR, [_named('filename="my photo.png"'), _PNG]),
    # Flutter.
    Client(
        "Dart http",
        _DART,
        ["content-type: image/png", 'content-disposition: form-data; name="images[]"; filename="photo.png"'],
    ),
    Client(
        "Dart http, a name in UTF-8",
        _DART,
        [
            "content-type: application/octet-stream",
            'content-disposition: form-data; name="images[]"; filename="«ä».png"',
        ],
    ),
    Client(
        "dio",
        "--dio-boundary-2210433284",
        ['content-disposition: form-data; name="images[]"; filename="photo.png"', "content-type: image/png"],
    ),
    Client(
        "dio 5, headers in camel case",
        "--dio-boundary-0000000007",
        [_named('filename="photo.png"'), "content-type: application/octet-stream"],
        chunked=True,
    ),
    # Apple.
    Client(
        "Mlem: a name with a slash",
        "8A2D5E0C-7C0B-4F6E-9B6D-5B0C3C1E2F4A",
        [_named('filename="image/png"'), "Content-Type: image/png"],
    ),
    Client(
        "Swift by hand, a wrong type",
        "Boundary-8A2D5E0C-7C0B-4F6E-9B6D-5B0C3C1E2F4A",
        [_named('filename="image.jpg"'), "Content-Type: image/jpeg"],
    ),
    Client("Swift by hand, no line end", "Boundary-8A2D5E0C", [_named('filename="image.jpg"')], end=b""),
    Client(
        "Alamofire",
        "alamofire.boundary.4d3a8b1c9e0f7a26",
        [_named('filename="photo.png"'), _PNG],
    ),
    Client(
        "React Native on iOS",
        "aZ09-_bY18cX27dW36eV45fU54gT63hS72iR81jQ90kP-_lOmNnMoLpKqJrIsHtGuFvEwD",
        [
            'content-disposition: form-data; name="images[]"; filename="my%20photo.png"',
            "content-type: image/png",
        ],
    ),
    Client(
        "React Native, with filename*",
        "aZ09-_bY18cX27dW36eV45fU54gT63hS72iR81jQ90kP-_lOmNnMoLpKqJrIsHtGuFvEwD",
        [
            'content-disposition: form-data; name="images[]"; filename="«a».png"; '
            "filename*=utf-8''%C2%ABa%C2%BB.png",
            "content-type: application/octet-stream",
        ],
    ),
    Client(
        "React Native on Android, by OkHttp",
        "d3a1b2c4-5e6f-4a7b-8c9d-0e1f2a3b4c5d",
        [
            'content-disposition: form-data; name="images[]"; filename="photo.png"',
            _PNG,
            "Content-Length: {length}",
        ],
    ),
    # Java.
    Client(
        "Apache HttpClient 4",
        "-1q2W3e4R5t6Y7u8I9o0P_aSdFgHjKl",
        [_named('filename="photo.png"'), _PNG, "Content-Transfer-Encoding: binary"],
    ),
    Client(
        "Apache HttpClient 4, a charset",
        "-1q2W3e4R5t6Y7u8I9o0P_aSdFgHjKl",
        [_named('filename="«a».png"'), _PNG, "Content-Transfer-Encoding: binary"],
        content_type="multipart/form-data; boundary={boundary}; charset=UTF-8",
    ),
    Client(
        "Apache HttpClient 5, in its extended mode",
        "httpclient_boundary_4d3a8b1c-9e0f-4a26-8c9d-0e1f2a3b4c5d",
        [_named('filename="?a?.png"; filename*="UTF-8\'\'%C2%ABa%C2%BB.png"'), _PNG],
        content_type='multipart/form-data; charset=UTF-8; boundary="{boundary}"',
    ),
    Client(
        "an older library, 8bit",
        "0xKhTmLbOuNdArY",
        [_named('filename="photo.png"'), _PNG, "Content-Transfer-Encoding: 8bit"],
    ),
    # Rust: reqwest. Its quotes and backslashes are escaped by backslashes.
    Client(
        "reqwest",
        "3f2a9c1d5e7b8064-a1b2c3d4e5f60718-0f1e2d3c4b5a6978-9a8b7c6d5e4f3021",
        [_named('filename="photo.png"'), _PNG],
    ),
    Client(
        "reqwest, quotes and backslashes",
        "3f2a9c1d5e7b8064-a1b2c3d4e5f60718-0f1e2d3c4b5a6978-9a8b7c6d5e4f3021",
        [_named('filename="a\\"b\\\\ä.png"'), _PNG],
        chunked=True,
    ),
    Client(
        "reqwest before 0.10: filename* alone",
        "3f2a9c1d5e7b8064-a1b2c3d4e5f60718-0f1e2d3c4b5a6978-9a8b7c6d5e4f3021",
        [_named("filename*=utf-8''%C2%ABa%C2%BB.png"), _PNG],
    ),
    # Others.
    Client(
        "requests with urllib3 1: filename* alone",
        "2f1e0d3c4b5a69788796a5b4c3d2e1f0",
        [_named("filename*=utf-8''%C2%ABNoted%C2%BB.jpg"), "Content-Type: image/jpeg"],
    ),
    Client(
        "C# HttpClient: both, and a boundary in quotes",
        "3a5d1b1e-0d0c-4c53-8a3e-6d1c8f5b2a77",
        [_PNG, _named("filename=photo.png; filename*=utf-8''photo.png")],
        content_type='multipart/form-data; boundary="{boundary}"',
    ),
    Client(
        "C# HttpClient, an encoded word",
        "3a5d1b1e-0d0c-4c53-8a3e-6d1c8f5b2a77",
        [_PNG, _named("filename=\"=?utf-8?B?wqthwrsucG5n?=\"; filename*=utf-8''%C2%ABa%C2%BB.png")],
        content_type='multipart/form-data; boundary="{boundary}"',
    ),
    Client(
        "Go",
        "0f1e2d3c4b5a69788796a5b4c3d2e1f00f1e2d3c4b5a69788796a5b4c3d2",
        [_named('filename="a\\"b\\\\.png"'), "Content-Type: application/octet-stream"],
        chunked=True,
    ),
    Client(
        "Guzzle",
        "8d7c6b5a49382716050403020100fedcba987654",
        [_named('filename="photo.png"'), "Content-Length: {length}", _PNG],
    ),
]
