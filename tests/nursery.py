"""Starts `pictrs-gate` as forks of one program that has everything imported, which takes a tenth of a second.

`python -m tests.nursery` is that program: it is told by lines of JSON what to start; it ends with its caller.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from proxy import cli

_WITHIN_S = 60.0


class Nursery:
    """Starts `pictrs-gate` as forks."""

    def __init__(self) -> None:
        self._program = subprocess.Popen(
            [sys.executable, "-m", "tests.nursery"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd=Path(__file__).parents[1],
            env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])},
            text=True,
        )

    def start(self, words: Sequence[str | Path], log: Path, fault: str | None) -> int:
        """Starts a command that is to die at `fault`; its process id."""
        env = {"PICTRS_GATE_FAULT": fault or ""}
        return self._ask({"words": [str(word) for word in words], "log": str(log), "env": env})

    def wait(self, pid: int) -> int:
        """Waits until it has ended; its exit status, -9 where it was killed."""
        return self._ask({"wait": pid})

    def close(self) -> None:
        """Ends it, with everything that it has started."""
        assert self._program.stdin is not None
        self._program.stdin.close()
        self._program.wait(20)

    def _ask(self, asked: Mapping[str, object]) -> int:
        assert self._program.stdin is not None and self._program.stdout is not None
        self._program.stdin.write(json.dumps(asked) + "\n")
        self._program.stdin.flush()
        return int(self._program.stdout.readline())


def _nurse() -> None:
    children: set[int] = set()
    for line in sys.stdin:
        asked = json.loads(line)
        if "wait" in asked:
            answer = _ended(asked["wait"])
            children.discard(asked["wait"])
        else:
            answer = os.fork()
            if answer == 0:
                _become(asked)
            children.add(answer)
        print(answer, flush=True)
    for child in children:
        os.kill(child, signal.SIGKILL)


def _ended(pid: int) -> int:
    end = time.monotonic() + _WITHIN_S
    while time.monotonic() < end:
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.005)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    return 124  # as `timeout` says it: it should have died, and did not


def _become(asked: Mapping[str, object]) -> None:
    os.setsid()
    log = os.open(str(asked["log"]), os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    for descriptor, into in ((os.open(os.devnull, os.O_RDONLY), 0), (log, 1), (log, 2)):
        os.dup2(descriptor, into)
    os.environ.update(asked["env"])  # type: ignore[call-overload]
    os._exit(cli.main(asked["words"]))  # type: ignore[arg-type]


if __name__ == "__main__":
    _nurse()
