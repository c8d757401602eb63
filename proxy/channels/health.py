"""How a channel is doing: fit, ejected because it failed, or on trial after it has answered a probe.

An ejected channel whose failures cost no time is asked last: what it could still do is not given away. One
that has let an upload wait is shut: nobody asks it before it has answered a probe. This module only keeps
the account; who is asked, and the probing, are `lookout.py`'s.
"""

from __future__ import annotations

import enum

_FIRST_EJECTION_S = 1.0
_LONGEST_EJECTION_S = 60.0
# A failure that took longer is one that uploads cannot be made to wait for.
_CHEAP_S = 1.0


class _State(enum.Enum):
    FIT = enum.auto()
    EJECTED = enum.auto()
    ON_TRIAL = enum.auto()


class Health:
    """Of one channel. Times are seconds on the event loop's clock.

    Attributes:
        busy: how many looks are under way.
        probe_at: when an ejected channel is to be probed.
    """

    def __init__(self) -> None:
        self.busy = 0
        self.probe_at = 0.0
        self._state = _State.FIT
        self._ejected_at = float("-inf")
        self._is_costly = False  # of what failed while it is ejected, whether anybody had to wait for it
        self._failures = 0  # in a row: ejections, and probes in vain
        self._answered_at = float("-inf")

    @property
    def is_ejected(self) -> bool:
        """Whether it has failed and not answered since."""
        return self._state is _State.EJECTED

    @property
    def is_shut(self) -> bool:
        """Whether it is not to be asked at all: it has failed, and has let somebody wait for that. On trial
        such a one gets a single file, and nobody else waits for what comes of it.
        """
        is_tried = self._state is _State.ON_TRIAL and self.busy > 0
        return self._is_costly and (self.is_ejected or is_tried)

    @property
    def is_fit(self) -> bool:
        """Whether the next file may be its. On trial it gets one at a time, as what failed may fail again."""
        return self._state is _State.FIT or (self._state is _State.ON_TRIAL and not self.busy)

    def failed(self, began: float, now: float) -> bool:
        """A look that `began` at some time has failed.

        Returns:
            Whether the channel is ejected for it. What was under way when it was ejected fails for the same
            reason, and one asked for want of a better says nothing new: neither makes the ejection longer.
            One that took its time while others were answered is the file's own.
        """
        is_costly = now - began > _CHEAP_S
        if is_costly and began < self._answered_at:
            return False
        if self.is_ejected:
            self._is_costly = self._is_costly or is_costly
            return False
        if began <= self._ejected_at:
            return False
        self._state, self._ejected_at, self._is_costly = _State.EJECTED, now, is_costly
        self._wait_longer(now)
        return True

    def succeeded(self, now: float) -> bool:
        """A look has succeeded, so the channel is fit.

        Returns:
            Whether it was ejected until now.
        """
        was_ejected = self.is_ejected
        self._state, self._failures, self._answered_at = _State.FIT, 0, now
        return was_ejected

    def probe_failed(self, now: float) -> None:
        """A probe was in vain; the next one comes later."""
        self._wait_longer(now)

    def probe_succeeded(self) -> None:
        """The channel answers again. Whether it also looks, a trial has to show."""
        self._state = _State.ON_TRIAL

    def _wait_longer(self, now: float) -> None:
        # The exponent has a bound of its own: a float has one too.
        self.probe_at = now + min(_LONGEST_EJECTION_S, _FIRST_EJECTION_S * 2 ** min(self._failures, 10))
        self._failures += 1
