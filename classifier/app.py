"""The composition root of the classifier: recipe → ensemble → engine → service → server or link."""

from __future__ import annotations

import asyncio
import logging
import os
import resource
import signal
import ssl
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace

from aiohttp import web
from prometheus_client import start_http_server

from classifier import devices, ensembles
from classifier.connect import Dialler, Dialling
from classifier.decoding import Limits
from classifier.decoding.pool import DecodingPool
from classifier.engine import Batching, Engine, Result
from classifier.ensembles import Ensemble
from classifier.errors import Rejection, SetupError
from classifier.metrics import Metrics
from classifier.server import Server
from classifier.service import Bounds, Service
from classifier.turns import Priority

log = logging.getLogger(__name__)

_DRAIN_S = 60.0
_PARTING_S = 1.0
_SHUTDOWN_S = 15.0
_CLOSE_S = 15.0
# Of a connection without a request, or with half a head of one. aiohttp's own is an hour.
_IDLE_S = 75.0
# A GPU is kept busy by large batches; a CPU computes no faster for them, and an upload waits for a whole one.
_BATCH_GPU, _BATCH_CPU = 32, 4
# Decoders on the models' own cores take only what the models leave, which is what those wait for: files
# decoded further ahead would be bought with batches. Measured in docs/benchmarks.md.
_NICENESS_CPU = 19


@dataclass(frozen=True, slots=True)
class Settings:
    """
    Attributes:
        ensemble: a shipped recipe's name, or the path of one.
        workers: processes that decode.
        devices: what computes, as torch names it; empty takes every card there is, or the CPU.
        batch: frames of one batch; None takes what suits the device.
        max_wait_ms: milliseconds that a batch waits for more frames.
        limits: for every file.
    """

    ensemble: str
    workers: int
    devices: Sequence[str] = ()
    batch: int | None = None
    max_wait_ms: float = 2.0
    limits: Limits = field(default_factory=Limits)


@dataclass(frozen=True, slots=True)
class Serving:
    """
    Attributes:
        host, port: what is listened on.
        tokens: any of which a request has to bear; empty where everybody may ask.
        tls: certificates; None for HTTP.
    """

    host: str
    port: int
    tokens: Sequence[str] = ()
    tls: ssl.SSLContext | None = None


def build_engine(settings: Settings, metrics: Metrics) -> Engine:
    """Loads the weights and builds what looks. Blocks, for seconds.

    Raises:
        SetupError: the ensemble cannot be built.
    """
    replicas = load(settings.ensemble, settings.devices)
    on_gpu = devices.is_gpu() and all(device.startswith("cuda") for device in settings.devices)
    batching = Batching(
        settings.batch or (_BATCH_GPU if on_gpu else _BATCH_CPU), settings.max_wait_ms, mixed=on_gpu
    )
    pool = DecodingPool(
        settings.workers,
        replicas[0].preparations,
        settings.limits,
        live_only=1,
        niceness=0 if on_gpu else _NICENESS_CPU,
    )
    devices.watch_memory(metrics)
    return Engine(replicas, pool, batching, metrics)


def load(name_or_path: str, asked: Sequence[str] = ()) -> Sequence[Ensemble]:
    """An ensemble, once a device, after its warnings have been said.

    Args:
        asked: devices; empty takes every card there is, or the CPU.

    Raises:
        SetupError: it cannot be built.
    """
    first = ensembles.load(name_or_path, asked[0] if asked else None)
    for warning in first.warnings:
        log.warning("%s", warning)
    others = asked[1:] if asked else devices.others()
    return [first, *(ensembles.load(name_or_path, device) for device in others)]


async def serve(settings: Settings, serving: Serving, bounds: Bounds) -> None:
    """Answers over HTTP until it is told to stop (SIGTERM, SIGINT); what has come by then is answered.

    Raises:
        SetupError: it cannot start; the message says what to mend.
    """
    _allow_open_files()
    metrics = Metrics()
    async with _running(settings, metrics) as engine:
        service = Service(engine, bounds, metrics)
        server = Server(service, serving.tokens, metrics)
        runner = web.AppRunner(
            server.application(),
            access_log=None,
            auto_decompress=False,
            handler_cancellation=True,  # who has hung up is not looked at, and gives its place back
            logger=_quiet_logger(),
            shutdown_timeout=_SHUTDOWN_S,
            keepalive_timeout=_IDLE_S,
        )
        await runner.setup()
        try:
            site = web.TCPSite(runner, serving.host, serving.port, backlog=1024, ssl_context=serving.tls)
            try:
                await site.start()
            except OSError as error:
                where = f"--listen {serving.host}:{serving.port}"
                raise SetupError(f"{where}: {error.strerror}; choose another address") from None
            address = runner.addresses[0]
            log.info("%s listens on %s port %s", _described(engine.ensemble), address[0], address[1])
            await _stopping().wait()
            log.info("stopping: no new connections, what has come is answered")
            server.drain()
            await site.stop()
            await _until_empty(service)
            await _until_parted(runner)
        finally:
            await runner.cleanup()


