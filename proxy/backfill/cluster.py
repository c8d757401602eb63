"""A Ray cluster that looks at the files of a run: `--engine ray`.

What is listed, skipped, decided and recorded stays in this process. Questions about files go out, facts come
back; the bytes of a file are in the memory of the worker that looks at it, never in Ray's object store.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import pickle
import secrets
import shutil
import sys
import tempfile
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from proxy.backfill.belt import Belt
from proxy.backfill.sources import Entry, Unreadable
from proxy.backfill.viewing import BackfillError, Brought
from proxy.channels.looks import Look, Seen
from proxy.errors import ConfigError
from proxy.media import Format

if TYPE_CHECKING:
    from proxy.backfill.cluster_worker import About, Facts, Job, Reply

log = logging.getLogger(__name__)

_STORE_BYTES = 80 * 1024 * 1024  # of a local Ray's object store, which carries questions and facts
_TOGETHER = 16  # questions that go to a worker together
_BEGIN_S = 900.0  # until a first worker has loaded its weights
_ANSWER_S = 1800.0  # in which none of those who wait has an answer
_TELL_S = 60.0
_END_S = 10.0
_GONE = os.strerror(errno.ENOENT)
_LONGEST_PATH = 25


@dataclass(frozen=True, slots=True)
class Reach:
    """Which Ray, and how much of it.

    Attributes:
        address: of a cluster, from one of its machines; None starts one here that ends with the run.
        workers: each with an ensemble of its own.
        cpus, gpus: of each worker.
    """

    address: str | None = None
    workers: int = 2
    cpus: int = 1
    gpus: float = 0.0


class Cluster:
    """A viewer that has a cluster look. Of one event loop."""

    def __init__(self, belt: Any, dataset: Any, is_here: Callable[[Entry], bool] | None) -> None:
        self._belt, self._dataset, self._is_here = belt, dataset, is_here
        self._loop = asyncio.get_running_loop()
        self._landed = self._loop.time()
        self._ensemble: str | None = None
        self._waiting: dict[int, asyncio.Future[Facts | Unreadable | About]] = {}
        self._number = 0
        self._broken: str | None = None
        self._thread = threading.Thread(target=self._receive, name="from ray", daemon=True)
        self._thread.start()

    async def about(self) -> About:
        """What looks there, once a worker is ready.

        Raises:
            ConfigError: it cannot be used.
        """
        from proxy.backfill.cluster_worker import About

        try:
            answer = await self._asked(None, 0, _BEGIN_S)
        except BackfillError as error:
            raise ConfigError(f"--engine ray: {error}") from None
        assert isinstance(answer, About)
        self._ensemble = answer.ensemble
        return answer

    @asynccontextmanager
    async def brought(self, entry: Entry, most: int) -> AsyncIterator[Brought | Unreadable]:
        """See `Viewer.brought`. The file has been looked at already."""
        from proxy.backfill.cluster_worker import Facts

        answer = await self._asked(entry, most, _ANSWER_S)
        if isinstance(answer, Facts):
            yield _There(answer, self._ensemble)
            return
        assert isinstance(answer, Unreadable)
        if answer.reason == _GONE and self._is_here and await asyncio.to_thread(self._is_here, entry):
            raise BackfillError("a worker does not see a file that is here; mount the folder on all of them")
        yield answer

    async def close(self) -> None:
        """Lets the pipeline come to its end."""
        with suppress(Exception):  # Ray may have ended before
            self._belt.put.remote(None)
        await asyncio.to_thread(self._thread.join, _END_S)

    async def _asked(self, entry: Entry | None, most: int, within_s: float) -> Facts | Unreadable | About:
        from proxy.backfill.cluster_worker import Question

        if self._broken is not None:
            raise BackfillError(self._broken)
        self._number += 1
        number = self._number
        waiting = self._waiting[number] = self._loop.create_future()
        since = self._loop.time()
        try:
            self._belt.put.remote(Question(number, entry, most))
            # However long the others before it take: as long as answers come, it has its turn.
            while (left := max(since, self._landed) + within_s - self._loop.time()) > 0:
                if (await asyncio.wait([waiting], timeout=left))[0]:
                    answer: Facts | Unreadable | About = waiting.result()
                    return answer
            raise BackfillError(
                f"no worker has answered within {within_s:.0f} s; has the cluster what they ask for?"
            )
        finally:
            self._waiting.pop(number, None)

    def _receive(self) -> None:
        """In a thread of its own: hands on what comes back, until nothing does."""
        reason = "the pipeline has ended"
        try:
            batches = self._dataset.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0)
            for table in batches:
                for row in table["replies"].to_pylist():
                    replies = pickle.loads(row)  # noqa: S301 — from our own workers; Ray itself speaks it
                    self._loop.call_soon_threadsafe(self._land, replies)
        except Exception as error:  # noqa: BLE001 — the border: the run stops, and says so
            reason = f"Ray has failed ({type(error).__name__}); start it again to go on"
        with suppress(RuntimeError):  # nobody is left to be told
            self._loop.call_soon_threadsafe(self._fail, reason)

    def _land(self, replies: list[Reply]) -> None:
        from proxy.backfill.cluster_worker import Trouble

        self._landed = self._loop.time()
        for reply in replies:
            waiting = self._waiting.get(reply.number)
            if waiting is None or waiting.done():  # a worker died, and another one answered as well
                continue
            if isinstance(reply.answer, Trouble):
                waiting.set_exception(BackfillError(reply.answer.reason))
            else:
                waiting.set_result(reply.answer)

    def _fail(self, reason: str) -> None:
        self._broken = reason
        for waiting in self._waiting.values():
            if not waiting.done():
                waiting.set_exception(BackfillError(reason))


class _There:
    """A file that was looked at on a worker."""

    def __init__(self, facts: Facts, ensemble: str | None) -> None:
        self._facts, self._ensemble = facts, ensemble

    @property
    def size(self) -> int:
        """See `Brought.size`."""
        return self._facts.size

    @property
    def media(self) -> Format | None:
        """See `Brought.media`."""
        return self._facts.media

    async def sha256(self) -> str:
        """See `Brought.sha256`."""
        return self._facts.sha256

    async def look(self) -> Look:
        """See `Brought.look`."""
        look = self._facts.seen
        if look is None:
            raise BackfillError("a worker of another version has answered; install the same everywhere")
        # Two at once, and which of them counts as the newest would be chance.
        if isinstance(look, Seen) and look.ensemble != self._ensemble:
            raise BackfillError(
                f"one worker looks with {look.ensemble}, another with {self._ensemble}; give all the same"
            )
        return look


@asynccontextmanager
async def cluster(
    reach: Reach, job: Job, is_here: Callable[[Entry], bool] | None = None
) -> AsyncIterator[Cluster]:
    """A cluster with the pipeline of one run; ends with it.

    Args:
        is_here: whether this machine has a file, where it could have it.

    Raises:
        ConfigError: Ray cannot be reached, or not be used like this.
    """
    ray = import_ray(is_local=reach.address is None)
    folder = _folder() if reach.address is None else None
    try:
        # In this thread: the processes of a local Ray end when the thread that has started them does.
        _begin(ray, reach, folder)
        belt = _belt(ray)
        try:
            # Before anybody can ask for it.
            await asyncio.to_thread(lambda: ray.get(belt.tell.remote(job), timeout=_TELL_S))
        except (TimeoutError, ray.exceptions.RayError) as error:
            raise ConfigError(f"--engine ray: Ray starts nothing here ({type(error).__name__})") from None
        made = Cluster(belt, _pipeline(ray, reach, belt), is_here)
        try:
            yield made
        finally:
            await made.close()
    finally:
        ray.shutdown()
        if folder is not None:
            shutil.rmtree(folder, ignore_errors=True)


def import_ray(*, is_local: bool) -> Any:
    """Ray, told before that it reports to nobody, and that a local one is for this machine alone.

    Raises:
        ConfigError: it is not installed.
    """
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")  # of what it writes past Python's logging
    if is_local:
        # Whoever reaches its ports may run programs: they are loopback's alone, and want a token.
        os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"  # its name says less than it does
        os.environ["RAY_AUTH_MODE"] = "token"
        os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
    try:
        import ray
        import ray.data
    except ImportError:
        raise ConfigError("--engine ray: needs Ray; pip install 'pictrs-gate[ray]'") from None
    return ray


def _folder() -> Path:
    """For the sockets and logs of a local Ray, readable for nobody else."""
    usual = tempfile.gettempdir()
    # A socket's path has 107 bytes at most, of which Ray needs some 60.
    return Path(tempfile.mkdtemp(prefix="gate-ray-", dir=usual if len(usual) < _LONGEST_PATH else "/tmp"))  # noqa: S108


def _begin(ray: Any, reach: Reach, folder: Path | None) -> None:
    quiet = {"log_to_driver": False, "configure_logging": False, "logging_level": logging.ERROR}
    for name in ("ray", "ray.data"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    local: dict[str, Any] = {
        "num_cpus": reach.workers * reach.cpus + 1,
        "include_dashboard": False,
        "object_store_memory": _STORE_BYTES,
        "_temp_dir": str(folder),
        "_system_config": {"automatic_object_spilling_enabled": False},
    }
    try:
        with _deaf():
            ray.init(reach.address or "local", **quiet, **(local if reach.address is None else {}))
    except (OSError, RuntimeError, ValueError, ray.exceptions.RayError) as error:
        where = "--engine ray" if reach.address is None else f"--ray-address {reach.address}"
        raise ConfigError(f"{where}: Ray does not start ({type(error).__name__})") from None
    wanted = reach.gpus * reach.workers
    if reach.address is None and ray.cluster_resources().get("GPU", 0) < wanted:
        raise ConfigError(
            f"--ray-gpus {reach.gpus:g} for {reach.workers} workers: this machine has fewer; "
            "ask for fewer, or name a cluster: --ray-address"
        )


@contextmanager
def _deaf() -> Iterator[None]:
    """Standard error is nowhere meanwhile: Ray's libraries greet there, amidst the lines of `--json`."""
    sys.stderr.flush()
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


