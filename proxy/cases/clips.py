"""A second of neutral video without sound, written by hand: the placeholder of a held video.

An encoder would be 100 MB of ffmpeg beside the gate, for a picture that never moves. So an MP4 is one flat
grey H.264 frame, whose macroblocks take a byte each, and a WebM is the VP8 frame of a WebP picture
(RFC 9649, 2.5).
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterable

from proxy.media import Size

_SECOND = 1000  # ticks, of the whole clip
_FRAMES = 2  # some players want to see a second one
# Most macroblocks a frame and the level that allows them (ITU-T H.264, table A-1); a side may have the root
# of eight times as many (A.3.1).
_LEVELS = ((396, 20), (1620, 30), (3600, 31), (8192, 40), (22_080, 50), (36_864, 51), (139_264, 60))


def mp4(size: Size) -> bytes:
    """H.264 (Constrained Baseline) in MP4; an odd side is a pixel shorter, at least two pixels long."""
    size = Size(*(max(2, side - side % 2) for side in size))
    sps, pps, frames = _parameters(size), _PPS, [_grey_frame(size, number) for number in range(_FRAMES)]
    samples = [struct.pack(">I", len(frame)) + frame for frame in frames]
    kind = _box("ftyp", b"isom", _u32(512), b"isomiso2avc1mp41")
    # The table of chunks needs to know how long the table itself is.
    about = len(_movie(size, sps, pps, samples, 0))
    at = len(kind) + about + 8
    return b"".join([kind, _movie(size, sps, pps, samples, at), _box("mdat", *samples)])


def webm(size: Size, webp: bytes) -> bytes:
    """VP8 in WebM, of a lossy WebP picture.

    Args:
        size: of the picture.
        webp: its bytes.
    """
    frame = _vp8(webp)
    header = _element(
        0x1A45DFA3,
        _element(0x4286, b"\1"),  # EBMLVersion
        _element(0x42F7, b"\1"),  # EBMLReadVersion
        _element(0x42F2, b"\4"),  # EBMLMaxIDLength
        _element(0x42F3, b"\x08"),  # EBMLMaxSizeLength
        _element(0x4282, b"webm"),  # DocType
        _element(0x4287, b"\2"),  # DocTypeVersion
        _element(0x4285, b"\2"),  # DocTypeReadVersion
    )
    info = _element(
        0x1549A966,
        _element(0x2AD7B1, (1_000_000).to_bytes(3)),  # TimestampScale: a tick is a millisecond
        _element(0x4489, struct.pack(">d", _SECOND)),  # Duration
        _element(0x4D80, b"pictrs-gate"),  # MuxingApp
        _element(0x5741, b"pictrs-gate"),  # WritingApp
    )
    video = _element(0xE0, _element(0xB0, size.width.to_bytes(2)), _element(0xBA, size.height.to_bytes(2)))
    track = _element(
        0xAE,
        _element(0xD7, b"\1"),  # TrackNumber
        _element(0x73C5, b"\1"),  # TrackUID
        _element(0x83, b"\1"),  # TrackType: video
        _element(0x86, b"V_VP8"),  # CodecID
        video,
    )
    blocks = [
        # track 1, its time in the cluster, a key frame
        _element(0xA3, b"\x81", struct.pack(">h", number * _SECOND // _FRAMES), b"\x80", frame)
        for number in range(_FRAMES)
    ]
    cluster = _element(0x1F43B675, _element(0xE7, b"\0"), *blocks)
    return header + _element(0x18538067, info, _element(0x1654AE6B, track), cluster)


# --- H.264 ---


class _Bits:
    """Writes bits, and numbers in the codes of ITU-T H.264, 9.1."""

    def __init__(self) -> None:
        self._value, self._count = 0, 0

    def u(self, value: int, count: int) -> _Bits:
        """`count` bits."""
        self._value, self._count = self._value << count | value, self._count + count
        return self

    def ue(self, *values: int) -> _Bits:
        """Unsigned numbers, Exp-Golomb-coded."""
        for value in values:
            self.u(value + 1, 2 * (value + 1).bit_length() - 1)
        return self

    def repeat(self, byte: int, count: int) -> _Bits:
        """One byte again and again."""
        return self.u(int.from_bytes(bytes([byte]) * count), 8 * count)

    def unit(self, header: int) -> bytes:
        """What was written as a NAL unit: closed, aligned, and without start codes inside."""
        self.u(1, 1).u(0, -self._count % 8)
        payload = self._value.to_bytes(self._count // 8)
        escaped, zeros = bytearray([header]), 0
        for byte in payload:
            if zeros == 2 and byte <= 3:
                escaped.append(3)
                zeros = 0
            escaped.append(byte)
            zeros = zeros + 1 if byte == 0 else 0
        return bytes(escaped)


def _macroblocks(size: Size) -> Size:
    return Size(-(-size.width // 16), -(-size.height // 16))


def _parameters(size: Size) -> bytes:
    """The sequence parameter set (7.3.2.1.1)."""
    wide, high = _macroblocks(size)
    longest = max(wide, high) ** 2
    level = next(
        (level for most, level in _LEVELS if wide * high <= most and longest <= 8 * most), _LEVELS[-1][1]
    )
    bits = _Bits().u(66, 8).u(0b11000000, 8).u(level, 8)  # Constrained Baseline
    # its id, log2_max_frame_num − 4, the simplest picture order, one reference frame
    bits.ue(0, 0, 2, 1).u(0, 1).ue(wide - 1, high - 1)
    bits.u(1, 1).u(1, 1)  # frames only; direct 8×8 inference
    # What the macroblocks have too much, in units of two pixels: left, right, top, bottom.
    bits.u(1, 1).ue(0, (wide * 16 - size.width) // 2, 0, (high * 16 - size.height) // 2)
    return bits.u(0, 1).unit(0x67)  # nothing about usability


# The picture parameter set (7.3.2.2): CAVLC, one slice group, no weights, QP 26, no deblocking control.
_PPS = _Bits().ue(0, 0).u(0, 2).ue(0, 0, 0).u(0, 3).ue(0, 0, 0).u(0, 3).unit(0x68)


def _grey_frame(size: Size, number: int) -> bytes:
    """An IDR picture in which every macroblock is what is predicted without neighbours: grey (8.3.3.3).

    Each is Intra 16×16, DC-predicted, without coefficients: mb_type 3, chroma DC, no change of QP, no
    coefficients, which are the bits 00100 1 1 1.
    """
    wide, high = _macroblocks(size)
    bits = _Bits().ue(0, 7, 0).u(0, 4).ue(number)  # the first macroblock; I; PPS 0; frame_num; idr_pic_id
    bits.u(0, 2).ue(0)  # no reference marking; slice_qp_delta
    return bits.repeat(0b00100111, wide * high).unit(0x65)


# --- MP4 (ISO/IEC 14496-12 and -15) ---


def _u32(*values: int) -> bytes:
    return struct.pack(f">{len(values)}I", *values)


def _u16(*values: int) -> bytes:
    return struct.pack(f">{len(values)}H", *values)


def _box(kind: str, *content: bytes) -> bytes:
    body = b"".join(content)
    return struct.pack(">I4s", len(body) + 8, kind.encode()) + body


_MATRIX = _u32(0x10000, 0, 0, 0, 0x10000, 0, 0, 0, 0x40000000)


def _movie(size: Size, sps: bytes, pps: bytes, samples: list[bytes], at: int) -> bytes:
    """Everything but the frames, which begin at byte `at` of the file."""
    length = _SECOND
    avcc = _box(
        *("avcC", bytes([1, *sps[1:4], 0xFF, 0xE1]), _u16(len(sps)), sps),
        *(b"\1", _u16(len(pps)), pps),
    )
    entry = _box(
        *("avc1", bytes(6), _u16(1), bytes(16), _u16(*size), _u32(0x480000, 0x480000, 0), _u16(1)),
        *(bytes(32), _u16(24, 0xFFFF), avcc),
    )
    table = _box(
        "stbl",
        _box("stsd", _u32(0, 1), entry),
        _box("stts", _u32(0, 1, len(samples), _SECOND // len(samples))),
        _box("stsc", _u32(0, 1, 1, len(samples), 1)),
        _box("stsz", _u32(0, 0, len(samples), *map(len, samples))),
        _box("stco", _u32(0, 1, at)),
    )
    media = _box(
        "mdia",
        _box("mdhd", _u32(0, 0, 0, _SECOND, length), _u16(0x55C4, 0)),  # language: undetermined
        _box("hdlr", _u32(0, 0), b"vide", bytes(12), b"\0"),
        _box(
            "minf",
            _box("vmhd", _u32(1), bytes(8)),
            _box("dinf", _box("dref", _u32(0, 1), _box("url ", _u32(1)))),
            table,
        ),
    )
    track = _box(
        "trak",
        _box(
            *("tkhd", _u32(3, 0, 0, 1, 0, length), bytes(16), _MATRIX),
            _u32(size.width << 16, size.height << 16),
        ),
        media,
    )
    head = _box(
        *("mvhd", _u32(0, 0, 0, _SECOND, length, 0x10000), _u16(0x100), bytes(10)),
        *(_MATRIX, bytes(24), _u32(2)),
    )
    return _box("moov", head, track)


# --- WebM (RFC 8794, RFC 9559) ---


def _element(identifier: int, *content: bytes) -> bytes:
    body = b"".join(content)
    name = identifier.to_bytes(math.ceil(identifier.bit_length() / 8))
    return name + (len(body) | 1 << 56).to_bytes(8) + body


def _vp8(webp: bytes) -> bytes:
    """The key frame of a lossy WebP picture."""
    for name, body in _chunks(webp):
        if name == b"VP8 ":
            return body
    raise ValueError("not a lossy WebP picture")


def _chunks(riff: bytes) -> Iterable[tuple[bytes, bytes]]:
    at = 12
    while at + 8 <= len(riff):
        length = int.from_bytes(riff[at + 4 : at + 8], "little")
        yield riff[at : at + 4], riff[at + 8 : at + 8 + length]
        at += 8 + length + length % 2
