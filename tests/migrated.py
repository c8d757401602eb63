"""New SQLite databases with the gate's tables, copied: migrating costs more than most tests.

tests/test_migrating.py shows that a gate makes them itself.
"""

from __future__ import annotations

import functools
import tempfile
from pathlib import Path

from proxy.database import Database


def new(file: Path) -> str:
    """Makes `file`, for this user only, as the gate does; returns its URL."""
    file.touch(0o600, exist_ok=False)
    file.write_bytes(_tables())
    return f"sqlite:///{file}"


@functools.cache
def _tables() -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "gate.db"
        Database(f"sqlite:///{file}").close()
        assert [path.name for path in file.parent.iterdir()] == [file.name], "not all of it is in the file"
        return file.read_bytes()
