"""The report of a run as a page that needs nothing from elsewhere, and as CSV. Neither has a picture."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TextIO

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from proxy.backfill.report import case_of, touched
from proxy.database import BackfillHit, BackfillRun, BackfillUnreadable
from proxy.policy import Policy
from proxy.review.terminal import harmless

_LEFT, _WIDTH, _BOTTOM, _HEIGHT = 20, 400, 125, 115  # of a chart, in pixels
_COLUMNS = ("what", "sha256", "aliases", "place", "verdict", "signals", "stored_at", "reason", "case")
_FORMULAS = ("=", "+", "-", "@")  # what a spreadsheet would compute


def write_page(
    into: TextIO,
    run: BackfillRun,
    policy: Policy,
    hits: Iterable[BackfillHit],
    unreadable: Iterable[BackfillUnreadable],
) -> None:
    """Writes the page bit by bit: a run may have found any number."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined
    )
    environment.filters.update(harmless=harmless, moment=_moment, age=_age, case_of=case_of)
    counts = (
        ("looked at", run.looked_at),
        ("known from an earlier look", run.reused),
        ("left out", run.skipped),
        ("unreadable", run.unreadable),
        ("hits", run.hits),
        ("held as cases", run.held),
    )
    written = environment.get_template("report.html.j2").generate(
        run=run,
        options=run.options,
        touched=touched(run),
        counts=counts,
        charts=[_chart(name, bins, policy) for name, bins in sorted(run.histogram.items())],
        hits=hits,
        unreadable=unreadable,
    )
    for piece in written:
        into.write(piece)


def write_csv(into: TextIO, hits: Iterable[BackfillHit], unreadable: Iterable[BackfillUnreadable]) -> None:
    """A line a file, hits first."""
    lines = csv.writer(into)
    lines.writerow(
        ("what", "sha256", "aliases", "place", "verdict", "signals", "stored_at", "reason", "case")
    )
    for hit in hits:
        signals = " ".join(f"{name}={value:.4f}" for name, value in sorted(hit.signals.items()))
        stored_at = hit.stored_at.isoformat() if hit.stored_at else ""
        found = ("hit", hit.hex[:64], " ".join(hit.aliases), hit.place)
        lines.writerow(map(_cell, (*found, hit.verdict, signals, stored_at, hit.reason, case_of(hit))))
    for file in unreadable:
        lost = ("unreadable", file.hex[:64], " ".join(file.aliases), file.place)
        lines.writerow(map(_cell, (*lost, "", "", "", file.reason, "")))


def _chart(name: str, bins: Sequence[int], policy: Policy) -> dict[str, Any]:
    tallest = math.log1p(max(bins, default=0)) or 1.0
    width = _WIDTH / len(bins)
    bars = []
    for number, count in enumerate(bins):
        height = round(_HEIGHT * math.log1p(count) / tallest, 1)
        label = f"{number / len(bins):.2f} to {(number + 1) / len(bins):.2f}: {count} files"
        bars.append(
            {"x": round(_LEFT + number * width, 1), "y": _BOTTOM - height, "height": height, "label": label}
        )
    thresholds = [
        {"x": round(_LEFT + _WIDTH * rule.at_least[name], 1), "label": f"{rule.name}: {rule.at_least[name]}"}
        for rule in policy.rules
        if name in rule.at_least
    ]
    return {"name": name, "bars": bars, "thresholds": thresholds}


def _cell(value: str) -> str:
    shown = harmless(value)
    return f"'{shown}" if shown.startswith(_FORMULAS) else shown


def _moment(moment: datetime) -> str:
    return f"{moment.astimezone(UTC):%Y-%m-%d %H:%M} UTC"


def _age(moment: datetime | None) -> str:
    if moment is None:
        return "not known"
    hours = max(0, int((datetime.now(UTC) - moment).total_seconds())) // 3600
    return f"{hours // 24} d" if hours >= 48 else f"{hours} h"
