"""Still pictures and animations by Pillow, JPEG XL by its plugin."""

from __future__ import annotations

import functools
import io
import math
from collections.abc import Iterator

from PIL import Image, ImageOps, UnidentifiedImageError

from classifier.decoding import Frame, Limits, Media, Suffices, jpeg_xl
from classifier.decoding.animated_png import animation_frames
from classifier.decoding.choosing import KEPT_PIXELS, Chooser, Readings, features_of
from classifier.decoding.profiles import differ, in_srgb
from classifier.errors import too_large, undecodable, unsupported

try:
    import pillow_jxl  # registers itself

    _JXL = {"JXL": "jxl"} if pillow_jxl else {}
except ImportError:  # not on every box; JPEG XL is unsupported there
    _JXL = {}

# Pillow's name → pict-rs's. An MPO is a JPEG with further JPEGs behind it, of which nobody shows any.
_FORMATS = {"AVIF": "avif", "GIF": "gif", "JPEG": "jpeg", "MPO": "jpeg", "PNG": "png", "WEBP": "webp", **_JXL}
_OPENED = tuple(name for name in _FORMATS if name != "MPO")  # the JPEG plugin opens those too
FORMATS = ("apng", *sorted(set(_FORMATS.values())))


def decode(content: bytes, sha256: str, limits: Limits, suffices: Suffices) -> tuple[Media, Iterator[Frame]]:
    """Opens a picture.

    Args:
        suffices: whether a frame of so many pixels is enough; a JPEG is then decoded at that size.

    Returns:
        What it is, and its scored frames, decoded one by one as they are asked for.

    Raises:
        Rejection: it is none, or too large.
    """
    Image.MAX_IMAGE_PIXELS = None  # the check is exact, and comes before a pixel is decoded
    if _JXL and content.startswith(jpeg_xl.SIGNATURES):
        content = jpeg_xl.codestream(content)
        _check(*jpeg_xl.size_of(content), limits)
    try:
        image = Image.open(io.BytesIO(content), formats=_OPENED)
    except UnidentifiedImageError:
        raise unsupported("not a picture in a format that is looked at") from None
    except Exception as error:  # noqa: BLE001 — whatever a codec raises, it is the file's fault
        raise undecodable(f"cannot be opened: {type(error).__name__}") from None
    _check(image.width, image.height, limits)
    try:
        count = 1 if image.format == "MPO" else int(getattr(image, "n_frames", 1))
        orientation = image.getexif().get(0x0112, 1)  # reads a whole PNG, whose Exif may stand at its end
    except Exception as error:  # noqa: BLE001 — as above
        raise undecodable(f"its frames cannot be counted: {type(error).__name__}") from None
    name = _FORMATS[str(image.format)]
    if name == "png" and (expected := animation_frames(content)) is not None:
        if count != expected:
            raise undecodable("an animated PNG of which not every frame is read")
        name = "apng"
    width, height = image.size
    if orientation in (5, 6, 7, 8):  # Exif: those that lie on their side
        width, height = height, width
    if image.format in ("JPEG", "MPO"):
        _reduce(image, suffices)
    frames = _frames(image, count)
    chosen = _unlike(frames, count, limits.frames) if count > limits.frames else None
    media = Media(
        kind="animation" if count > 1 else "image",
        format=name,
        width=width,
        height=height,
        frames=count,
        frames_scored=count if chosen is None else len(chosen),
    )
    return media, (Frame(one, index, sha256) for index, readings in chosen or frames for one in readings)


def _check(width: int, height: int, limits: Limits) -> None:
    if width * height > limits.pixels:
        raise too_large(f"{width}×{height} is more than {limits.pixels} pixels")


def _reduce(image: Image.Image, suffices: Suffices) -> None:
    """Has a JPEG decoded at an eighth, a quarter or a half a side, where that is enough."""
    for part in (8, 4, 2):
        size = (image.width // part, image.height // part)
        if min(size) > 0 and suffices(*size):
            image.draft(image.mode, size)
            return


def _unlike(frames: Iterator[tuple[int, Readings]], count: int, most: int) -> list[tuple[int, Readings]]:
    """The frames of a long animation that are scored, reduced to what heads look at."""
    chooser = Chooser(most)
    for index, readings in frames:
        picture = functools.partial(_all_reduced, readings)
        chooser.see(index, features_of(readings), picture)
        if index == count - 1:
            return chooser.chosen((index, picture()))
    raise undecodable("its frames end too early")


def _all_reduced(readings: Readings) -> Readings:
    return [_reduced(one) for one in readings]


def _reduced(image: Image.Image) -> Image.Image:
    scale = math.sqrt(KEPT_PIXELS / (image.width * image.height))
    if scale >= 1:
        return image
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    return image.resize(size, Image.Resampling.BOX)


def _frames(image: Image.Image, count: int) -> Iterator[tuple[int, Readings]]:
    for index in range(count):
        try:
            if index:
                image.seek(index)
            image.load()
            upright = ImageOps.exif_transpose(image)
            yield index, _readings(upright)
        except MemoryError:
            raise
        except Exception as error:  # noqa: BLE001 — as above
            raise undecodable(f"frame {index} cannot be decoded: {type(error).__name__}") from None


def _readings(image: Image.Image) -> Readings:
    """As it is shown; and, where its colour profile makes that another picture, as it is without.

    Programs that write a picture anew may drop its profile; pict-rs does.
    """
    converted = in_srgb(image)
    shown = _over_white(converted)
    if converted is image:
        return [shown]
    bare = _over_white(image)
    return [shown, bare] if differ(shown, bare) else [shown]


def _over_white(image: Image.Image) -> Image.Image:
    """RGB, with what is transparent over white, as most pages show it."""
    if image.mode.startswith("I;16"):  # 16-bit grey, of which a plain conversion keeps only the lowest bits
        image = image.convert("I").point(lambda value: value / 256).convert("L")
    if "A" in image.getbands() or "a" in image.getbands() or "transparency" in image.info:
        image = image.convert("RGBA")
        ground = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(ground, image).convert("RGB")
    return image.convert("RGB")
