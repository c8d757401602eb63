"""A store of synthetic files and a classifier in this process, for runs over many.

`python -m tests.backfill FOLDER FILES KILLS` runs over FILES of them, and kills the run -9 at KILLS random
moments on the way; what was looked at stands in `FOLDER/looks`, a line a look.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import random
import selectors
import signal
import sys
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from proxy.backfill.looking import Means
from proxy.backfill.options import Options
from proxy.backfill.pace import Pace
from proxy.backfill.run import Work, pages_of
from proxy.backfill.sources import Entry, Page, Unreadable
from proxy.channels.lookout import Lookout
from proxy.channels.looks import ChannelError, File, Priority, Seen, Undecodable
from proxy.database import BackfillRun, Database
from proxy.database import backfill as runs
from proxy.database.backfill import Batch
from proxy.intake.budget import Budget
from proxy.known_hashes import KnownHashes
from proxy.metrics import Metrics
from proxy.policy import Policy, Rule, Verdict

T = TypeVar("T")
PNG = b"\x89PNG\r\n\x1a\n"
POLICY = Policy([Rule("a suspicion", Verdict.HOLD, {"sexual": 0.5})], Verdict.DEFER, Verdict.HOLD)


def content(number: int) -> bytes:
    """Of the file of that number: no picture, but one would take it for a PNG."""
    return PNG + str(number).encode()


def entry(number: int) -> Entry:
    """The file of that number, as pict-rs would list it."""
    sha256 = hashlib.sha256(content(number)).hexdigest()
    return Entry(f"{sha256}{len(content(number)):012x}07", len(content(number)), sha256, (f"{number}.png",))


@dataclass
class Store:
    """Files 0 … count - 1 in pages of a hundred; counts what is fetched."""

    count: int
    entry: Callable[[int], Entry] = entry
    content: Callable[[int], bytes] = content
    page_s: float = 0.0
    fetched: list[str] = field(default_factory=list)
    pages: list[str | None] = field(default_factory=list)
    lent: int = 0
    most_lent: int = 0

    async def page(self, at: str | None) -> Page:
        self.pages.append(at)
        await asyncio.sleep(self.page_s)
        first = int(at or 0)
        after = min(first + 100, self.count)
        return Page(
            [self.entry(number) for number in range(first, after)], str(after) if after < self.count else None
        )

    async def fetch(self, entry: Entry, most: int) -> bytes | Unreadable:
        await asyncio.sleep(0)
        self.fetched.append(entry.place)
        number = int(entry.aliases[0].removesuffix(".png"))
        return self.content(number)

    async def close(self) -> None:
        """Nothing."""


@dataclass(eq=False)
class Eye:
    """A channel in this process. `scores` are of contents; all others have none."""

    scores: Mapping[bytes, float] = field(default_factory=dict)
    version: str = "eye 1"
    look_s: float = 0.0
    places: int = 10_000
    on_look: Callable[[File], None] = lambda _: None
    name: str = "eye"
    looked: int = 0
    busy: int = 0
    most_busy: int = 0
    overloaded: int = 0
    priorities: set[Priority] = field(default_factory=set)

    async def look(self, file: File, *, priority: Priority, within_s: float) -> Seen | Undecodable:
        self.priorities.add(priority)
        if self.busy >= self.places:
            self.overloaded += 1
            raise ChannelError("eye is overloaded", retry_after_s=0.02)
        self.busy += 1
        self.most_busy = max(self.most_busy, self.busy)
        try:
            self.on_look(file)
            await asyncio.sleep(self.look_s)
        finally:
            self.busy -= 1
        self.looked += 1
        return Seen({"sexual": self.scores.get(file.content, 0.01)}, [], self.version, file.media.name, 9, 9)

    async def signals(self) -> frozenset[str]:
        return frozenset({"sexual"})

    async def ensemble(self) -> str | None:
        return self.version

    async def close(self) -> None:
        """Nothing."""


@asynccontextmanager
async def means(
    database: Database, store: Store, eye: Eye, *, budget: int = 2**20, at_once: int = 64
) -> AsyncIterator[Means]:
    """What a run over them works with."""
    lookout = Lookout([eye], POLICY.signals, Metrics())
    yield Means(
        database=database,
        source=store,
        lookout=lookout,
        policy=POLICY,
        known=KnownHashes(database, []),
        pace=Pace(at_once),
        budget=Budget(budget),
        largest=2**20,
    )
    await lookout.close()


async def gone_over(
    database: Database,
    store: Store,
    eye: Eye,
    options: Options | None = None,
    *,
    stop: asyncio.Event | None = None,
    on_batch: Callable[[BackfillRun], None] = lambda _: None,
    holding: Any = None,
    budget: int = 2**20,
    at_once: int = 64,
) -> BackfillRun:
    """Goes on with the open run, or begins one; returns it, finished where nothing has stopped it."""
    run = await database.run(runs.open_run)
    if run is None:
        wanted = (options or Options()).to_json()
        run = await database.run(runs.begin, kind="run", options=wanted, newest=None)
    async with means(database, store, eye, budget=budget, at_once=at_once) as with_what:
        work = Work(
            with_what,
            run,
            Options.from_json(run.options),
            ensembles=await with_what.lookout.ensembles(),
            stop=stop or asyncio.Event(),
            on_batch=on_batch,
            holding=holding,
        )
        if not await work.over(pages_of(store, run.cursor)):
            return work.run
    return await database.run(runs.record, run.id, Batch(), finished=True)


class _Hasty(selectors.DefaultSelector):
    """Waits for nothing: what should take time is added to the clock."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0

    def select(self, timeout: float | None = None) -> Any:
        self.now += timeout or 0.0
        return super().select(0)


def in_no_time(work: Coroutine[Any, Any, T]) -> T:
    """The result of `work`, whose sleeping takes none. For what waits for nothing but the clock."""
    selector = _Hasty()
    loop = asyncio.SelectorEventLoop(selector)
    loop.time = lambda: selector.now  # type: ignore[method-assign]
    with asyncio.Runner(loop_factory=lambda: loop) as runner:
        return runner.run(work)


def _child(folder: Path, count: int) -> None:
    looks = os.open(folder / "looks", os.O_WRONLY | os.O_APPEND | os.O_CREAT)

    def note(file: File) -> None:
        os.write(looks, file.content[len(PNG) :] + b"\n")

    scores = {content(number): 0.9 for number in range(0, count, 50)}
    database = Database(f"sqlite:///{folder}/gate.db")
    asyncio.run(gone_over(database, Store(count), Eye(scores, look_s=0.002, on_look=note)))
    os._exit(0)


def main() -> None:
    """Runs, kills, goes on, until a run has come to its end."""
    folder, count, kills = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    chance = random.Random(7)
    while True:
        child = os.fork()
        if not child:
            _child(folder, count)
        if kills:
            time.sleep(chance.uniform(0.05, 0.35))
            os.kill(child, signal.SIGKILL)
            kills -= 1
        _, status = os.waitpid(child, 0)
        if os.WIFEXITED(status):
            raise SystemExit(os.WEXITSTATUS(status))


if __name__ == "__main__":
    main()
