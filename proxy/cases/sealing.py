"""The sealed container of a case: a tar of `facts.json` and the original bytes, encrypted with age.

Anybody with a reviewer's key opens it without the gate: `age -d -i KEY CASE.age | tar x`.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import tarfile
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyrage

from proxy.cases import recipients as recipients_of
from proxy.errors import SealingError, Unreadable

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

FACTS, ORIGINAL = "facts.json", "original"
FORMAT = 1  # of the facts and of what lies beside them: `format` in facts.json, docs/cases.md

_LARGEST_HEADER = 64 * 1024
_END_OF_HEADER = b"--- "
_NO_KEY_FITS = "No matching keys found"  # how pyrage says it


@dataclass(frozen=True, slots=True)
class Opened:
    """A case's content, in the clear."""

    facts: Mapping[str, Any]
    original: bytes = field(repr=False)


class Sealer:
    """Encrypts to the reviewers' public keys. What it has sealed it cannot open."""

    def __init__(self, recipients: Sequence[str]) -> None:
        self._recipients = [pyrage.x25519.Recipient.from_str(recipient) for recipient in recipients]
        self.sealed_to = recipients_of.digest(recipients)

    def seal(self, into: io.BufferedIOBase, facts: Mapping[str, Any], original: bytes) -> None:
        """Writes a container to `into`.

        Args:
            into: a binary file, open for writing.
            facts: JSON values.
            original: the uploaded bytes; not copied.

        Raises:
            SealingError: it could not be encrypted or written.
        """
        if not self._recipients:
            raise SealingError("a case could not be sealed: there is nobody to seal it to")
        # What came as no UTF-8 at all stays readable, and keeps nothing from being sealed.
        written = json.dumps(dict(facts), ensure_ascii=False, indent=1).encode("utf-8", "backslashreplace")
        self.encrypt(
            [*_member(FACTS, written), *_member(ORIGINAL, original), bytes(2 * tarfile.BLOCKSIZE)], into
        )

    def encrypt(self, pieces: Sequence[bytes], into: io.BufferedIOBase) -> None:
        """Writes what `pieces` are together, as it is; what `decrypt` gave, say.

        Raises:
            SealingError: it could not be encrypted or written.
        """
        sink = _Sink(into)
        try:
            pyrage.encrypt_io(_Pieces(pieces), sink, self._recipients)
        except (pyrage.EncryptError, OSError) as error:
            raise SealingError(f"a case could not be sealed: {sink.failed or error}") from None
        if sink.failed is not None:
            raise SealingError(f"a case could not be sealed: {sink.failed}")

    def seal_facts(self, facts: Mapping[str, Any]) -> bytes:
        """Facts without a picture, sealed; `open_facts` opens them."""
        return pyrage.encrypt(json.dumps(dict(facts)).encode(), self._recipients)


def open_sealed(path: Path, identities: Sequence[pyrage.x25519.Identity]) -> Opened:
    """Decrypts a container and takes it apart.

    Raises:
        SealingError: the file is gone, damaged, or sealed to other keys.
    """
    return unpack(decrypt(path, identities), path)


def decrypt(path: Path, identities: Sequence[pyrage.x25519.Identity]) -> bytes:
    """What a container holds, in the clear and in one piece.

    Takes twice the file's size of memory.

    Raises:
        Unreadable: it is damaged, or sealed to other keys.
        SealingError: it cannot be read (gone, a broken disk); later it may be.
    """
    try:
        # As a whole, so that no trouble of the disk is ever taken for a wrong key.
        sealed = io.BytesIO(path.read_bytes())
    except OSError as error:
        raise SealingError(f"{path}: {error.strerror}") from None
    clear = io.BytesIO()
    try:
        pyrage.decrypt_io(sealed, clear, identities)
    except (pyrage.DecryptError, OSError) as error:
        is_for_others = isinstance(error, pyrage.DecryptError) and str(error) == _NO_KEY_FITS
        raise Unreadable(f"{path}: damaged, or not sealed to this key", is_for_others=is_for_others) from None
    return clear.getvalue()


def unpack(clear: bytes, path: Path) -> Opened:
    """Takes apart what `decrypt` gave; `path` is for messages.

    Raises:
        Unreadable: it is no case.
    """
    try:
        with tarfile.open(fileobj=io.BytesIO(clear), mode="r:") as tar:
            members = [tar.extractfile(name) for name in (FACTS, ORIGINAL)]
            facts, original = (member.read() for member in members if member is not None)
        return Opened(dict(json.loads(facts)), original)
    except (tarfile.TarError, KeyError, TypeError, ValueError):
        why = f"{path}: opens, but is not a case; bring back a copy"
        raise Unreadable(why, is_for_others=False) from None


def is_as_uploaded(opened: Opened, sha256: str | None) -> bool:
    """Whether the bytes are those that its facts, and the case's row where it knows them, are about."""
    found = hashlib.sha256(opened.original).hexdigest()
    return found == opened.facts.get("sha256") and sha256 in (None, found)


