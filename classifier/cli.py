"""The command `pictrs-classifier`."""

from __future__ import annotations

import argparse
import asyncio
import ipaddress
import json
import logging
import os
import re
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from classifier import app
from classifier.decoding import Limits
from classifier.engine import Result
from classifier.ensembles import shipped
from classifier.errors import Rejection, SetupError
from classifier.server import ServerSettings

_MEGABYTE = 1024 * 1024


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command; returns the exit status: 0, or 1 after a line that says what to mend."""
    options = _parser().parse_args(argv)
    logging.basicConfig(
        level=options.log_level.upper(),
        format="%(asctime)s %(levelname)s %(name)s %(message)s",
        stream=sys.stderr,
    )
    try:
        status: int = options.run(options)
    except SetupError as error:
        print(f"pictrs-classifier: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return status


def _serve(options: argparse.Namespace) -> int:
    match = re.fullmatch(r"\[?([^\[\]]+?)\]?:(\d{1,5})", options.listen)
    if match is None:
        raise SetupError(f"--listen {options.listen}: has to be host:port")
    tokens = [_token(path) for path in options.token_file]
    if not tokens and not _is_loopback(match[1]):
        raise SetupError(f"--listen {match[1]}: others can reach it, so it needs a --token-file")
    server = ServerSettings(tokens, options.max_body_mb * _MEGABYTE)
    asyncio.run(app.serve(_settings(options), server, match[1], int(match[2])))
    return 0


def _score(options: argparse.Namespace) -> int:
    try:
        files = [(str(path), path.read_bytes()) for path in options.file]
    except OSError as error:
        raise SetupError(f"{error.filename}: {error.strerror}") from None
    results = asyncio.run(app.score_files(_settings(options), files))
    named = [(name, result) for (name, _), result in zip(files, results, strict=True)]
    if options.json:
        print(json.dumps([_entry(name, result) for name, result in named], indent=1))
    else:
        _print_results(named)
    return 1 if any(isinstance(result, Rejection) for result in results) else 0


def _entry(name: str, result: Result | Rejection) -> dict[str, object]:
    if isinstance(result, Rejection):
        return {"file": name, "error": {"code": result.code, "message": result.message}}
    return {"file": name, "media": asdict(result.media), "signals": dict(result.signals)}


def _print_results(named: Sequence[tuple[str, Result | Rejection]]) -> None:
    signals = sorted(
        {signal for _, result in named if isinstance(result, Result) for signal in result.signals}
    )
    rows = [["file", *signals, "what it is"]]
    for name, result in named:
        if isinstance(result, Rejection):
            rows.append([name, *("-" for _ in signals), f"{result.code}: {result.message}"])
            continue
        media = result.media
        values = [f"{result.signals[signal]:.4f}" for signal in signals]
        rows.append([name, *values, f"{media.format} {media.width}×{media.height}, {media.frames} frame(s)"])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def _info(options: argparse.Namespace) -> int:
    ensemble = app.load(options.ensemble)
    print(f"{ensemble.name}: {ensemble.about}")
    print(f"version {ensemble.version}; signals: {', '.join(ensemble.signals)}")
    return 0


def _settings(options: argparse.Namespace) -> app.Settings:
    return app.Settings(options.ensemble, options.workers, options.most_waiting, Limits())


def _token(path: Path) -> str:
    try:
        token = path.read_text().strip()
    except OSError as error:
        raise SetupError(f"--token-file {path}: {error.strerror}; write a long random word into it") from None
    if not re.fullmatch(r"[!-~]{16,}", token):
        raise SetupError(f"--token-file {path}: has to hold one word of at least 16 characters")
    return token


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="pictrs-classifier", description="Looks at pictures and says what it sees, as named numbers."
    )
    parser.add_argument("--log-level", default="info", choices=["debug", "info", "warning", "error"])
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    looking = argparse.ArgumentParser(add_help=False)
    looking.add_argument(
        "--ensemble", default="starter", help=f"a recipe's path, or one of: {', '.join(shipped())}"
    )
    looking.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="processes that decode")
    looking.add_argument(
        "--most-waiting", type=int, default=64, help="files of each priority that may wait; more are refused"
    )

    serve = commands.add_parser("serve", parents=[looking], help="answer a gate over HTTP")
    serve.add_argument("--listen", default="127.0.0.1:14052", metavar="HOST:PORT")
    serve.add_argument(
        "--token-file", type=Path, action="append", default=[], metavar="FILE", help="several for a rotation"
    )
    serve.add_argument("--max-body-mb", type=int, default=64)
    serve.set_defaults(run=_serve)

    score = commands.add_parser("score", parents=[looking], help="look at some files and print a table")
    score.add_argument("file", type=Path, nargs="+")
    score.add_argument("--json", action="store_true", help="for programs")
    score.set_defaults(run=_score, most_waiting=sys.maxsize)

    info = commands.add_parser("info", parents=[looking], help="explain an ensemble")
    info.set_defaults(run=_info)
    return parser
