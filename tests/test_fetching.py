"""Fetching a picture by its URL: what arrives, what is refused, and that the inside is never reached."""

from __future__ import annotations

import asyncio
import gzip
import ssl
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from ipaddress import IPv6Address, ip_address, ip_network
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from proxy import refusals
from proxy.errors import Refusal
from proxy.intake.fetching import Fetcher, FetchLimits, Lookup, Reach, alias_in, is_public
from proxy.intake.fetching import _read as read
from tests import pictures
from tests.fake import Asked, Fake, Reply

CONTENT = pictures.png()
LIMITS = FetchLimits(largest_bytes=1024 * 1024, within_s=30, stall_s=20)
# The servers of these tests listen here; every other address of this machine stays as local as it is.
HERE = Reach(ports=None, also=(ip_network("127.0.0.1/32"),))
ANYWHERE_PUBLIC = Reach()
HANG_S = 60


def names(**addresses: Sequence[str]) -> Lookup:
    """A name server that knows `{name}.example`."""

    async def lookup(host: str) -> Sequence[str]:
        name, _, rest = host.partition(".")
        if rest != "example" or name not in addresses:
            raise OSError("no such host")
        return addresses[name]

    return lookup


async def fetch(
    url: str,
    *,
    limits: FetchLimits = LIMITS,
    reach: Reach = HERE,
    lookup: Lookup | None = None,
    tls: ssl.SSLContext | None = None,
    within_s: float = HANG_S,
) -> bytes:
    fetcher = Fetcher(limits, reach, lookup=lookup or names(), tls=tls)
    try:
        return await fetcher.fetch(url, within_s=within_s)
    finally:
        await fetcher.close()


async def refusal_of(url: str, **how: Any) -> Refusal:
    with pytest.raises(Refusal) as caught:
        await fetch(url, **how)
    # Nor does a traceback: errors of aiohttp's have the URL in them.
    assert caught.value.__context__ is None or caught.value.__suppress_context__
    assert len(url) < 4 or url not in str(caught.value)
    return caught.value


def same(one: Refusal, other: Refusal) -> bool:
    return (one.status, one.code, one.msg, one.in_06) == (other.status, other.code, other.msg, other.in_06)


@contextmanager
def serving(reply: Callable[[Asked], Reply] | Reply) -> Iterator[Fake]:
    fake = Fake((lambda _: reply) if isinstance(reply, Reply) else reply)
    try:
        yield fake
    finally:
        fake.close()


