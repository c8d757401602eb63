"""The folder of sealed files. A file is there whole and on the disk, or it is not there."""

from __future__ import annotations

import logging
import os
import re
import secrets
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from proxy.cases.sealing import Sealer
from proxy.errors import ConfigError, SealingError
from proxy.faults import FaultPoint

log = logging.getLogger(__name__)

_SEALED, _UNFINISHED = ".age", ".unfinished"
_NAME = re.compile(r"[0-9A-Za-z-]{1,64}\.age")


class Quarantine:
    """Writes sealed cases into one folder of the gate's own."""

    def __init__(
        self, folder: Path, sealer: Sealer, fault: FaultPoint, *, with_gate: Sealer | None = None
    ) -> None:
        """Makes the folder where it is missing, and takes it from others where they could look into it.

        Args:
            sealer: to the reviewers alone.
            with_gate: also to the gate's own key, for what it has to look at later.

        Raises:
            ConfigError: it cannot be made or written.
        """
        self._folder, self._sealer, self._fault = folder, sealer, fault
        self._with_gate = with_gate
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            _keep_private(folder)
            # Without a name of its own that another command, probing at the same moment, would meet.
            with tempfile.TemporaryFile(dir=folder):
                pass
        except OSError as error:
            raise ConfigError(
                f"cases.folder: {folder}: {error.strerror}; the gate needs a folder that it may write"
            ) from None

    def seal(
        self, case_id: str, facts: Mapping[str, Any], original: bytes, *, gate_reads: bool = False
    ) -> str:
        """Seals a case; on return it is on the disk under the name that is returned.

        Args:
            gate_reads: whether the gate has to be able to open it.

        Raises:
            SealingError: it could not be written (no space, say); nothing is left behind.
        """
        if gate_reads and self._with_gate is None:
            raise SealingError(f"case {case_id} could not be written: the gate has no key of its own here")
        sealer = self._with_gate if gate_reads and self._with_gate else self._sealer
        name = case_id + _SEALED
        self.replace(name, self._written(case_id, sealer, facts, original))
        return name

    def seal_beside(self, name: str, facts: Mapping[str, Any], original: bytes) -> Path:
        """Writes a file, sealed to the reviewers alone, that may take the place of the one of that name.

        Returns:
            Where it lies, for `replace`; it is on the disk.

        Raises:
            SealingError: it could not be written; nothing is left behind.
        """
        beside = f"{self.path(name).stem}-{secrets.token_hex(4)}"
        return self._written(beside, self._sealer, facts, original)

    def replace(self, name: str, new: Path) -> int:
        """Puts a file in the place of the one of that name, if there is one; durable on return.

        Returns:
            Its bytes.

        Raises:
            SealingError: it could not be done, and `new` is gone.
        """
        try:
            size = new.stat().st_size
            new.rename(self.path(name))
            self._sync_folder()
        except OSError as error:
            self.discard(new)
            raise SealingError(f"case {name.removesuffix(_SEALED)} could not be written: {error}") from None
        self._fault("case-replaced")
        return size

    def discard(self, new: Path) -> None:
        """Removes what `seal_beside` has written, unless it has taken its place."""
        new.unlink(missing_ok=True)

    def size(self, name: str) -> int:
        """Bytes of a sealed file.

        Raises:
            SealingError: it is not there, or cannot be asked.
        """
        try:
            return self.path(name).stat().st_size
        except OSError as error:
            raise SealingError(f"{name}: {error.strerror}") from None

    def _written(self, stem: str, sealer: Sealer, facts: Mapping[str, Any], original: bytes) -> Path:
        unfinished = self._folder / (stem + _UNFINISHED)
        try:
            with open(unfinished, "xb", opener=_private) as file:
                sealer.seal(file, facts, original)
                file.flush()
                os.fsync(file.fileno())
            self._fault("case-written")
        except (OSError, SealingError, ValueError) as error:
            unfinished.unlink(missing_ok=True)
            raise SealingError(f"case {stem} could not be written: {error}") from None
        return unfinished

    def path(self, name: str) -> Path:
        """Where the sealed file of that name lies.

        Raises:
            SealingError: it is not the name of a sealed file.
        """
        if not _NAME.fullmatch(name):
            raise SealingError(f"{name!r} is not the name of a sealed case")
        return self._folder / name

    def orphans(self, known: set[str], *, older_than_s: float) -> Iterator[str]:
        """Names of sealed files that no case owns.

        Args:
            known: the files of all cases.
            older_than_s: seconds; a younger one may be about to get its case.
        """
        before = time.time() - older_than_s
        for path in sorted(self._folder.glob(f"*{_SEALED}")):
            if path.name not in known and path.stat().st_mtime <= before:
                yield path.name

    def sweep_unfinished(self, *, older_than_s: float) -> int:
        """Removes files whose writing was cut off; they hold no case and nobody was promised anything."""
        before, count = time.time() - older_than_s, 0
        for path in self._folder.glob(f"*{_UNFINISHED}"):
            if path.stat().st_mtime <= before:
                path.unlink(missing_ok=True)
                count += 1
        return count

    def _sync_folder(self) -> None:
        descriptor = os.open(self._folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _keep_private(folder: Path) -> None:
    """What is in it is sealed, but how many cases there are, and since when, is nobody's business either."""
    if not folder.stat().st_mode & 0o077:
        return
    try:
        folder.chmod(0o700)
        log.warning("cases.folder: %s: others could look into it; it is private now", folder)
    except PermissionError:
        log.warning("cases.folder: %s: others can look into it, and it belongs to somebody else", folder)


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)
