"""Sends bytes as they are and reads the statuses that come back, never longer than it must."""

from __future__ import annotations

import socket
from collections.abc import Sequence

# Only a server that hangs is waited for so long: every case ends in an answer or with the connection.
_PATIENCE_S = 20


def exchange(port: int, sent: bytes, *, answers: int = 1, ends: bool = False) -> Sequence[int]:
    """Sends `sent` on a connection of its own.

    Args:
        answers: how many answers are waited for.
        ends: closes the sending side after the last byte.

    Returns:
        The statuses of the answers, those of interim ones left out.
    """
    got = b""
    with socket.create_connection(("127.0.0.1", port), timeout=_PATIENCE_S) as connection:
        try:
            connection.sendall(sent)
            if ends:
                connection.shutdown(socket.SHUT_WR)
            while len(_statuses(got, sent)) < answers:
                more = connection.recv(65536)
                if not more:
                    break
                got += more
        except ConnectionError:
            pass  # closed while it was sent to: whatever has come by now is the answer
    return _statuses(got, sent)


def _statuses(got: bytes, sent: bytes) -> list[int]:
    """The statuses of the whole answers in `got`."""
    found = []
    while b"\r\n\r\n" in got:
        head, _, rest = got.partition(b"\r\n\r\n")
        status = int(head.split(b" ", 2)[1])
        lines = head.lower().split(b"\r\n")[1:]
        length = next((line for line in lines if line.startswith(b"content-length:")), b":0")
        has_body = status >= 200 and status not in (204, 304) and not sent.startswith(b"HEAD ")
        bytes_of_body = int(length.partition(b":")[2]) if has_body else 0
        if len(rest) < bytes_of_body:
            break
        if status >= 200:
            found.append(status)
        got = rest[bytes_of_body:]
    return found
