"""Chooses who looks: the least busy channel, another one where it fails, none once the time is up."""

from __future__ import annotations

import asyncio
import logging
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
            channels: at least one.
            needed: the signals that the policy names; a look without one of them is none.
            metrics: what to count in.
        """
        self._channels = channels
        self._needed = needed
        self._metrics = metrics
        self._busy = dict.fromkeys((channel.name for channel in channels), 0)

    async def check(self) -> None:
        """Asks every channel which signals it has.

        Raises:
            ConfigError: one that answers lacks a signal that a rule names.
        """
        for channel in self._channels:
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
        reasons: dict[str, str] = {}
        waiting = {channel.name: 0.0 for channel in self._channels}  # not before that time
        while waiting:
            now = loop.time()
            ready = [channel for channel in self._channels if waiting.get(channel.name, deadline) <= now]
            if not ready:
                pause = min(waiting.values()) - now
                if now + pause >= deadline:
                    break
                await asyncio.sleep(pause)
                continue
            if deadline - now <= 0:
                break
            channel = min(ready, key=lambda channel: self._busy[channel.name])
            try:
                return await self._ask(channel, file, priority, deadline - now)
            except ChannelError as error:
                reasons[channel.name] = str(error)
                if error.retry_after_s is None:
                    del waiting[channel.name]
                else:
                    waiting[channel.name] = loop.time() + error.retry_after_s
        return Unseen("; ".join(reasons.values()) or "the time was up")

    async def _ask(self, channel: Channel, file: File, priority: Priority, within_s: float) -> Look:
        self._busy[channel.name] += 1
        try:
            look = await channel.look(file, priority=priority, within_s=within_s)
        finally:
            self._busy[channel.name] -= 1
        if not isinstance(look, Seen):
            return look
        if missing := self._needed - look.signals.keys():
            raise ChannelError(f"{channel.name} gives no signal {', '.join(missing)}, which a rule names")
        if _family(look.format) != _family(file.media.name):
            # Two readings of one file: what was looked at need not be what pict-rs will show.
            return Undecodable(f"its signature says {file.media.name}, its decoder {look.format}")
        return look

    async def close(self) -> None:
        """Closes every channel."""
        for channel in self._channels:
            await channel.close()


def _family(name: str) -> str:
    """One name for formats that only their number of frames tells apart."""
    return {"apng": "png", "mov": "mp4"}.get(name, name)
