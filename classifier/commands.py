"""The commands of `pictrs-classifier`."""

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
from classifier.connect import Dialling
from classifier.decoding import Limits
from classifier.engine import Result
from classifier.ensembles import shipped
from classifier.ensembles.explaining import explain, overview
from classifier.ensembles.fetching import Checked, fetch
from classifier.errors import Rejection, SetupError
from classifier.service import Bounds

log = logging.getLogger(__name__)

_MEGABYTE = 1024 * 1024
_MOST_FRAMES = 256  # some are in memory twice, at 3 MB each, while a film is decoded


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command; returns the exit status: 0, or 1 after a line that says what to mend."""
    options = _parser().parse_args(argv)
    logging.basicConfig(
        level=options.log_level.upper(),
        format="%(asctime)s %(levelname)s %(name)s %(message)s",
        stream=sys.stderr,
    )
    if not options.may_fetch:
        # Read when huggingface_hub is imported, which happens with the first head that needs it.
        os.environ.setdefault("HF_HUB_OFFLINE", "1")
    try:
        status: int = options.run(options)
    except SetupError as error:
        print(f"pictrs-classifier: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return status


def _serve(options: argparse.Namespace) -> int:
    host, port = _host_and_port("--listen", options.listen)
    tokens = [_token(path) for path in options.token_file]
    if not tokens and not _is_loopback(host):
        raise SetupError(f"--listen {host}: others can reach it, so it needs a --token-file")
    tls = _tls(options)
    if tls is None and not _is_loopback(host):
        log.warning("--listen %s without --tls-certificate: whoever is on the way can read along", host)
    serving = app.Serving(host, port, tokens, tls)
    asyncio.run(app.serve(_settings(options), serving, _bounds(options)))
    return 0


def _connect(options: argparse.Namespace) -> int:
    match = re.fullmatch(r"(wss?)://(\[[^\]]+\]|[^/:?#@\s]+)(:\d{1,5})?(/[^?#\s]*)?", options.url)
    if match is None:
        raise SetupError(f"{options.url}: has to be wss://host/worker")
    if match[1] == "ws" and not _is_loopback(match[2].strip("[]")):
        log.warning("%s: without TLS whoever is on the way can read along; use wss://", options.url)
    tls = None
    if options.ca is not None:
        try:
            tls = ssl.create_default_context(cafile=options.ca)
        except OSError as error:
            raise SetupError(
                f"--ca {options.ca}: {error.strerror or error}; it has to be a PEM file"
            ) from None
    dialling = Dialling(options.url, _token(options.token_file), tls)
    metrics_at = None if options.metrics is None else _host_and_port("--metrics", options.metrics)
    asyncio.run(app.connect(_settings(options), dialling, _bounds(options), metrics_at))
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
    _print_table(rows)


def _print_table(rows: Sequence[Sequence[str]]) -> None:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def _info(options: argparse.Namespace) -> int:
    name = options.name or options.ensemble
    lines = explain(name, next(iter(options.device), None)) if name else overview()
    for line in lines:
        print(line)
    return 0


def _fetch(options: argparse.Namespace) -> int:
    checked, ensemble = fetch(options.name)
    _print_table([["file", "bytes", "hash", ""], *(_row(file) for file in checked)])
    broken = [str(file.path) for file in checked if file.is_broken]
    if ensemble is None:
        raise SetupError(
            f"not what the hub says: {', '.join(broken)}; "
            "look at it, delete it and what it links to, and fetch again"
        )
    print(f"{ensemble.name} is here, version {ensemble.version}")
    return 0


def _row(file: Checked) -> list[str]:
    said = {None: "the hub's hash is not known", file.hash: "as the hub says"}
    return [
        f"{file.model}: {file.path.name}",
        str(file.size),
        file.hash,
        said.get(file.expected, f"BROKEN, the hub says {file.expected}"),
    ]


def _settings(options: argparse.Namespace) -> app.Settings:
    return app.Settings(
        options.ensemble,
        options.workers,
        options.device,
        options.batch,
        options.max_wait_ms,
        Limits(frames=options.frames),
    )


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
        context.load_cert_chain(certificate, key, password="")  # or OpenSSL asks whoever is at the terminal
    except OSError as error:  # an SSLError is one, too
        raise SetupError(
            f"--tls-certificate {certificate}: {error.strerror or error}; it and --tls-key have to be PEM "
            "files that belong together, the key without a pass phrase"
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
    except UnicodeDecodeError:
        raise SetupError(f"--token-file {path}: is no text") from None
    if not re.fullmatch(r"[!-~]{16,}", token):
        raise SetupError(f"--token-file {path}: has to hold one word of at least 16 characters")
    return token


def _host_and_port(option: str, word: str) -> tuple[str, int]:
    match = re.fullmatch(r"\[?([^\[\]]+?)\]?:(\d{1,5})", word)
    if match is None or int(match[2]) > 65535:
        raise SetupError(f"{option} {word}: has to be host:port, the port 65535 at most")
    return match[1], int(match[2])


def _positive(word: str) -> int:
    number = int(word)
    if number < 1:
        raise ValueError
    return number


def _frames(word: str) -> int:
    number = int(word)
    if not 2 <= number <= _MOST_FRAMES:
        raise argparse.ArgumentTypeError(f"has to be 2 to {_MOST_FRAMES}")
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
    parser.set_defaults(may_fetch=False)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    looking = argparse.ArgumentParser(add_help=False)
    looking.add_argument(
        "--ensemble", default="starter", help=f"a recipe's path, or one of: {', '.join(shipped())}"
    )
    looking.add_argument(
        "--workers", type=_positive, default=os.cpu_count() or 1, help="processes that decode"
    )
    looking.add_argument(
        "--frames",
        type=_frames,
        default=Limits().frames,
        help="most frames that are scored of an animation or a video (default: %(default)s)",
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

    connect = commands.add_parser(
        "connect", parents=[looking, answering], help="dial a gate that cannot call this box"
    )
    connect.add_argument("url", help="the gate's, wss://HOST/worker")
    connect.add_argument("--token-file", type=Path, required=True, metavar="FILE")
    connect.add_argument(
        "--ca", type=Path, metavar="FILE", help="PEM; the authority of the gate's certificate"
    )
    connect.add_argument("--metrics", metavar="HOST:PORT", help="where Prometheus finds the metrics")
    connect.set_defaults(run=_connect)

    score = commands.add_parser("score", parents=[looking], help="look at some files and print a table")
    score.add_argument("file", type=Path, nargs="+")
    score.add_argument("--json", action="store_true", help="for programs")
    score.set_defaults(run=_score)

    info = commands.add_parser("info", help="explain an ensemble, or say which there are")
    info.add_argument(
        "name", nargs="?", metavar="ENSEMBLE", help="a shipped recipe's name, or a recipe's path"
    )
    info.add_argument("--ensemble", help=argparse.SUPPRESS)  # as the other commands name it
    info.add_argument("--device", action="append", default=[], help="cuda:0, cpu, …")
    info.set_defaults(run=_info)

    fetching = commands.add_parser("fetch", help="download an ensemble's weights and check them")
    fetching.add_argument("name", metavar="ENSEMBLE", help="a shipped recipe's name, or a recipe's path")
    fetching.set_defaults(run=_fetch, may_fetch=True)
    return parser
