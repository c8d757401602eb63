"""What a worker process does: one file at a time, from bytes to the heads' inputs."""

from __future__ import annotations

import contextlib
import hashlib
import os
import resource
import signal
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection

import numpy as np
from PIL import Image

from classifier.decoding import Array, Decoded, Frame, Hashes, Limits, Preparation, Prepared, within
from classifier.decoding.files import decode
from classifier.errors import Rejection, too_large, undecodable


@dataclass(frozen=True, slots=True)
class Failure:
    """A rejection on its way between processes."""

    status: int
    code: str
    message: str


_PDQ_SIDE = 512  # from which PDQ's reference implementation works
READY = "ready"  # the first word of a worker


def work(connection: Connection, preparations: Sequence[Preparation], limits: Limits, niceness: int) -> None:
    """Answers every file that comes over `connection` until it is closed.

    Args:
        niceness: how far this process stands back for others, 0..19.
    """
    os.nice(niceness)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the server, which then ends its workers
    resource.setrlimit(resource.RLIMIT_AS, (limits.memory_bytes, limits.memory_bytes))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # a core file would hold the picture
    # Whatever is loaded on first use is loaded now, not while somebody waits.
    blank = Frame(Image.new("RGB", (64, 64)), 0, "00" * 32)
    for preparation in preparations:
        preparation.prepare(blank)
    with contextlib.suppress(EOFError, BrokenPipeError, ConnectionResetError):
        connection.send(READY)
        while True:
            content = connection.recv_bytes()
            connection.send(_answer(content, preparations, limits))


def _answer(content: bytes, preparations: Sequence[Preparation], limits: Limits) -> Decoded | Failure:
    try:
        return prepare(content, preparations, limits)
    except Rejection as known:
        return Failure(known.status, known.code, known.message)
    except MemoryError:
        rejection = too_large("decoding it takes more memory than a worker may have")
    except Exception as error:  # noqa: BLE001 — the border of the process: nothing of the file leaves it
        rejection = undecodable(f"could not be prepared: {type(error).__name__}")
    return Failure(rejection.status, rejection.code, rejection.message)


def prepare(content: bytes, preparations: Sequence[Preparation], limits: Limits) -> Decoded:
    """Decodes a file and prepares its scored frames for the heads.

    Raises:
        Rejection: it cannot be looked at.
    """
    sha256 = hashlib.sha256(content).hexdigest()

    def suffices(width: int, height: int) -> bool:
        enough_for_pdq = max(width, height) >= _PDQ_SIDE
        return enough_for_pdq and all(one.suffices(width, height) for one in preparations)

    media, frames = decode(content, sha256, limits, suffices)
    hashes = Hashes(sha256, None, None)
    prepared: list[Prepared] = []
    for frame in frames:
        if not prepared:
            hashes = Hashes(sha256, *_pdq(frame))
        prepared.append(_prepared(frame, preparations))
    return Decoded(media, hashes, prepared)


def _prepared(frame: Frame, preparations: Sequence[Preparation]) -> Prepared:
    inputs: dict[Preparation, Array] = {}
    digest = hashlib.sha256()
    for preparation in preparations:
        array = inputs[preparation] = np.ascontiguousarray(preparation.prepare(frame))
        digest.update(f"{array.dtype} {array.shape}".encode())
        digest.update(array.data)
    return Prepared(frame.index, inputs, digest.digest())


def _pdq(frame: Frame) -> tuple[str | None, int | None]:
    try:
        import pdqhash
    except ImportError:
        return None, None
    # PDQ reduces to 64×64 itself, and looks at brightness alone.
    grey = frame.image.convert("L")
    if max(grey.size) > _PDQ_SIDE:
        grey = grey.resize(within(grey.size, _PDQ_SIDE), Image.Resampling.BILINEAR)
    bits, quality = pdqhash.compute(np.repeat(np.asarray(grey)[..., None], 3, axis=2))
    return np.packbits(bits).tobytes().hex(), int(quality)
