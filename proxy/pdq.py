"""PDQ, the perceptual hash: 256 bits, of which few differ between two renderings of one picture.

The numbers are of Meta's "The TMK+PDQF Video-Hashing Algorithm and the PDQ Image-Hashing Algorithm".
"""

from __future__ import annotations

SAME_PICTURE = 31  # bits of distance up to which two pictures count as the same
GOOD_QUALITY = 50  # of 0..100, from which that holds; flatter pictures look alike to PDQ, whatever they show
SAME_FLAT_PICTURE = 8  # of a flatter one nearly all bits have to agree
MOST_NEAR = 63  # the largest distance that may be set; from 90 or so on everything is like everything


def distance(one: str, other: str) -> int:
    """How many bits differ, 0..256, between two hashes of 64 hexadecimal digits."""
    return (int(one, 16) ^ int(other, 16)).bit_count()


def tells(pdq: str | None, quality: int | None) -> bool:
    """Whether a picture's hash says so much about it that another one may be compared with it."""
    return pdq is not None and quality is not None and quality >= GOOD_QUALITY
