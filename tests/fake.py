"""A server that answers as it is told and remembers what it was asked: for neighbours that misbehave."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from proxy.channels.looks import File
from proxy.media import recognise
from tests import pictures


@dataclass(frozen=True)
class Asked:
    """One request as it came."""

    method: str
    target: str
    headers: list[tuple[str, str]]
    body: bytes

    def header(self, name: str) -> str | None:
        return next((value for key, value in self.headers if key.lower() == name.lower()), None)


@dataclass
class Reply:
    """What to answer. `cut` breaks the connection off in the middle of the body."""

    status: int = 200
    body: bytes = b""
    headers: Mapping[str, str] = field(default_factory=dict)
    cut: bool = False


def json_reply(status: int, content: Any, **headers: str) -> Reply:
    return Reply(status, json.dumps(content).encode(), {"Content-Type": "application/json", **headers})


class _Server(ThreadingHTTPServer):
    def handle_error(self, *_: object) -> None:
        """Nothing: a gate that is killed breaks off what it has asked."""


class Fake:
    """A server on a free loopback port; `reply` decides each answer and may block."""

    def __init__(self, reply: Callable[[Asked], Reply]) -> None:
        self.asked: list[Asked] = []
        fake = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def answer(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                asked = Asked(self.command, self.path, self.headers.items(), body)
                fake.asked.append(asked)
                given = reply(asked)
                try:
                    self.send_response(given.status)
                    for name, value in given.headers.items():
                        self.send_header(name, value)
                    self.send_header("Content-Length", str(len(given.body)))
                    self.end_headers()
                    self.wfile.write(given.body[: len(given.body) // 2] if given.cut else given.body)
                except OSError:
                    given.cut = True
                self.close_connection = self.close_connection or given.cut

            do_GET = do_POST = do_DELETE = do_HEAD = answer

            def log_message(self, *_: object) -> None:
                """Nothing."""

        self._server = _Server(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


NEEDED = frozenset({"sexual", "minor"})
CONTENT = pictures.png()


def file() -> File:
    """What the tests of channels have looked at."""
    media = recognise(CONTENT)
    assert media is not None
    return File(CONTENT, media, hashlib.sha256(CONTENT).hexdigest())


SEEN = {
    "ensemble": "fake",
    "version": "1",
    "media": {"kind": "image", "format": "png", "width": 320, "height": 200, "frames": 1, "frames_scored": 1},
    "signals": {"sexual": 0.01, "minor": 0.01},
    "frames": [{"index": 0, "signals": {"sexual": 0.01, "minor": 0.01}}],
    "hashes": {"sha256": "", "pdq": None, "pdq_quality": None},
    "timing_ms": {"decode": 1, "queue": 0, "infer": 1},
}
INFO = {"signals": ["sexual", "minor"]}


def classifier(classify: Callable[[Asked], Reply]) -> Fake:
    """A classifier that introduces itself well and answers `/v1/classify` by `classify`."""
    return Fake(lambda asked: json_reply(200, INFO) if asked.method == "GET" else classify(asked))


def pictrs_0_5(asked: Asked) -> Reply:
    """As much of pict-rs as an upload needs: it says that it has stored every part."""
    if asked.method == "POST" and asked.target.startswith("/image"):
        details = {
            "width": 320,
            "height": 200,
            "content_type": "image/png",
            "format": "Image",
            "frames": None,
        }
        parts = asked.body.count(b"Content-Disposition: form-data")
        files = [{"delete_token": "t", "details": details, "file": f"{n}.png"} for n in range(parts)]
        return json_reply(201, {"files": files, "msg": "ok"})
    return Reply(404)
