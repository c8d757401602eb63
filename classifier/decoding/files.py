"""Any file that pict-rs takes: a picture, an animation or a video."""

from __future__ import annotations

from collections.abc import Iterator

from classifier.decoding import Frame, Limits, Media, Suffices, images, videos

FORMATS = tuple(sorted({*images.FORMATS, *videos.FORMATS}))


def decode(content: bytes, sha256: str, limits: Limits, suffices: Suffices) -> tuple[Media, Iterator[Frame]]:
    """Opens a file by what its first bytes say it is.

    Args:
        suffices: whether frames of so many pixels are enough, where decoding fewer is cheaper.

    Returns:
        What it is, and its scored frames.

    Raises:
        Rejection: it is nothing that is looked at, or too large, or broken.
    """
    if videos.claims(content):
        return videos.decode(content, sha256, limits)
    return images.decode(content, sha256, limits, suffices)
