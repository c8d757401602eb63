"""Named points at which a test kills the gate, to see what a crash there leaves behind.

In production `PICTRS_GATE_FAULT` is not set and reaching a point does nothing.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable

from proxy.errors import ConfigError

FaultPoint = Callable[[str], None]

# In the order in which they are reached. `tests/test_crashes.py` kills the gate at each, and checks that
# these are all that there are.
HOLDING = (  # and deferring
    "case-begun",  # written, not synced
    "case-written",  # synced, not named
    "case-named",  # named, folder not synced
    "case-sealed",
    "case-recorded",
    "kept",  # pict-rs has none of the request's other files yet
    "forwarded",  # pict-rs has them, and nobody is answered
    "withdrawing",  # pict-rs has refused them; what was promised is to be withdrawn
    "withdrawn",
)
LOOKING_LATER = (  # at what was deferred
    "backlog-looked",  # and nothing is written down yet
    "backlog-settled",  # pending or released, and the gate can open it still
    "backlog-resealed",  # beside the one of before
    "case-replaced",  # and nothing says so
)
ALLOWING_UNSEEN = (
    "unseen-stored",  # pict-rs has it, and nothing says that nobody has looked
    "unseen-looked",
    "unseen-held",  # sealed and promised, and pict-rs has it too
)
BACKFILLING = ("hit-held",)  # sealed and promised, and pict-rs has it too
TAKING_AWAY = (
    "alias-taken",  # one of several
    "all-taken",  # and nothing says so
)
RELEASING = (
    "release-opened",  # and nothing is written down yet
    "release-begun",
    "importing",
    "imported",  # and nothing says so
    "import-noted",
    "release-refused",  # by pict-rs
    "release-taken-back",  # pict-rs has nothing of it any more, and the case is `releasing`
    "released",
)
CONFIRMING = (
    "confirming",
    "taking-back",  # written down, and pict-rs has it still
    "taken-back",  # between that and the confirmation
    "confirmed",
)
ROTATING = (
    "case-resealed",  # beside the one of before
    "case-swapped",  # and nothing says so
    "case-reseal-noted",  # and the one of before is still there
)
EXPIRING = (
    "expired",  # and its bytes are still there
    "bytes-deleted",  # and nothing says so
)
ANY_WRITE = ("uncommitted", "committed")  # of the database, whatever it is that is written
POINTS = (
    *HOLDING,
    *LOOKING_LATER,
    *ALLOWING_UNSEEN,
    *RELEASING,
    *CONFIRMING,
    *BACKFILLING,
    *TAKING_AWAY,
    *ROTATING,
    *EXPIRING,
    *ANY_WRITE,
)
_STOP = ":stop"


def nowhere(point: str) -> None:
    """The fault point of whoever does not die."""


def from_environment() -> FaultPoint:
    """The fault point to die at, from `PICTRS_GATE_FAULT`; without it, none.

    `A` dies at the point of that name, `A>B` at `B` where `A` was reached before, and so on. At `A:stop`
    everything stands still, until a test that has made things worse meanwhile sends SIGCONT.

    Raises:
        ConfigError: there is no such point.
    """
    wanted = os.environ.get("PICTRS_GATE_FAULT")
    if not wanted:
        return nowhere
    left = wanted.split(">")
    if unknown := {word.removesuffix(_STOP) for word in left} - set(POINTS):
        raise ConfigError(f"PICTRS_GATE_FAULT: {', '.join(sorted(unknown))}: there is no such point")
    lock = threading.Lock()

    def reached(point: str) -> None:
        with lock:
            if not left or point != left[0].removesuffix(_STOP):
                return
            if left.pop(0).endswith(_STOP):  # this thread at once, and all others with it
                signal.pthread_kill(threading.get_ident(), signal.SIGSTOP)
            elif not left:
                os.kill(os.getpid(), signal.SIGKILL)

    return reached
