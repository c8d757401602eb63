"""Chooses who looks: the least busy fit channel, another one where it fails, none once the time is up."""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Callable, Sequence

from proxy.channels.health import Health
from proxy.channels.looks import Channel, ChannelError, File, Look, Priority, Seen, Undecodable, Unseen
from proxy.errors import ConfigError
from proxy.metrics import Metrics

log = logging.getLogger(__name__)

_PROBE_S = 5.0
# A look that failed and had no more time than this says more of a slow upload than of the channel.
_FAIR_S = 0.5
# While it waits for a channel that is overloaded, a look learns this often who has come or is fit again.
_GLANCE_S = 0.5
# After which what was cut off before the file's time was up may be asked about it once more.
_CUT_S = 1.0


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
        self._healths: dict[Channel, Health] = {}  # in the order of coming
        self._probes: dict[Channel, asyncio.Task[None]] = {}
        self.looked = 0  # how many files somebody has looked at, since the start
        for channel in channels:
            self.add(channel)

    def add(self, channel: Channel) -> None:
        """From now on `channel` is asked too, also about files whose look is under way."""
        self._healths.setdefault(channel, Health())
        self._show()

    def remove(self, channel: Channel) -> None:
        """From now on `channel` is not asked any more. What it was asked before is for it to end, and closing
        it for whoever removes it.
        """
        self._healths.pop(channel, None)
        self._end_probe(channel)
        self._show()

    @property
    def is_hopeful(self) -> bool:
        """Whether there is anybody to ask who has not just failed."""
        return any(not health.is_ejected for health in self._healths.values())

    async def check(self) -> None:
        """Asks every channel which signals it has.

        Raises:
            ConfigError: one that answers lacks a signal that a rule names.
        """
        for channel in list(self._healths):
            began = asyncio.get_running_loop().time()
            try:
                missing = self._needed - await _signals(channel)
            except ChannelError as error:
                log.warning("classifier not usable yet: %s", error)
                self._eject(channel, began)
                continue
            if missing:
                raise ConfigError(
                    f"policy.rules: {channel.name} has no signal {', '.join(sorted(missing))}; "
                    "name signals that its ensemble has (pictrs-classifier info shows them)"
                )
            log.info("classifier %s is ready", channel.name)

    async def ensembles(self) -> frozenset[str]:
        """What looks now: name and version of each, as far as the channels tell."""
        found = set()
        for channel in list(self._healths):
            try:
                found.add(await channel.ensemble())
            except ChannelError as error:
                log.warning("classifier not usable yet: %s", error)
        return frozenset(one for one in found if one is not None)

    async def look(
        self,
        file: File,
        *,
        priority: Priority,
        within_s: float,
        on_overloaded: Callable[[], None] | None = None,
    ) -> Look:
        """Has one file looked at.

        Args:
            file: the file.
            priority: live uploads go before backfill.
            within_s: seconds after which it counts as looked at by nobody.
            on_overloaded: told whenever a channel says that it has too much to do.
        """
        loop = asyncio.get_running_loop()
        deadline = loop.time() + within_s
        started = loop.time()
        look = await self._look(file, priority, deadline, on_overloaded)
        self._metrics.looks.labels(outcome=type(look).__name__.lower()).inc()
        self._metrics.look_seconds.observe(loop.time() - started)
        if isinstance(look, Unseen):
            log.warning("nobody could look: %s", look.reason)
        else:
            self.looked += 1
        return look

    async def close(self) -> None:
        """Ends the probing and closes every channel."""
        probes = list(self._probes.values())
        for probe in probes:
            probe.cancel()
        await asyncio.gather(*probes, return_exceptions=True)
        for channel in list(self._healths):
            await channel.close()

    async def _look(
        self, file: File, priority: Priority, deadline: float, on_overloaded: Callable[[], None] | None
    ) -> Look:
        loop = asyncio.get_running_loop()
        reasons: dict[Channel, str] = {}
        has_failed = False
        undecodable: Undecodable | None = None
        not_before: dict[Channel, float] = {}  # of those asked: when to ask them again, if ever
        while (now := loop.time()) < deadline:
            channel, until = self._choice(not_before, now, deadline)
            if channel is None:
                if until >= deadline:
                    break
                await asyncio.sleep(min(until - now, _GLANCE_S))
                continue
            not_before[channel] = math.inf
            try:
                look = await self._ask(channel, file, priority, until - now)
            except ChannelError as error:
                reasons[channel] = str(error)
                has_failed = has_failed or error.retry_after_s is None
                if error.retry_after_s is not None:
                    not_before[channel] = loop.time() + error.retry_after_s
                    if on_overloaded is not None:
                        on_overloaded()
                elif until < deadline and loop.time() >= until:
                    not_before[channel] = loop.time() + _CUT_S  # it was not given all the time there is
                continue
            if isinstance(look, Seen):
                return look
            undecodable = look  # another one may know the format
        if undecodable is not None:
            return undecodable
        nobody = "the time was up"
        if all(health.is_shut for health in self._healths.values()):
            nobody = "no classifier answers" if self._healths else "no classifier is connected"
        return Unseen("; ".join(reasons.values()) or nobody, has_failed)

    def _choice(
        self, not_before: dict[Channel, float], now: float, deadline: float
    ) -> tuple[Channel | None, float]:
        """Whom to ask about a file now.

        Args:
            not_before: when those that were asked already may be asked again.

        Returns:
            The channel, and until when it may take: its share of the time, so that what hangs leaves some for
            those that come after it. Or None, and when there will be somebody.
        """

        def busy(channel: Channel) -> int:
            return self._healths[channel].busy

        def again(channel: Channel) -> float:
            return not_before.get(channel, now)

        to_ask = [
            one for one, health in self._healths.items() if again(one) < deadline and not health.is_shut
        ]
        fit = [one for one in to_ask if self._healths[one].is_fit]
        unfit = [one for one in to_ask if not self._healths[one].is_fit]
        ejected = [one for one in unfit if self._healths[one].is_ejected]
        if not to_ask:
            return None, deadline
        if ready := [one for one in fit if again(one) <= now]:
            return min(ready, key=busy), _share(fit, not_before, now, deadline)
        # Those that failed before are asked last. What is on trial, and busy with it, seems to be well again:
        # it gets a share as any other does, beside one for those that are overloaded.
        on_trial = [one for one in unfit if one not in ejected]
        if ready := [one for one in on_trial if again(one) <= now]:
            return min(ready, key=busy), _share(on_trial, not_before, now, deadline, others=1 if fit else 0)
        # What is ejected may try until one of the overloaded is worth another question: that costs nothing.
        until = min((again(one) for one in to_ask if one not in ejected), default=deadline)
        if (ready := [one for one in ejected if again(one) <= now]) and until - now > _FAIR_S:
            return min(ready, key=busy), _share(ejected, not_before, now, until)
        return None, min(map(again, to_ask))

    async def _ask(
        self, channel: Channel, file: File, priority: Priority, within_s: float
    ) -> Seen | Undecodable:
        began, health = asyncio.get_running_loop().time(), self._healths[channel]
        health.busy += 1
        try:
            look = await channel.look(file, priority=priority, within_s=within_s)
            if isinstance(look, Seen) and (missing := self._needed - look.signals.keys()):
                raise ChannelError(f"{channel.name} gives no signal {', '.join(missing)}, which a rule names")
        except ChannelError as error:
            # Being overloaded is no defect.
            if error.retry_after_s is None and within_s > _FAIR_S and self._eject(channel, began):
                log.warning(
                    "classifier %s is asked last until it has answered a probe: %s", channel.name, error
                )
            raise
        finally:
            health.busy -= 1
        if health.succeeded(asyncio.get_running_loop().time()):
            self._end_probe(channel)
            log.info("classifier %s is back", channel.name)
            self._show()
        return look

    def _eject(self, channel: Channel, began: float) -> bool:
        """Ejects a channel for a failure, and sees to it that it is probed; False where it was already."""
        health = self._healths.get(channel)  # None where it has gone meanwhile
        if health is None or not health.failed(began, asyncio.get_running_loop().time()):
            return False
        self._metrics.classifier_ejections.inc()
        self._show()
        self._probes[channel] = asyncio.create_task(self._probe(channel, health))
        return True

    async def _probe(self, channel: Channel, health: Health) -> None:
        """Asks an ejected channel now and then, until it answers as it should."""
        loop = asyncio.get_running_loop()
        said = ""
        while health.is_ejected:
            await asyncio.sleep(max(0.0, health.probe_at - loop.time()))
            try:
                missing = self._needed - await _signals(channel)
            except ChannelError:
                health.probe_failed(loop.time())  # what is wrong was said when it was ejected
                continue
            if missing:
                health.probe_failed(loop.time())
                reason = f"it has no signal {', '.join(sorted(missing))}, which a rule names"
                if reason != said:
                    log.warning("classifier %s answers, but %s", channel.name, reason)
                said = reason
                continue
            health.probe_succeeded()
            log.info("classifier %s is back, on trial", channel.name)
            self._show()

    def _end_probe(self, channel: Channel) -> None:
        if probe := self._probes.pop(channel, None):
            probe.cancel()

    def _show(self) -> None:
        self._metrics.classifier_fit.clear()
        for channel, health in self._healths.items():
            self._metrics.classifier_fit.labels(classifier=channel.name).set(not health.is_ejected)


def _share(
    channels: Sequence[Channel],
    not_before: dict[Channel, float],
    now: float,
    deadline: float,
    *,
    others: int = 0,
) -> float:
    """Until when one of `channels` may take: as long as each other that was not asked yet, and `others`."""
    untried = sum(one not in not_before for one in channels) + others
    return now + (deadline - now) / max(untried, 1)


async def _signals(channel: Channel) -> frozenset[str]:
    try:
        async with asyncio.timeout(_PROBE_S):
            return await channel.signals()
    except TimeoutError:
        raise ChannelError(f"{channel.name} did not answer within {_PROBE_S:.0f} s") from None
