"""Worker processes that can be killed: a file that hangs or crashes one costs only its own request."""

from __future__ import annotations

import asyncio
import logging
import multiprocessing
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess

from classifier.decoding import Decoded, Limits, Preparation
from classifier.decoding.worker import READY, Failure, work
from classifier.errors import Rejection, SetupError, deadline_exceeded, undecodable
from classifier.turns import Priority, Turns

log = logging.getLogger(__name__)

_START_S = 60.0
_RESTART_S = 1.0


class _Worker:
    """One process and the near end of its pipe."""

    def __init__(self, preparations: Sequence[Preparation], limits: Limits) -> None:
        # spawn, not fork: the server has threads, and a worker must not inherit what others sent.
        context = multiprocessing.get_context("spawn")
        self._near, far = context.Pipe()
        self.process: SpawnProcess = context.Process(
            target=work, args=(far, tuple(preparations), limits), daemon=True, name="decoder"
        )
        self.process.start()
        far.close()

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

    def end(self) -> None:
        """Kills the process and takes leave of it."""
        self.process.kill()
        self.process.join()
        connection: Connection = self._near
        connection.close()


class DecodingPool:
    """A fixed number of workers, each with one file at a time."""

    def __init__(self, workers: int, preparations: Sequence[Preparation], limits: Limits) -> None:
        """
        Args:
            workers: processes.
            preparations: what every file is prepared for.
            limits: for every file and process.
        """
        self._preparations, self._limits = tuple(preparations), limits
        self._count = workers
        self._threads = ThreadPoolExecutor(workers, thread_name_prefix="decoder")
        self._idle: Turns[_Worker] = Turns()
        self._all: set[_Worker] = set()
        self._uses: set[asyncio.Task[Decoded | Failure]] = set()
        self._refills: set[asyncio.Task[None]] = set()
        self._closed = False

    async def start(self) -> None:
        """Starts the workers.

        Raises:
            SetupError: they do not start.
        """
        await asyncio.gather(*(self._add_worker() for _ in range(self._count)))

    async def decode(self, content: bytes, *, priority: Priority, deadline: float) -> Decoded:
        """Has one file decoded and prepared.

        Args:
            deadline: on the event loop's clock. A worker that is not done by then is killed.

        Raises:
            Rejection: the file cannot be looked at, or not in time.
        """
        worker = await self._idle.take(priority, deadline)
        use = asyncio.create_task(self._use(worker, content, deadline))
        self._uses.add(use)
        use.add_done_callback(self._forget)
        # Shielded: where the client is gone, the worker is not; it comes back once it is done.
        answer = await asyncio.shield(use)
        if isinstance(answer, Failure):
            raise Rejection(answer.status, answer.code, answer.message)
        return answer

    async def close(self) -> None:
        """Kills every worker."""
        self._closed = True
        for refill in self._refills:
            refill.cancel()
        for worker in self._all:
            worker.process.kill()
        await asyncio.gather(*self._uses, return_exceptions=True)
        self._threads.shutdown()
        for worker in self._all:
            worker.end()

    async def _use(self, worker: _Worker, content: bytes, deadline: float) -> Decoded | Failure:
        loop = asyncio.get_running_loop()
        # Ends a worker wherever it hangs: decoding, or reading or writing its pipe.
        late = loop.call_at(deadline, worker.process.kill)
        try:
            answer = await loop.run_in_executor(self._threads, worker.exchange, content)
        except (EOFError, OSError):
            await self._replace(worker)
            if loop.time() >= deadline:
                raise deadline_exceeded() from None
            log.error("a decoder died of a file and was replaced")
            raise undecodable("decoding it crashed") from None
        finally:
            late.cancel()
        self._idle.put(worker)
        return answer

    def _forget(self, use: asyncio.Task[Decoded | Failure]) -> None:
        self._uses.discard(use)
        if not use.cancelled():
            use.exception()  # read, or asyncio complains where the client was gone

    async def _add_worker(self) -> None:
        worker = await asyncio.to_thread(_Worker, self._preparations, self._limits)
        self._all.add(worker)
        try:
            await asyncio.to_thread(worker.wait_until_ready)
        except SetupError:
            self._all.discard(worker)
            raise
        self._idle.put(worker)

    async def _replace(self, worker: _Worker) -> None:
        """Ends a worker at once, and starts another one while nobody waits for it."""
        self._all.discard(worker)
        await asyncio.to_thread(worker.end)
        if not self._closed:
            refill = asyncio.create_task(self._refill())
            self._refills.add(refill)
            refill.add_done_callback(self._refills.discard)

    async def _refill(self) -> None:
        added = False
        while not (added or self._closed):
            try:
                await self._add_worker()
                added = True
            except (SetupError, OSError) as error:
                log.error("a decoder could not be replaced: %s", error)
                await asyncio.sleep(_RESTART_S)
