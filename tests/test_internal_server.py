"""The internal addresses: who may ask, what pict-rs is told, and that busy is never yes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from ipaddress import ip_address, ip_network

import pytest

from proxy.errors import Refusal
from proxy.internal.listener import InternalListener
from proxy.internal.messages import Growth, Request
from proxy.internal.server import HookAnswer, HookSettings, Internal
from proxy.metrics import Metrics
from tests import pictures

LONG_S = 20.0  # hang guard
PNG = pictures.png()


class Hook:
    """Answers as it is told, and remembers what it was asked."""

    def __init__(self, answer: HookAnswer = HookAnswer.KEEP) -> None:
        self.answer = answer
        self.asked: list[bytes] = []
        self.go_on = asyncio.Event()
        self.go_on.set()

    async def validate(self, content: bytes) -> HookAnswer:
        self.asked.append(content)
        await self.go_on.wait()
        return self.answer


async def ready() -> bool:
    return True


@asynccontextmanager
async def serving(hook: Hook | None, settings: HookSettings | None = None) -> AsyncIterator[int]:
    internal = Internal(Metrics(), ready, hook=hook, hook_settings=settings)
    listener = InternalListener("internal", "127.0.0.1:0", internal, shutdown_s=1)
    _, port = await listener.start()
    try:
        async with asyncio.timeout(LONG_S):
            yield port
    finally:
        await listener.stop()


async def ask(port: int, raw: bytes) -> tuple[int, bytes]:
    """Status and head of one answer."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(raw)
        head = await reader.readuntil(b"\r\n\r\n")
        return int(head.split()[1]), head
    finally:
        writer.close()


def as_0_5(path: str = "/validate", content: bytes = PNG) -> bytes:
    """A request as pict-rs 0.5 sends it."""
    head = f"POST {path} HTTP/1.1\r\ncontent-type: image/png\r\naccept: */*\r\nuser-agent: pict-rs 0.5.25\r\n"
    return head.encode() + b"host: x\r\ntransfer-encoding: chunked\r\n\r\n" + chunked(content)


def as_0_6(path: str = "/validate", content: bytes = PNG) -> bytes:
    """A request as pict-rs 0.6 sends it, with its two Content-Type headers."""
    boundary = "d316efa21b7341ed-a74f3cbd890af767-2f2b358667345d11-17db2df02433c077"
    disposition = "Content-Disposition: form-data; name*=utf-8''01%2Fa2%2F04%2F03d2324eb5b9.png"
    body = f"--{boundary}\r\n{disposition}\r\n\r\n".encode() + content + f"\r\n--{boundary}--\r\n".encode()
    head = (
        f"POST {path} HTTP/1.1\r\ncontent-type: image/png\r\n"
        f"content-type: multipart/form-data; boundary={boundary}\r\naccept: */*\r\n"
        "user-agent: pict-rs 0.6.0-rc.6\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n"
    )
    return head.encode() + chunked(body)


def chunked(content: bytes) -> bytes:
    pieces = [content[at : at + 4096] for at in range(0, len(content), 4096)]
    return b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in [*pieces, b""])


@pytest.mark.parametrize("request_of", [as_0_5, as_0_6])
@pytest.mark.parametrize("path", ["/validate", "/api/v1/scan/IPADDR"])
@pytest.mark.parametrize(
    ("answer", "status"), [(HookAnswer.KEEP, 200), (HookAnswer.REFUSE, 406), (HookAnswer.UNSEEN, 503)]
)
async def test_either_version_of_pict_rs_is_told_what_the_hook_says(
    request_of: object, path: str, answer: HookAnswer, status: int
) -> None:
    hook = Hook(answer)
    async with serving(hook) as port:
        assert callable(request_of)
        got, head = await ask(port, request_of(path))
    assert got == status and hook.asked == [PNG]
    assert (b"Retry-After" in head) is (status == 503)


async def test_without_a_hook_there_are_no_such_addresses() -> None:
    async with serving(None) as port:
        for path in ("/validate", "/api/v1/scan/IPADDR", "/api/v1/pop"):
            assert (await ask(port, as_0_5(path)))[0] == 404


@pytest.mark.parametrize(
    ("raw", "status"),
    [
        (b"GET /validate HTTP/1.1\r\nHost: x\r\n\r\n", 405),
        (b"POST /validate HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n", 400),
        (b"POST /validate HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\nabc", 400),
        (as_0_5().replace(b"image/png", b"text/html"), 400),
        (as_0_5(content=b""), 400),
        (as_0_6().replace(b"name*=", b"nome*="), 400),
        (as_0_5(content=bytes(1_000_001 + 16 * 1024)), 413),
        (as_0_5("/validate/"), 404),
        (as_0_5("//validate"), 404),
        (as_0_5("/api/v1/scan"), 404),
        (as_0_5("/api/v1/scan/a/b"), 404),
        (as_0_5("/%zz"), 400),
    ],
)
async def test_what_is_no_question_is_not_answered_yes(raw: bytes, status: int) -> None:
    hook = Hook()
    async with serving(hook, HookSettings(largest_bytes=1_000_000)) as port:
        assert (await ask(port, raw))[0] == status
    assert hook.asked == []


