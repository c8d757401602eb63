"""The composition root of the classifier: recipe → ensemble → engine → server."""

from __future__ import annotations

import asyncio
import logging
import signal
from collections.abc import Sequence
from dataclasses import dataclass

from aiohttp import web

from classifier import ensembles
from classifier.decoding import Limits
from classifier.decoding.pool import DecodingPool
from classifier.engine import Engine, Result
from classifier.ensembles import Ensemble
from classifier.errors import Rejection, SetupError
from classifier.metrics import Metrics
from classifier.server import Server, ServerSettings
from classifier.turns import Priority

log = logging.getLogger(__name__)

_SHUTDOWN_S = 15.0


@dataclass(frozen=True, slots=True)
class Settings:
    """
    Attributes:
        ensemble: a shipped recipe's name, or the path of one.
        workers: processes that decode.
        most_waiting: files of each priority that may be under way or waiting.
        limits: for every file.
    """

    ensemble: str
    workers: int
    most_waiting: int
    limits: Limits


def build_engine(settings: Settings) -> Engine:
    """Loads the weights and builds what looks. Blocks, for seconds.

    Raises:
        SetupError: the ensemble cannot be built.
    """
    ensemble = load(settings.ensemble)
    pool = DecodingPool(settings.workers, ensemble.preparations, settings.limits)
    return Engine(ensemble, pool, settings.most_waiting)


def load(name_or_path: str) -> Ensemble:
    """An ensemble, after its warnings have been said.

    Raises:
        SetupError: it cannot be built.
    """
    ensemble = ensembles.load(name_or_path)
    for warning in ensemble.warnings:
        log.warning("%s", warning)
    return ensemble


async def serve(settings: Settings, server: ServerSettings, host: str, port: int) -> None:
    """Runs the classifier until it is told to stop (SIGTERM, SIGINT).

    Raises:
        SetupError: it cannot start; the message says what to mend.
    """
    engine = build_engine(settings)
    runner = web.AppRunner(
        Server(server, engine, Metrics()).application(),
        access_log=None,
        auto_decompress=False,
        logger=_quiet_logger(),
        shutdown_timeout=_SHUTDOWN_S,
    )
    try:
        await engine.start()
        await runner.setup()
        site = web.TCPSite(runner, host, port, backlog=1024)
        try:
            await site.start()
        except OSError as error:
            raise SetupError(f"--listen {host}:{port}: {error.strerror}; choose another address") from None
        ensemble = engine.ensemble
        address = runner.addresses[0]
        log.info(
            "ensemble %s (version %s) listens on %s port %s; signals: %s",
            *(ensemble.name, ensemble.version, address[0], address[1], ", ".join(ensemble.signals)),
        )
        stop = asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, stop.set)
        await stop.wait()
    finally:
        await runner.cleanup()
        await engine.close()


async def score_files(settings: Settings, files: Sequence[tuple[str, bytes]]) -> list[Result | Rejection]:
    """Looks at some files, a few at once; one result each, in their order.

    Raises:
        SetupError: the ensemble cannot be built.
    """
    engine = build_engine(settings)
    deadline = asyncio.get_running_loop().time() + 60 * max(1, len(files))

    async def one(content: bytes) -> Result | Rejection:
        try:
            return await engine.look(content, priority=Priority.LIVE, deadline=deadline)
        except Rejection as rejection:
            return rejection

    try:
        await engine.start()
        return list(await asyncio.gather(*(one(content) for _, content in files)))
    finally:
        await engine.close()


def _quiet_logger() -> logging.Logger:
    """aiohttp quotes what it could not parse, which may be part of a picture; this logger drops it."""

    def without_content(record: logging.LogRecord) -> bool:
        kind = type(record.exc_info[1]).__name__ if record.exc_info else ""
        record.msg, record.args, record.exc_info = f"a request could not be read: {kind}", (), None
        return True

    logger = logging.getLogger("classifier.http")
    logger.addFilter(without_content)
    return logger
