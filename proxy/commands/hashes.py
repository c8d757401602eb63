"""`pictrs-gate hashes …`: lists of hashes, and what the gate knows by its own decisions."""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from proxy import hash_files, parts
from proxy.commands import Commands, Shared
from proxy.config import load
from proxy.database import Database, HashList, hash_lists, ledger
from proxy.errors import HashesError
from proxy.hash_files import KINDS, HashFile
from proxy.review.terminal import harmless

_LINE_EVERY = 200_000

_Told = Callable[[int], None]


def add(commands: Commands, shared: Shared) -> None:
    """Adds the commands."""
    hashes = commands.add_parser("hashes", help="lists of hashes").add_subparsers(required=True)
    acting = [shared.configured, shared.reviewing]
    named = argparse.ArgumentParser(add_help=False)
    named.add_argument("--name", type=_name, required=True, metavar="LIST", help="as `hashes list` shows it")
    importing = hashes.add_parser("import", parents=acting, help="add a file's hashes to a list")
    importing.add_argument(
        "file", type=Path, help="one hash a line, or CSV with columns sha256, pdq, quality"
    )
    importing.add_argument(
        "--name", type=_name, metavar="LIST", help="of the list (default: the file's name)"
    )
    importing.add_argument(
        "--verdict", choices=["block", "hold"], help="on what is on it (default: block, or what the list has)"
    )
    importing.add_argument(
        "--kind", choices=KINDS, default="sha256", help="of the hashes in a file without a header"
    )
    importing.set_defaults(run=_import)
    exporting = hashes.add_parser("export", parents=acting, help="write hashes as CSV")
    exporting.add_argument(
        "--name", type=_name, metavar="LIST", help="of the list (default: all that was confirmed here)"
    )
    exporting.add_argument("--output", type=Path, metavar="FILE", help="(default: standard output)")
    exporting.set_defaults(run=_export)
    listing = hashes.add_parser("list", parents=[shared.configured, shared.as_json], help="what is known")
    listing.set_defaults(run=_list)
    removing = hashes.add_parser("remove", parents=[*acting, named], help="forget a list")
    removing.set_defaults(run=_remove)


def _name(name: str) -> str:
    if not name.strip() or not name.isprintable() or len(name) > 200:
        raise argparse.ArgumentTypeError("must be a name of at most 200 printable characters")
    return name.strip()


async def _import(options: argparse.Namespace) -> None:
    console = Console(stderr=True)
    try:
        name = options.name or _name(options.file.name)
    except argparse.ArgumentTypeError as error:
        raise HashesError(f"--name: {error}") from None
    async with parts.built(load(options.config)) as made:
        console.print(f"reading {harmless(str(options.file))}", markup=False, highlight=False)
        file = await asyncio.to_thread(hash_files.read, options.file, options.kind)
        total = sum(file.count(kind) for kind in KINDS)
        if total == 0:
            raise HashesError(f"{options.file}: there is no hash in it")
        with _progress(console, total) as told:
            new = await made.database.run(
                _add_all, file, name, options.verdict, by=options.reviewer, told=told
            )
    print(
        f"{name}: {sum(new.values())} new ({new['sha256']} sha256, {new['pdq']} pdq), "
        f"{total - sum(new.values())} were on it already, {file.repeated} stood twice in the file"
        + (f", {file.flat} of pictures too flat left out" if file.flat else "")
    )


def _add_all(
    database: Database, file: HashFile, name: str, verdict: str | None, *, by: str, told: _Told
) -> dict[str, int]:
    """Adds a file's hashes to a list; returns how many of each kind were new."""
    about: dict[str, Any] = {"file_sha256": file.sha256, **{kind: file.count(kind) for kind in KINDS}}
    into = hash_lists.begin_import(database, name, verdict, by=by, facts=about)
    before = hash_lists.size(database, into)
    for kind in KINDS:
        for some in file.batches(kind, hash_lists.STEP):
            hash_lists.add(database, into, kind, some)
            told(len(some))
    after = hash_lists.size(database, into)
    new = {"sha256": after.sha256 - before.sha256, "pdq": after.pdq - before.pdq}
    facts = {
        "list": name,
        "verdict": into.verdict,
        **about,
        "new": new,
        "repeated": file.repeated,
        "flat": file.flat,
    }
    hash_lists.end_import(database, by=by, facts=facts)
    return new


@contextmanager
def _progress(console: Console, total: int) -> Iterator[_Told]:
    """Shows how many of `total` are done: a bar on a terminal, else a line now and then."""
    if console.is_terminal:
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        with Progress(*columns, console=console, transient=True) as bar:
            task = bar.add_task("adding", total=total)
            yield lambda count: bar.advance(task, count)
        return
    done = 0

    def tell(count: int) -> None:
        nonlocal done
        if (done + count) // _LINE_EVERY > done // _LINE_EVERY:
            console.print(f"{done + count} of {total} hashes", highlight=False)
        done += count

    yield tell


async def _export(options: argparse.Namespace) -> None:
    def work(database: Database) -> int:
        hashes = hash_lists.exported(database, options.name)
        try:
            opened = options.output.open("w") if options.output is not None else nullcontext(sys.stdout)
            with opened as into:
                count = hash_files.write(into, hashes)
        except OSError as error:
            raise HashesError(f"{options.output or 'standard output'}: {error.strerror}") from None
        ledger.record(
            database, "hashes exported", actor=options.reviewer, facts={"list": options.name, "hashes": count}
        )
        return count

    async with parts.built(load(options.config)) as made:
        if options.name is not None:  # before a file is made for it
            await made.database.run(hash_lists.named, options.name)
        count = await made.database.run(work)
    print(f"{count} hashes exported", file=sys.stderr)


async def _list(options: argparse.Namespace) -> None:
    async with parts.built(load(options.config)) as made:
        lists = await made.database.run(hash_lists.listed)
        decided = await made.database.run(hash_lists.decided)
    if options.json:
        print(json.dumps({"decided": decided, "lists": [_facts_of(*one) for one in lists]}, indent=1))
        return
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("list", "verdict", "sha256", "pdq", "added", "by"):
        table.add_column(column, overflow="fold")
    table.add_row("confirmed here", "block", str(decided["block"]), str(decided["pdq"]), "", "")
    table.add_row("released here", "allow", str(decided["allow"]), "", "", "")
    for one, size in lists:
        row = (
            one.name,
            one.verdict,
            f"{size.sha256}",
            f"{size.pdq}",
            f"{one.added_at:%Y-%m-%d}",
            one.added_by,
        )
        table.add_row(*(Text(harmless(cell)) for cell in row))
    Console().print(table)


def _facts_of(one: HashList, size: hash_lists.Sizes) -> dict[str, object]:
    return {
        "name": one.name,
        "verdict": one.verdict,
        "sha256": size.sha256,
        "pdq": size.pdq,
        "added_at": one.added_at.isoformat(),
        "added_by": one.added_by,
    }


async def _remove(options: argparse.Namespace) -> None:
    async with parts.built(load(options.config)) as made:
        size = await made.database.run(hash_lists.remove, options.name, by=options.reviewer)
    print(f"{options.name}: removed, {size.sha256} sha256 and {size.pdq} pdq")
