"""The composition root of the gate: builds the parts and hands each only what it uses."""

from __future__ import annotations

import asyncio
import logging
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass

from sqlalchemy.exc import SQLAlchemyError

from proxy import faults
from proxy.cases.keeping import Keeper, adopt_orphans
from proxy.cases.placeholder import Placeholders
from proxy.cases.quarantine import Quarantine
from proxy.cases.sealing import Sealer
from proxy.channels.http import HttpChannel
from proxy.channels.lookout import Lookout
from proxy.config import Config
from proxy.database import Database, cases
from proxy.faults import FaultPoint
from proxy.intake.uploads import UploadLimits
from proxy.internal.listener import InternalListener
from proxy.internal.server import Internal
from proxy.known_hashes import KnownHashes
from proxy.listener import Listener
from proxy.metrics import Metrics
from proxy.pictrs import Pictrs
from proxy.policy import Policy, Rule, Verdict
from proxy.server.gateway import Gateway
from proxy.server.reads import Reads
from proxy.server.uploads import Uploads, UploadSettings

log = logging.getLogger(__name__)

# How often sealed files without a case are looked for, and how old one has to be: longer than any upload.
_ADOPT_EVERY_S = 60.0


@dataclass(frozen=True, slots=True)
class Parts:
    """What every command of the gate is made from."""

    config: Config
    database: Database
    quarantine: Quarantine
    pictrs: Pictrs
    lookout: Lookout
    policy: Policy
    known: KnownHashes
    metrics: Metrics
    fault: FaultPoint


@asynccontextmanager
async def parts(config: Config) -> AsyncIterator[Parts]:
    """Builds the parts, and gives back what they hold.

    Raises:
        ConfigError: one of them cannot work with the configuration.
    """
    metrics, fault = Metrics(), faults.from_environment()
    policy = policy_of(config)
    quarantine = Quarantine(config.cases.folder, Sealer(config.cases.recipients), fault)
    database = Database(config.database.url)
    known = KnownHashes(database, config.policy.block_lists)
    channels = [
        HttpChannel(section.url, section.token.get_secret_value() if section.token else None)
        for section in config.classifiers
    ]
    lookout = Lookout(channels, policy.signals, metrics)
    pictrs = Pictrs(config.pictrs.url, _api_key(config), config.pictrs.timeout_s)
    try:
        yield Parts(config, database, quarantine, pictrs, lookout, policy, known, metrics, fault)
    finally:
        await lookout.close()
        await pictrs.close()
        database.close()


async def serve(config: Config) -> None:
    """Runs the gate until it is told to stop (SIGTERM, SIGINT).

    Raises:
        ConfigError: it cannot start; the message says what to mend.
    """
    async with parts(config) as made:
        await made.lookout.check()
        keeper = Keeper(made.database, made.quarantine, made.fault)
        placeholders = Placeholders()
        uploads = Uploads(
            settings=UploadSettings(
                limits=UploadLimits(
                    config.pictrs.max_file_count, config.pictrs.max_file_size_mb * 1024 * 1024
                ),
                upload_s=config.server.upload_s,
                verdict_s=config.policy.verdict_s,
                placeholders=config.placeholders,
            ),
            known=made.known,
            lookout=made.lookout,
            policy=made.policy,
            keeper=keeper,
            database=made.database,
            pictrs=made.pictrs,
            metrics=made.metrics,
            fault=made.fault,
        )
        reads = Reads(made.database, made.pictrs, placeholders)
        gateway = Gateway(uploads, reads, made.pictrs, _api_key(config), made.metrics)

        async def is_ready() -> bool:
            try:
                await made.database.run(cases.listed, limit=1)
            except SQLAlchemyError:
                return False
            return True

        internal = Internal(made.metrics, is_ready)
        listeners: list[Listener | InternalListener] = [
            InternalListener("internal", config.internal.listen, internal, shutdown_s=5.0),
            # Every upload has ended by then, one way or the other.
            Listener("server", config.server.listen, gateway, shutdown_s=config.server.upload_s + 2),
        ]
        started: list[Listener | InternalListener] = []
        adopting = asyncio.create_task(_adopt(made))
        try:
            for listener in listeners:
                host, port = await listener.start()
                started.append(listener)
                log.info("%s listens on %s port %s", listener.name, host, port)
            await _told_to_stop()
            log.info("stopping: no new requests, those under way end")
        finally:
            for listener in reversed(started):
                await listener.stop()
            adopting.cancel()
            with suppress(asyncio.CancelledError):
                await adopting
            keeper.close()
            placeholders.close()


def policy_of(config: Config) -> Policy:
    """The policy that a configuration describes."""
    return Policy(
        rules=[Rule(rule.name, Verdict(rule.verdict), rule.at_least) for rule in config.policy.rules],
        on_unavailable=Verdict(config.policy.on_unavailable),
        on_undecodable=Verdict(config.policy.on_undecodable),
    )


async def _adopt(made: Parts) -> None:
    while True:
        try:
            await asyncio.to_thread(made.quarantine.sweep_unfinished, older_than_s=_ADOPT_EVERY_S)
            for case_id in await asyncio.to_thread(
                adopt_orphans, made.database, made.quarantine, older_than_s=_ADOPT_EVERY_S
            ):
                log.warning("case %s was sealed before a crash and is pending now", case_id)
        except (OSError, SQLAlchemyError) as error:
            log.error("sealed files could not be looked through: %s", type(error).__name__)
        await asyncio.sleep(_ADOPT_EVERY_S)


async def _told_to_stop() -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    await stop.wait()


def _api_key(config: Config) -> str | None:
    return config.pictrs.api_key.get_secret_value() if config.pictrs.api_key else None
