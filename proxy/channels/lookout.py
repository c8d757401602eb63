"""Chooses who looks: the least busy channel, another one where it fails, none once the time is up."""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Sequence

from proxy.channels.looks import Channel, ChannelError, File, Look, Priority, Seen, Undecodable, Unseen
from proxy.errors import ConfigError
from proxy.metrics import Metrics

log = logging.getLogger(__name__)


class Lookout:
    """All channels as one: asks until somebody looked or the time is up. Never raises for want of a look."""

    def __init__(self, channels: Sequence[Channel], needed: frozenset[str], metrics: Metrics) -> None:
        """
        Args:
            channels: those that are always there; others come and go by `add` and `remove`.
            needed: the signals that the policy names; a look without one of them is none.
            metrics: what to count in.
        """
        self._needed = needed
        self._metrics = metrics
        self._busy: dict[Channel, int] = dict.fromkeys(channels, 0)  # in the order of coming

    def add(self, channel: Channel) -> None:
        """From now on `channel` is asked too, also about files whose look is under way."""
        self._busy.setdefault(channel, 0)

    def remove(self, channel: Channel) -> None:
        """From now on `channel` is not asked any more. What it was asked before is for it to end, and closing
        it for whoever removes it.
        """
        self._busy.pop(channel, None)

    async def check(self) -> None:
        """Asks every channel which signals it has.

        Raises:
            ConfigError: one that answers lacks a signal that a rule names.
        """
        for channel in list(self._busy):
            try:
                missing = self._needed - await channel.signals()
            except ChannelError as error:
                log.warning("classifier not usable yet: %s", error)
                continue
            if missing:
                raise ConfigError(
                    f"policy.rules: {channel.name} has no signal {', '.join(sorted(missing))}; "
                    "name signals that its ensemble has (pictrs-classifier info shows them)"
                )
            log.info("classifier %s is ready", channel.name)

    async def look(self, file: File, *, priority: Priority, within_s: float) -> Look:
        """Has one file looked at.

        Args:
            file: the file.
            priority: live uploads go before backfill.
            within_s: seconds after which it counts as looked at by nobody.
        """
        loop = asyncio.get_running_loop()
        deadline = loop.time() + within_s
        started = loop.time()
        look = await self._look(file, priority, deadline)
        self._metrics.looks.labels(outcome=type(look).__name__.lower()).inc()
        self._metrics.look_seconds.observe(loop.time() - started)
        if isinstance(look, Unseen):
            log.warning("nobody could look: %s", look.reason)
        return look

    async def _look(self, file: File, priority: Priority, deadline: float) -> Look:
        loop = asyncio.get_running_loop()
        reasons: dict[Channel, str] = {}
        undecodable: Undecodable | None = None
        not_before: dict[Channel, float] = {}  # the time before which not to ask it (again)
        while untried := [one for one in self._busy if not_before.get(one, 0.0) < math.inf]:
            channel = min(untried, key=lambda one: (not_before.get(one, 0.0), self._busy[one]))
            wait = not_before.get(channel, 0.0) - loop.time()
            if loop.time() + max(wait, 0.0) >= deadline:
                break
            if wait > 0:
                await asyncio.sleep(wait)
                continue
            not_before[channel] = math.inf
            try:
                look = await self._ask(channel, file, priority, deadline - loop.time())
            except ChannelError as error:
                reasons[channel] = str(error)
                if error.retry_after_s is not None:
                    not_before[channel] = loop.time() + error.retry_after_s
                continue
            if isinstance(look, Seen):
                return look
            undecodable = look  # another one may know the format
        if undecodable is None and not self._busy and not reasons:
            return Unseen("no classifier is connected")
        return undecodable or Unseen("; ".join(reasons.values()) or "the time was up")

    async def _ask(
        self, channel: Channel, file: File, priority: Priority, within_s: float
    ) -> Seen | Undecodable:
        self._busy[channel] += 1
        try:
            look = await channel.look(file, priority=priority, within_s=within_s)
        finally:
            if channel in self._busy:  # it may have gone
                self._busy[channel] -= 1
        if isinstance(look, Seen) and (missing := self._needed - look.signals.keys()):
            raise ChannelError(f"{channel.name} gives no signal {', '.join(missing)}, which a rule names")
        return look

    async def close(self) -> None:
        """Closes every channel."""
        for channel in self._busy:
            await channel.close()
