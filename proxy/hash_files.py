"""Files with lists of hashes: one hexadecimal hash a line, or CSV whose header names the columns.

A file is read whole before anything of it is believed; no message quotes what stands in it.
"""

from __future__ import annotations

import csv
import hashlib
from binascii import unhexlify
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Literal, TextIO

from proxy.errors import HashesError
from proxy.pdq import GOOD_QUALITY

Kind = Literal["sha256", "pdq"]
KINDS: tuple[Kind, ...] = ("sha256", "pdq")
_BYTES = 32  # of either kind
_QUALITY = ("pdqquality", "quality")
_BOM = b"\xef\xbb\xbf"


@dataclass(frozen=True, slots=True)
class HashFile:
    """What stands in a file.

    Attributes:
        sha256: of the file itself, hexadecimal.
        hashes: of each kind, 32 bytes each one behind the other, sorted, each once.
        repeated: hashes that stood there before.
        flat: PDQ hashes of pictures that are too flat to be told from others; left out.
    """

    sha256: str
    hashes: dict[Kind, bytes]
    repeated: int
    flat: int

    def count(self, kind: Kind) -> int:
        """How many different hashes of a kind there are."""
        return len(self.hashes[kind]) // _BYTES

    def batches(self, kind: Kind, length: int) -> Iterator[list[bytes]]:
        """The hashes of a kind in order, at most `length` at once."""
        packed = self.hashes[kind]
        for begin in range(0, len(packed), length * _BYTES):
            some = packed[begin : begin + length * _BYTES]
            yield [some[place : place + _BYTES] for place in range(0, len(some), _BYTES)]


def read(path: Path, kind: Kind) -> HashFile:
    """Reads a list.

    Args:
        path: a text file. In one without a header `#` begins a comment.
        kind: of the hashes in a file without a header; a CSV's header says it itself.

    Raises:
        HashesError: it cannot be read, or a line is no hash; the message says which.
    """
    digest = hashlib.sha256()
    try:
        with path.open("rb") as file:
            packed, flat = _packed(_lines(file, digest), kind)
    except OSError as error:
        raise HashesError(f"{path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise HashesError(f"{path}: must be UTF-8 text") from None
    except (csv.Error, _Wrong) as error:
        raise HashesError(f"{path}: {error}") from None
    hashes: dict[Kind, bytes] = {one: _sorted(packed[one]) for one in KINDS}
    repeated = sum(len(packed[one]) - len(hashes[one]) for one in KINDS) // _BYTES
    return HashFile(digest.hexdigest(), hashes, repeated, flat)


def write(into: TextIO, hashes: Iterable[tuple[str, str]]) -> int:
    """Writes kinds and hexadecimal hashes as a CSV that `read` understands; returns how many."""
    count = 0
    into.write(",".join(KINDS) + "\n")
    for kind, value in hashes:
        into.write(f"{value},\n" if kind == "sha256" else f",{value}\n")
        count += 1
    return count


class _Wrong(Exception):
    """Something is wrong with a line; the message says with which."""


def _lines(file: BinaryIO, digest: hashlib._Hash) -> Iterator[str]:
    for number, line in enumerate(file):
        digest.update(line)
        yield (line.removeprefix(_BOM) if number == 0 else line).decode()


def _packed(lines: Iterator[str], kind: Kind) -> tuple[dict[Kind, bytearray], int]:
    """The hashes of each kind, one behind the other, and how many pictures were too flat."""
    packed: dict[Kind, bytearray] = {one: bytearray() for one in KINDS}
    numbered, header, begun, number, flat = enumerate(lines, start=1), None, False, 0, 0
    for number, line in numbered:
        word = line.partition("#")[0].strip()
        if word and not begun and (header := _header(word, number)) is not None:
            break
        if word:
            packed[kind] += _hash(word, number)
            begun = True
    if header is None:
        return packed, 0
    columns = {one: header.index(one) for one in KINDS if one in header}
    quality = next((header.index(name) for name in _QUALITY if name in header), None)
    rows = csv.reader((line for _, line in numbered), strict=True)
    for row in rows:
        at = number + rows.line_num
        for one, column in columns.items():
            word = row[column].strip() if column < len(row) else ""
            if not word:
                continue
            if one == "pdq" and quality is not None and _is_flat(row, quality, at):
                flat += 1
                continue
            packed[one] += _hash(word, at)
    return packed, flat


def _header(line: str, number: int) -> list[str] | None:
    """The columns that a CSV's first line names; None where it is a hash."""
    names = [name.strip(' "').lower().replace("-", "").replace("_", "") for name in line.split(",")]
    if set(KINDS) & set(names):
        return names
    if len(names) > 1:
        raise _Wrong(f"line {number}: a CSV begins with a header that names a column {' or '.join(KINDS)}")
    return None


def _hash(word: str, number: int) -> bytes:
    try:
        value = unhexlify(word)
    except ValueError:
        value = b""
    if len(value) != _BYTES:
        raise _Wrong(f"line {number} is no hash ({2 * _BYTES} hexadecimal digits)")
    return value


def _is_flat(row: list[str], column: int, number: int) -> bool:
    word = row[column].strip() if column < len(row) else ""
    if not word:
        return False  # whoever made the list knew
    if not word.isdecimal() or int(word) > 100:
        raise _Wrong(f"line {number}: a quality is a number, 0 to 100")
    return int(word) < GOOD_QUALITY


def _sorted(packed: bytearray) -> bytes:
    """In order, each once. With numpy: a million as Python objects would take 100 MB."""
    if not packed:
        return b""
    import numpy as np

    rows = np.frombuffer(packed, ">u8").reshape(-1, _BYTES // 8)
    rows = rows[np.lexsort(rows.T[::-1])]
    is_new = np.ones(len(rows), bool)
    is_new[1:] = (rows[1:] != rows[:-1]).any(axis=1)
    return rows[is_new].tobytes()
