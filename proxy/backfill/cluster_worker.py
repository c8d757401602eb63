"""What runs on each worker of a Ray cluster: fetches files and looks at them with an ensemble of its own.

Bytes come into this process and leave it never: not as a result, not in an error, not in a log.
"""

from __future__ import annotations

import asyncio
import logging
import pickle
import threading
from collections.abc import Coroutine, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

import pyarrow as pa
import ray

from proxy.backfill.options import Options
from proxy.backfill.pace import Pace
from proxy.backfill.sources import Entry, Unreadable
from proxy.backfill.sources.opening import opened
from proxy.backfill.viewing import ViewerHere
from proxy.channels.answers import look_of
from proxy.channels.lookout import Lookout
from proxy.channels.looks import File, Look, Priority, Seen, Undecodable
from proxy.errors import GateError
from proxy.intake.budget import Budget
from proxy.media import Format
from proxy.metrics import Metrics
from proxy.pictrs import Pictrs
from proxy.sections import BackfillSection

if TYPE_CHECKING:
    from classifier.service import Service

log = logging.getLogger(__name__)

AT_ONCE = 16  # files with one ensemble
_BELT_S = 60.0
_CALL_S = 3600.0  # for a few files, each of which has deadlines of its own; and for loading the weights

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Job:
    """What a worker is told. It has keys in it, so it is shown nowhere.

    Attributes:
        options: of the run.
        url, api_key, timeout_s: of pict-rs.
        settings: of the other sources.
        ensemble: a recipe's name or path, on the worker.
        decoders: processes.
        devices: what computes; empty takes the cards that the worker was given.
        largest: bytes of a file.
        memory: bytes of files that are fetched and not yet looked at.
        signals: that the policy's rules name.
    """

    options: Options
    url: str
    api_key: str | None = field(repr=False)
    timeout_s: float
    settings: BackfillSection = field(repr=False)
    ensemble: str
    decoders: int
    devices: Sequence[str]
    largest: int
    memory: int
    signals: frozenset[str]


@dataclass(frozen=True, slots=True)
class Question:
    """About one file; without `entry` about the worker itself. `most`: bytes to read."""

    number: int
    entry: Entry | None = None
    most: int = 0


@dataclass(frozen=True, slots=True)
class Facts:
    """What a worker says of a file that it has had: everything but the bytes.

    Attributes:
        sha256: where the listing did not tell; empty otherwise.
        seen: None where the file is not for this run.
    """

    size: int
    media: Format | None
    sha256: str
    seen: Look | None


@dataclass(frozen=True, slots=True)
class About:
    """What looks on a worker: name and version, and its signals."""

    ensemble: str
    signals: frozenset[str]


@dataclass(frozen=True, slots=True)
class Trouble:
    """The run has to stop; `reason` says why."""

    reason: str


@dataclass(frozen=True, slots=True)
class Reply:
    """To the question of that number."""

    number: int
    answer: Facts | Unreadable | About | Trouble


