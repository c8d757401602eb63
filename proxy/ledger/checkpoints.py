"""Signed checkpoints: what the ledger was at a moment, said so that it cannot be unsaid.

A chain alone does not show that its end was cut off, or that it was written anew as a whole. Whoever has the
signing key can still do both, so copies of the checkpoints belong elsewhere.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from proxy.errors import LedgerError
from proxy.ledger.chain import canonical

log = logging.getLogger(__name__)

_TEXTS = ("hash", "time", "previous", "key", "signature")


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """What the last entry of the ledger was.

    Attributes:
        checkpoint: its own number, from 1.
        number, hash: of the last entry.
        time: when it was made; ISO 8601 in UTC.
        previous: `digest` of the checkpoint before; 64 zeros where there is none.
        key: the public half of the key that has signed it: Ed25519, 64 hexadecimal digits.
        signature: over `content`, 128 hexadecimal digits.
    """

    checkpoint: int
    number: int
    hash: str
    time: str
    previous: str
    key: str
    signature: str = ""

    @property
    def content(self) -> bytes:
        """What is signed: canonical JSON of all but the signature."""
        fields = asdict(self)
        del fields["signature"]
        return canonical(fields)

    @property
    def digest(self) -> str:
        """SHA-256 of `content`, hexadecimal."""
        return hashlib.sha256(self.content).hexdigest()

    @property
    def moment(self) -> datetime:
        """`time`, read; the beginning of all time where it is none, so that a new one is due."""
        try:
            moment = datetime.fromisoformat(self.time)
        except ValueError:
            return datetime.min.replace(tzinfo=UTC)
        return moment if moment.tzinfo else moment.replace(tzinfo=UTC)

    @property
    def line(self) -> str:
        """As it stands in a file: canonical JSON."""
        return canonical(asdict(self)).decode()


@dataclass(frozen=True, slots=True)
class Copies:
    """Checkpoints as a file has them.

    Attributes:
        name: of the file, for people.
        strange: the numbers of lines that are none; the last may have been cut off by a crash.
    """

    name: str
    found: Sequence[Checkpoint]
    strange: Sequence[int] = ()


def read(path: Path) -> Copies:
    """The checkpoints in a file, one a line.

    Raises:
        LedgerError: it cannot be read.
    """
    try:
        lines = path.read_bytes().split(b"\n")
    except OSError as error:
        raise LedgerError(f"{path}: {error.strerror}; name a file of checkpoints") from None
    parsed = [(number, _parsed(line)) for number, line in enumerate(lines, start=1) if line.strip()]
    return Copies(
        str(path),
        [found for _, found in parsed if found is not None],
        [number for number, found in parsed if found is None],
    )


def append_missing(path: Path, made: Iterable[Checkpoint]) -> int:
    """Appends to a file what it does not have yet, and syncs it to the disk. Nothing in it is ever changed.

    Args:
        made: in the order of their numbers.

    Returns:
        How many it was.

    Raises:
        OSError: it cannot be written.
    """
    is_new = not path.exists()
    there = set() if is_new else {one.digest for one in read(path).found}
    lines = [one.line for one in made if one.digest not in there]
    if not lines:
        return 0
    with open(path, "ab", opener=_private) as file:
        # A line that a crash has cut off stays a line of its own. One write: another gate may append too.
        cut_off = file.tell() > 0 and path.read_bytes()[-1:] != b"\n"
        file.write(("\n" if cut_off else "").encode() + "".join(line + "\n" for line in lines).encode())
        file.flush()
        os.fsync(file.fileno())
    if is_new:
        sync_folder(path.parent)
    return len(lines)


def sync_folder(folder: Path) -> None:
    """Makes a new name in a folder survive a crash."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _parsed(line: bytes) -> Checkpoint | None:
    try:
        fields: Any = json.loads(line)
        made = Checkpoint(**fields)
    except (ValueError, TypeError, RecursionError):
        return None
    texts = [getattr(made, name) for name in _TEXTS]
    has_numbers = all(type(value) is int and value > 0 for value in (made.checkpoint, made.number))
    has_texts = all(isinstance(text, str) and text.isascii() for text in texts)
    return made if has_numbers and has_texts else None


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)