def _belt(ray: Any) -> Any:
    """The belt, as an actor of this machine."""
    here = {"ray.io/node-id": ray.get_runtime_context().get_node_id()}
    return ray.remote(Belt).options(num_cpus=0, label_selector=here).remote()


def _pipeline(ray: Any, reach: Reach, belt: Any) -> Any:
    """The dataset: questions from the belt, replies from workers."""
    import pyarrow as pa

    from proxy.backfill.cluster_worker import Worker

    data = ray.data

    class Questions(data.Datasource):  # type: ignore[misc, name-defined]
        """One task that reads as long as the run goes on; a row is what a worker gets at once."""

        def estimate_inmemory_data_size(self) -> None:
            """Nobody knows."""

        def get_read_tasks(self, parallelism: int, *_: Any, **__: Any) -> list[Any]:
            def read() -> Any:
                taker = secrets.token_hex(8)
                while True:
                    taken = ray.get(belt.take.remote(taker, _TOGETHER))
                    if asked := [one for one in taken if one is not None]:
                        yield pa.table({"questions": pa.array([pickle.dumps(asked)], pa.binary())})
                    if len(asked) < len(taken):
                        return

            unknown = dict.fromkeys(("num_rows", "size_bytes", "input_files", "exec_stats"))
            nothing = data.block.BlockMetadata(**unknown)
            return [data.ReadTask(read, nothing)]

    context = data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    context.target_max_block_size = 1  # byte: each row goes on at once
    here = {"ray.io/node-id": ray.get_runtime_context().get_node_id()}
    # Without a processor of its own, which also keeps it apart from the workers.
    questions = data.read_datasource(Questions(), override_num_blocks=1, num_cpus=0, label_selector=here)
    asked = {"num_cpus": reach.cpus, **({"num_gpus": reach.gpus} if reach.gpus else {})}
    return questions.map_batches(
        Worker,
        fn_constructor_args=(belt,),
        batch_size=None,
        batch_format="pyarrow",
        # The next questions are with a worker before it has answered the last ones.
        compute=data.ActorPoolStrategy(size=reach.workers, max_tasks_in_flight_per_actor=2),
        **asked,
    )
