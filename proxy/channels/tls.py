"""TLS to a classifier: whom the gate trusts there, and what it shows of itself."""

from __future__ import annotations

import ssl
from pathlib import Path

from proxy.errors import ConfigError


def client_context(
    key: str, *, ca_file: Path | None, certificate_file: Path | None, key_file: Path | None
) -> ssl.SSLContext | None:
    """What to reach a classifier with; None where the system's own trust will do.

    Args:
        key: of the classifier in the configuration, for messages.
        ca_file: PEM; what is in it is trusted, and nothing else. A CA, or the classifier's own certificate.
        certificate_file, key_file: PEM, both or none; to show to a classifier that asks for them.

    Raises:
        ConfigError: a file is missing, unreadable or holds something else. The message never quotes it.
    """
    if ca_file is None and certificate_file is None:
        return None
    if ca_file is not None:
        _readable(f"{key}.ca_file", ca_file)
    try:
        context = ssl.create_default_context(cafile=ca_file)
    except ssl.SSLError:
        raise ConfigError(
            f"{key}.ca_file: {ca_file}: must hold PEM certificates (-----BEGIN CERTIFICATE-----); "
            "give the classifier's own certificate or that of the CA which signed it"
        ) from None
    # So that a classifier's own certificate suffices also where a CA has signed it.
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    if certificate_file is not None and key_file is not None:
        _readable(f"{key}.certificate_file", certificate_file)
        _readable(f"{key}.key_file", key_file)
        try:
            # A key with a password would have Python ask at the terminal for it; this one is never right.
            context.load_cert_chain(certificate_file, key_file, password="")
        except (ssl.SSLError, ValueError):
            raise ConfigError(
                f"{key}.certificate_file, {key}.key_file: {certificate_file}, {key_file}: must be a PEM "
                "certificate and the private key that belongs to it, without a password"
            ) from None
    return context


def _readable(key: str, path: Path) -> None:
    try:
        path.read_bytes()
    except OSError as error:
        raise ConfigError(f"{key}: {path}: {error.strerror}; create the file or mend the path") from None
