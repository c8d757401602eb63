"""pict-rs's key of a stored original, and what it has under one."""

from __future__ import annotations

import base64

from proxy.media import Kind
from proxy.pictrs import Pictrs, StoredFile

# By the last byte of a key (pict-rs 0.5.25, `InternalFormat::to_byte`).
_KINDS = (*[Kind.ANIMATION] * 4, *[Kind.IMAGE] * 5, *[Kind.VIDEO] * 2)


def kind_of(hex_: str) -> Kind | None:
    """What kind of media a key is of; None for one that is no key of today's pict-rs."""
    number = int(hex_[76:] or "ff", 16)
    return _KINDS[number] if number < len(_KINDS) else None


async def stored_under(pictrs: Pictrs, key: bytes) -> StoredFile | None:
    """The original with that key; None where pict-rs has it no more. It finds a page by the key.

    Raises:
        PictrsError: pict-rs cannot be asked.
    """
    page = await pictrs.stored(slug=base64.urlsafe_b64encode(key).decode().rstrip("="), limit=1)
    return page.files[0] if page.files and page.files[0].hex.lower() == key.hex() else None


async def stored_as(pictrs: Pictrs, sha256: str, size: int) -> StoredFile | None:
    """What pict-rs knows of an original with these bytes; None for a variant's, and where it is gone.

    Its key is made of these two and of one of eleven formats.

    Raises:
        PictrsError: pict-rs cannot be asked.
    """
    for number in range(len(_KINDS)):
        key = bytes.fromhex(sha256) + size.to_bytes(6) + bytes([number])
        if (file := await stored_under(pictrs, key)) is not None:
            return file
    return None
