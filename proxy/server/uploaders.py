"""Who sent an upload, as far as the request says: claims, not knowledge. Never a token.

Sealed with the case, for the investigator; nothing of it is logged. What the database keeps is a tag, a keyed
hash of the user id or address, by which one uploader's share of the quarantine is counted.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import ipaddress
import json
import logging
import re
from collections.abc import Mapping, Sequence
from http.cookies import CookieError, SimpleCookie
from typing import Any
from urllib.parse import unquote

from aiohttp import web

log = logging.getLogger(__name__)

_LONGEST = 400  # characters of a user agent
_LARGEST_TOKEN = 8 * 1024
_JWT = re.compile(r"(?<![\w-])eyJ[\w-]*\.[\w-]+\.[\w-]+", re.ASCII)  # as whatever Lemmy has signed begins
_V6_SITE = 64  # bits of an IPv6 address that are one household's

Network = ipaddress.IPv4Network | ipaddress.IPv6Network


class Uploaders:
    """Reads uploader facts off requests."""

    def __init__(self, trusted: Sequence[Network], *, wanted: bool, salt: bytes) -> None:
        """
        Args:
            trusted: addresses of proxies whose `X-Forwarded-For` is believed.
            wanted: whether anything is noted at all.
            salt: of the tags.
        """
        self._trusted, self._wanted, self._salt = trusted, wanted, salt
        self._has_said = False

    def facts(self, request: web.BaseRequest) -> Mapping[str, Any]:
        """`address`, `user_agent`, `claimed_user_id`; only those that the request tells."""
        if not self._wanted:
            return {}
        facts = {
            "address": self._address(request),
            "user_agent": request.headers.get("User-Agent", "")[:_LONGEST] or None,
            "claimed_user_id": _claimed_user(request),
        }
        return {name: value for name, value in facts.items() if value is not None}

    def user_id(self, request: web.BaseRequest) -> str | None:
        """Lemmy's local user id, where a trusted proxy has passed on a login that Lemmy has checked.

        The gate cannot check it. So it has to be the one token of the request, in whatever spelling: of two,
        Lemmy might have checked the other one.
        """
        remote = _parsed(request.remote or "")
        if remote is None or not any(remote in network for network in self._trusted):
            return None
        lines = [line for name in ("Authorization", "Cookie") for line in request.headers.getall(name, [])]
        tokens = {token for line in lines for token in _JWT.findall(unquote(line))}
        return _subject(tokens.pop()) if len(tokens) == 1 else None

    def tag(self, request: web.BaseRequest) -> str | None:
        """A keyed hash of who sent a request: the user, or else the address; None where it is not wanted."""
        if not self._wanted:
            return None
        user, address = self.user_id(request), self._address(request)
        if user is not None:
            return self._tag(f"user {user}")
        return address and self._tag(f"address {_site(address)}")

    def _tag(self, who: str) -> str:
        return hmac.new(self._salt, who.encode(), hashlib.sha256).hexdigest()[:32]

    def _address(self, request: web.BaseRequest) -> str | None:
        """The last hop that is not a trusted proxy, counted from the gate outwards."""
        lines = request.headers.getall("X-Forwarded-For", [])
        hops = [hop.strip() for line in lines for hop in line.split(",")]
        hops.append(request.remote or "")
        address = None
        for hop in reversed(hops):
            parsed = _parsed(hop)
            if parsed is None:
                break  # whatever stands further out was written by whoever wrote this
            address = parsed
            if not any(parsed in network for network in self._trusted):
                break
        if lines and hops[-1] == str(address) and address is not None and address.is_private:
            self._say_once(str(address))
        return str(address) if address is not None else None

    def _say_once(self, address: str) -> None:
        """That a proxy is not trusted, of a container network most likely: a private address is no user's."""
        if not self._has_said:
            self._has_said = True
            log.warning(
                "%s passes on X-Forwarded-For and is not in server.trusted_proxies: "
                "all that it sends counts as one uploader's",
                address,
            )


def _parsed(hop: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    """An address, with or without a port; Lemmy writes one."""
    host = hop
    if hop.startswith("["):
        host = hop[1:].partition("]")[0]
    elif hop.count(":") == 1:
        host = hop.partition(":")[0]
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return None
    return getattr(address, "ipv4_mapped", None) or address


def _site(address: str) -> str:
    """Addresses that are one uploader's all the same."""
    parsed = ipaddress.ip_address(address)
    if parsed.version == 4:
        return address
    return str(ipaddress.ip_network((int(parsed), _V6_SITE), strict=False))


def _claimed_user(request: web.BaseRequest) -> str | None:
    """The `sub` of the JWT that Lemmy has checked: the local user's id. The gate cannot check it."""
    scheme, _, token = request.headers.get("Authorization", "").partition(" ")
    if scheme.lower() != "bearer":
        try:
            morsel = SimpleCookie(request.headers.get("Cookie", "")).get("jwt")
        except CookieError:
            morsel = None
        token = morsel.value if morsel is not None else ""
    return _subject(token.strip())


def _subject(token: str) -> str | None:
    """The `sub` of a JWT; None where there is none."""
    parts = token.split(".")
    if len(parts) != 3 or len(token) > _LARGEST_TOKEN:
        return None
    try:
        claims = json.loads(base64.urlsafe_b64decode(parts[1] + "=" * (-len(parts[1]) % 4)))
    except (binascii.Error, ValueError, RecursionError):
        return None
    user = claims.get("sub") if isinstance(claims, dict) else None
    return str(user)[:64] if isinstance(user, str | int) else None