def recipients_in(path: Path) -> int:
    """To how many X25519 keys a file is sealed, as its header says; no key is needed to ask.

    Raises:
        SealingError: it cannot be read, or is no age file.
    """
    count = 0
    try:
        with path.open("rb") as file:
            lines = io.BytesIO(file.read(_LARGEST_HEADER))
    except OSError as error:
        raise SealingError(f"{path}: {error.strerror}") from None
    if lines.readline() != b"age-encryption.org/v1\n":
        raise SealingError(f"{path}: is no age file")
    for line in lines:
        if line.startswith(_END_OF_HEADER):
            return count
        count += line.startswith(b"-> X25519 ")
    raise SealingError(f"{path}: its header does not end")


def open_facts(sealed: bytes, identities: Sequence[pyrage.x25519.Identity]) -> Mapping[str, Any]:
    """What `Sealer.seal_facts` has sealed.

    Raises:
        Unreadable: it is damaged, or sealed to other keys.
    """
    try:
        facts = json.loads(pyrage.decrypt(sealed, identities))
    except (pyrage.DecryptError, OSError, ValueError) as error:
        raise Unreadable("sealed facts cannot be opened", is_for_others=str(error) == _NO_KEY_FITS) from None
    return facts if isinstance(facts, dict) else {}


def write_new_identity(path: Path) -> str:
    """Makes a key pair, writes the private half to `path` as `age-keygen` does, and returns the recipient.

    Raises:
        SealingError: the file is there already, or cannot be written.
    """
    recipient, text = _new_identity()
    try:
        with open(path, "x", opener=lambda name, flags: os.open(name, flags, 0o600)) as file:
            file.write(text)
    except OSError as error:
        raise SealingError(f"{path}: {error.strerror}; name another file with --output") from None
    return recipient


def gate_identities(path: Path) -> list[pyrage.x25519.Identity]:
    """The gate's own key, made where there is none yet: whole and on the disk, or not at all. Of two gates
    that make it at the same moment both have the one that was first.

    Raises:
        SealingError: it cannot be read, or made.
    """
    try:
        if not path.exists():
            with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}-") as file:  # 0600
                file.write(_new_identity()[1].encode())
                file.flush()
                os.fsync(file.fileno())
                with suppress(FileExistsError):
                    os.link(file.name, path)
            _sync(path.parent)
    except OSError as error:
        raise SealingError(f"{path}: {error.strerror}; the gate makes a key of its own there") from None
    return read_identities(path)


def gate_public(identities: Sequence[pyrage.x25519.Identity]) -> str:
    """The recipient that stands for the gate: of the first key in its file. Further ones only open."""
    return str(identities[0].to_public())


def _new_identity() -> tuple[str, str]:
    """A recipient, and the text of its identity's file."""
    identity = pyrage.x25519.Identity.generate()
    recipient = str(identity.to_public())
    created = datetime.now(UTC).isoformat(timespec="seconds")
    return recipient, f"# created: {created}\n# public key: {recipient}\n{identity}\n"


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def read_identities(path: Path) -> list[pyrage.x25519.Identity]:
    """The identities in a file as `age-keygen` or `pictrs-gate keys new` writes it.

    Raises:
        SealingError: the file is not there or holds no identity. The message never quotes it.
    """
    try:
        lines = path.read_text().splitlines()
        found = [
            pyrage.x25519.Identity.from_str(line.strip())
            for line in lines
            if line.strip() and not line.startswith("#")
        ]
    except OSError as error:
        raise SealingError(f"{path}: {error.strerror}; this is the reviewer's private key file") from None
    except (pyrage.IdentityError, UnicodeDecodeError):
        found = []
    if not found:
        raise SealingError(f"{path}: holds no age identity (a line AGE-SECRET-KEY-1…)")
    return found


def _member(name: str, content: bytes) -> list[bytes]:
    info = tarfile.TarInfo(name)
    info.size, info.mode = len(content), 0o600
    return [info.tobuf(tarfile.USTAR_FORMAT), content, bytes(-len(content) % tarfile.BLOCKSIZE)]


class _Sink(io.BufferedIOBase):
    """Remembers what went wrong. pyrage buffers the end of a file, and tells nobody that it could not write
    that: on a full disk a case would be sealed into a file that is cut off, or empty.
    """

    def __init__(self, into: io.BufferedIOBase) -> None:
        self._into = into
        self.failed: Exception | None = None

    def writable(self) -> bool:
        return True

    def write(self, data: ReadableBuffer) -> int:
        """All of it."""
        try:
            return self._into.write(data)
        except Exception as error:
            self.failed = self.failed or error
            raise


class _Pieces(io.BufferedIOBase):
    """Reads pieces one behind the other, without joining them."""

    def __init__(self, pieces: Sequence[bytes]) -> None:
        self._pieces = [memoryview(piece) for piece in pieces if piece]

    def readable(self) -> bool:
        return True

    def read(self, size: int | None = -1) -> bytes:
        """At most `size` bytes of the next piece; all of it where `size` is negative or None."""
        if not self._pieces:
            return b""
        piece = self._pieces.pop(0)
        if size is None or size < 0 or size >= len(piece):
            return bytes(piece)
        self._pieces.insert(0, piece[size:])
        return bytes(piece[:size])
