"""Whether the sealed files are those that the gate has written: nobody's key is needed to see that.

Whoever can write to the disk can seal something of his own to the reviewers, whose public keys are no secret.
It would open as any case does. The ledger says which files were written; `ledger verify` says whether the
ledger itself is what was written.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from pathlib import Path

from proxy.database import Database, evidence
from proxy.errors import SealingError


@dataclass(slots=True)
class Files:
    """What was found.

    Attributes:
        held: how many are what was written.
        unknown: cases of which the ledger does not say what was written.
        missing: cases whose file is gone or cannot be read.
        other: cases whose file is another one.
    """

    held: int = 0
    unknown: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    other: list[str] = field(default_factory=list)

    @property
    def broken(self) -> int:
        """How many are not what they have to be."""
        return len(self.missing) + len(self.other)


def file_sha256(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal.

    Raises:
        SealingError: it cannot be read.
    """
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise SealingError(f"{path}: {error.strerror}") from None


def check_files(database: Database, folder: Path) -> Files:
    """Reads every sealed file of a case that has not expired; a gate may go on working meanwhile."""
    found = Files()
    for one in evidence.sealed(database):
        try:
            sha256 = file_sha256(folder / one.file)
        except SealingError:
            found.missing.append(one.case)
            continue
        if not one.sha256:
            found.unknown.append(one.case)
        elif sha256 in one.sha256:
            found.held += 1
        else:
            found.other.append(one.case)
    if not found.broken:
        return found
    # What was sealed anew, or has expired, while this was reading is looked at once more.
    now = {one.case: one for one in evidence.sealed(database)}

    def is_broken(case: str) -> bool:
        return case in now and not _holds(folder, now[case])

    found.missing = [case for case in found.missing if is_broken(case)]
    found.other = [case for case in found.other if is_broken(case)]
    return found


def _holds(folder: Path, one: evidence.Sealed) -> bool:
    try:
        return file_sha256(folder / one.file) in one.sha256
    except SealingError:
        return False
