"""Worker processes that can be killed: a file that hangs or crashes one costs only its own request.

A worker also dies of what no file is to blame for, such as the kernel's need of memory. That must not become
the verdict on a file: a worker found dead is replaced, and a file is undecodable only when two died of it.
"""

from __future__ import annotations

import asyncio
import logging
import multiprocessing
import os
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess

from classifier.decoding import Decoded, Limits, Preparation
from classifier.decoding.worker import READY, Failure, work
from classifier.errors import Rejection, SetupError, deadline_exceeded, overloaded, undecodable
from classifier.turns import Priority, Turns

log = logging.getLogger(__name__)

_START_S = 60.0
_RESTART_S = 1.0
_ATTEMPTS = 2


class _Worker:
    """One process and the near end of its pipe."""

    def __init__(self, preparations: Sequence[Preparation], limits: Limits, niceness: int) -> None:
        # Nothing is multiplied there, so numpy needs none of the threads that it would start, one a core.
        os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
        # spawn, not fork: the server has threads, and a worker must not inherit what others sent.
        context = multiprocessing.get_context("spawn")
        self._near, far = context.Pipe()
        self.process: SpawnProcess = context.Process(
            target=work, args=(far, tuple(preparations), limits, niceness), daemon=True, name="decoder"
        )
        self.process.start()
        far.close()
        self._killed = False
        self._ending = threading.Lock()

    @property
    def is_fit(self) -> bool:
        """Whether it can take a file. A process that has just been killed may look alive for a moment."""
        return not self._killed and self.process.is_alive()

    def wait_until_ready(self) -> None:
        """Blocks until the process can take a file.

        Raises:
            SetupError: it has died, or takes too long.
        """
        try:
            if self._near.poll(_START_S) and self._near.recv() == READY:
                return
        except (EOFError, OSError):
            pass
        self.end()
        raise SetupError("a decoder process does not start; what it has printed says why")

    def exchange(self, content: bytes) -> Decoded | Failure:
        """Blocks until the process has answered; EOFError or OSError where it died."""
        self._near.send_bytes(content)
        answer: Decoded | Failure = self._near.recv()
        return answer

    def kill(self) -> None:
        """Ends the process wherever it hangs: decoding, or reading or writing its pipe."""
        self._killed = True
        self.process.kill()

    def end(self) -> None:
        """Kills the process and takes leave of it; blocks. Twice is once, also from two threads at a time."""
        with self._ending:
            self.kill()
            self.process.join()
            connection: Connection = self._near
            if not connection.closed:
                connection.close()


