"""Sending bodies without copying them whole."""

from __future__ import annotations

from collections.abc import AsyncIterator

# What a socket does not take at once is copied, so this much a body at most.
_PIECE_BYTES = 256 * 1024


async def in_pieces(*buffers: bytes) -> AsyncIterator[memoryview]:
    """The buffers one after the other, as a request's body for aiohttp, which waits between the pieces."""
    for buffer in buffers:
        view = memoryview(buffer)
        for at in range(0, len(view), _PIECE_BYTES):
            yield view[at : at + _PIECE_BYTES]
