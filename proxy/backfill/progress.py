"""How a run comes on: a line that moves on a terminal, plain lines elsewhere, JSON lines for programs."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any, TextIO

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

from proxy.backfill import report
from proxy.database import BackfillHit, BackfillRun

_EVERY_S = 5.0  # a plain line, at most
_LOOKING_BACK_S = 30.0


class Display:
    """Told after every batch. `found` is for hits, `say` for everything else that happens."""

    def __init__(
        self,
        show: Callable[[dict[str, Any]], None],
        say: Callable[[str], None],
        found: Callable[[BackfillHit], None] | None = None,
    ) -> None:
        """
        Args:
            found: else hits are said in words.
        """
        self._show, self.say = show, say
        self.found = found or (lambda hit: say(report.hit_in_words(hit)))
        self._rates: list[tuple[float, int]] = []

    def update(self, run: BackfillRun, at_once: int) -> None:
        """Shows where a run is.

        Args:
            at_once: files that are with the classifiers at once.
        """
        now, done = time.monotonic(), done_of(run)
        self._rates.append((now, done))
        while self._rates[-1][0] - self._rates[0][0] > _LOOKING_BACK_S:
            self._rates.pop(0)
        (then, before), took = self._rates[0], now - self._rates[0][0]
        self._show(
            {
                "run": run.id,
                "looked_at": run.looked_at,
                "reused": run.reused,
                "skipped": run.skipped,
                "hits": run.hits,
                "unreadable": run.unreadable,
                "files_a_second": round((done - before) / took, 1) if now > then else None,
                "megabytes": run.fetched_bytes // 1_000_000,
                "at_once": at_once,
                "limit": run.options.get("limit"),
            }
        )

    def pause(self, seconds: float) -> None:
        """Says that quiet hours have begun."""
        self.say(f"quiet hours: goes on in {seconds / 60:.0f} min")


@contextmanager
def display(into: TextIO, *, as_json: bool) -> Iterator[Display]:
    """The display that fits `into`."""
    console = Console(file=into)
    if as_json:

        def write(event: dict[str, Any]) -> None:
            into.write(json.dumps({"at": datetime.now(UTC).isoformat(timespec="seconds"), **event}) + "\n")
            into.flush()

        yield Display(
            write,
            lambda words: write({"message": words}),
            lambda hit: write({"run": hit.run_id, "hit": report.hit_as_json(hit)}),
        )
    elif console.is_terminal:
        with _moving(console) as moving:
            yield moving
    else:
        yield Display(_seldom(lambda event: print(in_words(event), file=into, flush=True)), _plainly(into))


def in_words(event: dict[str, Any]) -> str:
    """One line about where a run is."""
    words = [f"run {event['run']}: {event['looked_at']} files looked at, {event['unreadable']} unreadable"]
    words += [f"{event['hits']} hits"]
    if event["reused"]:
        words.append(f"{event['reused']} known from an earlier look")
    if event["files_a_second"] is not None:
        words.append(f"{event['files_a_second']} a second, {event['at_once']} at once")
    return ", ".join(words)


def done_of(run: BackfillRun) -> int:
    """Files that a run is through with."""
    return run.looked_at + run.reused + run.unreadable


@contextmanager
def _moving(console: Console) -> Iterator[Display]:
    columns = [TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn()]
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task("begins …", total=None)

        def show(event: dict[str, Any]) -> None:
            done = event["looked_at"] + event["reused"] + event["unreadable"]
            progress.update(task, completed=done, total=event["limit"], description=in_words(event))

        # An alias may look like rich's markup.
        yield Display(show, lambda words: progress.console.print(words, markup=False, highlight=False))


def _plainly(into: TextIO) -> Callable[[str], None]:
    return lambda words: print(words, file=into, flush=True)


def _seldom(show: Callable[[dict[str, Any]], None]) -> Callable[[dict[str, Any]], None]:
    """`show`, but for the first event not more often than every few seconds."""
    shown_at = float("-inf")

    def sometimes(event: dict[str, Any]) -> None:
        nonlocal shown_at
        if time.monotonic() - shown_at >= _EVERY_S:
            show(event)
            shown_at = time.monotonic()

    return sometimes
