"""Fetching a picture by its URL, in such a way that nobody can use the gate to reach inside the network.

A URL is read once, by one grammar; its host is looked up once and every address that comes back has to be
public; the connection goes to those addresses and to nothing else; each redirect starts over. The gate sends
no credentials, takes no cookies, decodes nothing, and never quotes a URL or what came from it.
"""

from __future__ import annotations

import asyncio
import re
import socket
import ssl
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from ipaddress import (
    AddressValueError,
    IPv4Address,
    IPv4Network,
    IPv6Address,
    IPv6Network,
    ip_address,
)
from urllib.parse import parse_qs, quote, unquote, urljoin

import aiohttp
import idna
from aiohttp.abc import AbstractResolver, ResolveResult
from yarl import URL

from proxy import refusals

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network
Lookup = Callable[[str], Awaitable[Sequence[str]]]

# Not pict-rs's: whoever answers reads must be able to tell this fetcher, which keeps copies, from a user.
USER_AGENT = "pictrs-gate"

_WEB_PORTS = frozenset({80, 443})
_CONNECT_S = 5.0
_LOOKUPS = 8
_MOST_ADDRESSES = 8
_LONGEST = 8 * 1024
_MOST_PAIRS = 64
_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_DEFAULT_PORTS = {"http": 80, "https": 443}

# IANA's IPv4 special-purpose registry, spelled out because Python 3.11's `is_global` lacks some. Blocks
# are refused whole, also where the registry has exceptions in them: none of those serves pictures.
_NOT_PUBLIC_4 = tuple(
    IPv4Network(network)
    for network in (
        *("0.0.0.0/8", "127.0.0.0/8", "169.254.0.0/16"),  # this host; link-local, cloud metadata
        *(
            "10.0.0.0/8",
            "172.16.0.0/12",
            "192.168.0.0/16",
            "100.64.0.0/10",
        ),  # private; carriers' shared space
        *("192.0.0.0/24", "192.31.196.0/24", "192.52.193.0/24", "192.175.48.0/24"),  # protocols, AS112, AMT
        "192.88.99.0/24",  # 6to4 relays
        *("192.0.2.0/24", "198.51.100.0/24", "203.0.113.0/24", "198.18.0.0/15"),  # documentation, benchmarks
        *("224.0.0.0/4", "240.0.0.0/4"),  # multicast; reserved, with broadcast
        "168.63.129.16/32",  # looks public; inside Azure it is the host's own metadata service
    )
)
# All that IANA has given out for public use. What lies outside is local, or wraps an IPv4 address: mapped and
# compatible ones, NAT64 (64:ff9b::/96, 64:ff9b:1::/48), ULA, link-local, site-local, SRv6, multicast.
_PUBLIC_6 = IPv6Network("2000::/3")
_NOT_PUBLIC_6 = tuple(
    IPv6Network(network)
    for network in (
        "2001::/23",  # protocols: Teredo (wraps IPv4), benchmarks, ORCHID, anycast services
        "2002::/16",  # 6to4, wraps IPv4
        *("2001:db8::/32", "3fff::/20"),  # documentation
        "2620:4f:8000::/48",  # AS112
    )
)
# Names that are never the public's. Not looked up: whether they exist is nobody's business.
_LOCAL_NAMES = (".localhost", ".local", ".internal", ".home.arpa", ".localdomain")

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.\-]*):")
_AFTER_SCHEME = re.compile(r"//([^/?#]*)(/[^?#]*)?(?:\?([^#]*))?(?:#.*)?", re.DOTALL)
_AUTHORITY = re.compile(r"(?:\[([0-9A-Fa-f:.]{2,45})\]|([^\[\]:@%]{1,253}))(?::([0-9]{1,5}))?")
_LABEL = re.compile(r"[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?")
_ENDS_IN_A_NUMBER = re.compile(r"(?:.*\.)?(?:[0-9]+|0x[0-9a-f]*)\.?", re.DOTALL)
# Some readers drop these, some take them for a slash, some stop at them. A blank in a path is not among them:
# everybody writes it as %20, and it comes of queries that were encoded once too seldom.
_READ_DIFFERENTLY = re.compile(r"[\x00-\x1f\x7f-\x9f\\\ud800-\udfff]")
_KEPT = "!$%&'()*+,-./:;=?@[]_~|^"

