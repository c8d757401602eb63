"""Promise 7: every wait has a deadline, every queue a bound, memory is bounded by settings."""

from __future__ import annotations

import asyncio
import resource
import socket
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest

from tests import pictures
from tests.client import form, get, upload
from tests.gate import Classifier, Gate
from tests.pictrs import Pictrs
from tests.processes import Program, answers, free_port

NewGate = Callable[..., Gate]

MEGABYTE = 1024 * 1024


def connect(gate: Gate) -> socket.socket:
    return socket.create_connection(("127.0.0.1", gate.port), timeout=30)


def beginning(content: bytes) -> tuple[bytes, bytes]:
    """The head and the body of an upload."""
    content_type, body = form([("a.png", content)])
    length = f"Content-Length: {len(body)}"
    return (
        f"POST /image HTTP/1.1\r\nHost: x\r\nContent-Type: {content_type}\r\n{length}\r\n\r\n".encode(),
        body,
    )


def status_of(connection: socket.socket) -> int:
    """Of the answer that comes; 0 where the connection ends without one."""
    received = b""
    while b"\r\n" not in received:
        piece = connection.recv(4096)
        if not piece:
            return 0
        received += piece
    return int(received.split(b" ", 2)[1])


@pytest.fixture
def costless(tmp_path: Path) -> Iterator[str]:
    """A classifier and a pict-rs that take everything and keep nothing."""
    port = free_port()
    program = Program([sys.executable, "-m", "tests.bench.costless", str(port)], tmp_path / "costless.log")
    program.wait_until(lambda: answers(f"http://127.0.0.1:{port}/v1/info"))
    yield f"http://127.0.0.1:{port}"
    program.stop()


# --- slow clients ---


@pytest.fixture(scope="module")
def patient(
    tmp_path_factory: pytest.TempPathFactory, running_pictrs: Pictrs, classifier: Classifier
) -> Iterator[Gate]:
    """A gate whose uploads may take twice as long as these tests wait for an answer."""
    running = Gate(
        tmp_path_factory.mktemp("patient"),
        pictrs_url=running_pictrs.url,
        api_key=running_pictrs.api_key,
        classifier_url=classifier.url,
        server={"upload_s": 60.0},
    )
    yield running
    running.stop()


def test_a_sender_that_stands_still_is_cut_off_long_before_the_deadline(patient: Gate) -> None:
    head, body = beginning(pictures.png(seed=7000))
    with connect(patient) as connection:
        connection.sendall(head + body[:1000])
        assert status_of(connection) == 408


def test_a_sender_that_cannot_be_done_in_time_is_not_waited_for(patient: Gate) -> None:
    head, _ = beginning(bytes(20 * MEGABYTE))
    with ThreadPoolExecutor(1) as sending, connect(patient) as connection:
        sending.submit(drip, connection, head, 2000, 0.1, 40)  # longer than this waits for an answer
        assert status_of(connection) == 408


def drip(connection: socket.socket, head: bytes, piece: int, pause_s: float, for_s: float) -> None:
    """Sends a head, and then some bytes now and then, until nobody takes them any more."""
    end = time.monotonic() + for_s
    try:
        connection.sendall(head)
        connection.sendall(form([("a.png", b"")])[1].partition(b"\r\n\r\n")[0] + b"\r\n\r\n")
        while time.monotonic() < end:
            connection.sendall(bytes(piece))
            time.sleep(pause_s)
    except OSError:
        pass


def test_a_sender_without_a_length_that_only_drips_is_cut_off(patient: Gate) -> None:
    content_type, _ = form([])
    head = f"POST /image HTTP/1.1\r\nHost: x\r\nContent-Type: {content_type}\r\n"
    first = form([("a.png", b"")])[1].partition(b"\r\n\r\n")[0] + b"\r\n\r\n"
    with connect(patient) as connection:
        connection.sendall(head.encode() + b"Transfer-Encoding: chunked\r\n\r\n")
        connection.sendall(b"%x\r\n%s\r\n" % (len(first), first))
        connection.settimeout(0.5)
        status, end = None, time.monotonic() + 25
        while status is None and time.monotonic() < end:
            connection.sendall(b"1\r\nx\r\n")
            try:
                status = status_of(connection)
            except TimeoutError:
                continue
        assert status == 408


