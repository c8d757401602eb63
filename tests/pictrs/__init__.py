"""pict-rs for tests and demo: the real one where there is one, else the stand-in."""

from __future__ import annotations

import os
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path

from tests.processes import Program, answers, free_port

API_KEY = "test-api-key"
_CACHE = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "pictrs-gate"
_VERSION = "0.5.25"


def find() -> Path | None:
    """The real pict-rs: what `PICTRS_BIN` names, else what `make pict-rs` has installed, else None."""
    named = os.environ.get("PICTRS_BIN")
    if named:
        return Path(named) if named != "stand-in" else None
    installed = _CACHE / f"pict-rs-{_VERSION}" / "bin" / "pict-rs"
    return installed if installed.exists() else None


def version(binary: Path | None) -> str:
    """For people: `pict-rs 0.5.25`, or the stand-in."""
    if binary is None:
        return "stand-in"
    shown = subprocess.run([binary, "--version"], capture_output=True, text=True, check=True).stdout
    return shown.strip()


class Pictrs:
    """A running pict-rs with a store of its own."""

    def __init__(
        self,
        folder: Path,
        *,
        real: Path | None,
        max_files: int = 4,
        max_file_size_mb: int = 40,
        settings: dict[str, str] | None = None,
        validation: str | None = None,
        dummy: bool = False,
        faults: tuple[str, ...] = (),
    ) -> None:
        """
        Args:
            folder: for its store, its database and its log.
            real: the program; None starts the stand-in.
            settings: more of pict-rs's own, without `PICTRS__`.
            validation: URL of the validation hook.
            dummy: store whatever comes, byte for byte, without looking at it (`danger_dummy_mode`).
            faults: options of the stand-in.
        """
        folder.mkdir(parents=True, exist_ok=True)
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.api_key = API_KEY
        self.store = folder / "files"
        self.is_real = real is not None
        if real is None:
            hook = ["--validation", validation] if validation else []
            hook += ["--dummy"] if dummy else []
            limits = ["--max-files", str(max_files), "--max-file-size-mb", str(max_file_size_mb)]
            command = [sys.executable, "-m", "tests.pictrs", "--port", str(self.port), "--api-key", API_KEY]
            self.program = Program(
                [*command, "--store", self.store, *limits, *hook, *faults],
                folder / "log",
                cwd=Path(__file__).parents[2],
            )
        else:
            if dummy:
                settings = {**(settings or {}), "SERVER__DANGER_DUMMY_MODE": "true"}
            if validation:
                settings = {**(settings or {}), "MEDIA__EXTERNAL_VALIDATION": validation}
            assert not faults, "only the stand-in plays faults"
            self.program = Program(
                [real, "run"],
                folder / "log",
                cwd=folder,
                env=_environment(folder, self.port, self.store, max_files, max_file_size_mb)
                | _named(settings or {}),
            )
        self.program.wait_until(lambda: answers(f"{self.url}/healthz"))
        self.is_06 = self._has_limits()

    def stored_files(self) -> list[Path]:
        """The files in its store."""
        return [path for path in self.store.rglob("*") if path.is_file()]

    def stop(self) -> None:
        """Ends it."""
        self.program.stop()

    def _has_limits(self) -> bool:
        request = urllib.request.Request(f"{self.url}/internal/limits", headers={"X-Api-Token": self.api_key})
        try:
            with urllib.request.urlopen(request, timeout=5):
                return True
        except urllib.error.HTTPError:
            return False


def _environment(
    folder: Path, port: int, store: Path, max_files: int, max_file_size_mb: int
) -> dict[str, str]:
    temporary = folder / "tmp"
    temporary.mkdir(exist_ok=True)
    settings = {
        "SERVER__ADDRESS": f"127.0.0.1:{port}",
        "SERVER__API_KEY": API_KEY,
        "SERVER__MAX_FILE_COUNT": str(max_files),
        "SERVER__TEMPORARY_DIRECTORY": str(temporary),
        "REPO__TYPE": "sled",
        "REPO__PATH": str(folder / "sled"),
        "STORE__TYPE": "filesystem",
        "STORE__PATH": str(store),
        "MEDIA__MAX_FILE_SIZE": str(max_file_size_mb),
        "CLIENT__ALLOW_LOCAL_CONNECTIONS": "true",
    }
    # Where the machine has no `magick`, ours stands for it.
    return _named(settings) | {"PATH": f"{os.environ['PATH']}:{_CACHE / 'magick'}"}


def _named(settings: dict[str, str]) -> dict[str, str]:
    return {f"PICTRS__{name}": value for name, value in settings.items()}
