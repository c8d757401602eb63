"""Starts our own programs by forking a process that has imported them: imports take longer than most tests.

What runs is the installed command's own function, in a process of its own with the arguments, environment,
folder and files that it was given; it is signalled, killed and waited for as any other. Only the tests do so:
the demo and the benchmarks start commands as an operator does, and tests/test_starting.py shows that commands
start from cold.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import json
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NoReturn

# What runs in each program's process, and what it has imported: all that a start needs.
_GATE, _CLASSIFIER, _PICTRS = "pictrs-gate", "pictrs-classifier", "tests.pictrs"
_IMPORTS = {
    _GATE: (
        *("proxy.cli", "alembic.command", "alembic.context", "aiohttp.web"),
        *(
            "cryptography.hazmat.primitives.asymmetric.ed25519",
            "cryptography.hazmat.primitives.serialization",
        ),
        *("psycopg", "PIL.BmpImagePlugin", "PIL.GifImagePlugin", "PIL.JpegImagePlugin", "PIL.PngImagePlugin"),
    ),
    _CLASSIFIER: ("classifier.commands", "classifier.heads.scripted"),
    _PICTRS: ("aiohttp.web", "PIL.ImageFilter", "PIL.ImageOps", "proxy.aliases", "proxy.media"),
}
_LONGEST_REQUEST = 1 << 20
_PID_BYTES = 8


class Forked:
    """A process as `subprocess.Popen` would give it."""

    def __init__(self, words: Sequence[str], pid: int, status: int) -> None:
        """`status`: a pipe that its exit status comes from once it has ended."""
        self.args, self.pid = list(words), pid
        self.returncode: int | None = None
        self._status, self._reading = status, threading.Lock()

    def poll(self) -> int | None:
        """Its exit status; None while it runs."""
        return self._ended(0)

    def wait(self, timeout: float | None = None) -> int:
        """Its exit status, waited for.

        Raises:
            subprocess.TimeoutExpired: it still runs after `timeout` seconds.
        """
        status = self._ended(timeout)
        if status is None:
            raise subprocess.TimeoutExpired(self.args, timeout or 0)
        return status

    def send_signal(self, number: int) -> None:
        """Sends it a signal, where it still runs."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def terminate(self) -> None:
        """Asks it to end."""
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """kill -9."""
        self.send_signal(signal.SIGKILL)

    def _ended(self, timeout: float | None) -> int | None:
        with self._reading:
            if self.returncode is None and select.select([self._status], [], [], timeout)[0]:
                told = os.read(self._status, 100)
                os.close(self._status)
                assert told, "the process that forks is gone"
                self.returncode = int(told)
        return self.returncode


class Forks:
    """Starts programs; has one process that forks for each kind of them, from when it is first needed."""

    def __init__(self) -> None:
        self._forking: dict[tuple[str, ...], tuple[subprocess.Popen[bytes], socket.socket]] = {}
        self._asking = threading.Lock()

    def start(
        self,
        words: Sequence[str],
        *,
        stdout: int,
        stderr: int,
        env: Mapping[str, str],
        cwd: Path | None,
        imported: Sequence[str] = (),
    ) -> Forked | None:
        """Starts a command in a session of its own; None where it is no program of ours.

        Args:
            imported: modules that it has imported already, beside those of every such program.
        """
        name = _name(words)
        if name is None:
            return None
        asked = {"words": list(words), "env": dict(env), "cwd": str(cwd or Path.cwd()), "umask": _umask()}
        with self._asking, Path(os.devnull).open("rb") as nothing:
            control = self._control(name, *imported)
            near, far = os.pipe()
            try:
                files = [nothing.fileno(), stdout, stderr, far]
                socket.send_fds(control, [json.dumps(asked).encode()], files)
            finally:
                os.close(far)
            pid = os.read(near, _PID_BYTES)
            assert pid, f"the process that forks for {name} is gone"
            return Forked(words, int.from_bytes(pid), near)

    def close(self) -> None:
        """Ends the processes that fork; what they have started goes on."""
        for process, control in self._forking.values():
            control.close()
            process.wait(10)
        self._forking.clear()

    def _control(self, *kind: str) -> socket.socket:
        if kind not in self._forking:
            near, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            with far:
                process = subprocess.Popen(
                    [sys.executable, "-m", "tests.forking", str(far.fileno()), *kind],
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    cwd=Path(__file__).parents[1],
                    pass_fds=[far.fileno()],
                    start_new_session=True,
                )
            self._forking[kind] = process, near
        return self._forking[kind][1]


def _name(words: Sequence[str]) -> str | None:
    first = Path(words[0])
    if first.parent == Path(sys.executable).parent and first.name in (_GATE, _CLASSIFIER):
        return first.name
    return _PICTRS if list(words[:3]) == [sys.executable, "-m", _PICTRS] else None


def _umask() -> int:
    """That of this process, which cannot be asked for without setting it."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("Umask:")).split()[1], 8)


def _serve(control: socket.socket) -> Callable[[], object]:
    """Forks whenever it is asked to. Returns in the forked processes only, with what is to run there."""
    near, far = os.pipe()
    for end in (near, far):
        os.set_blocking(end, False)
    signal.set_wakeup_fd(far, warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    statuses: dict[int, int] = {}
    while True:
        ready, _, _ = select.select([control, near], [], [])
        if near in ready:
            os.read(near, 4096)
            _tell(statuses)
        if control not in ready:
            continue
        message, files, _, _ = socket.recv_fds(control, _LONGEST_REQUEST, 4)
        if not message:
            sys.exit(0)  # nobody is left who could ask
        pid = os.fork()
        if pid == 0:
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            return _become(json.loads(message), files, control)
        statuses[pid] = files.pop()
        for file in files:
            os.close(file)


def _tell(statuses: dict[int, int]) -> None:
    """Tells of every process that has ended how."""
    while statuses:
        pid, status = os.waitpid(-1, os.WNOHANG)
        if pid == 0:
            return
        with contextlib.suppress(BrokenPipeError):
            os.write(statuses[pid], str(os.waitstatus_to_exitcode(status)).encode())
        os.close(statuses.pop(pid))


def _become(asked: dict[str, object], files: list[int], control: socket.socket) -> Callable[[], object]:
    """Makes this process look like one that was just started."""
    words, env = asked["words"], asked["env"]
    assert isinstance(words, list) and isinstance(env, dict)
    os.setsid()
    for number in range(3):
        os.dup2(files[number], number)
    os.write(files[3], os.getpid().to_bytes(_PID_BYTES))
    control.detach()
    os.closerange(3, 1024)
    os.chdir(str(asked["cwd"]))
    os.umask(int(str(asked["umask"])))
    os.environ.clear()
    os.environ.update(env)
    time.tzset()
    if (name := _name(words)) == _PICTRS:
        sys.argv = words[2:]
        return lambda: runpy.run_module(_PICTRS, run_name="__main__", alter_sys=True)
    assert name is not None
    sys.argv = words
    main: Callable[[], int] = importlib.import_module(_IMPORTS[name][0]).main
    return main


def _main() -> NoReturn:
    number, name, *more = sys.argv[1:]
    control = socket.socket(fileno=int(number))
    for module in (*_IMPORTS[name], *more):
        importlib.import_module(module)
    if name == _GATE:
        importlib.import_module("sqlalchemy.orm").configure_mappers()
    gc.freeze()
    run = _serve(control)
    sys.exit(run())  # type: ignore[arg-type]


if __name__ == "__main__":
    _main()
