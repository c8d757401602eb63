"""Which media format a file's signature claims, for the formats that pict-rs takes.

A claim, not a fact: whoever decodes the file must decode it as this format and nothing else, so that gate
and classifier never look at two different readings of one file.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass


class Kind(enum.StrEnum):
    """pict-rs's three kinds of media, spelled as in its `details.format`."""

    IMAGE = "Image"
    ANIMATION = "Animation"
    VIDEO = "Video"


@dataclass(frozen=True, slots=True)
class Format:
    """A media format.

    Attributes:
        name: what the classifier calls it (`jpeg`, `apng`, …).
        kind: what pict-rs makes of it.
        content_type: of the bytes as they were uploaded.
        stored_type: of what pict-rs stores and serves (a mov becomes an mp4).
        extension: of the alias that pict-rs makes.
    """

    name: str
    kind: Kind
    content_type: str
    stored_type: str
    extension: str


def _same(name: str, kind: Kind, content_type: str) -> Format:
    return Format(name, kind, content_type, content_type, name)


APNG = _same("apng", Kind.ANIMATION, "image/apng")
AVIF = _same("avif", Kind.IMAGE, "image/avif")
AVIF_SEQUENCE = _same("avif", Kind.ANIMATION, "image/avif")
GIF = _same("gif", Kind.ANIMATION, "image/gif")  # pict-rs calls every GIF an animation
JPEG = _same("jpeg", Kind.IMAGE, "image/jpeg")
JXL = _same("jxl", Kind.IMAGE, "image/jxl")
MOV = Format("mov", Kind.VIDEO, "video/quicktime", "video/mp4", "mp4")
MP4 = _same("mp4", Kind.VIDEO, "video/mp4")
PNG = _same("png", Kind.IMAGE, "image/png")
WEBM = _same("webm", Kind.VIDEO, "video/webm")
WEBP = _same("webp", Kind.IMAGE, "image/webp")
WEBP_ANIMATION = _same("webp", Kind.ANIMATION, "image/webp")

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
JXL_CONTAINER = b"\0\0\0\x0cJXL \r\n\x87\n"

# Atoms that a QuickTime file without `ftyp` may begin with (QuickTime File Format, "Overview").
_QUICKTIME_ATOMS = frozenset({b"moov", b"mdat", b"wide", b"free", b"skip", b"pnot"})
# Chunks looked at before the first IDAT; real files have a dozen, and the walk is on the event loop.
_MOST_CHUNKS = 1000
# Still pictures in the same container as mp4 that neither pict-rs nor a browser shows (HEIF, ISO 23008-12).
_HEIF_BRANDS = frozenset({b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"})


def recognise(content: bytes) -> Format | None:
    """The format that `content` claims to be by its first bytes, or None where it is none of pict-rs's."""
    if content.startswith(b"\xff\xd8\xff"):
        return JPEG
    if content.startswith(PNG_SIGNATURE):
        return APNG if _is_animated_png(content) else PNG
    if content.startswith((b"GIF87a", b"GIF89a")):
        return GIF
    if content[:4] == b"RIFF" and content[8:12] == b"WEBP":
        return WEBP_ANIMATION if _is_animated_webp(content) else WEBP
    if content.startswith((b"\xff\x0a", JXL_CONTAINER)):
        return JXL
    if content.startswith(b"\x1a\x45\xdf\xa3"):
        return WEBM
    return _recognise_boxes(content)


def _recognise_boxes(content: bytes) -> Format | None:
    box = content[4:8]
    if box == b"ftyp":
        length = min(int.from_bytes(content[:4]), 1024)
        major = content[8:12]
        brands = {major, *(content[at : at + 4] for at in range(16, length - 3, 4))}
        if b"avis" in brands:
            return AVIF_SEQUENCE
        if b"avif" in brands:
            return AVIF
        if major in _HEIF_BRANDS:
            return None
        return MOV if major == b"qt  " else MP4
    return MOV if box in _QUICKTIME_ATOMS else None


def _is_animated_png(content: bytes) -> bool:
    """Whether an `acTL` chunk comes before the first `IDAT` (PNG, third edition, 11.3.6)."""
    at = len(PNG_SIGNATURE)
    for _ in range(_MOST_CHUNKS):
        name = content[at + 4 : at + 8]
        if name == b"acTL":
            return True
        if name == b"IDAT" or not name:
            return False
        at += 12 + int.from_bytes(content[at : at + 4])
    return False


def _is_animated_webp(content: bytes) -> bool:
    """Whether the extended header has its animation flag set (WebP Container Specification)."""
    return content[12:16] == b"VP8X" and len(content) > 20 and bool(content[20] & 0x02)
