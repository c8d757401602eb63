"""The report of a run: counts and hits, for people or for programs. No pictures."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from proxy.database import BackfillHit, BackfillRun


def as_json(run: BackfillRun, hits: Sequence[BackfillHit]) -> str:
    """The report as one JSON object."""
    report: dict[str, Any] = {
        "run": run.id,
        "started_at": run.started_at.isoformat(),
        "finished_at": run.finished_at and run.finished_at.isoformat(),
        "looked_at": run.looked_at,
        "unreadable": run.unreadable,
        "hits": [
            {
                "aliases": hit.aliases,
                "sha256": hit.hex[:64],
                "verdict": hit.verdict,
                "reason": hit.reason,
                "signals": hit.signals,
            }
            for hit in sorted(hits, key=lambda hit: hit.hex)
        ],
    }
    return json.dumps(report, indent=1)


def print_report(console: Console, run: BackfillRun, hits: Sequence[BackfillHit]) -> None:
    """The report as a table."""
    console.print(
        f"Run {run.id}: {run.looked_at} files looked at, {len(hits)} hits, {run.unreadable} unreadable. "
        "Nothing was touched."
    )
    if not hits:
        return
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("aliases", "verdict", "signals", "why"):
        table.add_column(column, overflow="fold")
    for hit in sorted(hits, key=lambda hit: hit.hex):
        signals = " ".join(f"{name}={value:.2f}" for name, value in sorted(hit.signals.items()))
        table.add_row("\n".join(hit.aliases), hit.verdict, signals, hit.reason)
    console.print(table)
