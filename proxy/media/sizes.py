"""Width, height and frame count from a file's headers, without decoding it.

For files that nobody could look at: a placeholder has to have the size that the picture will have. Where a
header cannot be made sense of the answer is None, never an exception.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from typing import NamedTuple

from proxy.media.geometry import Size
from proxy.media.signatures import JXL_CONTAINER, PNG_SIGNATURE, Format

# Steps that measuring one file may take, all its walks together. A 40 MB GIF has some 160 000 sub-blocks.
_MOST_STEPS = 200_000
_LARGEST_SIDE = 65_535  # pict-rs keeps sides in 16 bits
_ORIENTATION = 0x0112  # Exif 2.3, tag of the IFD0
_SIDEWAYS = frozenset({5, 6, 7, 8})  # orientations that swap width and height


class Measure(NamedTuple):
    """What the headers say: the size once upright, and the number of frames (None for a still picture)."""

    size: Size
    frames: int | None = None


def measure(content: bytes, media: Format) -> Measure | None:
    """The size of `content`, read as `media`, or None where its headers do not tell."""
    try:
        found = _READERS[media.name](content, _Steps())
    except (ValueError, IndexError, struct.error):
        return None
    if found is None or not all(0 < side <= _LARGEST_SIDE for side in found.size):
        return None
    return found


class _Steps:
    """What is left of the steps that measuring one file may take."""

    def __init__(self) -> None:
        self._left = _MOST_STEPS

    def take(self) -> None:
        """Takes one; ValueError once there are none."""
        self._left -= 1
        if self._left < 0:
            raise ValueError("the headers are too long a way")


def _upright(width: int, height: int, orientation: int) -> Size:
    return Size(height, width) if orientation in _SIDEWAYS else Size(width, height)


def _exif_orientation(tiff: bytes) -> int:
    """The orientation (1..8) in an Exif block that begins with its TIFF header; 1 where it has none."""
    order = {b"II": "<", b"MM": ">"}.get(tiff[:2])
    if order is None:
        return 1
    (at,) = struct.unpack_from(order + "I", tiff, 4)
    (count,) = struct.unpack_from(order + "H", tiff, at)
    for entry in range(at + 2, at + 2 + 12 * min(count, 512), 12):
        tag, _, _, value = struct.unpack_from(order + "HHIH", tiff, entry)
        if tag == _ORIENTATION:
            return int(value)
    return 1


def _jpeg(content: bytes, steps: _Steps) -> Measure | None:
    at, orientation = 2, 1
    while True:
        steps.take()
        if content[at] == 0xFF and content[at + 1] == 0xFF:  # a fill byte
            at += 1
            continue
        marker, length = struct.unpack_from(">HH", content, at)
        if marker == 0xFFE1 and content[at + 4 : at + 10] == b"Exif\0\0":
            orientation = _exif_orientation(content[at + 10 : at + 2 + length])
        # SOF0..SOF15 but the tables DHT (C4), JPG (C8) and DAC (CC) that stand among them
        if 0xFFC0 <= marker <= 0xFFCF and marker not in (0xFFC4, 0xFFC8, 0xFFCC):
            height, width = struct.unpack_from(">HH", content, at + 5)
            return Measure(_upright(width, height, orientation))
        if marker in (0xFFD9, 0xFFDA) or marker < 0xFF00:
            return None
        at += 2 + length


def _png(content: bytes, steps: _Steps) -> Measure | None:
    size: tuple[int, int] | None = None
    frames, orientation = None, 1
    at = len(PNG_SIGNATURE)
    while True:
        steps.take()
        length, name = struct.unpack_from(">I4s", content, at)
        if name == b"IHDR":
            size = struct.unpack_from(">II", content, at + 8)
        elif name == b"acTL":
            (frames,) = struct.unpack_from(">I", content, at + 8)
        elif name == b"eXIf":
            orientation = _exif_orientation(content[at + 8 : at + 8 + length])
        elif name in (b"IDAT", b"IEND"):
            break
        at += 12 + length
    return Measure(_upright(*size, orientation), frames) if size else None


def _gif(content: bytes, steps: _Steps) -> Measure | None:
    width, height, flags = struct.unpack_from("<HHB", content, 6)
    at = 13 + (3 << (flags & 7) + 1 if flags & 0x80 else 0)
    frames = 0
    while at < len(content) and content[at] != 0x3B:
        steps.take()
        if content[at] == 0x2C:  # an image: descriptor, colour table, code size
            frames += 1
            flags = content[at + 9]
            at += 11 + (3 << (flags & 7) + 1 if flags & 0x80 else 0)
        elif content[at] == 0x21:  # an extension
            at += 2
        else:
            break
        while at < len(content) and content[at]:
            steps.take()
            at += 1 + content[at]
        at += 1
    # ffprobe counts a single frame as none, and so does pict-rs
    return Measure(Size(width, height), frames if frames > 1 else None)


def _webp(content: bytes, steps: _Steps) -> Measure | None:
    size: tuple[int, ...] | None = None
    frames, orientation = 0, 1
    at = 12
    while at + 8 <= len(content):
        steps.take()
        name, length = struct.unpack_from("<4sI", content, at)
        body = at + 8
        if name == b"VP8X":
            size = tuple(1 + int.from_bytes(content[body + k : body + k + 3], "little") for k in (4, 7))
        elif name == b"VP8 " and size is None:
            size = tuple(side & 0x3FFF for side in struct.unpack_from("<HH", content, body + 6))
        elif name == b"VP8L" and size is None:
            (bits,) = struct.unpack_from("<I", content, body + 1)
            size = (1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF))
        elif name == b"ANMF":
            frames += 1
        elif name == b"EXIF":
            orientation = _exif_orientation(content[body : body + length].removeprefix(b"Exif\0\0"))
        at = body + length + (length & 1)
    return Measure(_upright(size[0], size[1], orientation), frames or None) if size else None


def _jxl(content: bytes, steps: _Steps) -> Measure | None:
    if content.startswith(JXL_CONTAINER):
        for name, body in _boxes(content, range(len(content)), steps):
            if name in (b"jxlc", b"jxlp"):
                content = content[body.start + (4 if name == b"jxlp" else 0) :]
                break
    if content[:2] != b"\xff\x0a":
        return None
    bits = int.from_bytes(content[2:34], "little")

    def take(count: int) -> int:
        nonlocal bits
        value = bits & ((1 << count) - 1)
        bits >>= count
        return value

    def side(eighths: int) -> int:
        return 8 * (1 + take(5)) if eighths else 1 + take((9, 13, 18, 30)[take(2)])

    # SizeHeader (ISO 18181-1, D.2): height, then a ratio that gives the width or says that it follows
    eighths = take(1)
    height = side(eighths)
    ratio = take(3)
    if ratio == 0:
        return Measure(Size(side(eighths), height))
    above, below = ((1, 1), (12, 10), (4, 3), (3, 2), (16, 9), (5, 4), (2, 1))[ratio - 1]
    return Measure(Size(height * above // below, height))


def _boxes(content: bytes, within: range, steps: _Steps) -> Iterator[tuple[bytes, range]]:
    """The boxes of ISO base media in a part of a file: name and where the body lies."""
    at, end = within.start, within.stop
    while at + 8 <= end:
        steps.take()
        length, name = struct.unpack_from(">I4s", content, at)
        body = at + 8
        if length == 1:
            (length,) = struct.unpack_from(">Q", content, body)
            body += 8
        stop = at + length if length else end
        if stop < body or stop > end:
            return
        yield name, range(body, stop)
        at = stop


def _descend(content: bytes, within: range, steps: _Steps, *path: bytes) -> Iterator[range]:
    for name, body in _boxes(content, within, steps):
        if name == path[0]:
            if len(path) == 1:
                yield body
            else:
                yield from _descend(content, body, steps, *path[1:])


def _avif(content: bytes, steps: _Steps) -> Measure | None:
    everything = range(len(content))
    for meta in _descend(content, everything, steps, b"meta"):
        inner = range(meta.start + 4, meta.stop)  # a full box: version and flags first
        sizes = [
            Size(*struct.unpack_from(">II", content, ispe.start + 4))
            for ispe in _descend(content, inner, steps, b"iprp", b"ipco", b"ispe")
        ]
        turned = any(
            content[irot.start] & 1 for irot in _descend(content, inner, steps, b"iprp", b"ipco", b"irot")
        )
        if sizes:  # tiles and thumbnails are smaller than the picture
            width, height = max(sizes, key=lambda size: size.width * size.height)
            sequence = _mp4(content, steps)
            frames = sequence.frames if sequence else None
            return Measure(Size(height, width) if turned else Size(width, height), frames)
    return None


def _mp4(content: bytes, steps: _Steps) -> Measure | None:
    for track in _descend(content, range(len(content)), steps, b"moov", b"trak"):
        for header in _descend(content, track, steps, b"tkhd"):
            at = header.start + (52 if content[header.start] == 1 else 40)
            matrix_a, matrix_b = struct.unpack_from(">ii", content, at)
            width, height = (side >> 16 for side in struct.unpack_from(">II", content, at + 36))
            if not (width and height):  # a sound track
                continue
            frames = None
            for table in _descend(content, track, steps, b"mdia", b"minf", b"stbl", b"stsz"):
                (frames,) = struct.unpack_from(">I", content, table.start + 8)
            turned = matrix_a == 0 and matrix_b != 0
            return Measure(Size(height, width) if turned else Size(width, height), frames)
    return None


def _webm(content: bytes, steps: _Steps) -> Measure | None:
    """Walks the elements of Matroska (RFC 9559) that lead to the first video track and its blocks."""
    size: dict[int, int] = {}
    video: int | None = None
    track = frames = at = 0
    # Segment, Tracks, TrackEntry, Video, Cluster, BlockGroup are entered, everything else is stepped over.
    enter = {0x18538067, 0x1654AE6B, 0xAE, 0xE0, 0x1F43B675, 0xA0}
    while at < len(content):
        steps.take()
        identifier, at = _vint(content, at, keep_marker=True)
        length, at = _vint(content, at, keep_marker=False)
        if identifier == 0xD7:  # TrackNumber
            track = int.from_bytes(content[at : at + min(length, 8)])
        elif identifier in (0xB0, 0xBA) and video in (None, track):  # PixelWidth, PixelHeight
            size[identifier] = int.from_bytes(content[at : at + min(length, 4)])
            video = track
        elif identifier in (0xA3, 0xA1) and _vint(content, at, keep_marker=False)[0] == video:
            frames += 1  # SimpleBlock, Block
        if identifier not in enter:
            at += length
    if len(size) < 2:
        return None
    return Measure(Size(size[0xB0], size[0xBA]), frames or None)


def _vint(content: bytes, at: int, *, keep_marker: bool) -> tuple[int, int]:
    """An EBML variable-length integer (RFC 8794, 4) and the offset behind it."""
    first = content[at]
    length = 9 - first.bit_length()
    if length > 8:
        raise ValueError("not a variable-length integer")
    value = int.from_bytes(content[at : at + length])
    return (value if keep_marker else value & ((1 << 7 * length) - 1)), at + length


_READERS: dict[str, Callable[[bytes, _Steps], Measure | None]] = {
    "apng": _png,
    "avif": _avif,
    "gif": _gif,
    "jpeg": _jpeg,
    "jxl": _jxl,
    "mov": _mp4,
    "mp4": _mp4,
    "png": _png,
    "webm": _webm,
    "webp": _webp,
}
