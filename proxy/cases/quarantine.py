"""The folder of sealed files. A file is there whole and on the disk, or it is not there."""

from __future__ import annotations

import errno
import logging
import os
import re
import stat
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from io import BufferedIOBase
from pathlib import Path
from typing import Any

from proxy.cases.sealing import Sealer
from proxy.errors import ConfigError, SealingError
from proxy.faults import FaultPoint

log = logging.getLogger(__name__)

# `.before` is what a case's file was, until it is certain that another one has taken its place.
_SEALED, _UNFINISHED, _BEFORE = ".age", ".unfinished", ".before"
_NAME = re.compile(r"[0-9A-Za-z-]{1,64}\.age")
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT)


class Quarantine:
    """Writes sealed cases into one folder of the gate's own."""

    def __init__(
        self,
        folder: Path,
        sealer: Sealer,
        fault: FaultPoint,
        *,
        with_gate: Sealer | None = None,
        make: bool = True,
    ) -> None:
        """Takes the folder from others where they could look into it.

        Args:
            sealer: to the reviewers alone.
            with_gate: also to the gate's own key, for what it has to look at later.
            make: see `make`, which is left to the caller where not. Whoever only reads writes nothing: he
                can read where the disk is full, and puts no empty folder into the place of one that is gone.

        Raises:
            ConfigError: of `make`; or it cannot be looked at.
        """
        self._folder, self._sealer, self._fault = folder, sealer, fault
        self._with_gate = with_gate
        if make:
            self.make(is_new=True)
            return
        try:
            with suppress(FileNotFoundError):
                _keep_private(folder)
        except OSError as error:
            raise ConfigError(f"cases.folder: {folder}: {error.strerror}") from None

    def make(self, *, is_new: bool) -> None:
        """Sees that cases can be written: makes the folder where it is missing and nothing can be in it yet.
        A full disk is no wrong configuration: that is said, and the caller can start.

        Args:
            is_new: whether there is no case whose file should be there.

        Raises:
            ConfigError: it cannot be made or written; or it is gone, and cases with it.
        """
        folder = self._folder
        try:
            if not is_new and not folder.exists():
                raise ConfigError(
                    f"cases.folder: {folder}: is gone, and there are cases that were sealed into it; mount "
                    "it, or restore it from a copy"
                )
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            _keep_private(folder)
            # Without a name of its own that another command, probing at the same moment, would meet.
            with tempfile.TemporaryFile(dir=folder):
                pass
        except OSError as error:
            if error.errno in _NO_ROOM and folder.is_dir():
                # Whoever only reads pictures is served all the same; what has to be held gets 503.
                log.error("cases.folder: %s: %s: nothing can be kept without room", folder, error.strerror)
                return
            raise ConfigError(
                f"cases.folder: {folder}: {error.strerror}; the gate needs a folder that it may write"
            ) from None

    def sealed_to(self, *, gate_reads: bool = False) -> str:
        """For whom it seals, see `proxy.cases.recipients.digest`."""
        return self._for(gate_reads=gate_reads).sealed_to

    def seal(
        self, case_id: str, facts: Mapping[str, Any], original: bytes, *, gate_reads: bool = False
    ) -> str:
        """Seals a case; on return it is on the disk under the name that is returned.

        Args:
            gate_reads: whether the gate has to be able to open it.

        Raises:
            SealingError: it could not be written (no space, say); nothing is left behind.
        """
        name, sealer = case_id + _SEALED, self._for(gate_reads=gate_reads)
        new = self._written(
            self._folder / (case_id + _UNFINISHED), lambda file: sealer.seal(file, facts, original)
        )
        self._put(new, name)
        return name

    def seal_beside(self, name: str, facts: Mapping[str, Any], original: bytes) -> Path:
        """Writes a file, sealed to the reviewers alone, that may take the place of the one of that name.

        Returns:
            Where it lies, for `replace`; it is on the disk.

        Raises:
            SealingError: it could not be written; nothing is left behind.
        """
        return self.write_beside(name, lambda file: self._sealer.seal(file, facts, original))

    def write_beside(self, name: str, write: Callable[[BufferedIOBase], None]) -> Path:
        """Has a file written that may take the place of `name`; on return it is on the disk.

        Raises:
            SealingError: it could not be written (no space, say); nothing is left behind.
        """
        beside = self.path(name).with_suffix(f".{uuid.uuid4().hex[:8]}{_UNFINISHED}")
        return self._written(beside, write)

    def replace(self, name: str, new: Path) -> int:
        """Puts a file in the place of the one of that name; durable on return.

        What a swap that was cut off has left beside it goes after that: it is older, and for others.

        Returns:
            Its bytes.

        Raises:
            SealingError: it could not be done, and `new` is gone.
        """
        size = self._put(new, name)
        self._fault("case-replaced")
        with suppress(OSError):  # then a rotation sees that it is not what the row is about
            self.settle(name)
        return size

    def discard(self, new: Path) -> None:
        """Removes what `write_beside` or `seal_beside` has written, unless it has taken its place."""
        with suppress(OSError):
            new.unlink(missing_ok=True)

    def _for(self, *, gate_reads: bool) -> Sealer:
        if not gate_reads:
            return self._sealer
        if self._with_gate is None:
            raise SealingError("no case could be written for the gate: it has no key of its own here")
        return self._with_gate

    def _written(self, path: Path, write: Callable[[BufferedIOBase], None]) -> Path:
        try:
            with open(path, "xb", opener=_private) as file:
                write(file)
                file.flush()
                self._fault("case-begun")
                os.fsync(file.fileno())
            self._fault("case-written")
        except (OSError, SealingError, ValueError) as error:
            self.discard(path)
            raise SealingError(f"case {path.name.partition('.')[0]} could not be written: {error}") from None
        return path

    def _put(self, new: Path, name: str) -> int:
        try:
            size = new.stat().st_size
            new.rename(self.path(name))
            self._fault("case-named")
            self._sync_folder()
        except OSError as error:
            self.discard(new)
            raise SealingError(f"case {name.removesuffix(_SEALED)} could not be written: {error}") from None
        return size

    def stamp(self, name: str) -> tuple[int, int, int]:
        """Tells one file of that name from another.

        Raises:
            SealingError: there is none.
        """
        try:
            found = self.path(name).stat()
        except OSError as error:
            raise SealingError(f"{self.path(name)}: {error.strerror}") from None
        return found.st_ino, found.st_mtime_ns, found.st_size

    def swap(self, name: str, new: Path, stamp: tuple[int, int, int]) -> bool:
        """Puts `new` into the place of `name`, durably. What was there lies beside it, until `settle`.

        Returns:
            False where another file has taken the place of the one that had this stamp; nothing is done.

        Raises:
            SealingError: it could not be done.
        """
        path = self.path(name)
        try:
            if self.stamp(name) != stamp:
                return False
            os.link(path, path.with_suffix(_BEFORE))
            new.rename(path)
            self._sync_folder()
        except OSError as error:
            raise SealingError(f"{path}: could not be replaced: {error.strerror}") from None
        self._fault("case-swapped")
        return True

    def settle(self, name: str) -> None:
        """The swap of `name` is noted: what was there before goes."""
        path = self.path(name)
        path.with_suffix(_BEFORE).unlink(missing_ok=True)

    def put_back(self, name: str) -> None:
        """Undoes a swap of `name` that was cut off.

        Raises:
            SealingError: it could not be done; another rotation has, say.
        """
        path = self.path(name)
        try:
            path.with_suffix(_BEFORE).rename(path)
            self._sync_folder()
        except OSError as error:
            raise SealingError(f"{path}: could not be put back: {error.strerror}") from None

    def unsettled(self) -> Iterator[tuple[str, Path]]:
        """Names of the files whose swap was cut off, and where that which was there before lies."""
        for path in sorted(self._folder.glob(f"*{_BEFORE}")):
            yield path.with_suffix(_SEALED).name, path

    def path(self, name: str) -> Path:
        """Where the sealed file of that name lies.

        Raises:
            SealingError: it is not the name of a sealed file.
        """
        if not _NAME.fullmatch(name):
            raise SealingError(f"{name!r} is not the name of a sealed case")
        return self._folder / name

    def size(self, name: str) -> int | None:
        """Bytes of the sealed file of that name; None where there is none."""
        try:
            found = self.path(name).lstat()
        except FileNotFoundError:
            return None
        return found.st_size if stat.S_ISREG(found.st_mode) else None

    def names(self) -> set[str]:
        """The names of all that look like sealed files, or of which there is what was there before a swap."""
        found = {path.name for path in self._folder.glob(f"*{_SEALED}")}
        found |= {name for name, _ in self.unsettled()}
        return {name for name in found if _NAME.fullmatch(name)}

    def delete(self, name: str) -> bool:
        """Deletes a sealed file, for good on return. Only retention does that, and only of what has expired.

        What a swap that was cut off has left beside it goes too: it is the same picture.

        Returns:
            False where it was gone already.

        Raises:
            SealingError: it cannot be deleted, or it is no file of the gate's own, which is left alone.
        """
        before = self.path(name).with_suffix(_BEFORE).name
        try:
            folder = os.open(self._folder, os.O_RDONLY | os.O_DIRECTORY)
        except OSError as error:
            raise SealingError(f"cases.folder: {self._folder}: {error.strerror}") from None
        try:
            gone = [self._unlink(one, folder) for one in (before, name)]
            if any(gone):
                os.fsync(folder)
        except OSError as error:
            raise SealingError(f"{self._folder / name}: {error.strerror}") from None
        finally:
            os.close(folder)
        return any(gone)

    def _unlink(self, name: str, folder: int) -> bool:
        try:
            found = os.lstat(name, dir_fd=folder)
        except FileNotFoundError:
            return False
        if not stat.S_ISREG(found.st_mode):
            raise SealingError(f"{self._folder / name}: is no file that the gate has written; left alone")
        os.unlink(name, dir_fd=folder)
        return True

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
