"""Named points at which a test kills the gate, to see what a crash there leaves behind.

In production `PICTRS_GATE_FAULT` is not set and reaching a point does nothing.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable

FaultPoint = Callable[[str], None]


def from_environment() -> FaultPoint:
    """The fault point to die at, from `PICTRS_GATE_FAULT`; without it, none."""
    deadly = os.environ.get("PICTRS_GATE_FAULT")

    def reached(point: str) -> None:
        if point == deadly:
            os.kill(os.getpid(), signal.SIGKILL)

    return reached
