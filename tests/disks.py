"""Disks that are small enough to be full."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest


@contextmanager
def small_disk(at: Path, megabytes: int = 2, files: int = 80) -> Iterator[Path]:
    """A disk of its own, of so many megabytes and files, so that it can really be full."""
    at.mkdir(parents=True, exist_ok=True)
    options = f"size={megabytes}m,nr_inodes={files},mode=700"
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", at], capture_output=True)
    if mounted.returncode:
        pytest.skip("only root may mount a disk of its own; `.ci/run` is run as root")
    try:
        yield at
    finally:
        subprocess.run(["umount", "-l", at], check=True)


def fill(disk: Path) -> Path:
    """A file that takes all that is free."""
    path = disk / "filler"
    with path.open("wb", buffering=0) as file:
        try:
            while file.write(bytes(4096)):
                pass
        except OSError:
            return path
    raise AssertionError("the disk does not end")
