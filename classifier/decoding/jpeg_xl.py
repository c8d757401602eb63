"""The first bits of a JPEG XL file (ISO/IEC 18181-1, annex D): its size, and whether all of it is decoded.

The plugin decodes a whole file before it says how large it is, gives only an animation's last frame, and
makes black of samples that are no integers. So the codestream's header is read here first, strictly: what is
not understood is not looked at.
"""

from __future__ import annotations

from classifier.errors import undecodable

_BARE = b"\xff\x0a"
SIGNATURES = (_BARE, b"\0\0\0\x0cJXL ")
# height:width ratios that need no width (table D.2): the width is height · numerator / denominator.
_RATIOS = {1: (1, 1), 2: (12, 10), 3: (4, 3), 4: (3, 2), 5: (16, 9), 6: (5, 4), 7: (2, 1)}
_HEADER_BYTES = 64  # more than the fields read here can have


def size_of(codestream: bytes) -> tuple[int, int]:
    """Width and height in pixels, once upright, of what `codestream` gives.

    Raises:
        Rejection: it is an animation, has samples that are no integers, or its header is not understood.
    """
    bits = _Bits(codestream[len(_BARE) : _HEADER_BYTES])
    width, height = _size(bits)
    if bits.take(1):  # all_default
        return width, height
    orientation = 1
    if bits.take(1):  # extra_fields
        orientation = 1 + bits.take(3)
        if bits.take(1):  # have_intrinsic_size: what it is to be shown at, not what it has
            _size(bits)
        if bits.take(1):
            raise undecodable("a JPEG XL file with a preview, which is a second picture")
        if bits.take(1):
            raise undecodable("an animated JPEG XL file, of which only one frame would be decoded")
    if bits.take(1):  # bit_depth: float_sample
        raise undecodable("a JPEG XL file with floating-point samples")
    return (height, width) if orientation >= 5 else (width, height)


def codestream(content: bytes) -> bytes:
    """What browsers show, out of its container if it is in one (ISO/IEC 18181-2).

    Left behind are Exif, whose orientation browsers ignore here, and what makes a JPEG of it again, which the
    plugin would look at instead.

    Raises:
        Rejection: there is not one and only one.
    """
    if content.startswith(_BARE):
        return content
    whole: list[bytes] = []
    parts: list[bytes] = []
    at = 0
    while at + 8 <= len(content):
        length, name = int.from_bytes(content[at : at + 4]), content[at + 4 : at + 8]
        begin = at + 8
        if length == 1:
            length, begin = int.from_bytes(content[at + 8 : at + 16]), at + 16
        end = at + length if length else len(content)
        if end < begin:
            break
        if name == b"jxlc":
            whole.append(content[begin:end])
        elif name == b"jxlp":
            parts.append(content[begin + 4 : end])  # after the part's number
        at = end
    found = b"".join(whole or parts)
    if len(whole) + bool(parts) != 1 or not found.startswith(_BARE):
        raise undecodable("a JPEG XL file whose codestream is not found, or is not the only one")
    return found


class _Bits:
    """Reads bits, the lowest of each byte first."""

    def __init__(self, content: bytes) -> None:
        self._value, self._left = int.from_bytes(content, "little"), 8 * len(content)

    def take(self, count: int) -> int:
        """The next `count` bits as a number."""
        if count > self._left:
            raise undecodable("a JPEG XL file whose header ends too early")
        number = self._value & ((1 << count) - 1)
        self._value >>= count
        self._left -= count
        return number


def _size(bits: _Bits) -> tuple[int, int]:
    """Width and height (SizeHeader, D.2)."""
    small = bits.take(1)
    height = _side(bits, small)
    ratio = bits.take(3)
    if ratio:
        numerator, denominator = _RATIOS[ratio]
        return height * numerator // denominator, height
    return _side(bits, small), height


def _side(bits: _Bits, small: int) -> int:
    if small:
        return 8 * (1 + bits.take(5))
    return 1 + bits.take((9, 13, 18, 30)[bits.take(2)])
