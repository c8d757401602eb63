"""Opens a case with a reviewer's key, and lets its original out into a file where a human asks for it."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import pyrage

from proxy.cases.quarantine import Quarantine
from proxy.cases.sealing import Opened, is_as_uploaded, open_sealed
from proxy.database import Case, CaseState
from proxy.errors import CaseError


def open_case(quarantine: Quarantine, case: Case, identities: Sequence[pyrage.x25519.Identity]) -> Opened:
    """What is sealed of a case, checked to be what was uploaded.

    Raises:
        CaseError: its bytes are gone, or not those that were uploaded.
        SealingError: it cannot be opened with these identities.
    """
    if case.state is CaseState.EXPIRED:
        raise CaseError(f"{case.id}: has expired; its bytes are deleted")
    opened = open_sealed(quarantine.path(case.file), identities)
    if not is_as_uploaded(opened, case.sha256):
        raise CaseError(f"{case.id}: the sealed bytes are not those that were uploaded")
    return opened


def check_new(path: Path) -> None:
    """Whether `save` could make a file there, as far as can be known before.

    Raises:
        CaseError: it could not.
    """
    if os.path.lexists(path):
        raise CaseError(f"--save-to {path}: is there already; name a file that is not")
    if not path.absolute().parent.is_dir():
        raise CaseError(f"--save-to {path}: there is no such folder")


def save(opened: Opened, path: Path) -> None:
    """Writes the original to a new file that only its owner can read.

    Raises:
        CaseError: it is there already, or could not be written; nothing is left behind.
    """
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
    except OSError as error:
        raise CaseError(f"--save-to {path}: {error.strerror}") from None
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(opened.original)
    except OSError as error:
        path.unlink(missing_ok=True)
        raise CaseError(f"--save-to {path}: {error.strerror}") from None
