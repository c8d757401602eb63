"""A stop loses no answer: what has come is answered, and everybody is told that it was the last time."""

from __future__ import annotations

import asyncio
import signal
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from classifier import app
from classifier.metrics import Metrics
from classifier.service import Bounds
from tests import pictures
from tests.client import Answer, answer_of, metric
from tests.gate import TOKEN, Classifier, scripted
from tests.processes import answers, free_port

CLIENTS = 16


class Client:
    """A connection that is kept between requests."""

    def __init__(self, classifier: Classifier) -> None:
        self._socket = socket.create_connection(("127.0.0.1", classifier.port), timeout=60)

    def ask(self, method: str, path: str, body: bytes = b"", *, sent: int | None = None) -> None:
        """Sends a request, of its body only `sent` bytes."""
        lines = [f"{method} {path} HTTP/1.1", "Host: x", f"Authorization: Bearer {TOKEN}"]
        head = "\r\n".join([*lines, f"Content-Length: {len(body)}", "", ""])
        self.send(head.encode() + body[:sent])

    def send(self, content: bytes) -> None:
        self._socket.sendall(content)

    def answer(self) -> Answer:
        return answer_of(self._socket)

    def close(self) -> None:
        self._socket.close()


def is_last(answer: Answer) -> bool:
    """Whether the connection ends with it, as it says itself."""
    return answer.headers.get("connection", "").lower() == "close"


def until(holds: Callable[[], bool], within_s: float = 30) -> None:
    end = time.monotonic() + within_s
    while not holds():
        assert time.monotonic() < end, "it took too long"
        time.sleep(0.01)


@pytest.fixture
def running(tmp_path: Path) -> Classifier:
    return Classifier(tmp_path, ensemble=scripted(tmp_path, {}), options=["--workers", "1"])


def stop(classifier: Classifier) -> None:
    classifier.program.process.send_signal(signal.SIGTERM)


def test_a_stop_under_load_answers_every_request(running: Classifier) -> None:
    statuses: list[list[int]] = [[] for _ in range(CLIENTS)]
    parted: list[int] = []

    def ask_again_and_again(number: int) -> None:
        """Whoever is not told that it was the last answer asks again, and has a right to the next one."""
        client, last = Client(running), False
        while not last:
            content = pictures.png((64, 64), seed=100 * number + len(statuses[number]) % 100)
            client.ask("POST", "/v1/classify", content)
            answer = client.answer()
            statuses[number].append(answer.status)
            last = is_last(answer)
            time.sleep(0.2 * (number % 2))  # every other one has to think first
        parted.append(number)
        client.close()

    threads = [threading.Thread(target=ask_again_and_again, args=(number,)) for number in range(CLIENTS)]
    for thread in threads:
        thread.start()
    until(lambda: all(len(own) >= 3 for own in statuses))
    stop(running)
    for thread in threads:
        thread.join(60)
    assert sorted(parted) == list(range(CLIENTS))
    assert {status for own in statuses for status in own} == {200}
    assert running.program.process.wait(30) == 0


def test_what_is_being_looked_at_when_it_stops_is_answered(running: Classifier) -> None:
    idle = Client(running)
    idle.ask("GET", "/readyz")
    assert idle.answer().status == 200
    late, half, slow = Client(running), Client(running), [Client(running) for _ in range(6)]
    content, large = pictures.png(seed=2), [pictures.blank_png((7900, 7900), grey) for grey in range(6)]
    half.ask("POST", "/v1/classify", content, sent=100)
    for client, body in zip(slow, large, strict=True):
        client.ask("POST", "/v1/classify", body)
    until(lambda: metric(running.url, "pictrs_classifier_waiting") == 7)
    stop(running)
    until(lambda: "stopping:" in running.program.output())
    idle.ask("GET", "/readyz")
    readiness = idle.answer()
    assert (readiness.status, is_last(readiness)) == (503, True)
    with pytest.raises(ConnectionRefusedError):
        Client(running)
    # one that has its connection may still ask, and is answered
    late.ask("POST", "/v1/classify", pictures.png(seed=1))
    half.send(content[100:])
    for client in [*slow, late, half]:
        answer = client.answer()
        assert (answer.status, is_last(answer)) == (200, True)
    assert running.program.process.wait(30) == 0


def test_who_only_holds_a_connection_keeps_nobody_from_stopping(running: Classifier) -> None:
    silent = Client(running)
    half = Client(running)
    half.ask("GET", "/healthz")
    assert half.answer().status == 200
    began = time.monotonic()
    stop(running)
    assert running.program.process.wait(30) == 0
    assert time.monotonic() - began < 15
    for client in (silent, half):
        client.close()


@pytest.mark.parametrize("sent", [b"", b"GET /healthz HTT"], ids=["nothing", "half a head"])
async def test_a_connection_without_a_request_does_not_stay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sent: bytes
) -> None:
    monkeypatch.setattr(app, "_IDLE_S", 0.5)
    monkeypatch.setattr(app, "_allow_open_files", lambda: None)  # of this process, the tests' own
    port = free_port()
    settings = app.Settings(str(scripted(tmp_path, {})), workers=1)
    serving = asyncio.create_task(app.serve(settings, app.Serving("127.0.0.1", port), Bounds()))
    try:
        async with asyncio.timeout(60):
            while not await asyncio.to_thread(answers, f"http://127.0.0.1:{port}/readyz"):
                assert not serving.done()
                await asyncio.sleep(0.05)
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(sent)
        assert await asyncio.wait_for(reader.read(), 20) == b""  # hung up on
        writer.close()
    finally:
        serving.cancel()
        await asyncio.gather(serving, return_exceptions=True)


async def test_models_that_hang_do_not_keep_it_from_stopping(monkeypatch: pytest.MonkeyPatch) -> None:
    class Hung:
        async def start(self) -> None:
            pass

        async def close(self) -> None:
            await asyncio.Event().wait()

    ended: list[int] = []
    monkeypatch.setattr(app, "build_engine", lambda settings, metrics: Hung())
    monkeypatch.setattr(app, "_CLOSE_S", 0.1)
    monkeypatch.setattr(app.os, "_exit", ended.append)
    monkeypatch.setattr(app.logging, "shutdown", lambda: None)
    async with asyncio.timeout(20), app._running(app.Settings("any", workers=1), Metrics()):
        pass
    assert ended == [1]