@asynccontextmanager
async def speaking(
    answer: Callable[[asyncio.StreamWriter], Awaitable[None]], tls: ssl.SSLContext | None = None
) -> AsyncIterator[int]:
    """A server for answers that no HTTP library would give: its port."""

    async def one(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await reader.readuntil(b"\r\n\r\n")
            await answer(writer)
            await writer.drain()
        except (OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass  # the client has gone, or the test is over
        finally:
            writer.close()

    server = await asyncio.start_server(one, "127.0.0.1", 0, ssl=tls)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()


class Watched(asyncio.SelectorEventLoop):
    """A loop that notes whom it is asked to connect to, and goes only where `lets` says."""

    def __init__(self, lets: Callable[[tuple[Any, ...]], bool] = lambda _: False) -> None:
        super().__init__()
        self.dialled: list[str] = []
        self._lets = lets

    async def sock_connect(self, sock: Any, address: Any) -> None:
        self.dialled.append(address[0])
        if not self._lets(address):
            raise ConnectionRefusedError(111, "not in this test")
        await super().sock_connect(sock, address)


def dialled(
    url: str, *, reach: Reach = ANYWHERE_PUBLIC, lookup: Lookup | None = None
) -> tuple[Refusal, list[str]]:
    """How a fetch without any network is refused, and which addresses it would have gone to."""
    loop = Watched()
    with asyncio.Runner(loop_factory=lambda: loop) as runner:
        return runner.run(refusal_of(url, reach=reach, lookup=lookup)), loop.dialled


# --- what arrives ---


async def test_a_picture_arrives_byte_for_byte() -> None:
    with serving(Reply(200, CONTENT, {"Content-Type": "image/png"})) as fake:
        assert await fetch(f"{fake.url}/a%20b/c.png?d=%2F&e#fragment") == CONTENT
    (asked,) = fake.asked
    assert (asked.method, asked.target, asked.body) == ("GET", "/a%20b/c.png?d=%2F&e", b"")


async def test_a_name_is_looked_up_and_sent_as_the_host() -> None:
    with serving(Reply(200, CONTENT)) as fake:
        port = fake.url.rpartition(":")[2]
        url = f"HTTP://Pictures.EXAMPLE:{port}"
        assert await fetch(url, lookup=names(pictures=["127.0.0.1"])) == CONTENT
    (asked,) = fake.asked
    assert (asked.target, asked.header("Host")) == ("/", f"pictures.example:{port}")


async def test_blanks_and_letters_of_a_path_are_encoded() -> None:
    with serving(Reply(200, CONTENT)) as fake:
        await fetch(fake.url + "/a b/ä\"<>`{}.png?q=ü [x]|'")
    target = "/a%20b/%C3%A4%22%3C%3E%60%7B%7D.png?q=%C3%BC%20[x]|'"
    assert [asked.target for asked in fake.asked] == [target]


async def test_nothing_but_the_question_is_sent(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    netrc = tmp_path / "netrc"
    netrc.write_text("machine 127.0.0.1 login somebody password something\n")
    netrc.chmod(0o600)
    monkeypatch.setenv("NETRC", str(netrc))
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    monkeypatch.delenv("no_proxy", raising=False)

    def reply(asked: Asked) -> Reply:
        if asked.target == "/1":
            return Reply(302, b"", {"Location": "/2", "Set-Cookie": "session=1; Path=/"})
        return Reply(200, CONTENT, {"Set-Cookie": "more=1"})

    with serving(reply) as fake:
        fetcher = Fetcher(LIMITS, HERE)
        assert await fetcher.fetch(fake.url + "/1", within_s=HANG_S) == CONTENT
        assert await fetcher.fetch(fake.url + "/2", within_s=HANG_S) == CONTENT
        await fetcher.close()
    assert len(fake.asked) == 3
    for asked in fake.asked:
        sent = {name.lower(): value for name, value in asked.headers}
        assert sent.pop("host") == fake.url.removeprefix("http://")
        assert sent.pop("connection") == "close"
        assert sent == {"user-agent": "pictrs-gate", "accept": "*/*", "accept-encoding": "identity"}


async def test_a_body_without_a_length_arrives() -> None:
    async def to_the_end(writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.0 200 OK\r\n\r\n" + CONTENT)

    async def in_chunks(writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        writer.write(b"%x\r\n%b\r\n0\r\n\r\n" % (len(CONTENT), CONTENT))

    for answer in (to_the_end, in_chunks):
        async with speaking(answer) as port:
            assert await fetch(f"http://127.0.0.1:{port}/") == CONTENT


async def test_an_empty_body_is_for_others_to_judge() -> None:
    with serving(Reply(200)) as fake:
        assert await fetch(fake.url) == b""


# --- what pict-rs would refuse, in its words ---


@pytest.mark.parametrize("status", [201, 204, 206, 304, 400, 404, 410, 500, 503])
async def test_anything_but_200_is_a_bad_response(status: int) -> None:
    with serving(Reply(status, b"")) as fake:
        refused = await refusal_of(fake.url + "/a.png")
    assert (refused.status, refused.code) == (500, "download-file-error")
    assert refused.msg.startswith(f"Unable to download image, bad response {status} ")
    assert refused.in_06 is not None and refused.in_06[1].startswith(f"Invalid status: {status} ")


async def test_a_404_is_told_as_recorded() -> None:
    with serving(Reply(404, b"secret")) as fake:
        refused = await refusal_of(fake.url)
    assert refused.msg == "Unable to download image, bad response 404 Not Found"
    assert refused.in_06 == (500, "Invalid status: 404 Not Found")


async def test_a_servers_own_words_are_not_repeated() -> None:
    async def answer(writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 999 <b>secret</b>\r\nContent-Length: 0\r\n\r\n")

    async with speaking(answer) as port:
        refused = await refusal_of(f"http://127.0.0.1:{port}/")
    assert refused.msg == "Unable to download image, bad response 999 <unknown status code>"


@pytest.mark.parametrize(
    "url", ["", "notaurl", "/a.png", "//pictures.example/a.png", "?", ":", " http://1.1.1.1"]
)
def test_what_has_no_scheme_is_no_url(url: str) -> None:
    refused, reached = dialled(url)
    assert same(refused, refusals.not_a_url("relative URL without a base")) and not reached


@pytest.mark.parametrize(
    "url",
    [
        "file:///etc/passwd",
        "ftp://1.1.1.1/a",
        "gopher://1.1.1.1/",
        "data:image/png,x",
        "unix:/run/x",
        "wss://a.b",
    ],
)
def test_only_the_web_is_fetched_from(url: str) -> None:
    refused, reached = dialled(url)
    assert same(refused, refusals.SCHEME_NOT_ALLOWED()) and not reached


async def test_nobody_there() -> None:
    with serving(Reply(200)) as fake:
        pass
    refused = await refusal_of(fake.url)
    assert (refused.status, refused.code) == (500, "http-client-error")


async def test_a_name_that_nobody_has() -> None:
    for lookup in (names(), names(pictures=[]), names(pictures=["not an address"])):
        refused = await refusal_of("http://pictures.example/", lookup=lookup)
        assert same(refused, refusals.SERVER_UNREACHABLE())


async def test_the_system_is_asked_for_names() -> None:
    fetcher = Fetcher(LIMITS)
    assert "127.0.0.1" in await fetcher._ask_system("localhost")
    with pytest.raises(OSError):
        await fetcher._ask_system("no-such-host.invalid")
    await fetcher.close()


# --- the inside of the network ---


def words(text: str) -> list[str]:
    return text.split()


LOCAL = words("""
    0.0.0.0 0.1.2.3 10.0.0.1 10.255.255.255 100.64.0.1 100.100.100.200 100.127.255.255 127.0.0.1 127.0.0.2
    127.255.255.255 168.63.129.16 169.254.0.1 169.254.169.254 172.16.0.1 172.31.255.255 192.0.0.1 192.0.0.9
    192.0.0.170 192.0.0.192 192.0.2.1 192.88.99.1 192.168.0.1 192.168.255.255 198.18.0.1 198.19.255.255
    198.51.100.1 203.0.113.1 224.0.0.1 239.255.255.255 240.0.0.1 255.255.255.254 255.255.255.255 :: ::1
    ::7f00:1 ::8.8.8.8 ::ffff:0.0.0.0 ::ffff:8.8.8.8 ::ffff:10.0.0.1 ::ffff:127.0.0.1 ::ffff:0:127.0.0.1
    64:ff9b::10.0.0.1 64:ff9b::8.8.8.8 64:ff9b:1::1 64:ff9b:1:ffff::10.0.0.1 100::1 100:0:0:1::1 2001::1
    2001:0:4136:e378:8000:63bf:3fff:fdd2 2001:2::1 2001:10::1 2001:20::1 2001:1ff::1 2001:db8::1
    2002:7f00:1:: 2002:a00:1:: 2002:808:808:: 3fff::1 3fff:fff::1 4000::1 5f00::1 8000::1 fc00::1 fd00::1
    fd00:ec2::254 fe80::1 febf::1 fec0::1 feff::1 ff02::1 ff0e::1
""")
PUBLIC = words("""
    1.1.1.1 8.8.8.8 9.255.255.255 11.0.0.0 100.63.255.255 100.128.0.0 126.255.255.255 128.0.0.1
    168.63.129.15 169.253.255.255 169.255.0.0 172.15.255.255 172.32.0.0 191.255.255.255 192.0.1.1
    192.167.255.255 192.169.0.0 198.17.255.255 198.20.0.0 223.255.255.255 2001:200::1 2001:4860:4860::8888
    2003::1 2606:4700:4700::1111 2a00:1450::1 2620:fe::fe
""")


@pytest.mark.parametrize("address", LOCAL)
def test_what_is_not_public_is_refused(address: str) -> None:
    assert not is_public(ip_address(address))
    literal = f"[{address}]" if ":" in address else address
    mixed = names(own=[address], mixed=["1.1.1.1", address, "2606:4700::1"])
    for host in (literal, "own.example", "mixed.example"):
        for scheme in ("http", "https"):
            refused, reached = dialled(f"{scheme}://{host}/a.png", lookup=mixed)
            assert same(refused, refusals.ADDRESS_LOCAL()) and not reached, host


@pytest.mark.parametrize("address", PUBLIC)
def test_what_is_public_is_dialled(address: str) -> None:
    literal = f"[{address}]" if ":" in address else address
    for host in (literal, "own.example"):
        refused, reached = dialled(f"https://{host}/a.png", lookup=names(own=[address]))
        assert same(refused, refusals.SERVER_UNREACHABLE())
        assert set(reached) == {address}


def test_an_address_with_a_zone_is_refused() -> None:
    zoned = names(own=["fe80::1%1"], odd=["2606:4700::1%1"])
    for host in ("own", "odd"):
        refused, reached = dialled(f"http://{host}.example/", lookup=zoned)
        assert same(refused, refusals.ADDRESS_LOCAL()) and not reached


@pytest.mark.parametrize(
    "host",
    [
        "localhost",
        "LocalHost",
        "pictrs",
        "postgres",
        "a.localhost",
        "nas.local",
        "metadata.google.internal",
        "host.docker.internal",
        "router.home.arpa",
        "x.localdomain",
    ],
)
def test_names_of_the_inside_are_not_even_looked_up(host: str) -> None:
    async def lookup(_: str) -> Sequence[str]:
        raise AssertionError("looked up")

    refused, reached = dialled(f"http://{host}/", lookup=lookup)
    assert same(refused, refusals.ADDRESS_LOCAL()) and not reached


@pytest.mark.parametrize(
    "host",
    [
        # numbers that somebody takes for 127.0.0.1, or for another address
        *(
            "2130706433",
            "0x7f000001",
            "0x7f.1",
            "0x7f.0.0.1",
            "017700000001",
            "0177.0.0.1",
            "127.1",
            "127.0.1",
            "0",
        ),
        *(
            "127.0.0.01",
            "127.0.0.1.",
            "127.0.0.1..",
            "1.1.1.1.",
            "1.2.3.4.5",
            "256.1.1.1",
            "1.1.1",
            "0x",
            "a.0x7f",
        ),
        *("1.1.1.0x1", "example.1", "4294967297", "１２７.1", "0x７f.1"),
        # brackets
        *(
            "[",
            "]",
            "[]",
            "[::1",
            "::1",
            "[::1]x",
            "x[::1]",
            "[[::1]]",
            "[::1%25lo]",
            "[::1%lo]",
            "[fe80::1%251]",
        ),
        *("[1.1.1.1]", "[v1.a]", "[:::]", "[::g]", "[2606:4700::1%eth0]", "127.0.0.1[::1]"),
        # names
        *(
            "",
            ".",
            "..",
            ".example",
            "pictures.example.",
            "pictures..example",
            "-pictures.example",
            "a-.example",
        ),
        *("pictures.example%00", "pictures%2eexample", "%31.1.1.1", "pict ures.example", " pictures.example"),
        *(
            "pictures.example ",
            "a" * 64 + ".example",
            ".".join(["abcdefgh"] * 29),
            "a" * 300,
            "pictures,example",
        ),
        *(
            "ä..example",
            "\u0378.example",
            "℀.example",
            "ä/b.example".replace("/", "\u2215"),
            "xn--a.ä",
            "ä" * 70,
        ),
        *(
            "pictures\u3002\u3002example",
            "pictures.example\uff0e",
            "a\u2024\u2024b.example",
            "*.example",
            "$x.example",
        ),
        # more than a host and a port
        *("user@pictures.example", "user:secret@pictures.example", "@pictures.example", ":@pictures.example"),
        *("1.1.1.1@127.0.0.1", "127.0.0.1@1.1.1.1", "pictures.example:80@127.0.0.1", "1.1.1.1:80:80"),
        *("pictures.example:", "pictures.example:0", "pictures.example:65536", "pictures.example:99999999"),
        *(
            "pictures.example:-1",
            "pictures.example:+80",
            "pictures.example: 80",
            "pictures.example:８０",
            ":80",
        ),
    ],
)
def test_odd_hosts_are_refused(host: str) -> None:
    for reach in (Reach(), Reach(ports=None, also=(ip_network("0.0.0.0/0"), ip_network("::/0")))):
        refused, reached = dialled(f"http://{host}/", reach=reach, lookup=names(pictures=["1.1.1.1"]))
        assert (refused.status, refused.code) == (400, "download-file-error") and not reached


@pytest.mark.parametrize(
    "url",
    [
        *("http:pictures.example", "http:/pictures.example", "http:///pictures.example", "https:", "http://"),
        *("http:\\\\pictures.example", "http://pictures.example\\@127.0.0.1/", "http://127.0.0.1\\.example/"),
        *("http://pictures.example/a\\b", "http://pictures.example/?a\\b", "http://pictures.example/#a\\b"),
        *("http://pictures.example/\r\nHost: x", "http://pictures.example/\n", "http://pict\tures.example/"),
        *("http://pictures.example/\x00", "http://pictures.example/\x7f", "http://pictures.example/\x85"),
        *("http://pictures.example/\ud800", "http://?pictures.example", "http://#@pictures.example"),
        "http://pictures.example/" + "a" * 8200,
    ],
)
def test_urls_that_programs_read_differently_are_refused(url: str) -> None:
    refused, reached = dialled(url, lookup=names(pictures=["1.1.1.1"]))
    assert (refused.status, refused.code) == (400, "download-file-error") and not reached


@pytest.mark.parametrize(
    ("host", "address"),
    [
        *(("127。0。0。1", None), ("１２７.0.0.1", None), ("①②⑦.⓪.⓪.①", None), ("loc\u00adalhost", None)),
        *(("１.１.１.１", "1.1.1.1"), ("1.1.1.1", "1.1.1.1"), ("[2606:4700:0::0001]", "2606:4700::1")),
        *(("[2606:4700:0:0:0:0:1.2.3.4]", "2606:4700::102:304"), ("bücher.example", "9.9.9.9")),
        *(
            ("BÜCHER.example", "9.9.9.9"),
            ("xn--bcher-kva.example", "9.9.9.9"),
            ("büch\u200ber.example", "9.9.9.9"),
        ),
    ],
)
def test_other_spellings_mean_one_host(host: str, address: str | None) -> None:
    lookup = names(**{"xn--bcher-kva": ["9.9.9.9"]})
    refused, reached = dialled(f"http://{host}/", lookup=lookup)
    assert set(reached) == ({address} if address else set())
    if address is None:
        assert same(refused, refusals.ADDRESS_LOCAL())


@pytest.mark.parametrize("port", [22, 25, 6379, 8080, 8081, 65535])
def test_ports_that_are_not_the_webs_are_refused(port: int) -> None:
    for host in ("1.1.1.1", "own.example"):
        refused, reached = dialled(f"http://{host}:{port}/", lookup=names(own=["1.1.1.1"]))
        assert same(refused, refusals.PORT_NOT_ALLOWED()) and not reached
    for url in ("http://1.1.1.1:443/", "https://1.1.1.1:80/", "http://1.1.1.1:0080/"):
        assert dialled(url)[1]


async def test_a_name_is_asked_for_once_and_its_answer_is_kept() -> None:
    """A name server that changes its mind between the check and the connection (DNS rebinding)."""
    asked: list[str] = []

    async def rebinding(host: str) -> Sequence[str]:
        asked.append(host)
        return ["127.0.0.1"] if len(asked) == 1 else ["127.0.0.2"]

    with serving(Reply(200, CONTENT)) as fake:
        port = fake.url.rpartition(":")[2]
        assert await fetch(f"http://pictures.example:{port}/", lookup=rebinding) == CONTENT
    assert asked == ["pictures.example"]


async def test_a_server_that_hangs_up_brings_no_second_lookup() -> None:
    asked: list[str] = []

    async def rebinding(host: str) -> Sequence[str]:
        asked.append(host)
        return ["127.0.0.1"]

    async def hang_up(_: asyncio.StreamWriter) -> None:
        """Says nothing."""

    async with speaking(hang_up) as port:
        refused = await refusal_of(f"http://pictures.example:{port}/", lookup=rebinding)
    assert same(refused, refusals.SERVER_UNREACHABLE())
    assert asked == ["pictures.example"]


async def test_each_redirect_is_looked_up_anew() -> None:
    answers = {"first.example": [["127.0.0.1"]], "second.example": [["127.0.0.1"], ["127.0.0.2"]]}

    async def rebinding(host: str) -> Sequence[str]:
        return answers[host].pop(0)

    def reply(asked: Asked) -> Reply:
        port = (asked.header("Host") or "").rpartition(":")[2]
        return Reply(302, b"", {"Location": f"http://second.example:{port}/{len(answers['second.example'])}"})

    with serving(reply) as fake:
        port = fake.url.rpartition(":")[2]
        refused = await refusal_of(f"http://first.example:{port}/", lookup=rebinding)
    assert same(refused, refusals.ADDRESS_LOCAL())
    assert [asked.target for asked in fake.asked] == ["/", "/2"]


async def test_aiohttp_cannot_go_where_nobody_looked() -> None:
    """The last door: even a literal that passed every check but is not the one that was checked."""
    fetcher = Fetcher(LIMITS, HERE)
    with serving(Reply(200, CONTENT)) as fake:
        async with fetcher._session(read(fake.url), [ip_address("1.1.1.1")]) as session:
            with pytest.raises(OSError):
                await session.get(fake.url)
    await fetcher.close()
    assert not fake.asked


# --- redirects ---


def moved(location: str, status: int = 302) -> Reply:
    return Reply(status, b"moved", {"Location": location})


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
@pytest.mark.parametrize(
    "location", ["/b.png", "b.png", "./x/../b.png", "//{host}/b.png", "http://{host}/b.png#x"]
)
async def test_redirects_are_followed(status: int, location: str) -> None:
    def reply(asked: Asked) -> Reply:
        if asked.target == "/b.png":
            return Reply(200, CONTENT)
        return moved(location.format(host=asked.header("Host")), status)

    with serving(reply) as fake:
        assert await fetch(fake.url + "/a.png") == CONTENT
    assert [asked.target for asked in fake.asked] == ["/a.png", "/b.png"]


@pytest.mark.parametrize(
    "location",
    [
        "http://127.0.0.2:{port}/",
        "http://127.0.0.2/",
        "//127.0.0.2:{port}/",
        "http://10.0.0.1/",
        "http://[::1]:{port}/",
        "http://169.254.169.254/latest/meta-data/",
        "http://localhost:{port}/",
        "http://inside.example:{port}/",
        "http://[::ffff:127.0.0.1]:{port}/",
        "https://192.168.0.1/",
    ],
)
def test_redirects_to_the_inside_are_refused(location: str) -> None:
    with serving(
        lambda asked: moved(location.format(port=(asked.header("Host") or "").rpartition(":")[2]))
    ) as fake:
        port = int(fake.url.rpartition(":")[2])
        loop = Watched(lambda address: address == ("127.0.0.1", port))
        with asyncio.Runner(loop_factory=lambda: loop) as runner:
            refused = runner.run(refusal_of(fake.url + "/a.png", lookup=names(inside=["127.0.0.2"])))
    assert same(refused, refusals.ADDRESS_LOCAL())
    assert loop.dialled == ["127.0.0.1"] and len(fake.asked) == 1


@pytest.mark.parametrize(
    ("location", "code"),
    [
        *(("file:///etc/passwd", "http-client-error"), ("javascript:alert(1)", "http-client-error")),
        *(("http://user@1.1.1.1/", "download-file-error"), ("http://[::1", "download-file-error")),
        *(("http://0x7f.1/", "download-file-error"), ("//1.1.1.1\\@127.0.0.1/", "download-file-error")),
        *(("\\\\127.0.0.1\\", "download-file-error"), ("/a\tb", "download-file-error")),
        ("http://pictures.example./", "download-file-error"),
    ],
)
async def test_a_redirect_is_read_as_strictly(location: str, code: str) -> None:
    with serving(moved(location)) as fake:
        refused = await refusal_of(fake.url + "/a.png")
    assert refused.code == code and len(fake.asked) == 1


async def test_a_redirect_to_a_forbidden_port() -> None:
    with serving(lambda _: moved("http://127.0.0.1:22/")) as fake:
        port = int(fake.url.rpartition(":")[2])
        refused = await refusal_of(fake.url, reach=Reach(frozenset({port}), HERE.also))
    assert same(refused, refusals.PORT_NOT_ALLOWED())


async def test_redirects_are_counted() -> None:
    def reply(asked: Asked) -> Reply:
        left = int(asked.target[1:])
        return moved(f"/{left - 1}") if left else Reply(200, CONTENT)

    with serving(reply) as fake:
        assert await fetch(fake.url + "/5") == CONTENT
        refused = await refusal_of(fake.url + "/6")
        assert same(refused, refusals.TOO_MANY_REDIRECTS())
        none = FetchLimits(largest_bytes=10_000_000, within_s=30, redirects=0)
        assert await fetch(fake.url + "/0", limits=none) == CONTENT
        assert same(await refusal_of(fake.url + "/1", limits=none), refusals.TOO_MANY_REDIRECTS())


async def test_a_redirect_to_itself_ends() -> None:
    with serving(moved("")) as fake:
        assert same(await refusal_of(fake.url), refusals.TOO_MANY_REDIRECTS())
    assert len(fake.asked) == LIMITS.redirects + 1


async def test_a_redirect_to_nowhere_and_one_to_two_places() -> None:
    async def two(writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 302 Found\r\nLocation: /a\r\nLocation: /b\r\nContent-Length: 0\r\n\r\n")

    with serving(Reply(302)) as fake:
        assert same(await refusal_of(fake.url), refusals.bad_response(302))
    async with speaking(two) as port:
        refused = await refusal_of(f"http://127.0.0.1:{port}/")
    assert same(refused, refusals.not_a_url("the picture's address redirects to two places"))


async def test_the_body_of_a_redirect_is_not_waited_for() -> None:
    async def endless(writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 302 Found\r\nLocation: http://10.0.0.1/\r\nContent-Length: 9999999\r\n\r\nx")
        await writer.drain()
        await asyncio.sleep(HANG_S)

    async with speaking(endless) as port:
        assert same(await refusal_of(f"http://127.0.0.1:{port}/"), refusals.ADDRESS_LOCAL())


# --- limits ---

SMALL = FetchLimits(largest_bytes=1000, within_s=30)


async def test_the_largest_size() -> None:
    with serving(lambda asked: Reply(200, bytes(int(asked.target[1:])))) as fake:
        assert len(await fetch(fake.url + "/1000", limits=SMALL)) == 1000
        assert same(await refusal_of(fake.url + "/1001", limits=SMALL), refusals.FILE_TOO_LARGE())


async def test_an_announced_size_is_believed_at_once() -> None:
    async def promise(writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000000000\r\n\r\n")
        await writer.drain()
        await asyncio.sleep(HANG_S)

    async with speaking(promise) as port:
        assert same(await refusal_of(f"http://127.0.0.1:{port}/"), refusals.FILE_TOO_LARGE())


@pytest.mark.parametrize("chunked", [False, True])
async def test_a_body_without_an_end_is_cut_off(chunked: bool) -> None:
    gone = asyncio.Event()

    async def endless(writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\n" + (b"Transfer-Encoding: chunked\r\n\r\n" if chunked else b"\r\n"))
        try:
            while True:
                writer.write(b"10000\r\n" + bytes(0x10000) + b"\r\n" if chunked else bytes(0x10000))
                await writer.drain()
        finally:
            gone.set()

    async with speaking(endless) as port:
        assert same(await refusal_of(f"http://127.0.0.1:{port}/"), refusals.FILE_TOO_LARGE())
        await asyncio.wait_for(gone.wait(), HANG_S)


async def test_a_cut_off_body_is_no_picture() -> None:
    async def half_a_chunk(writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n10\r\nhalf")

    with serving(Reply(200, CONTENT, cut=True)) as fake:
        assert same(await refusal_of(fake.url), refusals.DOWNLOAD_CUT_OFF())
    async with speaking(half_a_chunk) as port:
        assert same(await refusal_of(f"http://127.0.0.1:{port}/"), refusals.DOWNLOAD_CUT_OFF())


async def test_a_body_that_stops_being_http_is_no_picture() -> None:
    async def no_chunk(writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n")
        await writer.drain()
        await asyncio.sleep(0.1)
        writer.write(b"not a number\r\n")

    # aiohttp 3.14 closes the connection and tells nobody who waits for the body; the deadline does.
    async with speaking(no_chunk) as port:
        refused = await refusal_of(f"http://127.0.0.1:{port}/", within_s=1)
    assert refused.status in (500, 504)


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"garbage\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nbad header\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nA: " + b"a" * 99_999,
        b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 99999999999999999999999\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n" + b"A: a\r\n" * 9999 + b"\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab",
        b"SSH-2.0-OpenSSH_9\r\n",
    ],
)
async def test_what_is_not_http_is_refused(answer: bytes) -> None:
    async def say(writer: asyncio.StreamWriter) -> None:
        writer.write(answer)

    async with speaking(say) as port:
        refused = await refusal_of(f"http://127.0.0.1:{port}/")
    assert (refused.status, refused.code) == (500, "http-client-error")


@pytest.mark.parametrize(
    "coding", ["gzip", "GZIP", "deflate", "br", "zstd", "x-odd", "identity, gzip", "gzip,identity"]
)
async def test_an_encoded_body_is_refused(coding: str) -> None:
    bomb = gzip.compress(bytes(10_000_000))
    with serving(Reply(200, bomb, {"Content-Encoding": coding})) as fake:
        assert same(await refusal_of(fake.url), refusals.DOWNLOAD_ENCODED())


async def test_an_encoding_of_none_is_no_encoding_and_gzipped_bytes_stay_so() -> None:
    bomb = gzip.compress(bytes(10_000_000))
    with serving(Reply(200, bomb, {"Content-Encoding": "identity"})) as fake:
        assert await fetch(fake.url) == bomb


async def test_a_server_that_stops_sending_is_left() -> None:
    async def stall(writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n12345")
        await writer.drain()
        await asyncio.sleep(HANG_S)

    async def silence(_: asyncio.StreamWriter) -> None:
        await asyncio.sleep(HANG_S)

    for answer in (stall, silence):
        async with speaking(answer) as port:
            limits = FetchLimits(largest_bytes=1000, within_s=HANG_S, stall_s=0.2)
            refused = await refusal_of(f"http://127.0.0.1:{port}/", limits=limits)
        assert same(refused, refusals.DOWNLOAD_TOO_SLOW()) and refused.status == 504


async def test_a_server_that_drips_is_left_at_the_deadline() -> None:
    async def drip(writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
        while True:
            writer.write(b".")
            await writer.drain()
            await asyncio.sleep(0.05)

    async with speaking(drip) as port:
        for within_s, limit_s in ((0.5, 10 * HANG_S), (10 * HANG_S, 0.5)):
            limits = FetchLimits(largest_bytes=1_000_000, within_s=limit_s)
            refused = await refusal_of(f"http://127.0.0.1:{port}/", limits=limits, within_s=within_s)
            assert same(refused, refusals.DOWNLOAD_TOO_SLOW())


async def test_a_lookup_and_redirects_count_towards_the_deadline() -> None:
    async def forever(_: str) -> Sequence[str]:
        await asyncio.sleep(HANG_S)
        return []

    def slowly(_: Asked) -> Reply:
        slow.wait(0.2)
        return moved("/")

    slow = threading.Event()
    refused = await refusal_of("http://pictures.example/", lookup=forever, within_s=0.2)
    assert same(refused, refusals.DOWNLOAD_TOO_SLOW())
    with serving(slowly) as fake:
        endless = FetchLimits(largest_bytes=1000, within_s=0.5, redirects=100_000)
        assert same(await refusal_of(fake.url, limits=endless), refusals.DOWNLOAD_TOO_SLOW())


async def test_no_time_at_all() -> None:
    with serving(Reply(200, CONTENT)) as fake:
        for within_s in (0.0, -1.0):
            assert same(await refusal_of(fake.url, within_s=within_s), refusals.DOWNLOAD_TOO_SLOW())


async def test_whoever_stops_waiting_is_not_told_that_it_was_slow() -> None:
    async def silence(_: asyncio.StreamWriter) -> None:
        await asyncio.sleep(HANG_S)

    async with speaking(silence) as port:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.2):
                await fetch(f"http://127.0.0.1:{port}/")


# --- TLS ---

# Made for these tests; signs nothing else.
KEY_AND_CERTIFICATE = """\
-----BEGIN PRIVATE KEY-----
MIGHAgEAMBMGByqGSM49AgEGCCqGSM49AwEHBG0wawIBAQQg8zk/vyWsHVOaFxJW
vIs7dU6p6V+Lnnzx2Zy7kUClTnihRANCAARLy3jQaPeWCDLkv9UFK8fZJx2Fy0Ec
JWaWeBbDCpDnTtaiNBaAYSHdosZUKFU/HJOzLKD8ePB2I4yqYk7miRHw
-----END PRIVATE KEY-----
-----BEGIN CERTIFICATE-----
MIIBpzCCAU6gAwIBAgIBATAKBggqhkjOPQQDAjAbMRkwFwYDVQQDDBBwaWN0dXJl
cy5leGFtcGxlMCAXDTIwMDEwMTAwMDAwMFoYDzIxMjAwMTAxMDAwMDAwWjAbMRkw
FwYDVQQDDBBwaWN0dXJlcy5leGFtcGxlMFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcD
QgAES8t40Gj3lggy5L/VBSvH2ScdhctBHCVmlngWwwqQ507WojQWgGEh3aLGVChV
PxyTsyyg/HjwdiOMqmJO5okR8KOBgDB+MBsGA1UdEQQUMBKCEHBpY3R1cmVzLmV4
YW1wbGUwHQYDVR0OBBYEFO3z6cFwj+2j9Fq1Mtiz405uXzGfMB8GA1UdIwQYMBaA
FO3z6cFwj+2j9Fq1Mtiz405uXzGfMA4GA1UdDwEB/wQEAwIChDAPBgNVHRMBAf8E
BTADAQH/MAoGCCqGSM49BAMCA0cAMEQCICPXsSJLJCWhPMYBLzkZCJYl7zJh4wB8
tRcDdFcFemjyAiA3xrgHH+OanywUUi8NK+qXKk4LsNFHFFQsqHqSV7vPTw==
-----END CERTIFICATE-----
"""


@pytest.fixture
def tls(tmp_path: Path) -> tuple[ssl.SSLContext, ssl.SSLContext]:
    """TLS of a server called pictures.example, and of a client that trusts its certificate."""
    file = tmp_path / "pictures.example.pem"
    file.write_text(KEY_AND_CERTIFICATE)
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(file)
    return server, ssl.create_default_context(cafile=file)


async def test_a_certificate_is_checked_against_the_name_in_the_url(
    tls: tuple[ssl.SSLContext, ssl.SSLContext],
) -> None:
    said: list[str] = []

    async def answer(writer: asyncio.StreamWriter) -> None:
        said.append("200")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nyes")

    lookup = names(pictures=["127.0.0.1"], other=["127.0.0.1"])
    server, trusting = tls
    async with speaking(answer, server) as port:
        url = f"https://pictures.example:{port}/"
        assert await fetch(url, lookup=lookup, tls=trusting) == b"yes"
        assert same(await refusal_of(url, lookup=lookup), refusals.SERVER_UNREACHABLE())
        for other in (f"https://other.example:{port}/", f"https://127.0.0.1:{port}/", url.replace("s:", ":")):
            refused = await refusal_of(other, lookup=lookup, tls=trusting)
            assert same(refused, refusals.SERVER_UNREACHABLE())
    assert said == ["200"]


async def test_https_may_redirect_to_http(tls: tuple[ssl.SSLContext, ssl.SSLContext]) -> None:
    server, trusting = tls
    with serving(Reply(200, CONTENT)) as fake:

        async def answer(writer: asyncio.StreamWriter) -> None:
            writer.write(
                b"HTTP/1.1 301 Moved\r\nContent-Length: 0\r\nLocation: %b/\r\n\r\n" % fake.url.encode()
            )

        async with speaking(answer, server) as port:
            url, lookup = f"https://pictures.example:{port}/", names(pictures=["127.0.0.1"])
            assert await fetch(url, lookup=lookup, tls=trusting) == CONTENT


# --- any URL whatever ---

# The registries once more, in other words than the code's, so that one slip does not hide another.
_UNICAST_6 = ip_network("2000::/3")
_INSIDE_6 = [ip_network(f"{address}/128") for address in LOCAL if ":" in address]


def may_be_dialled(text: str) -> bool:
    address = ip_address(text)
    if isinstance(address, IPv6Address) and (address.ipv4_mapped or address.sixtofour or address.teredo):
        return False
    return (
        address.is_global
        and not address.is_multicast
        and not address.is_reserved
        and not address.is_link_local
        and not getattr(address, "is_site_local", False)
        and (address.version == 4 or address in _UNICAST_6)
        and not any(address in network for network in _INSIDE_6)
    )


ADDRESSES = st.one_of(st.ip_addresses().map(str), st.sampled_from(LOCAL), st.sampled_from(PUBLIC))
HOSTS = st.one_of(
    ADDRESSES,
    ADDRESSES.map(lambda address: f"[{address}]"),
    ADDRESSES.filter(lambda address: ":" not in address).map(lambda address: str(int(ip_address(address)))),
    ADDRESSES.filter(lambda address: ":" not in address).map(lambda address: hex(int(ip_address(address)))),
    st.ip_addresses(v=4).map(lambda a: ".".join(oct(octet).replace("o", "") for octet in a.packed)),
    st.from_regex(r"[a-z0-9]{1,6}(\.[a-z0-9]{1,6}){0,3}\.?", fullmatch=True),
    st.text(alphabet="01289abxXéß.-_%:@[]/\\?#１。\u200b \t", max_size=20),
    st.text(max_size=10),
)
URLS = st.one_of(
    st.text(max_size=40),
    st.builds(
        "".join,
        st.tuples(
            st.sampled_from(["http", "https", "HTTP", "hTTps", "ftp", "", " http"]),
            st.sampled_from(
                ["://", ":", ":/", ":///", "://\\", "//", ":\\\\", "://x@", "://x:y@", "://1.1.1.1@"]
            ),
            HOSTS,
            st.sampled_from(
                ["", ":80", ":443", ":", ":0", ":22", ":65616", "@1.1.1.1", "#@1.1.1.1", "\\@1.1.1.1"]
            ),
            st.one_of(st.sampled_from(["", "/", "?", "#", "/a.png"]), st.text(max_size=10)),
        ),
    ),
)
PLAIN_URLS = st.builds(
    "http{}://{}{}/".format,
    st.sampled_from(["", "s"]),
    st.one_of(HOSTS),
    st.sampled_from(["", ":80", ":443"]),
)


@settings(max_examples=400, deadline=None)
@given(url=st.one_of(URLS, PLAIN_URLS), found=st.lists(ADDRESSES, max_size=3))
def test_no_url_reaches_an_address_that_is_not_public(url: str, found: list[str]) -> None:
    looked_up: list[str] = []

    async def lookup(host: str) -> Sequence[str]:
        looked_up.append(host)
        return found

    loop = Watched()
    with asyncio.Runner(loop_factory=lambda: loop) as runner, pytest.raises(Refusal):
        runner.run(fetch(url, reach=Reach(), lookup=lookup))
    assert all(map(may_be_dialled, loop.dialled))
    assert len(looked_up) <= 1
    if looked_up and not all(map(may_be_dialled, found)):
        assert not loop.dialled
    if looked_up:
        assert set(loop.dialled) <= {str(ip_address(address)) for address in found}


@settings(max_examples=150, deadline=None)
@given(location=st.one_of(URLS, PLAIN_URLS), found=st.lists(ADDRESSES, max_size=3))
def test_no_redirect_reaches_an_address_that_is_not_public(location: str, found: list[str]) -> None:
    async def lookup(_: str) -> Sequence[str]:
        return found

    # As bytes of UTF-8, whatever they are; only a line's end would end the header.
    sent = location.encode("utf-8", "surrogatepass").decode("latin-1").replace("\r", "").replace("\n", "")
    with serving(lambda _: moved(sent)) as fake:
        port = int(fake.url.rpartition(":")[2])
        loop = Watched(lambda address: address == ("127.0.0.1", port))
        reach = Reach(frozenset({port, 80, 443}), HERE.also)
        with asyncio.Runner(loop_factory=lambda: loop) as runner, pytest.raises(Refusal):
            runner.run(fetch(fake.url, reach=reach, lookup=lookup))
    assert all(address == "127.0.0.1" or may_be_dialled(address) for address in loop.dialled)


# --- aliases that come back ---

ALIAS = "d32f8cb4-4323-404c-805d-3bdf2e8c16bc.jpeg"


@pytest.mark.parametrize(
    "url",
    [
        f"https://lemmy.example/pictrs/image/{ALIAS}",
        f"https://lemmy.example/pictrs/image/{ALIAS}?format=webp&thumbnail=256",
        f"https://lemmy.example/pictrs/image/{ALIAS}?alias=other.png&src=other.png",
        f"https://lemmy.example/pictrs/image/{ALIAS}#fragment?src=other.png",
        f"https://lemmy.example/pictrs/image/{ALIAS}/",
        f"https://lemmy.example//pictrs//image//{ALIAS}",
        f"http://127.0.0.1:18546/api/v4/image/{ALIAS}",
        f"HTTPS://user@Lemmy.Example:8443/api/v4/image/{ALIAS}",
        f"https:\\\\lemmy.example\\pictrs\\image\\{ALIAS}",
        f"https:/lemmy.example/pictrs/image/{ALIAS}",
        f"  https://lemmy.example/pictrs/im\tage/{ALIAS}\n",
        f"https://pictrs.example/image/original/{ALIAS}",
        f"https://pictrs.example/image/original?alias={ALIAS}",
        f"https://pictrs.example/image/original?x=1&alias={ALIAS}#x",
        f"https://pictrs.example/image/blurhash?alias={ALIAS}",
        f"https://pictrs.example/image/details/original?alias={ALIAS}",
        f"https://pictrs.example/image/process.webp?src={ALIAS}&thumbnail=64",
        f"https://pictrs.example/image/process.webp?alias={ALIAS}",
        f"https://pictrs.example/image/process.webp?alias=other.png&src={ALIAS}",
        f"https://pictrs.example/image/process.webp?src=a&src=b&alias={ALIAS}",
        f"https://pictrs.example/image/process_backgrounded.webp?src={ALIAS}",
        f"https://pictrs.example/image/p%72ocess.webp?src={ALIAS.replace('-', '%2D')}",
        "https://lemmy.example/pictrs/image/" + "".join(f"%{ord(letter):02x}" for letter in ALIAS),
    ],
)
def test_an_alias_is_found_in_a_url(url: str) -> None:
    assert alias_in(url) == ALIAS


@pytest.mark.parametrize(
    ("url", "alias"),
    [
        ("https://lemmy.example/pictrs/image/%2564.png", "%64.png"),
        ("https://lemmy.example/pictrs/image/a+b%2Fc.png", "a+b/c.png"),
        ("https://lemmy.example/pictrs/image/%C3%BCml.png", "üml.png"),
        ("https://lemmy.example/pictrs/image/üml.png", "üml.png"),
        *(
            ("https://lemmy.example", None),
            ("https://lemmy.example/", None),
            ("https://lemmy.example?alias=a", None),
        ),
        *(("", None), ("a.png", None), ("/pictrs/image/a.png", None), ("//lemmy.example/a.png", None)),
        ("https://pictrs.example/image/original", None),
        ("https://pictrs.example/image/original?alias=", None),
        ("https://pictrs.example/image/original?alias=a&alias=b", None),
        ("https://pictrs.example/image/process.webp?thumbnail=64", None),
        ("https://lemmy.example/%ff.png", None),
        ("https://lemmy.example/\ud800.png", None),
        ("https://pictrs.example/image/original?alias=%ff", None),
        ("https://pictrs.example/image/original?alias=\ud800", None),
        ("https://pictrs.example/image/original?" + "a=1&" * 1000, None),
    ],
)
def test_what_else_is_found_in_a_url(url: str, alias: str | None) -> None:
    assert alias_in(url) == alias


@given(st.one_of(URLS, st.text()))
def test_looking_for_an_alias_never_fails(url: str) -> None:
    found = alias_in(url)
    assert found is None or (found and found.encode())
