"""The report of a run, to where it was asked for."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TextIO

from rich.console import Console

from proxy.backfill import page, report
from proxy.database import BackfillRun, Database
from proxy.database import backfill as runs
from proxy.errors import ConfigError
from proxy.policy import Policy


def check_writable(path: Path) -> None:
    """Appends nothing, so that an older report stays until there is a new one.

    Raises:
        ConfigError: a report could not be written there.
    """
    try:
        for one in _beside(path):
            one.open("a").close()
    except OSError as error:
        raise ConfigError(f"--report {path}: {error.strerror}; name another file") from None


def _beside(path: Path) -> list[Path]:
    """The files that a report is written to."""
    if path.suffix.lower() in (".html", ".htm"):
        return [path, path.with_suffix(".csv"), path.with_suffix(".json")]
    return [path]


def write_report(
    database: Database, policy: Policy, run: BackfillRun, path: Path | None, *, as_json: bool
) -> None:
    """Writes what a run has found to standard output, and to `path` and what belongs beside it.

    Raises:
        ConfigError: a file cannot be written; standard output has the report all the same.
    """

    def write(into: TextIO, suffix: str) -> None:
        hits, lost = runs.hits_of(database, run.id), runs.unreadable_of(database, run.id)
        if suffix in (".html", ".htm"):
            page.write_page(into, run, policy, hits, lost)
        elif suffix == ".csv":
            page.write_csv(into, hits, lost)
        else:
            report.write_json(into, run, hits, lost)

    try:
        for one in _beside(path) if path is not None else []:
            with one.open("w", encoding="utf-8", newline="" if one.suffix == ".csv" else None) as file:
                write(file, one.suffix.lower())
    except OSError as error:
        raise ConfigError(f"--report {path}: {error.strerror}") from None
    finally:  # what took hours is shown in any case
        if as_json:
            write(sys.stdout, ".json")
        else:
            hits, unreadable = runs.hits_of(database, run.id), runs.unreadable_of(database, run.id)
            report.print_report(Console(), run, hits, unreadable)
