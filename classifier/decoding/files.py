"""Any file that pict-rs takes: a picture, an animation or a video."""

from __future__ import annotations

from collections.abc import Iterator

from classifier.decoding import Frame, Limits, Media, Suffices, images, videos

FORMATS = tuple(sorted({*images.FORMATS, *videos.FORMATS}))
_SIGNATURES = (
    (b"\xff\xd8\xff", "jpeg"),
    (b"\x89PNG\r\n\x1a\n", "png"),
    (b"GIF8", "gif"),
    (b"\xff\x0a", "jxl"),
    (b"\0\0\0\x0cJXL ", "jxl"),
)


def decode(content: bytes, sha256: str, limits: Limits, suffices: Suffices) -> tuple[Media, Iterator[Frame]]:
    """Opens a file by what its first bytes say it is.

    Args:
        suffices: whether frames of so many pixels are enough, where decoding fewer is cheaper.

    Returns:
        What it is, and its scored frames.

    Raises:
        Rejection: it is nothing that is looked at, or too large, or broken.
    """
    if videos.claims(content) is not None:
        return videos.decode(content, sha256, limits)
    return images.decode(content, sha256, limits, suffices)


def claimed(content: bytes) -> str:
    """The format that a file's first bytes claim, for a metric; `unknown` where they claim none."""
    for signature, name in _SIGNATURES:
        if content.startswith(signature):
            return name
    if content[:4] == b"RIFF" and content[8:12] == b"WEBP":
        return "webp"
    if content[4:8] == b"ftyp" and content[8:12] in (b"avif", b"avis"):
        return "avif"
    return videos.claims(content) or "unknown"
