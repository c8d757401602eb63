"""Harmless pictures: drawn by code, or scikit-image's photographs."""

from __future__ import annotations

import functools
import io
from typing import Any

from PIL import Image, ImageDraw

DRAWN_SIZE = (320, 200)


def draw(size: tuple[int, int] = DRAWN_SIZE, seed: int = 0) -> Image.Image:
    """Coloured shapes; another `seed`, another picture."""
    image = Image.linear_gradient("L").resize(size).convert("RGB")
    pen = ImageDraw.Draw(image)
    for step in range(8):
        x, y = (37 * (step + seed)) % size[0], (53 * (step + 3 * seed)) % size[1]
        colour = ((71 * (step + seed)) % 256, (113 * step + 29 * seed) % 256, (41 * step) % 256)
        pen.ellipse((x, y, x + size[0] // 4, y + size[1] // 4), fill=colour)
    pen.text((4, 4), f"{seed}", fill="white")  # no two seeds, no two pictures alike
    return image


def encode(image: Image.Image, name: str, **options: Any) -> bytes:
    """`image` in the format that Pillow calls `name`."""
    file = io.BytesIO()
    image.save(file, name, **options)
    return file.getvalue()


def png(size: tuple[int, int] = DRAWN_SIZE, seed: int = 0) -> bytes:
    """A drawn PNG."""
    return encode(draw(size, seed), "PNG")


def blank_png(size: tuple[int, int], grey: int = 128) -> bytes:
    """A PNG of one colour: however large, a small file, and slow to decode."""
    return encode(Image.new("L", size, grey), "PNG")


def jpeg(size: tuple[int, int] = (640, 480), seed: int = 0, **options: Any) -> bytes:
    """A drawn JPEG."""
    return encode(draw(size, seed), "JPEG", **options)


def turned_jpeg(size: tuple[int, int] = (640, 480), seed: int = 0) -> bytes:
    """A JPEG that lies on its side and says so (EXIF orientation 6); upright it is `size` turned."""
    exif = Image.Exif()
    exif[0x0112] = 6
    return jpeg(size, seed, exif=exif)


@functools.cache
def animation(name: str = "GIF", frames: int = 5, size: tuple[int, int] = (120, 80)) -> bytes:
    """An animation as GIF, PNG, WEBP or AVIF."""
    first, *rest = (draw(size, seed) for seed in range(frames))
    return encode(first, name, save_all=True, append_images=rest, duration=100)


@functools.cache
def video(extension: str = "mp4", frames: int = 20) -> bytes:
    """A second of drawn pictures, 160×120, without sound, as mp4, mov or webm."""
    import av

    file = io.BytesIO()
    with av.open(file, "w", format=extension) as container:
        codec = "libvpx" if extension == "webm" else "libx264"
        stream = container.add_stream(codec, rate=frames, width=160, height=120, pix_fmt="yuv420p")
        stream.codec_context.thread_count = 1  # libvpx's threads wait for each other by spinning
        for seed in range(frames):
            frame = av.VideoFrame.from_image(draw((160, 120), seed))
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return file.getvalue()


def of_every_format(seed: int = 0) -> dict[str, bytes]:
    """A file of each format that pict-rs keeps, by its extension; other ones for another seed."""
    import pillow_jxl  # noqa: F401 — teaches Pillow the format

    still = draw((96, 64), seed)
    container = {"use_container": True}  # without one, exiftool refuses it to pict-rs
    return {
        "png": encode(still, "PNG"),
        "jpeg": encode(still, "JPEG"),
        "webp": encode(still, "WEBP"),
        "avif": encode(still, "AVIF"),
        "jxl": encode(still, "JXL", **container),
        "gif": animation("GIF", 3 + seed),
        "apng": animation("PNG", 3 + seed),
        "mp4": video("mp4", 10 + seed),
        "webm": video("webm", 10 + seed),
    }


@functools.cache
def photograph(name: str, quality: int = 90) -> bytes:
    """One of scikit-image's photographs as a JPEG."""
    from skimage import data

    return encode(Image.fromarray(getattr(data, name)()).convert("RGB"), "JPEG", quality=quality)
