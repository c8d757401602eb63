"""The key that checkpoints are signed with: Ed25519, in a file of its own. It never leaves that file."""

from __future__ import annotations

import logging
import os
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from proxy.errors import ConfigError
from proxy.ledger.checkpoints import Checkpoint, sync_folder

# `cryptography` is imported where it is used: loading it takes as long as the rest of a command.
if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

log = logging.getLogger(__name__)


class Signer:
    """Signs checkpoints."""

    def __init__(self, private: Ed25519PrivateKey) -> None:
        self._private = private
        self.key = private.public_key().public_bytes_raw().hex()

    def signed(self, checkpoint: Checkpoint) -> Checkpoint:
        """The checkpoint with this key's name and signature."""
        named = replace(checkpoint, key=self.key)
        return replace(named, signature=self._private.sign(named.content).hex())


def signer(path: Path) -> Signer:
    """The key in a file (PEM, PKCS #8), which is made where it is missing.

    Raises:
        ConfigError: it cannot be read or made, or holds something else. The message never quotes it.
    """
    try:
        if not path.exists():
            _make(path)
        return read_signer(path)
    except OSError as error:
        raise ConfigError(
            f"ledger.key_file: {path}: {error.strerror}; name a file that the gate may write and keep"
        ) from None


def read_signer(path: Path) -> Signer:
    """The key in a file.

    Raises:
        OSError: it cannot be read.
        ConfigError: it holds something else.
    """
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    content = path.read_bytes()
    if path.stat().st_mode & 0o077:
        log.warning("ledger.key_file: %s: others can read it, and so sign checkpoints", path)
    try:
        private = load_pem_private_key(content, None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        private = None
    if not isinstance(private, Ed25519PrivateKey):
        raise ConfigError(f"ledger.key_file: {path}: holds no Ed25519 key (PEM, without a password)")
    return Signer(private)


def is_signed(checkpoint: Checkpoint) -> bool:
    """Whether the signature of a checkpoint is that of the key it names."""
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    try:
        key = Ed25519PublicKey.from_public_bytes(bytes.fromhex(checkpoint.key))
        key.verify(bytes.fromhex(checkpoint.signature), checkpoint.content)
    except (ValueError, InvalidSignature):
        return False
    return True


def _make(path: Path) -> None:
    """Makes the file at once and whole; where another process was faster, its key stays."""
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

    private = Ed25519PrivateKey.generate()
    content = private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}.") as file:  # 0600
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
        try:
            os.link(file.name, path)
        except FileExistsError:
            return
    sync_folder(path.parent)
    log.info("ledger.key_file: %s: made; checkpoints are signed with it. Keep a copy elsewhere", path)