@pytest.mark.parametrize(
    ("peer", "caller", "may_ask"),
    [
        ("127.0.0.1", "IPADDR", True),
        ("::1", "IPADDR", True),
        ("10.1.2.3", "IPADDR", True),
        ("172.31.0.9", "IPADDR", True),
        ("192.168.7.7", "IPADDR", True),
        ("fd00::7", "IPADDR", True),
        ("9.9.9.9", "IPADDR", False),
        ("172.32.0.1", "IPADDR", False),
        ("192.169.0.1", "IPADDR", False),
        ("2620:fe::fe", "IPADDR", False),
        ("100.64.1.1", "IPADDR", True),  # listed
        ("100.65.1.1", "IPADDR", False),
        (None, "IPADDR", False),
        ("9.9.9.9", "my-pict-rs", True),
        ("9.9.9.9", "my%2dpict%2Drs", True),
        ("10.1.2.3", "another", False),
        ("10.1.2.3", "", False),
        ("10.1.2.3", "ipaddr", False),
        ("10.1.2.3", "my-pict-rs2", False),
        ("10.1.2.3", "%C3%A4", False),
    ],
)
async def test_who_may_ask_by_the_address_of_pictrs_safety(
    peer: str | None, caller: str, may_ask: bool
) -> None:
    hook, was_read = Hook(), False
    settings = HookSettings(ids=frozenset({"my-pict-rs"}), networks=(ip_network("100.64.0.0/16"),))

    async def read(_: int, __: Growth | None) -> bytes:
        nonlocal was_read
        was_read = True
        return PNG

    address = ip_address(peer) if peer else None
    headers = [("content-type", "image/png"), ("x-forwarded-for", "127.0.0.1")]
    asking = Internal(Metrics(), ready, hook=hook, hook_settings=settings)(
        Request("POST", f"/api/v1/scan/{caller}", headers, address, read)
    )
    if may_ask:
        assert (await asking).status == 200
    else:
        with pytest.raises(Refusal) as refused:
            await asking
        assert refused.value.status == 401
    assert was_read is may_ask


async def test_no_ids_are_nobody_s_ids() -> None:
    async with serving(Hook()) as port:
        for caller in ("", "None", "my-pict-rs"):
            assert (await ask(port, as_0_5(f"/api/v1/scan/{caller}")))[0] == 401


async def test_who_is_not_answered_in_time_is_told_that_nobody_looked() -> None:
    hook = Hook()
    hook.go_on.clear()
    async with serving(hook, HookSettings(within_s=0.2)) as port:
        assert (await ask(port, as_0_5()))[0] == 503
        assert (await ask(port, as_0_5()))[0] == 503  # and the turn was given back


async def test_files_beyond_those_in_memory_wait_in_the_network_and_then_have_their_turn() -> None:
    hook = Hook()
    hook.go_on.clear()
    async with serving(hook, HookSettings(at_once=2)) as port:
        asking = [asyncio.create_task(ask(port, as_0_5())) for _ in range(6)]
        while len(hook.asked) < 2:
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.2)
        assert len(hook.asked) == 2
        hook.go_on.set()
        assert [status for status, _ in await asyncio.gather(*asking)] == [200] * 6


async def test_a_hook_that_fails_is_no_yes(caplog: pytest.LogCaptureFixture) -> None:
    class Failing(Hook):
        async def validate(self, content: bytes) -> HookAnswer:
            raise ValueError(content)

    async with serving(Failing()) as port:
        assert (await ask(port, as_0_5()))[0] == 500
    assert "ValueError" in caplog.text and "PNG" not in caplog.text


async def test_health_and_metrics_are_for_reading() -> None:
    async with serving(None) as port:
        for path in (b"/healthz", b"/readyz", b"/metrics"):
            for method, status in ((b"GET", 200), (b"HEAD", 200), (b"POST", 405), (b"DELETE", 405)):
                got, head = await ask(port, method + b" " + path + b" HTTP/1.1\r\nHost: x\r\n\r\n")
                assert got == status
                assert (b"Allow: GET, HEAD" in head) is (status == 405)


@pytest.mark.parametrize("shape", [as_0_5, as_0_6])
async def test_of_large_files_only_one_at_a_time_is_in_memory(shape: Callable[..., bytes]) -> None:
    hook = Hook()
    hook.go_on.clear()
    large = PNG + bytes(300_000)
    async with serving(hook, HookSettings(small_bytes=100_000)) as port:
        asking = [asyncio.create_task(ask(port, shape(content=large))) for _ in range(3)]
        asking.append(asyncio.create_task(ask(port, shape())))
        while len(hook.asked) < 2:
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.2)
        assert sorted(map(len, hook.asked)) == [len(PNG), len(large)]
        hook.go_on.set()
        assert [status for status, _ in await asyncio.gather(*asking)] == [200] * 4
    assert len(hook.asked) == 4


async def test_a_large_file_that_gets_no_turn_is_seen_by_nobody() -> None:
    hook = Hook()
    hook.go_on.clear()
    large = PNG + bytes(300_000)
    async with serving(hook, HookSettings(small_bytes=100_000, within_s=1.0)) as port:
        first = asyncio.create_task(ask(port, as_0_5(content=large)))
        while not hook.asked:
            await asyncio.sleep(0.01)
        assert (await ask(port, as_0_5(content=large)))[0] == 503
        assert (await first)[0] == 503
        hook.go_on.set()
        assert (await ask(port, as_0_5(content=large)))[0] == 200
