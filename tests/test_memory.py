"""What requests may take of memory, and of time: uploads wait for room, slow readers get all of it."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Callable

import pytest

from proxy.intake.budget import Budget, Crowded, Room
from tests import pictures
from tests.client import form
from tests.gate import Gate
from tests.pictrs import Pictrs

NewGate = Callable[..., Gate]


async def test_what_does_not_fit_waits_its_turn() -> None:
    budget, order = Budget(100), []

    async def work(name: str, count: int, may_end: asyncio.Event) -> None:
        async with budget.lend(count):
            order.append(name)
            await may_end.wait()

    events = [asyncio.Event() for _ in range(3)]
    tasks = [asyncio.create_task(work("abc"[n], (60, 60, 10)[n], events[n])) for n in range(3)]
    await asyncio.sleep(0)
    assert order == ["a"]  # "c" would fit, and does not overtake
    assert not budget.try_lend(10)
    events[0].set()
    await asyncio.sleep(0.01)
    assert order == ["a", "b", "c"] and budget.lent == 70
    for event in events:
        event.set()
    await asyncio.gather(*tasks)
    assert budget.lent == 0


async def test_whoever_gives_up_waiting_takes_nothing_and_lets_the_next_one_in() -> None:
    budget = Budget(100)
    assert budget.try_lend(80)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.01), budget.lend(50):
            raise AssertionError("there is no room")
    async with asyncio.timeout(1), budget.lend(20):
        assert budget.lent == 100
    budget.give_back(80)
    assert budget.lent == 0
    with pytest.raises(ValueError, match="more than the budget"):
        async with budget.lend(101):
            pass


def head(gate: Gate, length: int) -> bytes:
    content_type, _ = form([])
    return (
        f"POST /image HTTP/1.1\r\nHost: x\r\nContent-Type: {content_type}\r\nContent-Length: {length}\r\n\r\n"
    ).encode()


def test_an_upload_that_finds_no_room_is_told_to_come_again(new_gate: NewGate) -> None:
    gate = new_gate(
        server={"memory_mb": 16, "upload_s": 4.0}, pictrs={"max_file_count": 1, "max_file_size_mb": 8}
    )
    length, begun = 7 * 1024 * 1024, 3 * 1024 * 1024 // 2
    with (
        socket.create_connection(("127.0.0.1", gate.port), timeout=30) as first,
        socket.create_connection(("127.0.0.1", gate.port), timeout=30) as second,
    ):
        _, body = form([("a.png", pictures.png(seed=1702) + bytes(length))])
        first.sendall(head(gate, length) + body[:begun])
        time.sleep(0.2)
        second.sendall(head(gate, length) + body[:begun])
        answer = second.recv(65536)
        assert b" 503 " in answer and b"Retry-After" in answer
        assert b" 408 " in first.recv(65536)  # it had the room, and sent no more
    assert gate.upload(pictures.png(seed=1700)).status == 201  # the room is free again


def test_a_slow_reader_gets_all_of_a_large_picture(gate: Gate, running_pictrs: Pictrs) -> None:
    """pict-rs 0.5 itself breaks off after 5 s."""
    content = pictures.encode(pictures.draw((2700, 2500), seed=1701), "PNG", compress_level=0)
    alias = gate.upload(content).json()["files"][0]["file"]
    received = bytearray()
    with socket.socket() as reader:
        reader.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 64 * 1024)
        reader.settimeout(30)
        reader.connect(("127.0.0.1", gate.port))
        line = f"GET /image/original/{alias} HTTP/1.1"
        reader.sendall(f"{line}\r\nHost: x\r\nConnection: close\r\n\r\n".encode())
        began = time.monotonic()
        while piece := reader.recv(64 * 1024):
            received += piece
            if time.monotonic() - began < 7:
                time.sleep(0.05)  # 1.3 MB/s, until any pict-rs would have lost its patience
    assert bytes(received).partition(b"\r\n\r\n")[2] == content


async def test_giving_up_and_giving_back_in_the_same_moment_is_no_error() -> None:
    budget = Budget(100)
    assert budget.try_lend(80)

    async def wait() -> None:
        async with budget.lend(50):
            raise AssertionError("nobody may get here")

    waiting = asyncio.create_task(wait())
    await asyncio.sleep(0)
    waiting.cancel()
    budget.give_back(80)
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert budget.lent == 0


async def test_a_body_reserves_memory_as_it_comes() -> None:
    small, large, kib = Budget(2 * 1024**2), Budget(10 * 1024**2), 1024
    deadline = asyncio.get_running_loop().time() + 5
    async with Room(small, large, most=8 * kib * kib, deadline=deadline) as room:
        assert (room.granted, small.lent, large.lent) == (64 * kib, 0, 0)  # a head takes nothing
        await room.grow()
        assert (room.granted, small.lent, large.lent) == (kib * kib, kib * kib, 0)
        await room.grow()
        assert (room.granted, small.lent, large.lent) == (8 * kib * kib, kib * kib, 7 * kib * kib)
    assert (small.lent, large.lent) == (0, 0)
    async with Room(small, large, most=100 * kib, deadline=deadline) as room:
        await room.grow()
        assert (room.granted, small.lent, large.lent) == (100 * kib, 100 * kib, 0)


async def test_large_bodies_leave_room_for_small_ones_and_only_so_many_wait() -> None:
    small, large = Budget(4 * 1024**2), Budget(10 * 1024**2, most_waiting=1)
    deadline = asyncio.get_running_loop().time() + 0.2
    rooms = [Room(small, large, most=9 * 1024**2, deadline=deadline) for _ in range(3)]
    for room in rooms:
        await room.grow()
    await rooms[0].grow()
    waiting = asyncio.create_task(rooms[1].grow())
    await asyncio.sleep(0)
    with pytest.raises(Crowded):
        await rooms[2].grow()
    async with Room(small, large, most=1024**2, deadline=deadline) as little:
        await little.grow()
    with pytest.raises(TimeoutError):
        await waiting
    for room in rooms:
        await room.__aexit__()
    assert (small.lent, large.lent) == (0, 0)
