"""Chromium, without a window, on a page of this machine; and the server that stands for Lemmy in between."""

from __future__ import annotations

import http.client
import json
import threading
from collections.abc import Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from tests.processes import Program

_PAGE = Path(__file__).parent / "page.html"
_PATIENCE_S = 100
# Headless, and silent towards everybody but this machine.
_FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--no-proxy-server",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-domain-reliability",
    "--disable-sync",
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
)


class Lemmy:
    """Serves the page, and passes uploads on as Lemmy does: body and headers as they came.

    Attributes:
        answers: what the page said has come of its uploads; None until it has.
        content_types: of the uploads that were passed on.
    """

    def __init__(self, gate_port: int, picture: bytes, names: Sequence[str]) -> None:
        self.answers: list[dict[str, Any]] | None = None
        self.content_types: list[str] = []
        lemmy = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                if self.path == "/":
                    self.say(200, "text/html", _PAGE.read_bytes())
                elif self.path == "/names":
                    self.say(200, "application/json", json.dumps(names).encode())
                elif self.path == "/picture":
                    self.say(200, "image/png", picture)
                else:
                    self.say(404, "text/plain", b"")

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                if self.path == "/answers":
                    lemmy.answers = json.loads(body)
                    self.say(200, "text/plain", b"")
                    return
                lemmy.content_types.append(self.headers["Content-Type"])
                upstream = http.client.HTTPConnection("127.0.0.1", gate_port, timeout=_PATIENCE_S)
                upstream.putrequest("POST", self.path, skip_accept_encoding=True)
                for name, value in self.headers.items():
                    if name.lower() not in ("host", "accept-encoding"):
                        upstream.putheader(name, value)
                upstream.putheader("X-Forwarded-For", f"127.0.0.1:{self.client_address[1]}")
                upstream.endheaders(body)
                answer = upstream.getresponse()
                self.say(answer.status, answer.getheader("Content-Type") or "", answer.read())
                upstream.close()

            def say(self, status: int, content_type: str, content: bytes) -> None:
                self.send_response(status)
                self.send_header("Content-Type", content_type)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, *_: object) -> None:
                """Nothing."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}/"
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()

    def close(self) -> None:
        """Stops listening."""
        self._server.shutdown()
        self._server.server_close()


def visit(lemmy: Lemmy, folder: Path) -> None:
    """Opens the page in Chromium and waits until it has told its answers."""
    browser = Program(
        ["chromium", *_FLAGS, f"--user-data-dir={folder / 'profile'}", lemmy.url], folder / "chromium.log"
    )
    try:
        browser.wait_until(lambda: lemmy.answers is not None, within_s=_PATIENCE_S)
    finally:
        browser.kill()
