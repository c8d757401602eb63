"""`pictrs-gate queue`: what waits until somebody can look, and since when."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from datetime import datetime

from proxy import parts
from proxy.commands import Commands, Shared
from proxy.config import load
from proxy.database import backlog


def add(commands: Commands, shared: Shared) -> None:
    """Adds the command."""
    queue = commands.add_parser(
        "queue", parents=[shared.configured, shared.as_json], help="what waits for a look, and since when"
    )
    queue.set_defaults(run=_queue)


async def _queue(options: argparse.Namespace) -> None:
    async with parts.built(load(options.config)) as made:
        waiting = await made.database.run(backlog.waiting)
    if options.json:
        print(json.dumps(asdict(waiting), default=datetime.isoformat))
        return
    lines = [
        (waiting.deferred, "deferred, not looked at yet", waiting.since),
        (waiting.releasing, "harmless, about to be stored in pict-rs", None),
        (waiting.unseen, "allowed unseen, not looked at yet", waiting.unseen_since),
        (waiting.for_reviewers, "deferred, for a reviewer: the gate cannot open them", None),
        (waiting.cut_off, "released, and that was cut off: repeat `pictrs-gate review release CASE`", None),
    ]
    for count, what, since in lines:
        if count:
            oldest = f", the oldest since {since:%Y-%m-%d %H:%M:%S} UTC" if since else ""
            print(f"{count:6} {what}{oldest}")
    if not any(count for count, _, _ in lines):
        print("Nothing waits.")