def test_a_slow_sender_who_gets_there_is_served(gate: Gate) -> None:
    head, body = beginning(pictures.png((64, 64), seed=7001))
    with connect(gate) as connection:
        connection.sendall(head)
        for at in range(0, len(body), -(-len(body) // 14)):
            connection.sendall(body[at : at - (-len(body) // 14)])
            time.sleep(0.5)
        assert status_of(connection) == 201


def test_a_sender_who_pauses_and_goes_on_is_served(patient: Gate) -> None:
    content = pictures.encode(pictures.draw((1300, 1300), seed=7002), "PNG", compress_level=0)
    head, body = beginning(content)
    with connect(patient) as connection:
        connection.sendall(head + body[:100_000])
        time.sleep(4.5)  # a tunnel
        for at in range(100_000, len(body), 100_000):
            connection.sendall(body[at : at + 100_000])
            time.sleep(0.1)
        assert status_of(connection) == 201


def test_heads_without_bodies_keep_nobody_from_uploading_and_reading(new_gate: NewGate) -> None:
    gate = new_gate(server={"connections": 64})
    alias = gate.upload(pictures.png(seed=7003)).json()["files"][0]["file"]
    content_type, _ = form([])
    head = (
        f"POST /image HTTP/1.1\r\nHost: x\r\nContent-Type: {content_type}\r\nContent-Length: 39000000\r\n\r\n"
    )
    with ExitStack() as opened:
        for _ in range(40):
            opened.enter_context(connect(gate)).sendall(head.encode())
        time.sleep(0.3)
        assert get(gate.url, f"/image/original/{alias}").status == 200
        assert gate.upload(pictures.png(seed=7004)).status == 201


def test_whoever_takes_no_answer_keeps_no_connection(new_gate: NewGate) -> None:
    """Answers of the gate's own making, asked for again and again by somebody who does not read them."""
    rules = [{"name": "everything", "at_least": {"sexual": 0.0}}]
    gate = new_gate(server={"connections": 16}, rules=rules)
    assert gate.program is not None
    alias = gate.upload(pictures.jpeg((3000, 2000), seed=7005)).json()["files"][0]["file"]
    assert len(get(gate.url, f"/image/original/{alias}").body) > 60_000
    files = Path(f"/proc/{gate.program.process.pid}/fd")
    request = f"GET /image/original/{alias} HTTP/1.1\r\nHost: x\r\n\r\n".encode()
    before, memory = len(list(files.iterdir())), gate.program.resident_mb()
    with ExitStack() as opened:
        for number in range(80):
            if number % 16 == 0:
                time.sleep(1)  # for all of them to be stuck
            connection = opened.enter_context(socket.socket())
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            connection.connect(("127.0.0.1", gate.port))
            with suppress(OSError):
                connection.sendall(request * 150)  # 10 MB, more than the system keeps for one
        time.sleep(1)
        assert (
            len(list(files.iterdir())) <= before + 16 + 64
        )  # and those that are being told that there is no room
        assert gate.program.resident_mb() < memory + 60
        time.sleep(3)
        assert len(list(files.iterdir())) <= before + 16 + 16  # the database opens a few files too


def test_a_head_larger_than_any_is_refused(gate: Gate) -> None:
    for head in (
        b"GET /image/original/" + b"a" * 100_000 + b" HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET /healthz HTTP/1.1\r\nHost: x\r\nX-Long: " + b"a" * 100_000 + b"\r\n\r\n",
        b"GET /healthz HTTP/1.1\r\nHost: x\r\n" + b"X-A: b\r\n" * 10_000 + b"\r\n",
    ):
        with connect(gate) as connection:
            try:
                connection.sendall(head)
            except OSError:
                pass  # cut off in the middle of it
            else:
                assert status_of(connection) in (0, 400, 431)
    assert answers(f"{gate.url}/healthz")
    assert "aaaa" not in gate.log()


# --- many connections ---


@pytest.fixture
def many_files() -> Iterator[None]:
    """Leave for this process to have 10 000 connections open."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 16_384), hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.usefixtures("many_files")
@pytest.mark.parametrize("sent", [b"", b"POST /image HTTP/1.1\r\nHost: x\r\n"], ids=["silent", "half a head"])
def test_ten_thousand_connections_keep_nobody_out(new_gate: NewGate, sent: bytes) -> None:
    gate = new_gate()
    with ExitStack() as opened:
        for number in range(10_000):
            connection = opened.enter_context(connect(gate))
            if sent:
                with suppress(OSError):  # it has made room already
                    connection.sendall(sent)
            if number % 2500 == 0:
                assert gate.upload(pictures.png(seed=7100 + number)).status == 201
        assert gate.upload(pictures.png(seed=7101)).status == 201
        assert gate.program is not None and gate.program.resident_mb(peak=True) < 256
    assert gate.upload(pictures.png(seed=7102)).status == 201


def test_where_every_connection_is_at_work_a_new_one_is_told_to_come_again(new_gate: NewGate) -> None:
    gate = new_gate(server={"connections": 8})
    content = pictures.png(seed=7200)
    head, body = beginning(content)
    with ExitStack() as opened:
        working = [opened.enter_context(connect(gate)) for _ in range(8)]
        for connection in working:
            connection.sendall(head + body[:1000])
        time.sleep(0.5)
        for _ in range(10):
            with connect(gate) as one_more:
                with suppress(OSError):
                    one_more.sendall(head + bytes(2_000_000))
                assert status_of(one_more) == 503  # and the answer is not lost because it came early
        for connection in working:
            connection.sendall(body[1000:])
        assert [status_of(connection) for connection in working] == [201] * 8
        assert gate.upload(content).status == 201  # those that have their answers make room


# --- clients that go ---


def test_clients_that_go_leave_nothing_behind(new_gate: NewGate, running_pictrs: Pictrs) -> None:
    gate = new_gate(server={"memory_mb": 32}, pictrs={"max_file_count": 1, "max_file_size_mb": 8})
    content = pictures.encode(pictures.draw((1200, 1200), seed=7300), "PNG", compress_level=0)
    alias = gate.upload(content).json()["files"][0]["file"]
    stored = len(running_pictrs.stored_files())
    head, body = beginning(content)
    for number in range(60):  # each with the room for 4 MB
        with connect(gate) as connection:
            if number % 2:
                connection.sendall(head + body[: len(body) // 2])
            else:
                connection.sendall(f"GET /image/original/{alias} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
                connection.recv(1000)
    assert gate.upload(content).status == 201
    assert len(running_pictrs.stored_files()) == stored
    assert "pictrs_gate_uploads_in_progress 0.0" in get(gate.internal_url, "/metrics").body.decode()


# --- memory ---


def test_memory_stays_bounded_while_clients_send_more_than_it_is(new_gate: NewGate, costless: str) -> None:
    """The same with 64 clients is in the benchmark; this sends four times what may be in memory."""
    gate = new_gate(
        pictrs_url=costless,
        api_key="k",
        classifier_url=costless,
        server={"memory_mb": 64},
        pictrs={"max_file_count": 1, "max_file_size_mb": 20},
    )
    content = pictures.jpeg((320, 240), seed=7400)
    content += bytes(16 * 1000 * 1000 - len(content))

    async def all_at_once() -> list[int]:
        with ThreadPoolExecutor(16) as threads:
            loop = asyncio.get_running_loop()
            sent = [loop.run_in_executor(threads, upload, gate.url, content) for _ in range(16)]
            return [answer.status for answer in await asyncio.gather(*sent)]

    assert asyncio.run(all_at_once()) == [201] * 16
    assert gate.program is not None and gate.program.resident_mb(peak=True) <= 64 + 120
