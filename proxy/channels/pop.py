"""An unmodified fedi-safety worker as a classifier: it polls, gets a file, and says yes or no.

What it polled before was pictrs-safety, which passed a file unseen when the worker was away, the queue was
full or an answer was late. Here each of these is "nobody looked". This module is the queue; the addresses
that the worker knows are in `proxy/internal/server.py`.
"""

from __future__ import annotations

import asyncio
import hmac
import itertools
import logging
import secrets
from dataclasses import dataclass, field

from proxy.channels.looks import ChannelError, File, Priority, Seen, Undecodable
from proxy.media import Kind, Size, measure

log = logging.getLogger(__name__)

_SIGNALS = frozenset({"is_csam", "is_nsfw"})
_ENSEMBLE = "fedi-safety"
# Stills that Pillow opens, which is what the worker opens files with.
_FORMATS = frozenset({"avif", "jpeg", "png", "webp"})
# For a file that the worker can read and whose headers tell the gate no size; as placeholders have it then.
_UNKNOWN = Size(640, 480)
# A full queue is worth another try once the worker has polled a few times more.
_RETRY_S = 0.5


@dataclass(frozen=True, slots=True)
class HandedOut:
    """A file as a worker gets it. It answers by `name`."""

    name: str
    content_type: str
    content: bytes = field(repr=False)


@dataclass(slots=True, eq=False)
class _Job:
    """A file that somebody waits for.

    Attributes:
        number: in the order of coming.
        deadline: after which nobody waits any more; loop time, as are the others.
        done: what the worker said of `is_csam` and `is_nsfw`.
        handed_out: how often a worker got it.
        due: when the last worker that got it should have answered.
    """

    number: int
    priority: Priority
    handed: HandedOut
    deadline: float
    done: asyncio.Future[tuple[bool, bool]]
    handed_out: int = 0
    due: float = 0.0

    def rank(self) -> tuple[bool, int, int]:
        """Live ones first; then what was tried least, as a file may be what keeps workers from answering."""
        return self.priority is not Priority.LIVE, self.handed_out, self.number


class PopChannel:
    """The workers that poll, as one channel."""

    name = _ENSEMBLE

    def __init__(
        self, api_key: str, *, most_waiting: int = 64, answer_s: float = 5.0, absent_s: float = 5.0
    ) -> None:
        """
        Args:
            api_key: that workers send.
            most_waiting: files, in the queue or with a worker; of backfill half as many, so that a scan of
                everything never has an upload turned away.
            answer_s: seconds after which a file is given to another worker.
            absent_s: seconds without a sign of life after which there is no worker. It polls ten times a
                second, but not while it is busy with files: that is a sign of life too.
        """
        self._api_key = api_key.encode()
        self._most_waiting, self._answer_s, self._absent_s = most_waiting, answer_s, absent_s
        self._numbers = itertools.count()
        self._jobs: dict[str, _Job] = {}
        self._heard_at = float("-inf")

    async def look(self, file: File, *, priority: Priority, within_s: float) -> Seen | Undecodable:
        """See `Channel.look`. Of an animation or a video the worker would see one frame or none, and a file
        of which most was not looked at is not a file that was: it is `Undecodable` to this channel.
        """
        loop = asyncio.get_running_loop()
        deadline = loop.time() + within_s
        if file.media.kind is not Kind.IMAGE or file.media.name not in _FORMATS:
            return Undecodable("unsupported-media")
        self._check_presence()
        if len(self._jobs) >= self._most_waiting // (1 if priority is Priority.LIVE else 2):
            raise ChannelError(f"{self.name}: the queue is full", retry_after_s=_RETRY_S)
        name = f"{secrets.token_hex(16)}.{file.media.extension}"
        handed = HandedOut(name, file.media.content_type, file.content)
        job = _Job(next(self._numbers), priority, handed, deadline, loop.create_future())
        self._jobs[name] = job
        try:
            # The worker does not say what size it saw, so the headers have to.
            measured = await asyncio.to_thread(measure, file.content, file.media)
            is_csam, is_nsfw = await self._answer_to(job)
        finally:
            del self._jobs[name]
        signals = {"is_csam": float(is_csam), "is_nsfw": float(is_nsfw)}
        frames = [{"index": 0, "signals": signals}]
        return Seen(signals, frames, _ENSEMBLE, file.media.name, *(measured.size if measured else _UNKNOWN))

    async def signals(self) -> frozenset[str]:
        """See `Channel.signals`. Known without asking."""
        return _SIGNALS

    async def ensemble(self) -> str | None:
        """See `Channel.ensemble`."""
        return _ENSEMBLE

    async def close(self) -> None:
        """See `Channel.close`. There is nothing to give back."""

    def admits(self, api_key: str) -> bool:
        """Whether it is the workers' key. Takes as long for any."""
        return hmac.compare_digest(api_key.encode("latin-1", "replace"), self._api_key)

    def hand_out(self) -> HandedOut | None:
        """The file that a worker is to look at now, or None where there is none for it."""
        now = self._heard()
        free = [job for job in self._jobs.values() if job.due <= now < job.deadline and not job.done.done()]
        if not free:
            return None
        job = min(free, key=_Job.rank)
        if job.handed_out:
            log.info("%s: a worker did not answer in time; another one gets the file", self.name)
        job.handed_out += 1
        job.due = now + self._answer_s
        return job.handed

    def take_answer(self, name: str, *, is_csam: bool, is_nsfw: bool) -> bool:
        """What a worker says about a file that it got; False where nobody waits for that (any more)."""
        self._heard()
        job = self._jobs.get(name)
        if job is None or job.done.done():
            return False
        job.done.set_result((is_csam, is_nsfw))
        return True

    async def _answer_to(self, job: _Job) -> tuple[bool, bool]:
        """Waits for a worker's answer, and no longer than there is a worker."""
        loop = asyncio.get_running_loop()
        while not job.done.done():
            left = job.deadline - loop.time()
            if left <= 0:
                raise ChannelError(f"{self.name}: no worker answered in time")
            self._check_presence()
            await asyncio.wait([job.done], timeout=min(left, self._absent_s))
        return job.done.result()

    def _check_presence(self) -> None:
        """
        Raises:
            ChannelError: there has been no sign of a worker for too long.
        """
        now = asyncio.get_running_loop().time()
        is_busy = any(job.due > now for job in self._jobs.values())
        if now - self._heard_at > self._absent_s and not is_busy:
            raise ChannelError(f"{self.name}: no worker has asked for work lately")

    def _heard(self) -> float:
        self._heard_at = asyncio.get_running_loop().time()
        return self._heard_at
