"""A gate as it is written on a first afternoon: it looks at what it understood, and passes on what it got.

It forbids the doors that it knows by their usual spelling. Its looking is as good as any library's; what is
wrong with it is that there are two readings, its own and pict-rs's.
"""

from __future__ import annotations

import email
import email.policy
import hashlib
import re
import socket
import threading
from collections.abc import Callable, Iterable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

Read = Callable[[str, bytes], Iterable[bytes]]

_FORBIDDEN = ("/internal/", "/image/backgrounded", "/image/download")
_PASSED = ("Content-Type", "X-Api-Token")
_PATIENCE_S = 20


def by_email(content_type: str, body: bytes) -> Iterable[bytes]:
    """The files of a form as Python's `email` reads them."""
    head = f"Content-Type: {content_type}\r\n\r\n".encode("latin-1", "replace")
    message = email.message_from_bytes(head + body, policy=email.policy.HTTP)
    for part in message.walk():
        if not part.is_multipart() and (content := part.get_payload(decode=True)):
            assert isinstance(content, bytes)
            yield content


def by_splitting(content_type: str, body: bytes) -> Iterable[bytes]:
    """The files of a form as many an answer to "how do I parse multipart" reads them."""
    boundary = re.search(r'boundary="?([^";]+)', content_type)
    if boundary is None:
        return
    for part in body.split(b"--" + boundary[1].encode("latin-1", "replace")):
        head, _, content = part.partition(b"\r\n\r\n")
        if b"filename" in head:
            yield content.removesuffix(b"\r\n")


class NaiveGate:
    """It, on a free loopback port, in front of pict-rs."""

    def __init__(self, pictrs_port: int, read: Read) -> None:
        """
        Args:
            read: from a content type and a body to the files in it.
        """
        self.seen: set[bytes] = set()
        gate = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            timeout = _PATIENCE_S

            def answer(self) -> None:
                self.close_connection = True
                target = self.requestline.split(" ")[1]  # `self.path` is put right already
                path, _, query = target.partition("?")
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                if path.startswith(_FORBIDDEN) or "proxy=" in query:
                    self.wfile.write(b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n")
                    return
                if path == "/image":
                    for content in read(self.headers.get("Content-Type") or "", body):
                        gate.seen.add(hashlib.sha256(content).digest())
                self.pass_on(target, body)

            def pass_on(self, target: str, body: bytes) -> None:
                head = [f"{self.command} {target} HTTP/1.1", "Host: pictrs", "Connection: close"]
                for name in _PASSED:
                    head += [f"{name}: {value}" for value in self.headers.get_all(name, [])]
                sent = "\r\n".join([*head, f"Content-Length: {len(body)}", "", ""]).encode("latin-1")
                with socket.create_connection(("127.0.0.1", pictrs_port), timeout=_PATIENCE_S) as upstream:
                    upstream.sendall(sent + body)
                    while piece := upstream.recv(65536):
                        self.wfile.write(piece)

            do_GET = do_HEAD = do_POST = do_PUT = do_PATCH = do_DELETE = answer

            def log_message(self, *_: object) -> None:
                """Nothing."""

        class Server(ThreadingHTTPServer):
            daemon_threads = True

            def handle_error(self, *_: object) -> None:
                """Nothing: a connection that breaks is a case that got no answer."""

        self._server = Server(("127.0.0.1", 0), Handler)
        self.port = self._server.server_port
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
