"""Who sent an upload, as far as the request says: claims, not knowledge. Never a token.

Sealed with the case, for the investigator; nothing of it is logged or kept in the database.
"""

from __future__ import annotations

import base64
import binascii
import ipaddress
import json
from collections.abc import Mapping, Sequence
from http.cookies import CookieError, SimpleCookie
from typing import Any

from aiohttp import web

_LONGEST = 400  # characters of a user agent
_LARGEST_TOKEN = 8 * 1024

Network = ipaddress.IPv4Network | ipaddress.IPv6Network


class Uploaders:
    """Reads uploader facts off requests."""

    def __init__(self, trusted: Sequence[Network], *, wanted: bool) -> None:
        """
        Args:
            trusted: addresses of proxies whose `X-Forwarded-For` is believed.
            wanted: whether anything is noted at all.
        """
        self._trusted, self._wanted = trusted, wanted

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
        return str(address) if address is not None else None


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


def _claimed_user(request: web.BaseRequest) -> str | None:
    """The `sub` of the JWT that Lemmy has checked: the local user's id. The gate cannot check it."""
    scheme, _, token = request.headers.get("Authorization", "").partition(" ")
    if scheme.lower() != "bearer":
        try:
            morsel = SimpleCookie(request.headers.get("Cookie", "")).get("jwt")
        except CookieError:
            morsel = None
        token = morsel.value if morsel is not None else ""
    parts = token.strip().split(".")
    if len(parts) != 3 or len(token) > _LARGEST_TOKEN:
        return None
    try:
        claims = json.loads(base64.urlsafe_b64decode(parts[1] + "=" * (-len(parts[1]) % 4)))
    except (binascii.Error, ValueError, RecursionError):
        return None
    user = claims.get("sub") if isinstance(claims, dict) else None
    return str(user)[:64] if isinstance(user, str | int) else None
