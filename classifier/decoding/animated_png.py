"""Whether a PNG's animation is one that every program plays alike.

Pillow drops an animation that has something wrong with it and shows the first picture; browsers play it all
the same. Such a file has two readings, and it must never be looked at in the shorter one.
"""

from __future__ import annotations

from classifier.errors import undecodable

_SIGNATURE_BYTES = 8


def animation_frames(content: bytes) -> int | None:
    """How many frames a decoder has to find in an animated PNG; None in one that is not animated.

    A first picture that is not part of the animation counts, as it does with Pillow.

    Raises:
        Rejection: its animation is not as the standard has it (PNG, third edition, 11.3.6).
    """
    announced, controls = None, 0
    data_begun, first_is_apart = False, False
    at = _SIGNATURE_BYTES
    while at + 8 <= len(content):
        length, name = int.from_bytes(content[at : at + 4]), content[at + 4 : at + 8]
        if name == b"acTL":
            if announced is not None or data_begun or length != 8:
                raise undecodable("an animated PNG whose acTL is doubled, too late or broken")
            announced = int.from_bytes(content[at + 8 : at + 12])
        elif name == b"fcTL":
            controls += 1
        elif name == b"IDAT" and not data_begun:
            data_begun, first_is_apart = True, not controls
        elif name == b"IEND":
            break
        at += 12 + length
    if announced is None:
        return None
    if announced == 0 or announced != controls:
        raise undecodable("an animated PNG that announces another number of frames than it has")
    return announced + first_is_apart
