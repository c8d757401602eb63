"""The command `pictrs-classifier`."""

from __future__ import annotations

import argparse
import asyncio
import ipaddress
import json
import logging
import os
import re
import ssl
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from classifier import app
from classifier.engine import Result
from classifier.ensembles import shipped
from classifier.errors import Rejection, SetupError
from classifier.service import Bounds

log = logging.getLogger(__name__)

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
    tls = _tls(options)
    if tls is None and not _is_loopback(match[1]):
        log.warning("--listen %s without --tls-certificate: whoever is on the way can read along", match[1])
    serving = app.Serving(match[1], int(match[2]), tokens, tls)
    asyncio.run(app.serve(_settings(options), serving, _bounds(options)))
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
    ensemble = app.load(options.ensemble)[0]
    print(f"{ensemble.name}: {ensemble.about}")
    print(f"version {ensemble.version}; signals: {', '.join(ensemble.signals)}")
    return 0


def _settings(options: argparse.Namespace) -> app.Settings:
    return app.Settings(options.ensemble, options.workers, options.device, options.batch, options.max_wait_ms)


def _bounds(options: argparse.Namespace) -> Bounds:
    return Bounds(
        body_bytes=options.max_body_mb * _MEGABYTE,
        most_files=options.most_waiting,
        most_bytes=options.most_waiting_mb * _MEGABYTE,
    )


def _tls(options: argparse.Namespace) -> ssl.SSLContext | None:
    certificate, key, client_ca = options.tls_certificate, options.tls_key, options.tls_client_ca
    if certificate is None:
        if key is not None or client_ca is not None:
            raise SetupError("--tls-key and --tls-client-ca need --tls-certificate")
        return None
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    try:
        context.load_cert_chain(certificate, key)
    except OSError as error:  # an SSLError is one, too
        raise SetupError(
            f"--tls-certificate {certificate}: {error.strerror or error}; it and --tls-key have to be PEM "
            "files that belong together"
        ) from None
    if client_ca is not None:
        try:
            context.load_verify_locations(client_ca)
        except OSError as error:
            raise SetupError(
                f"--tls-client-ca {client_ca}: {error.strerror or error}; it has to be a PEM file"
            ) from None
        context.verify_mode = ssl.CERT_REQUIRED
    return context


def _token(path: Path) -> str:
    try:
        token = path.read_text().strip()
    except OSError as error:
        raise SetupError(f"--token-file {path}: {error.strerror}; write a long random word into it") from None
    if not re.fullmatch(r"[!-~]{16,}", token):
        raise SetupError(f"--token-file {path}: has to hold one word of at least 16 characters")
    return token


def _positive(word: str) -> int:
    number = int(word)
    if number < 1:
        raise ValueError
    return number


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
    looking.add_argument(
        "--workers", type=_positive, default=os.cpu_count() or 1, help="processes that decode"
    )
    looking.add_argument(
        "--device",
        action="append",
        default=[],
        help="cuda:0, cpu, …; several for a replica each; default: all cards",
    )
    looking.add_argument(
        "--batch", type=_positive, help="frames of one batch; default 32 on a card, 4 on a CPU"
    )
    looking.add_argument(
        "--max-wait-ms", type=float, default=2.0, help="how long a batch waits for more frames"
    )

    answering = argparse.ArgumentParser(add_help=False)
    answering.add_argument(
        "--most-waiting",
        type=_positive,
        default=64,
        help="files of each priority that may be here at once; more are refused",
    )
    answering.add_argument(
        "--most-waiting-mb", type=_positive, default=1024, help="megabytes that they may have together"
    )
    answering.add_argument("--max-body-mb", type=_positive, default=64, help="megabytes of the largest file")

    serve = commands.add_parser("serve", parents=[looking, answering], help="answer a gate over HTTP")
    serve.add_argument("--listen", default="127.0.0.1:14052", metavar="HOST:PORT")
    serve.add_argument(
        "--token-file", type=Path, action="append", default=[], metavar="FILE", help="several for a rotation"
    )
    serve.add_argument("--tls-certificate", type=Path, metavar="FILE", help="PEM; serves HTTPS")
    serve.add_argument("--tls-key", type=Path, metavar="FILE", help="PEM; default: in the certificate's file")
    serve.add_argument(
        "--tls-client-ca", type=Path, metavar="FILE", help="PEM; clients need a certificate of this authority"
    )
    serve.set_defaults(run=_serve)

    score = commands.add_parser("score", parents=[looking], help="look at some files and print a table")
    score.add_argument("file", type=Path, nargs="+")
    score.add_argument("--json", action="store_true", help="for programs")
    score.set_defaults(run=_score)

    info = commands.add_parser("info", parents=[looking], help="explain an ensemble")
    info.set_defaults(run=_info)
    return parser
