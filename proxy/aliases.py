"""Aliases and delete tokens as pict-rs makes and compares them.

pict-rs looks an alias up by bytes: the 16 bytes of a UUID where the part before the last dot is one in any
spelling, else that part's own bytes, then the extension with its dot. So one picture answers to several
names, and whoever compares aliases as text is fooled. The gate compares their keys.
"""

from __future__ import annotations

import re
import uuid

_HEX = "[0-9a-fA-F]"
_HYPHENATED = f"{_HEX}{{8}}-{_HEX}{{4}}-{_HEX}{{4}}-{_HEX}{{4}}-{_HEX}{{12}}"
# The spellings that pict-rs's parser (Rust's uuid crate) reads: simple, hyphenated, braced, URN.
_UUID = re.compile(rf"{_HEX}{{32}}|{_HYPHENATED}|\{{{_HYPHENATED}\}}|(?i:urn:uuid:){_HYPHENATED}")


def alias_key(alias: str) -> bytes:
    """The bytes under which pict-rs (0.5 and 0.6, sled and fjall) would look `alias` up.

    Args:
        alias: as it stands in a path or a query, percent-decoded once.

    Returns:
        Two aliases name the same file exactly when their keys are equal.
    """
    stem, dot, extension = alias.rpartition(".")
    if not dot:
        stem, extension = alias, ""
    if _UUID.fullmatch(stem):
        return uuid.UUID(stem.lower()).bytes + (dot + extension).encode()
    return (stem + dot + extension).encode()


def make_alias(extension: str) -> str:
    """A new alias that looks like one of pict-rs's: a UUIDv4, a dot, `extension` (without a dot)."""
    return f"{uuid.uuid4()}.{extension}"


def make_delete_token() -> str:
    """A new delete token that looks like one of pict-rs's: a UUIDv4."""
    return str(uuid.uuid4())
