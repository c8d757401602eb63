"""The size that a picture has after pict-rs's processing steps.

pict-rs hands the steps to ImageMagick; this is the arithmetic of its geometry arguments (`WxH>`, `N@>`,
`w:h`), held to the real program by the tests.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from typing import NamedTuple


class Size(NamedTuple):
    """Width and height in pixels."""

    width: int
    height: int


# Keys that change a picture on its way in; everything else that an upload may say is a limit.
STEPS = frozenset({"identity", "thumbnail", "resize", "crop", "blur"})
_FLOAT = re.compile(
    r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?|[+-]?(inf|infinity|nan)", re.ASCII | re.IGNORECASE
)
_LONGEST_CROP_SIDE = 20  # pict-rs, processor.rs


def processed_size(size: Size, steps: Iterable[tuple[str, str]]) -> Size:
    """The size of a picture after `steps`.

    Args:
        size: before, in pixels, upright.
        steps: (key, value) pairs in their order; keys as in `STEPS`.

    Raises:
        ValueError: a step that pict-rs would refuse (`invalid-process-path`).
    """
    for key, value in steps:
        size = _step(size, key, value)
    return size


def _step(size: Size, key: str, value: str) -> Size:
    if key == "identity":
        return size
    if key == "thumbnail":
        return _within(size, _count(value))
    if key == "resize":
        # A filter that pict-rs does not know is its default filter, not an error.
        first, dot, rest = value.partition(".")
        if dot and rest.startswith("a"):
            return _within_area(size, _count(rest.lstrip("a")))
        return _within(size, _count(rest if dot else first))
    if key == "crop":
        first, _, rest = value.partition("x")
        width, height = _count(first), _count(rest.partition("x")[0])
        if not (0 < width <= _LONGEST_CROP_SIDE and 0 < height <= _LONGEST_CROP_SIDE):
            raise ValueError(f"crop={value}: each side is 1 to {_LONGEST_CROP_SIDE}")
        return _cropped(size, width / height)
    if key == "blur":
        if not _FLOAT.fullmatch(value):
            raise ValueError(f"blur={value}: not a number")
        return size
    raise ValueError(f"{key} is not a processing step")


def _count(text: str) -> int:
    """An unsigned number as Rust's usize parses it."""
    digits = text.removeprefix("+")
    if not (digits.isascii() and digits.isdigit()) or len(digits) > 19:
        raise ValueError(f"{text!r} is not a size in pixels")
    return int(digits)


def _within(size: Size, bound: int) -> Size:
    scale = bound / max(size)
    if scale >= 1:
        return size
    return Size(*(max(1, math.floor(side * scale + 0.5)) for side in size))


def _within_area(size: Size, area: int) -> Size:
    scale = math.sqrt(area / (size.width * size.height))
    if scale >= 1:
        return size
    return Size(*(max(1, int(side * scale)) for side in size))


def _cropped(size: Size, ratio: float) -> Size:
    own = size.width / size.height
    if ratio >= own:
        return Size(size.width, max(1, math.floor(size.height * own / ratio + 0.5)))
    return Size(max(1, math.floor(size.width * ratio / own + 0.5)), size.height)
