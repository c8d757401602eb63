"""A plain HTTP client: sends exactly what it is told to, targets included."""

from __future__ import annotations

import http.client
import json
import socket
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from prometheus_client.parser import text_string_to_metric_families

BOUNDARY = "----a-boundary-as-browsers-make-them"


@dataclass(frozen=True)
class Answer:
    """A whole answer; header names in lower case."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)


def send(
    base_url: str,
    method: str,
    target: str,
    *,
    headers: Mapping[str, str] | None = None,
    body: bytes = b"",
    timeout_s: float = 60,
) -> Answer:
    """One request on a connection of its own."""
    connection = http.client.HTTPConnection(urlsplit(base_url).netloc, timeout=timeout_s)
    try:
        connection.putrequest(method, target, skip_accept_encoding=True)
        sent = dict(headers or {})
        if body or method in ("POST", "PUT"):
            sent.setdefault("Content-Length", str(len(body)))
        for name, value in sent.items():
            connection.putheader(name, value)
        connection.endheaders(body or None)
        return _read(connection.getresponse())
    finally:
        connection.close()


def answer_of(connection: socket.socket) -> Answer:
    """The next answer on a connection, to a request other than HEAD."""
    response = http.client.HTTPResponse(connection)
    try:
        response.begin()
        return _read(response)
    finally:
        response.close()


def _read(response: http.client.HTTPResponse) -> Answer:
    names = {name.lower(): value for name, value in response.getheaders()}
    return Answer(response.status, names, response.read())


def get(base_url: str, target: str, **headers: str) -> Answer:
    """A GET; header names with `_` for `-`."""
    return send(
        base_url, "GET", target, headers={name.replace("_", "-"): value for name, value in headers.items()}
    )


def metric(base_url: str, sample: str, **labels: str) -> float:
    """A sample of `/metrics`, 0 where there is none."""
    text = get(base_url, "/metrics").body.decode()
    samples = (one for family in text_string_to_metric_families(text) for one in family.samples)
    return sum(one.value for one in samples if one.name == sample and labels.items() <= one.labels.items())


def form(
    files: Iterable[tuple[str, bytes]], *, field: str = "images[]", boundary: str = BOUNDARY
) -> tuple[str, bytes]:
    """A multipart body as a browser writes it: content type and bytes."""
    parts = []
    for name, content in files:
        head = f'--{boundary}\r\nContent-Disposition: form-data; name="{field}"; filename="{name}"\r\n'
        parts.append(head.encode() + b"Content-Type: application/octet-stream\r\n\r\n" + content + b"\r\n")
    return f"multipart/form-data; boundary={boundary}", b"".join(parts) + f"--{boundary}--\r\n".encode()


def upload(base_url: str, *contents: bytes, query: str = "", timeout_s: float = 60) -> Answer:
    """`POST /image` of some files."""
    content_type, body = form((f"file-{number}", content) for number, content in enumerate(contents))
    target = f"/image?{query}" if query else "/image"
    headers = {"Content-Type": content_type}
    return send(base_url, "POST", target, headers=headers, body=body, timeout_s=timeout_s)


def until_gone(base_url: str, alias: str, within_s: float = 10) -> bool:
    """Whether an alias shows nothing any more; pict-rs answers deletes and purges before it has done them."""
    end = time.monotonic() + within_s
    while get(base_url, f"/image/original/{alias}").status != 404:
        if time.monotonic() > end:
            return False
        time.sleep(0.05)
    return True
