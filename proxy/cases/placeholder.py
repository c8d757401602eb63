"""The neutral picture or clip that a pending alias shows, and the details that go with it.

Drawn by code, grey on grey, without a word: it says "a picture", not "a suspicion".
"""

from __future__ import annotations

import asyncio
import io
import math
import time
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import blurhash
from PIL import Image, ImageDraw

from proxy.cases import clips
from proxy.errors import Refusal
from proxy.media import Format, Kind, Size

_GROUND, _SHAPE = 226, 198  # of 255
_MEMORY_BYTES = 8 * 1024 * 1024
_MOST_WAITING = 32  # drawings; one takes 0.2 s at most
_UNKNOWN = Size(640, 480)  # where no header told a size


@dataclass(frozen=True, slots=True)
class _Writer:
    """How a format is written.

    Attributes:
        write: a placeholder of that size.
        longest_side: that the format can have.
        largest_area: in pixels; a larger picture is drawn at this area in the same proportions, because what
            it looks like is worth neither memory nor time. pict-rs takes pictures up to 40 megapixels.
    """

    write: Callable[[Size], bytes]
    content_type: str
    longest_side: int = 65_500  # libjpeg's; the others take a little more
    largest_area: int = 12_000_000


def _by_pillow(name: str, **options: Any) -> Callable[[Size], bytes]:
    def write(size: Size) -> bytes:
        file = io.BytesIO()
        _draw(size).save(file, name, **options)
        return file.getvalue()

    return write


_webp = _by_pillow("WEBP", quality=30, method=0)
_JPEG = _Writer(_by_pillow("JPEG", quality=60), "image/jpeg")
# By the extension that is asked for; anything else is shown as a PNG.
_WRITERS = {
    "avif": _Writer(_by_pillow("AVIF", speed=10, quality=30), "image/avif", largest_area=4_000_000),
    "gif": _Writer(_by_pillow("GIF"), "image/gif"),
    "jpeg": _JPEG,
    "jpg": _JPEG,
    "mp4": _Writer(clips.mp4, "video/mp4", 16_384, 3840 * 2160),
    "png": _Writer(_by_pillow("PNG", compress_level=1), "image/png"),
    "webm": _Writer(lambda size: clips.webm(size, _webp(size)), "video/webm", 16_383, 4_000_000),
    "webp": _Writer(_webp, "image/webp", 16_383, 4_000_000),
}


class Placeholders:
    """Draws placeholders, one at a time, which bounds the memory that it takes; remembers the last few."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="drawing")
        self._drawing: dict[tuple[Size, str], asyncio.Future[bytes]] = {}
        self._drawn: OrderedDict[tuple[Size, str], bytes] = OrderedDict()

    async def picture(self, size: Size, extension: str) -> tuple[str, bytes]:
        """A placeholder of `size` in the format that `extension` asks for: content type and bytes.

        A video is a clip of a second, without sound.

        Raises:
            Refusal: 503 where too many others are to be drawn first.
        """
        writer = _WRITERS.get(extension, _WRITERS["png"])
        drawn_size = _drawable(size, writer)
        key = (drawn_size, writer.content_type)
        if key in self._drawn:
            self._drawn.move_to_end(key)
            return writer.content_type, self._drawn[key]
        if key not in self._drawing:
            if len(self._drawing) >= _MOST_WAITING:
                raise Refusal(503, "busy", "Too many pictures are asked for at once", retry_after_s=2)
            loop = asyncio.get_running_loop()
            drawing = loop.run_in_executor(self._thread, writer.write, drawn_size)
            self._drawing[key] = drawing
            drawing.add_done_callback(lambda done: self._remember(key, done))
        # Shielded: others may wait for the same one.
        return writer.content_type, await asyncio.shield(self._drawing[key])

    def close(self) -> None:
        """Draws no more."""
        self._thread.shutdown(cancel_futures=True)

    def _remember(self, key: tuple[Size, str], done: asyncio.Future[bytes]) -> None:
        del self._drawing[key]
        if done.cancelled() or done.exception() is not None:
            return
        self._drawn[key] = done.result()
        while sum(map(len, self._drawn.values())) > _MEMORY_BYTES and len(self._drawn) > 1:
            self._drawn.popitem(last=False)


def details(media: Format, size: Size | None, frames: int | None) -> dict[str, Any]:
    """The `details` that pict-rs would give for a file, but with the placeholder's own blurhash.

    Args:
        media: of the file that is held.
        size: once upright and processed; None where nobody knows.
        frames: of an animation or video.
    """
    width, height = size or _UNKNOWN
    return {
        "blurhash": _blurhash(Size(width, height)),
        "width": width,
        "height": height,
        "frames": None if media.kind is Kind.IMAGE else frames,
        "content_type": media.stored_type,
        "created_at": _now(),
        "format": media.kind.value,
    }


def _draw(size: Size) -> Image.Image:
    """A frame with hills and a sun in the middle, in shades of grey."""
    image = Image.new("L", size, _GROUND)
    pen = ImageDraw.Draw(image)
    unit = min(size) / 10

    def at(x: float, y: float) -> tuple[float, float]:
        return size.width / 2 + x * unit, size.height / 2 + y * unit

    line = max(1, round(unit / 4))
    pen.rounded_rectangle((at(-2.4, -1.8), at(2.4, 1.8)), radius=unit / 3, outline=_SHAPE, width=line)
    pen.ellipse((at(0.7, -1.1), at(1.5, -0.3)), fill=_SHAPE)
    pen.polygon((at(-1.9, 1.3), at(-0.7, -0.5), at(0.2, 0.7), at(0.8, 0.1), at(1.9, 1.3)), fill=_SHAPE)
    return image


def _drawable(size: Size, writer: _Writer) -> Size:
    area = size.width * size.height
    scale = min(math.sqrt(writer.largest_area / area), writer.longest_side / max(size))
    return Size(*(max(1, int(side * scale)) for side in size)) if scale < 1 else size


def _blurhash(size: Size) -> str:
    """The blurhash of a placeholder of these proportions, with as many components as pict-rs would take."""
    longer, shorter = max(size), min(size)
    # The choices of pict-rs's blurhash-update, of which it takes the nearest.
    ratios = ((3, 3), (4, 3), (5, 3), (6, 3), (5, 2), (6, 2), (7, 2))
    most, least = min(ratios, key=lambda ratio: abs(ratio[0] / ratio[1] - longer / shorter))
    wide = size.width > size.height
    small = (
        Size(48, max(1, round(48 * shorter / longer)))
        if wide
        else Size(max(1, round(48 * shorter / longer)), 48)
    )
    return str(
        blurhash.encode(
            _draw(small).convert("RGB"),
            x_components=most if wide else least,
            y_components=least if wide else most,
        )
    )


def _now() -> str:
    """This moment as pict-rs writes moments: nanoseconds, without trailing zeros."""
    seconds, nanoseconds = divmod(time.time_ns(), 10**9)
    fraction = f".{nanoseconds:09d}".rstrip("0").rstrip(".")
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds)) + fraction + "Z"
