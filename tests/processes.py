"""Starts the programs that tests and demo need on free loopback ports, and ends them by process id."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO

from tests.forking import Forked, Forks

# What starts our own programs where they have to start quickly; None starts them as an operator does.
forks: Forks | None = None


def free_port() -> int:
    """A TCP port of 127.0.0.1 that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


class Program:
    """A program that runs until it is stopped. Its output goes to a file."""

    def __init__(
        self,
        command: Sequence[str | Path],
        log: Path,
        *,
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
    ) -> None:
        self.log = log
        self._command = [str(word) for word in command]
        with log.open("ab") as output:
            self.process = _started(self._command, output, output, {**os.environ, **(env or {})}, cwd)

    def wait_until(self, ready: Callable[[], bool], within_s: float = 30.0) -> None:
        """Waits until `ready()`; raises with the program's output where it ends or takes too long."""
        end = time.monotonic() + within_s
        while not ready():
            if self.process.poll() is not None or time.monotonic() > end:
                status = self.process.poll()
                self.kill()
                raise RuntimeError(f"{self._command[0]}: not ready (status {status}):\n{self.output()}")
            time.sleep(0.03)

    def output(self) -> str:
        """Everything that it has printed."""
        return self.log.read_text(errors="replace")

    def resident_mb(self, *, peak: bool = False) -> int:
        """Memory that it has in use, or had at most, in MiB."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        line = next(line for line in status.splitlines() if line.startswith("VmHWM" if peak else "VmRSS"))
        return int(line.split()[1]) // 1024

    def stop(self, within_s: float = 20.0) -> int:
        """Asks it to end, insists after a while; returns the exit status."""
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(within_s)
            except subprocess.TimeoutExpired:
                self.kill()
        return self.process.returncode

    def kill(self) -> None:
        """kill -9, of it and of what it has started."""
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


def run(
    command: Sequence[str | Path],
    *,
    check: bool = True,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    within_s: float = 120,
    imported: Sequence[str] = (),
) -> subprocess.CompletedProcess[str]:
    """Runs a command to its end, as `subprocess.run` does, and returns what it has printed.

    Args:
        imported: modules that take long to import and that a program of ours needs.
    """
    words = [str(word) for word in command]
    with tempfile.TemporaryFile() as stdout, tempfile.TemporaryFile() as stderr:
        process = _started(words, stdout, stderr, {**os.environ, **(env or {})}, cwd, imported)
        try:
            status = process.wait(within_s)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            raise
        printed = [_all_of(stdout), _all_of(stderr)]
    if check and status:
        raise subprocess.CalledProcessError(status, words, *printed)
    return subprocess.CompletedProcess(words, status, *printed)


def _started(
    words: Sequence[str],
    stdout: IO[bytes],
    stderr: IO[bytes],
    env: Mapping[str, str],
    cwd: Path | None,
    imported: Sequence[str] = (),
) -> subprocess.Popen[bytes] | Forked:
    if forks is not None:
        files = {"stdout": stdout.fileno(), "stderr": stderr.fileno()}
        forked = forks.start(words, **files, env=env, cwd=cwd, imported=imported)
        if forked is not None:
            return forked
    return subprocess.Popen(
        words,
        stdout=stdout,
        stderr=stderr,
        stdin=subprocess.DEVNULL,
        env=env,
        cwd=cwd,
        start_new_session=True,
    )


def _all_of(file: IO[bytes]) -> str:
    file.seek(0)
    return file.read().decode()


def answers(url: str) -> bool:
    """Whether anything answers HTTP at `url`, whatever the status."""
    try:
        with urllib.request.urlopen(url, timeout=2):
            return True
    except urllib.error.HTTPError:
        return True
    except OSError:
        return False
