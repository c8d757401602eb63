"""Colour profiles (ICC): what the numbers of a picture mean to whoever shows it.

A profile may make of its numbers quite other colours. Looked at without it, a picture could be made to look
harmless to the heads alone.
"""

from __future__ import annotations

import functools
import io

import numpy as np
from PIL import Image, ImageChops, ImageCms

_OUT = {"L": "RGB", "RGB": "RGB", "RGBA": "RGBA", "CMYK": "RGB"}
_SAME = 3  # of 255: what sRGB profiles of different makers differ by, and no eye sees
_STEPS = 9
# Mean difference, of 255, from which a picture with and without its profile are two: over the whole, and in
# the one of 24×24 parts where it is largest. Display P3 stays below both on photographs.
_TWO_IN_ALL, _TWO_IN_A_PART = 16.0, 32.0
_PARTS = (24, 24)


def in_srgb(image: Image.Image) -> Image.Image:
    """The picture in sRGB, as it is shown; itself where it has no profile, or one that browsers ignore."""
    profile = image.info.get("icc_profile")
    if not isinstance(profile, bytes) or not profile:
        return image
    if image.mode in ("P", "PA"):
        image = image.convert("RGBA" if "transparency" in image.info or image.mode == "PA" else "RGB")
    if image.mode not in _OUT:
        return image
    transform = _transform(profile, image.mode)
    return image if transform is None else _apply(image, transform)


def differ(shown: Image.Image, bare: Image.Image) -> bool:
    """Whether a picture with its profile and without are two, to who looks. Both are RGB and of one size."""
    apart = ImageChops.difference(shown, bare)
    if min(apart.size) > _PARTS[0]:
        apart = apart.resize(_PARTS, Image.Resampling.BOX)
    means = np.asarray(apart, np.float32).mean(axis=2)
    return bool(means.mean() > _TWO_IN_ALL or means.max() > _TWO_IN_A_PART)


@functools.lru_cache(maxsize=16)
def _transform(profile: bytes, mode: str) -> ImageCms.ImageCmsTransform | None:
    """From a profile to sRGB; None where it changes nothing, or the profile is broken or of another mode."""
    try:
        transform = ImageCms.buildTransform(
            io.BytesIO(profile), ImageCms.createProfile("sRGB"), mode, _OUT[mode]
        )
    except (ImageCms.PyCMSError, OSError, TypeError, ValueError):
        return None
    if mode in ("RGB", "RGBA"):
        cube = _cube().convert(mode)
        apart = np.abs(np.asarray(_apply(cube, transform), int) - np.asarray(cube, int))
        if apart.max() <= _SAME:
            return None
    return transform


def _apply(image: Image.Image, transform: ImageCms.ImageCmsTransform) -> Image.Image:
    shown = ImageCms.applyTransform(image, transform)
    assert shown is not None  # it is not done in place
    return shown


@functools.cache
def _cube() -> Image.Image:
    """Colours from everywhere: 9 steps of each channel."""
    steps = np.linspace(0, 255, _STEPS, dtype=np.uint8)
    colours = np.stack(np.meshgrid(steps, steps, steps), axis=-1)
    return Image.fromarray(np.ascontiguousarray(colours.reshape(_STEPS, _STEPS**2, 3)))
