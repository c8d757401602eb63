"""Any file that pict-rs takes: a picture, an animation or a video."""

from __future__ import annotations

from collections.abc import Iterator

from classifier.decoding import Frame, Limits, Media, images, videos

FORMATS = tuple(sorted({*images.FORMATS, *videos.FORMATS}))


def decode(content: bytes, sha256: str, limits: Limits) -> tuple[Media, Iterator[Frame]]:
    """Opens a file by what its first bytes say it is.

    Returns:
        What it is, and its scored frames.

    Raises:
        Rejection: it is nothing that is looked at, or too large, or broken.
    """
    decode_it = videos.decode if videos.claims(content) else images.decode
    return decode_it(content, sha256, limits)