_LOOSE_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.\-]*:[/\\]*[^/\\?#]*([^?#]*)(?:\?([^#]*))?", re.DOTALL)
_ALIAS_IN_QUERY = re.compile(r"original|blurhash|process(?:_backgrounded)?\..*", re.DOTALL)


@dataclass(frozen=True, slots=True)
class FetchLimits:
    """Bounds of one fetch.

    Attributes:
        largest_bytes: of a picture.
        within_s: seconds for all of it: every lookup, redirect and byte.
        stall_s: seconds without a byte after which a server has given up.
        redirects: how many are followed.
    """

    largest_bytes: int
    within_s: float
    stall_s: float = 5.0
    redirects: int = 5


@dataclass(frozen=True, slots=True)
class Reach:
    """Where the gate may go.

    Attributes:
        ports: None for any. The web's own by default: a port that is firewalled from outside is often open to
            the host itself, also by its public address.
        also: networks that may be reached although they are not public; for tests, and for an instance whose
            own name leads to a private address.
    """

    ports: frozenset[int] | None = _WEB_PORTS
    also: tuple[Network, ...] = ()

    def allows(self, address: Address) -> bool:
        """Whether `address` is public, or one of `also`."""
        if isinstance(address, IPv6Address) and address.scope_id is not None:
            return False
        return any(address in network for network in self.also) or is_public(address)


_PUBLIC = Reach()


def is_public(address: Address) -> bool:
    """Whether `address` is one of the public internet that wraps no other address."""
    if isinstance(address, IPv4Address):
        return address.is_global and not any(address in network for network in _NOT_PUBLIC_4)
    if address not in _PUBLIC_6 or any(address in network for network in _NOT_PUBLIC_6):
        return False
    return address.is_global


class Fetcher:
    """Fetches pictures by URL. Remembers nothing between two of them."""

    def __init__(
        self,
        limits: FetchLimits,
        reach: Reach = _PUBLIC,
        *,
        lookup: Lookup | None = None,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        """
        Args:
            lookup: host name → its addresses as text, or OSError where it has none. The system's if None.
            tls: how certificates are checked; against the system's authorities if None.
        """
        self._limits, self._reach = limits, reach
        self._lookup = lookup or self._ask_system
        self._tls = tls or True
        # Threads of its own: a name server that never answers must not stop the gate's other threads.
        self._threads = ThreadPoolExecutor(_LOOKUPS, thread_name_prefix="lookup")

    async def close(self) -> None:
        """Ends lookups that have not begun."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def fetch(self, url: str, *, within_s: float) -> bytes:
        """The bytes behind `url`, which may be none; they are whatever the server sent with a 200.

        Args:
            url: as it stands in the query, percent-decoded once.
            within_s: seconds, if that is less than the limits allow.

        Raises:
            Refusal: in pict-rs's words where pict-rs would fail too; never quotes the URL or the answer.
        """
        try:
            async with asyncio.timeout(min(within_s, self._limits.within_s)):
                return await self._follow(_read(url))
        except TimeoutError:
            raise refusals.DOWNLOAD_TOO_SLOW() from None
        except (aiohttp.ClientPayloadError, aiohttp.http.HttpProcessingError):
            raise refusals.DOWNLOAD_CUT_OFF() from None
        except (aiohttp.ClientError, OSError):
            raise refusals.SERVER_UNREACHABLE() from None

    async def _follow(self, place: _Place) -> bytes:
        # From https to http too, as pict-rs does: a URL with http is as good to begin with, and what arrives
        # is looked at whoever sent it.
        for _ in range(self._limits.redirects + 1):
            addresses = await self._addresses(place)
            async with self._session(place, addresses) as session:
                request = session.get(place.url, allow_redirects=False)
                async with request as response:
                    if response.status not in _REDIRECTS or "Location" not in response.headers:
                        return await self._content(response)
                    location = response.headers.getall("Location")
            if len(location) > 1:
                raise refusals.not_a_url("the picture's address redirects to two places")
            place = _read_redirect(place, location[0])
        raise refusals.TOO_MANY_REDIRECTS()

    async def _addresses(self, place: _Place) -> list[Address]:
        """What `place` may be reached by. One address that may not be is enough to refuse all."""
        if self._reach.ports is not None and place.port not in self._reach.ports:
            raise refusals.PORT_NOT_ALLOWED()
        if place.literal is not None:
            addresses: list[Address] = [place.literal]
        elif "." not in place.host or place.host.endswith(_LOCAL_NAMES):
            raise refusals.ADDRESS_LOCAL()
        else:
            addresses = [_address(text) for text in await self._lookup(place.host)]
        if not all(map(self._reach.allows, addresses)):
            raise refusals.ADDRESS_LOCAL()
        if not addresses:
            raise OSError("the host has no address")
        return addresses[:_MOST_ADDRESSES]

    def _session(self, place: _Place, addresses: Sequence[Address]) -> aiohttp.ClientSession:
        checked = frozenset(map(str, addresses))

        def open_socket(found: aiohttp.AddrInfoType) -> socket.socket:
            # The last door, for whatever way an address came: aiohttp asks no resolver about literals.
            family, kind, protocol, _, where = found
            if where[0] not in checked or where[1] != place.port:
                raise PermissionError("an address was not checked")
            return socket.socket(family, kind, protocol)

        connector = aiohttp.TCPConnector(
            resolver=_Pinned(addresses),
            use_dns_cache=False,
            force_close=True,
            socket_factory=open_socket,
            ssl=self._tls,
        )
        return aiohttp.ClientSession(
            connector=connector,
            timeout=aiohttp.ClientTimeout(
                total=None, sock_connect=_CONNECT_S, sock_read=self._limits.stall_s
            ),
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,
            trust_env=False,
            headers={"User-Agent": USER_AGENT, "Accept": "*/*", "Accept-Encoding": "identity"},
        )

    async def _content(self, response: aiohttp.ClientResponse) -> bytes:
        if response.status != 200:
            raise refusals.bad_response(response.status)
        # Nothing is decoded here, so nothing can grow: an encoded body is no picture that could be looked at.
        codings = response.headers.getall("Content-Encoding", [])
        codings = [*codings, *response.headers.getall("Transfer-Encoding", [])]
        if not {coding.strip().lower() for coding in codings} <= {"identity", "chunked", ""}:
            raise refusals.DOWNLOAD_ENCODED()
        if (response.content_length or 0) > self._limits.largest_bytes:
            raise refusals.FILE_TOO_LARGE()
        pieces: list[bytes] = []
        received = 0
        async for piece in response.content.iter_any():
            received += len(piece)
            if received > self._limits.largest_bytes:
                raise refusals.FILE_TOO_LARGE()
            pieces.append(piece)
            await asyncio.sleep(0)  # a fast server must not keep the loop for itself
        return b"".join(pieces)

    async def _ask_system(self, host: str) -> Sequence[str]:
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._threads, _system_addresses, host)


def alias_in(url: str) -> str | None:
    """The alias that a URL would name if it were one of the instance's own, in Lemmy's or in pict-rs's form.

    Reads loosely, as browsers do: to find too much costs a look into the database, to find too little makes
    the gate fetch its own placeholder.

    Returns:
        The last segment of its path, or `src=` or `alias=` where pict-rs reads the query; percent-decoded
        once. None where there is no such thing, or it is not UTF-8.
    """
    read = _LOOSE_URL.fullmatch(re.sub(r"[\t\r\n]", "", url).strip().partition("#")[0])
    if read is None:
        return None
    segments = [segment for segment in re.split(r"[/\\]", read[1]) if segment]
    try:
        alias = unquote(segments[-1], errors="strict") if segments else ""
        if _ALIAS_IN_QUERY.fullmatch(alias):
            pairs = parse_qs(read[2] or "", errors="strict", max_num_fields=_MOST_PAIRS)
            # pict-rs takes a key that stands there twice for one that is not there.
            named = [pairs[key][0] for key in ("src", "alias") if len(pairs.get(key, ())) == 1]
            alias = named[0] if named else ""
        alias.encode()  # fails where half a character of UTF-16 is in it, which no alias has
    except ValueError:
        return None
    return alias or None


@dataclass(frozen=True, slots=True)
class _Place:
    """Where a URL leads.

    Attributes:
        scheme: `http` or `https`.
        host: a name in lower-case ASCII, or the canonical form of `literal`.
        literal: the address that the URL itself names, or None.
        port: 1..65535.
        target: path and query in printable ASCII.
    """

    scheme: str
    host: str
    literal: Address | None
    port: int
    target: str

    @property
    def url(self) -> URL:
        """For aiohttp, in the one spelling."""
        host = f"[{self.host}]" if isinstance(self.literal, IPv6Address) else self.host
        return URL(f"{self.scheme}://{host}:{self.port}{self.target}", encoded=True)


class _Pinned(AbstractResolver):
    """Knows nothing but the addresses that were checked."""

    def __init__(self, addresses: Sequence[Address]) -> None:
        self._addresses = addresses

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        return [
            ResolveResult(
                hostname=host,
                host=str(address),
                port=port,
                family=socket.AF_INET if address.version == 4 else socket.AF_INET6,
                proto=0,
                flags=socket.AI_NUMERICHOST,
            )
            for address in self._addresses
        ]

    async def close(self) -> None:
        """Nothing to give back."""


def _read(url: str) -> _Place:
    """Reads a URL strictly.

    Raises:
        Refusal: it is none, has a scheme that is not the web's, or two programs could read it in two ways.
    """
    if len(url) > _LONGEST or _READ_DIFFERENTLY.search(url):
        raise refusals.not_a_url("the address cannot be read in one way only")
    scheme = _SCHEME.match(url)
    if scheme is None:
        raise refusals.not_a_url("relative URL without a base")
    if scheme[1].lower() not in _DEFAULT_PORTS:
        raise refusals.SCHEME_NOT_ALLOWED()
    rest = _AFTER_SCHEME.fullmatch(url, scheme.end())
    if rest is None or not rest[1]:
        raise refusals.not_a_url("empty host")
    authority = _AUTHORITY.fullmatch(rest[1])
    if authority is None:
        # Also user names and passwords: to most readers the host comes after them, to some before.
        raise refusals.not_a_url("the address has more than a host and a port before its path")
    host, literal = _read_host(authority[1], authority[2])
    port = int(authority[3]) if authority[3] else _DEFAULT_PORTS[scheme[1].lower()]
    if not 0 < port < 65536:
        raise refusals.not_a_url("invalid port number")
    query = "?" + quote(rest[3], safe=_KEPT) if rest[3] else ""
    place = _Place(scheme[1].lower(), host, literal, port, quote(rest[2] or "/", safe=_KEPT) + query)
    # aiohttp goes by yarl's reading, which has to be this one.
    other = place.url
    if (other.scheme, other.raw_host, other.port, other.raw_path_qs) != (
        *(place.scheme, place.host, place.port, place.target),
    ):
        raise refusals.not_a_url("the address cannot be read in one way only")
    return place


def _read_redirect(place: _Place, location: str) -> _Place:
    # urljoin drops what is refused here.
    if _READ_DIFFERENTLY.search(location):
        raise refusals.not_a_url("the address cannot be read in one way only")
    try:
        return _read(urljoin(str(place.url), location))
    except ValueError:
        raise refusals.not_a_url("invalid IPv6 address") from None


def _read_host(bracketed: str | None, name: str) -> tuple[str, Address | None]:
    """A host as text and, where it is a literal, as the address that it is."""
    if bracketed is not None:
        try:
            six = IPv6Address(bracketed)
        except AddressValueError:
            raise refusals.not_a_url("invalid IPv6 address") from None
        return str(six), six
    if not name.isascii():
        try:
            name = idna.encode(name, uts46=True).decode("ascii")
        except UnicodeError:
            raise refusals.not_a_url("invalid international domain name") from None
    name = name.lower()
    if _ENDS_IN_A_NUMBER.fullmatch(name):
        # 0x7f.1, 2130706433 and 0177.0.0.1 are all 127.0.0.1 to somebody; only the plain form is read.
        try:
            four = IPv4Address(name)
        except AddressValueError:
            raise refusals.not_a_url("invalid IPv4 address") from None
        return str(four), four
    if not all(map(_LABEL.fullmatch, name.split("."))):
        raise refusals.not_a_url("invalid domain character")
    return name, None


def _address(text: str) -> Address:
    try:
        return ip_address(text)
    except ValueError:
        raise OSError("a name server answered with what is no address") from None


def _system_addresses(host: str) -> list[str]:
    # Bytes, so that Python does not encode the name once more.
    found = socket.getaddrinfo(
        host.encode("ascii"), None, type=socket.SOCK_STREAM, flags=socket.AI_ADDRCONFIG
    )
    return [str(where[0]) for *_, where in found]