class DecodingPool:
    """A fixed number of workers, each with one file at a time."""

    def __init__(
        self,
        workers: int,
        preparations: Sequence[Preparation],
        limits: Limits,
        *,
        live_only: int = 0,
        niceness: int = 0,
    ) -> None:
        """
        Args:
            workers: processes.
            preparations: what every file is prepared for.
            limits: for every file and process.
            live_only: further processes that backfill does not get: what it has is only given back when it is
                done with a file, which may be a long film.
            niceness: how far the workers stand back for what else computes on their cores, 0..19.
        """
        self._preparations, self._limits, self._niceness = tuple(preparations), limits, niceness
        self._count = workers + live_only
        self._threads = ThreadPoolExecutor(self._count, thread_name_prefix="decoder")
        self._for_backfill = Turns(range(workers))
        self._idle: Turns[_Worker] = Turns()
        self._all: set[_Worker] = set()
        self._uses: set[asyncio.Task[Decoded | Failure | None]] = set()
        self._refills: set[asyncio.Task[None]] = set()
        self._closed = False

    async def start(self) -> None:
        """Starts the workers.

        Raises:
            SetupError: they do not start.
        """
        await asyncio.gather(*(self._add_worker() for _ in range(self._count)))

    @property
    def workers(self) -> int:
        """How many files are decoded at once."""
        return self._count

    async def decode(self, content: bytes, *, priority: Priority, deadline: float) -> tuple[Decoded, float]:
        """Has one file decoded and prepared.

        Args:
            deadline: on the event loop's clock. A worker that is not done by then is killed.

        Returns:
            The file, and the seconds that a worker had it.

        Raises:
            Rejection: the file cannot be looked at, not in time, or not now.
        """
        if priority is not Priority.BACKFILL:
            return await self._decode(content, priority, deadline)
        turn = await self._for_backfill.take(priority, deadline)
        try:
            return await self._decode(content, priority, deadline)
        finally:
            self._for_backfill.put(turn)

    async def _decode(self, content: bytes, priority: Priority, deadline: float) -> tuple[Decoded, float]:
        loop = asyncio.get_running_loop()
        for _ in range(_ATTEMPTS):
            worker = await self._take(priority, deadline)
            began = loop.time()
            answer = await self._attempt(worker, content, deadline)
            if isinstance(answer, Failure):
                raise Rejection(answer.status, answer.code, answer.message)
            if answer is not None:
                return answer, loop.time() - began
        raise undecodable(f"{_ATTEMPTS} decoders crashed while they had it")

    async def close(self) -> None:
        """Kills every worker."""
        self._closed = True
        for refill in self._refills:
            refill.cancel()
        for worker in self._all:
            worker.kill()
        await asyncio.gather(*self._uses, *self._refills, return_exceptions=True)
        self._threads.shutdown()
        for worker in self._all:
            worker.end()

    async def _take(self, priority: Priority, deadline: float) -> _Worker:
        worker = await self._idle.take(priority, deadline)
        while not worker.is_fit:
            self._replace(worker)
            worker = await self._idle.take(priority, deadline)
        return worker

    async def _attempt(self, worker: _Worker, content: bytes, deadline: float) -> Decoded | Failure | None:
        """What a worker answers; None where it died."""
        use = asyncio.create_task(self._use(worker, content, deadline))
        self._uses.add(use)
        use.add_done_callback(self._forget)
        # Shielded: where the client is gone, the worker is not; it comes back once it is done.
        return await asyncio.shield(use)

    async def _use(self, worker: _Worker, content: bytes, deadline: float) -> Decoded | Failure | None:
        loop = asyncio.get_running_loop()
        answer = None
        late = loop.call_at(deadline, worker.kill)
        try:
            answer = await loop.run_in_executor(self._threads, worker.exchange, content)
        except (EOFError, OSError):
            if self._closed:
                raise overloaded("the classifier is stopping") from None
            if loop.time() >= deadline:
                raise deadline_exceeded() from None
            log.error("a decoder died while it had a file, and is replaced")
        finally:
            late.cancel()  # before the worker is somebody else's
            if answer is not None and worker.is_fit:
                self._idle.put(worker)
            else:
                self._replace(worker)
        return answer

    def _forget(self, use: asyncio.Task[Decoded | Failure | None]) -> None:
        self._uses.discard(use)
        if not use.cancelled():
            use.exception()  # read, or asyncio complains where the client was gone

    async def _add_worker(self) -> None:
        worker = await asyncio.to_thread(_Worker, self._preparations, self._limits, self._niceness)
        self._all.add(worker)
        try:
            await asyncio.to_thread(worker.wait_until_ready)
        except SetupError:
            self._all.discard(worker)
            raise
        self._idle.put(worker)

    def _replace(self, worker: _Worker) -> None:
        """Ends a worker and starts another one, while nobody waits for it."""
        if self._closed:
            return  # `close` ends it
        refill = asyncio.create_task(self._refill(worker))
        self._refills.add(refill)
        refill.add_done_callback(self._refills.discard)

    async def _refill(self, former: _Worker) -> None:
        await asyncio.to_thread(former.end)
        self._all.discard(former)
        added = False
        while not (added or self._closed):
            try:
                await self._add_worker()
                added = True
            except (SetupError, OSError) as error:
                log.error("a decoder could not be replaced: %s", error)
                await asyncio.sleep(_RESTART_S)
