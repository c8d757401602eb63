"""Certificates for tests, by the openssl command."""

from __future__ import annotations

import subprocess
from pathlib import Path


class Authority:
    """A private CA in a folder, which also signs."""

    def __init__(self, folder: Path, name: str) -> None:
        self._folder, self._name = folder, name
        self.file = self._make(name, "-addext", "basicConstraints=critical,CA:TRUE")

    def sign(self, name: str, alternative: str) -> tuple[Path, Path]:
        """The certificate of `name` for a host, as openssl names it (`IP:…`, `DNS:…`), and its key."""
        ca: list[str | Path] = ["-CA", self.file, "-CAkey", self.file.with_suffix(".key")]
        usage = ["-addext", "basicConstraints=critical,CA:FALSE", "-addext", f"subjectAltName={alternative}"]
        certificate = self._make(name, *ca, *usage)
        return certificate, certificate.with_suffix(".key")

    def _make(self, name: str, *options: str | Path) -> Path:
        certificate, key = self._folder / f"{name}.pem", self._folder / f"{name}.key"
        kind = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2"]
        where: list[str | Path] = ["-subj", f"/CN={name}", "-out", certificate, "-keyout", key]
        command = ["openssl", "req", "-x509", *kind, *where, *options]
        subprocess.run(command, check=True, capture_output=True, timeout=60)
        return certificate
