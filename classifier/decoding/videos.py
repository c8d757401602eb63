"""Videos by PyAV (ffmpeg's libraries): MP4, QuickTime and WebM, every frame of every picture track."""

from __future__ import annotations

import functools
import io
import math
from collections.abc import Iterator
from typing import Any

import numpy as np
from PIL import Image

from classifier.decoding import Frame, Limits, Media
from classifier.decoding.choosing import KEPT_PIXELS, THUMBNAIL, Chooser, Readings, features_of_thumbnail
from classifier.errors import too_large, undecodable, unsupported

try:
    import av
    from av.video.frame import VideoFrame
    from av.video.reformatter import VideoReformatter
except ImportError:  # not on every box; videos are unsupported there
    av = None  # type: ignore[assignment]

FORMATS = ("mov", "mp4", "webm") if av is not None else ()
# What a QuickTime file without `ftyp` may begin with (QuickTime File Format, "Overview").
_QUICKTIME = frozenset({b"moov", b"mdat", b"wide", b"free", b"skip", b"pnot"})
_MATROSKA = b"\x1a\x45\xdf\xa3"
_MOST_TRACKS = 4
_THREADS = 2  # there is a process a core already


def decode(content: bytes, sha256: str, limits: Limits) -> tuple[Media, Iterator[Frame]]:
    """Decodes a whole video, and chooses the frames that are scored.

    Returns:
        What it is, and its scored frames, no larger than a megapixel.

    Raises:
        Rejection: it is none, or too large, or cannot be decoded from its beginning to its end.
    """
    name = claims(content)
    if name is None or av is None:
        raise unsupported("not a picture or video in a format that is looked at")
    # The format is not guessed a second time, and nothing that the file refers to is opened.
    # Edit lists are not followed: whoever writes the file anew may drop them, and show what they hid.
    mov = ("mov", {"enable_drefs": "0", "ignore_editlist": "1"})
    demuxer, options = ("matroska", {}) if name == "webm" else mov
    try:
        with av.open(io.BytesIO(content), format=demuxer, options=options) as container:
            size, count, frames = _frames(container, limits)
    except (av.error.FFmpegError, ValueError) as error:
        raise undecodable(f"cannot be decoded: {type(error).__name__}") from None
    media = Media("video", name, *size, frames=count, frames_scored=len(frames))
    return media, (Frame(image, index, sha256) for index, (image,) in frames)


def claims(content: bytes) -> str | None:
    """The video format that a file's first bytes claim; None where they claim none."""
    if content.startswith(_MATROSKA):
        return "webm"
    if content[4:8] == b"ftyp":
        brands = {content[8:12], *(content[at : at + 4] for at in range(16, _brands_end(content), 4))}
        if brands & {b"avif", b"avis"}:
            return None
        return "mov" if content[8:12] == b"qt  " else "mp4"
    return "mov" if content[4:8] in _QUICKTIME else None


def _brands_end(content: bytes) -> int:
    return min(int.from_bytes(content[:4]), 1024) - 3


def _frames(container: Any, limits: Limits) -> tuple[tuple[int, int], int, list[tuple[int, Readings]]]:
    """Size once upright, number of frames, and those that are scored with their indices."""
    tracks = container.streams.video
    if not tracks:
        raise undecodable("a video without a picture track")
    if len(tracks) > _MOST_TRACKS:
        raise too_large(f"{len(tracks)} picture tracks")
    for track in tracks:
        _check(track.codec_context.width, track.codec_context.height, limits)
        track.codec_context.thread_count = _THREADS
    chooser = Chooser(limits.frames)
    reducing = VideoReformatter()  # kept, because each sets up its scaling anew
    count, size, last = 0, (0, 0), None
    for last in container.decode(*tracks):
        _check(last.width, last.height, limits)
        small = reducing.reformat(last, *THUMBNAIL, "rgb24", interpolation="AREA")
        features = features_of_thumbnail(np.asarray(small.to_ndarray(), np.uint8))
        chooser.see(count, features, functools.partial(_picture, last))
        if count == 0:
            size = (last.height, last.width) if last.rotation % 180 else (last.width, last.height)
        count += 1
    if last is None:
        raise undecodable("a video without a frame")
    return size, count, chooser.chosen((count - 1, _picture(last)))


def _check(width: int, height: int, limits: Limits) -> None:
    if width * height > limits.pixels:
        raise too_large(f"{width}×{height} is more than {limits.pixels} pixels")


def _picture(frame: VideoFrame) -> Readings:
    """Upright, and no larger than what is looked at."""
    scale = min(1.0, math.sqrt(KEPT_PIXELS / (frame.width * frame.height)))
    width, height = (max(1, round(side * scale)) for side in (frame.width, frame.height))
    small = frame.reformat(width=width, height=height, format="rgb24", interpolation="AREA")
    pixels = np.asarray(small.to_ndarray(), np.uint8)
    if frame.rotation:  # degrees counter-clockwise by which it is to be shown
        pixels = np.ascontiguousarray(np.rot90(pixels, round(frame.rotation / 90)))
    return [Image.fromarray(pixels)]