class Worker:
    """Called by Ray Data with questions, in batches. What goes wrong is an answer too; it raises only where
    the belt is gone, and the run with it.
    """

    def __init__(self, belt: Any) -> None:
        """
        Args:
            belt: an actor that tells the job, so that no key is among the arguments that Ray keeps and shows.
        """
        self._loop = asyncio.new_event_loop()
        threading.Thread(target=self._loop.run_forever, name="looking", daemon=True).start()
        self._stack = AsyncExitStack()
        self._trouble: str | None = None
        self._belt = belt
        try:
            self._job: Job = self._told("job")
            self._service, self._viewer = self._run(self._open())
        except Exception as error:  # noqa: BLE001 — the border: the driver is told, by whichever file comes
            self._trouble = _said(error)
            log.error("a worker cannot look: %s", self._trouble)

    def __call__(self, table: pa.Table) -> pa.Table:
        """Replies, as `questions` of one batch ask for them."""
        asked = [one for row in table["questions"].to_pylist() for one in pickle.loads(row)]  # noqa: S301 — ours
        numbers = [one.number for one in asked]
        if self._told("begin", numbers):
            replies = [self._alone(one) for one in asked]
        else:
            replies = self._run(self._answered(asked))
        self._told("end", numbers, alone=False)
        return pa.table({"replies": pa.array([pickle.dumps(replies)], pa.binary())})

    def _alone(self, question: Question) -> Reply:
        """The reply to one of several questions over which a worker has died; maybe over this one."""
        if self._told("begin_alone", question.number):
            return Reply(question.number, Unreadable("workers have died over it, twice"))
        (reply,) = self._run(self._answered([question]))
        self._told("end", [question.number], alone=True)
        return reply

    def _told(self, method: str, *args: Any, **more: Any) -> Any:
        return ray.get(getattr(self._belt, method).remote(*args, **more), timeout=_BELT_S)

    def _run(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(_CALL_S)

    async def _open(self) -> tuple[Service, ViewerHere]:
        from classifier.app import Settings, in_process
        from classifier.service import Bounds

        job = self._job
        bounds = Bounds(body_bytes=job.largest, most_files=2 * AT_ONCE, most_bytes=job.memory + job.largest)
        settings = Settings(job.ensemble, job.decoders, job.devices)
        service = await self._stack.enter_async_context(in_process(settings, bounds))
        pictrs = Pictrs(job.url, job.api_key, job.timeout_s)
        source = opened(job.options, job.settings, pictrs)
        lookout = Lookout([_Beside(service, job.ensemble)], job.signals, Metrics())
        return service, ViewerHere(source, lookout, Pace(AT_ONCE), Budget(job.memory))

    async def _answered(self, asked: Sequence[Question]) -> list[Reply]:
        return list(await asyncio.gather(*(self._reply(one) for one in asked)))

    async def _reply(self, question: Question) -> Reply:
        if self._trouble is not None:
            return Reply(question.number, Trouble(self._trouble))
        try:
            if question.entry is None:
                info = self._service.info()
                about = About(f"{info['ensemble']} {info['version']}", frozenset(info["signals"]))
                return Reply(question.number, about)
            return Reply(question.number, await self._facts(question.entry, question.most))
        except Exception as error:  # noqa: BLE001 — the border: a file's error is the run's, and no more than that
            return Reply(question.number, Trouble(_said(error)))

    async def _facts(self, entry: Entry, most: int) -> Facts | Unreadable:
        async with self._viewer.brought(entry, most) as file:
            if isinstance(file, Unreadable):
                return file
            if file.media is None or self._job.options.kind not in (None, file.media.kind):
                return Facts(file.size, file.media, "", None)
            sha256 = await file.sha256() if entry.sha256 is None else ""
            return Facts(file.size, file.media, sha256, await file.look())


class _Beside:
    """A channel to the classifier in this process."""

    def __init__(self, service: Service, name: str) -> None:
        self._service, self.name = service, name

    async def look(self, file: File, *, priority: Priority, within_s: float) -> Seen | Undecodable:
        """See `Channel.look`."""
        from classifier.service import Asked

        async def read(_: int) -> bytes:
            return file.content

        deadline_ms = str(max(1, int(within_s * 1000)))
        reply = await self._service.classify(Asked(priority.value, deadline_ms, len(file.content), read))
        retry = None if reply.retry_after_s is None else str(reply.retry_after_s)
        return look_of(self.name, file, reply.status, retry, reply.content)

    async def signals(self) -> frozenset[str]:
        """See `Channel.signals`."""
        return frozenset(self._service.info()["signals"])

    async def ensemble(self) -> str | None:
        """See `Channel.ensemble`."""
        info = self._service.info()
        return f"{info['ensemble']} {info['version']}"

    async def close(self) -> None:
        """The service is its maker's."""


def _said(error: Exception) -> str:
    """The words of an error, where they are ours or name what is not installed; else its type alone."""
    if isinstance(error, GateError):
        return str(error)
    if isinstance(error, ImportError):
        return f"{error.name} is not installed on a worker; pip install 'pictrs-gate[ray,classifier]' there"
    if type(error).__module__ == "classifier.errors":
        return str(error)
    return type(error).__name__
