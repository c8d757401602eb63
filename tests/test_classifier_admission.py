"""Places: one too many is refused before its body is read, and each comes back, whatever its holder does."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests import pictures
from tests.client import Answer, answer_of, get, metric, send
from tests.gate import TOKEN, Classifier, scripted

MEGABYTE = 1024 * 1024


@pytest.fixture(scope="module")
def narrow(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Classifier]:
    """A classifier with two places, and room for a megabyte."""
    folder = tmp_path_factory.mktemp("narrow")
    options = ["--most-waiting", "2", "--most-waiting-mb", "1", "--max-body-mb", "1", "--workers", "2"]
    running = Classifier(folder, ensemble=scripted(folder, {}), options=options)
    yield running
    running.stop()


class Client:
    """A connection that sends its request bit by bit."""

    def __init__(self, classifier: Classifier, *headers: str) -> None:
        self._socket = socket.create_connection(("127.0.0.1", classifier.port), timeout=30)
        head = ["POST /v1/classify HTTP/1.1", "Host: x", f"Authorization: Bearer {TOKEN}", *headers]
        self.send("\r\n".join([*head, "", ""]).encode())

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def send(self, content: bytes) -> None:
        self._socket.sendall(content)

    def hang_up(self) -> None:
        self._socket.close()

    def answer(self) -> Answer:
        """Waits for the answer."""
        return answer_of(self._socket)


def beginning(classifier: Classifier, size: int, *headers: str) -> Client:
    """A client that has sent the head of a file, and nothing else."""
    return Client(classifier, f"Content-Length: {size}", *headers)


def waiting(classifier: Classifier) -> float:
    return metric(classifier.url, "pictrs_classifier_waiting")


def gone(classifier: Classifier) -> float:
    return metric(classifier.url, "pictrs_classifier_requests_total", outcome="gone", priority="live")


def until(holds: Callable[[], bool], within_s: float = 30) -> None:
    end = time.monotonic() + within_s
    while not holds():
        assert time.monotonic() < end, "it took too long"
        time.sleep(0.02)


def code(answer: Answer) -> str:
    found: str = answer.json()["error"]["code"]
    return found


def refused(answer: Answer) -> bool:
    """Whether there was no place, as the protocol says it."""
    return (answer.status, code(answer), answer.headers["retry-after"]) == (429, "overloaded", "1")


# --- no place left ---


def test_one_file_too_many_is_refused_before_it_is_read(narrow: Classifier) -> None:
    content = pictures.png(seed=1)
    with beginning(narrow, len(content)) as first, beginning(narrow, len(content)) as second:
        until(lambda: waiting(narrow) == 2)
        with beginning(narrow, len(content)) as third:
            assert refused(third.answer())
        for client in (first, second):
            client.send(content)
        assert [first.answer().status, second.answer().status] == [200, 200]


def test_one_byte_too_many_is_refused_before_it_is_read(narrow: Classifier) -> None:
    content = pictures.png(seed=2)
    with beginning(narrow, MEGABYTE - len(content)) as first:
        until(lambda: waiting(narrow) == 1)
        with beginning(narrow, len(content) + 1) as second:
            assert refused(second.answer())
        with beginning(narrow, len(content)) as second:
            second.send(content)
            assert second.answer().status == 200
        first.hang_up()
    until(lambda: waiting(narrow) == 0)


def test_a_file_of_unknown_size_takes_the_room_of_the_largest(narrow: Classifier) -> None:
    with beginning(narrow, 1) as first:
        until(lambda: waiting(narrow) == 1)
        with Client(narrow, "Transfer-Encoding: chunked") as second:
            assert refused(second.answer())
        first.send(b"x")
        assert first.answer().status == 415
    content = pictures.png(seed=3)
    with Client(narrow, "Transfer-Encoding: chunked") as alone:
        alone.send(b"%x\r\n%b\r\n0\r\n\r\n" % (len(content), content))
        assert alone.answer().status == 200


def test_who_is_refused_may_try_again_on_the_same_connection(narrow: Classifier) -> None:
    content = pictures.png(seed=4)
    with beginning(narrow, 1) as first, beginning(narrow, 1) as second:
        until(lambda: waiting(narrow) == 2)
        with beginning(narrow, len(content)) as third:
            assert refused(third.answer())
            third.send(content)
            for client in (first, second):
                client.send(b"x")
                assert client.answer().status == 415
            head = f"POST /v1/classify HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {TOKEN}\r\n"
            third.send(f"{head}Content-Length: {len(content)}\r\n\r\n".encode() + content)
            assert third.answer().status == 200


# --- places come back ---


def succeeds(classifier: Classifier) -> None:
    content = pictures.png(seed=5)
    with beginning(classifier, len(content)) as client:
        client.send(content)
        assert client.answer().status == 200


def cannot_be_decoded(classifier: Classifier) -> None:
    content = pictures.png(seed=5)[:500]
    with beginning(classifier, len(content)) as client:
        client.send(content)
        assert code(client.answer()) == "undecodable"


def is_too_large_when_read(classifier: Classifier) -> None:
    with Client(classifier, "Transfer-Encoding: chunked") as client:
        client.send(b"%x\r\n" % (MEGABYTE + 1) + bytes(MEGABYTE + 1))
        assert code(client.answer()) == "too-large"


def breaks_its_framing(classifier: Classifier) -> None:
    with Client(classifier, "Transfer-Encoding: chunked", "X-Deadline-Ms: 3000") as client:
        client.send(b"5\r\nhello\r\nno number\r\n")
        # Where head and body come in one piece, aiohttp does not tell who reads the body; then time is up.
        assert client.answer().status in (400, 504)


def hangs_up_before_the_body(classifier: Classifier) -> None:
    before = gone(classifier)
    with beginning(classifier, 1000) as client:
        until(lambda: waiting(classifier) == 1)
        client.hang_up()
    until(lambda: gone(classifier) == before + 1)


def hangs_up_in_the_body(classifier: Classifier) -> None:
    before = gone(classifier)
    with beginning(classifier, 1000) as client:
        client.send(bytes(500))
        until(lambda: waiting(classifier) == 1)
        client.hang_up()
    until(lambda: gone(classifier) == before + 1)


def stands_still(classifier: Classifier) -> None:
    with beginning(classifier, 1000, "X-Deadline-Ms: 200") as client:
        client.send(bytes(500))
        assert code(client.answer()) == "deadline-exceeded"


def drips(classifier: Classifier) -> None:
    with beginning(classifier, 1000, "X-Deadline-Ms: 300") as client:
        for _ in range(30):
            client.send(b"x")
            time.sleep(0.02)
        assert code(client.answer()) == "deadline-exceeded"


@pytest.mark.parametrize(
    "holder",
    [
        succeeds,
        cannot_be_decoded,
        is_too_large_when_read,
        breaks_its_framing,
        hangs_up_before_the_body,
        hangs_up_in_the_body,
        stands_still,
        drips,
    ],
)
def test_a_place_comes_back_from_a_client_that(narrow: Classifier, holder: Callable[..., Any]) -> None:
    for _ in range(3):  # one more than there are places
        until(lambda: waiting(narrow) == 0)
        holder(narrow)
    until(lambda: waiting(narrow) == 0)
    succeeds(narrow)


def test_who_hangs_up_while_it_is_looked_at_gives_its_place_back_at_once(narrow: Classifier) -> None:
    content = pictures.blank_png((7900, 7900))
    before = gone(narrow)
    with beginning(narrow, len(content)) as client:
        client.send(content)
        until(lambda: waiting(narrow) == 1)
        client.hang_up()
    until(lambda: waiting(narrow) == 0)
    assert gone(narrow) == before + 1


# --- the others ---


def test_clients_that_stand_still_cost_nobody_else_anything(classifier: Classifier) -> None:
    still = [beginning(classifier, 1_000_000) for _ in range(40)]
    try:
        for client in still:
            client.send(bytes(1000))
        until(lambda: waiting(classifier) >= 40)
        for seed in range(20):
            headers = {"Authorization": f"Bearer {TOKEN}", "X-Deadline-Ms": "20000"}
            content = pictures.png(seed=700 + seed)
            assert send(classifier.url, "POST", "/v1/classify", headers=headers, body=content).status == 200
        assert get(classifier.url, "/readyz").status == 200
    finally:
        for client in still:
            client.hang_up()
    until(lambda: waiting(classifier) == 0)