async def connect(
    settings: Settings, dialling: Dialling, bounds: Bounds, metrics_at: tuple[str, int] | None
) -> None:
    """Dials a gate and answers it until it is told to stop (SIGTERM, SIGINT); what has come is answered.

    Args:
        metrics_at: where Prometheus finds the metrics; None where it does not.

    Raises:
        SetupError: it cannot start, or the gate refuses it; the message says what to mend.
    """
    metrics = Metrics()
    async with _running(settings, metrics) as engine:
        if metrics_at is not None:
            try:
                start_http_server(metrics_at[1], metrics_at[0], registry=metrics.registry)
            except OSError as error:
                where = f"--metrics {metrics_at[0]}:{metrics_at[1]}"
                raise SetupError(f"{where}: {error.strerror}; choose another address") from None
        log.info("%s dials %s", _described(engine.ensemble), dialling.url)
        stop = _stopping()
        await Dialler(dialling, Service(engine, bounds, metrics), metrics).run(stop)


@asynccontextmanager
async def in_process(settings: Settings, bounds: Bounds) -> AsyncIterator[Service]:
    """The service for a program that asks it without a connection.

    Raises:
        SetupError: the ensemble cannot be built.
    """
    metrics = Metrics()
    async with _running(settings, metrics) as engine:
        yield Service(engine, bounds, metrics)


async def score_files(settings: Settings, files: Sequence[tuple[str, bytes]]) -> list[Result | Rejection]:
    """Looks at some files, a few at once; one result each, in their order.

    Raises:
        SetupError: the ensemble cannot be built.
    """
    settings = replace(settings, workers=min(settings.workers, max(1, len(files))))
    async with _running(settings, Metrics()) as engine:
        deadline = asyncio.get_running_loop().time() + 60 * max(1, len(files))

        async def one(content: bytes) -> Result | Rejection:
            try:
                return await engine.look(content, priority=Priority.LIVE, deadline=deadline)
            except Rejection as rejection:
                return rejection

        return list(await asyncio.gather(*(one(content) for _, content in files)))


@asynccontextmanager
async def _running(settings: Settings, metrics: Metrics) -> AsyncIterator[Engine]:
    engine = build_engine(settings, metrics)
    try:
        await engine.start()
        yield engine
    finally:
        try:
            async with asyncio.timeout(_CLOSE_S):
                await engine.close()
        except TimeoutError:
            # The interpreter's end would wait for the threads that hang in a card's driver.
            log.error("the models hang, and are left behind")
            logging.shutdown()
            os._exit(1)


def _stopping() -> asyncio.Event:
    """Set once the process is told to stop."""
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    return stop


def _allow_open_files() -> None:
    """As many connections as the system lets this process have."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


async def _until_empty(service: Service) -> None:
    try:
        async with asyncio.timeout(_DRAIN_S):
            await service.until_empty()
    except TimeoutError:
        log.warning("some files were not looked at within %.0f s, and are given up", _DRAIN_S)


async def _until_parted(runner: web.AppRunner) -> None:
    """A moment for those who are just asking again: each is answered, and told that it was the last time."""
    loop = asyncio.get_running_loop()
    end = loop.time() + _PARTING_S
    # aiohttp tells nobody when a connection ends
    while runner.server is not None and runner.server.connections and loop.time() < end:  # noqa: ASYNC110
        await asyncio.sleep(0.02)


def _described(ensemble: Ensemble) -> str:
    signals = ", ".join(ensemble.signals)
    return f"ensemble {ensemble.name} (version {ensemble.version}; signals: {signals})"


def _quiet_logger() -> logging.Logger:
    """aiohttp quotes what it could not parse, which may be part of a picture; this logger drops it."""

    def without_content(record: logging.LogRecord) -> bool:
        kind = type(record.exc_info[1]).__name__ if record.exc_info else ""
        record.msg, record.args, record.exc_info = f"a request could not be read: {kind}", (), None
        return True

    logger = logging.getLogger("classifier.http")
    logger.addFilter(without_content)
    return logger
