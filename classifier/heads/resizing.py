"""The resizing that the models of timm and open_clip are given their pictures with.

Apart from them, because the decoder processes import what prepares a frame. With torch and timm each of
them would take half a gigabyte, seconds to start, and most of the address space that it may have.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from PIL import Image

from classifier.decoding import Array, Frame

# A picture that was reduced while it was decoded is to have so many times the pixels a side that it is
# reduced to next. Measured on a noisy 12-megapixel JPEG: its values then differ by 0.3 of 255 in the mean.
OVERSAMPLED = 1.5
# timm's names of the interpolations that Pillow has, too
INTERPOLATIONS = {
    "bicubic": Image.Resampling.BICUBIC,
    "bilinear": Image.Resampling.BILINEAR,
    "lanczos": Image.Resampling.LANCZOS,
    "nearest": Image.Resampling.NEAREST,
}


@dataclass(frozen=True, slots=True)
class Resized:
    """timm's and open_clip's own evaluation transforms up to the tensor: (1, height, width, 3) uint8.

    Attributes:
        height, width: of the model's input, in pixels.
        crop_pct: the part of the shorter side that the input covers.
        crop_mode: `center` (shorter side resized, middle cut out) or `squash` (resized to the input at once).
        interpolation: one of `INTERPOLATIONS`.
    """

    height: int
    width: int
    crop_pct: float
    crop_mode: str
    interpolation: str

    def __str__(self) -> str:
        """For people."""
        if self.crop_mode == "squash" and self.crop_pct == 1:
            return f"{self.width}×{self.height} pixels, the whole picture pressed into them"
        part = "" if self.crop_pct == 1 else f"{self.crop_pct:.0%} of "
        return f"{self.width}×{self.height} pixels, {part}the middle of the picture"

    def suffices(self, width: int, height: int) -> bool:
        """See `Preparation.suffices`."""
        return min(width, height) >= OVERSAMPLED * max(self._reach)

    @property
    def _reach(self) -> tuple[int, int]:
        """Width and height of what the input is the middle of."""
        return math.floor(self.width / self.crop_pct), math.floor(self.height / self.crop_pct)

    def prepare(self, frame: Frame) -> Array:
        """See `Preparation.prepare`."""
        image, how = frame.image, INTERPOLATIONS[self.interpolation]
        width, height = self._resized(image.width, image.height)
        left, top = round((width - self.width) / 2), round((height - self.height) / 2)
        if left < 0 or top < 0:
            image = image.resize((width, height), how)
            image = image.crop((left, top, left + self.width, top + self.height))
        else:
            # Only what is cut out is computed: of a picture much wider than high that is next to nothing.
            across, down = image.width / width, image.height / height
            box = (left * across, top * down, (left + self.width) * across, (top + self.height) * down)
            image = image.resize((self.width, self.height), how, box=box)
        return np.asarray(image, np.uint8)[None]

    def _resized(self, width: int, height: int) -> tuple[int, int]:
        """Size of the whole picture once it is resized, of which the input is the middle."""
        reach = self._reach
        if self.crop_mode == "squash":
            return reach
        # torchvision's Resize: the shorter side is exact, the longer one cut down to whole pixels
        longer = int(reach[0] * max(width, height) / min(width, height))
        return (longer, reach[1]) if width >= height else (reach[0], longer)
