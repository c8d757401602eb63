"""The composition root of the gate: builds the parts and hands each only what it uses."""

from __future__ import annotations

import asyncio
import logging
import signal
from collections.abc import Sequence

import pyrage
from sqlalchemy.exc import SQLAlchemyError

from proxy import process
from proxy.cases.backlog import Backlog
from proxy.cases.clearances import Clearances
from proxy.cases.deciding import Decider
from proxy.cases.deferred import DeferredCases, Opener, Resealer
from proxy.cases.keeping import Keeper, adopt_orphans, note_sizes
from proxy.cases.placeholder import Placeholders
from proxy.cases.quota import Quota
from proxy.cases.retention import Retention
from proxy.cases.stored import take_rest
from proxy.cases.unseen import Noting, UnseenUploads
from proxy.config import Config
from proxy.database import cases, room
from proxy.errors import PictrsError
from proxy.intake.budget import Budget
from proxy.intake.fetching import Fetcher, FetchLimits, Reach
from proxy.intake.uploads import UploadLimits
from proxy.internal.hook import ValidationHook
from proxy.internal.listener import InternalListener
from proxy.internal.server import HookSettings, Internal
from proxy.judging import Judge
from proxy.ledger.bookkeeping import bookkeeping
from proxy.listener import Listener
from proxy.lockdown import Lockdowns
from proxy.parts import (
    MEGABYTE,
    Parts,
    api_key_of,
    built,
    gate_key_of,
    limits_of,
    make_folder,
    owner_of,
    periods_of,
    sealer_with,
)
from proxy.saying import said
from proxy.server.claims import Claims
from proxy.server.fetches import Downloads, Fetches, HookWatch, Proxied
from proxy.server.gateway import Gateway
from proxy.server.passing import Passing
from proxy.server.pending import Pending
from proxy.server.reads import Reads
from proxy.server.removals import Removals
from proxy.server.uploaders import Uploaders
from proxy.server.uploads import Uploads, UploadSettings

log = logging.getLogger(__name__)

# How often sealed files without a case are looked for, and how old one has to be: longer than any upload.
_TIDY_EVERY_S = 60.0
# Connections to pict-rs (2 × 256), to classifiers, of the internal listener; files.
_OTHER_FILES = 1024
# Longer than a writer waits for the others; an upload that gets no answer is told so while Lemmy listens.
_DATABASE_S = 15.0


async def serve(config: Config) -> None:
    """Runs the gate until it is told to stop (SIGTERM, SIGINT).

    Raises:
        ConfigError: it cannot start; the message says what to mend.
    """
    process.allow_open_files(config.server.connections + _OTHER_FILES)
    process.give_back_large_buffers()
    gate_key = gate_key_of(config)
    async with (
        built(config, gate=gate_key) as made,
        bookkeeping(config, made.database, made.metrics) as allows,
    ):
        await make_folder(made)
        await made.lookout.check()
        await made.known.read_ahead()
        quota = Quota(made.database, config.cases.folder, limits_of(config), made.metrics)
        lockdown = Lockdowns(made.database, config.lockdown.allow_users, made.metrics)
        keeper = Keeper(made.database, made.quarantine, quota, made.metrics, made.fault)
        placeholders = Placeholders()
        fetcher = Fetcher(
            FetchLimits(largest_bytes=config.pictrs.max_file_size_mb * MEGABYTE, within_s=5.0),
            Reach(also=tuple(config.fetching.also_reach), ports=None)
            if config.fetching.any_port
            else Reach(also=tuple(config.fetching.also_reach)),
        )
        clearances, watch = Clearances(), HookWatch()
        judge = Judge(
            *(made.known, made.lookout, made.policy, made.metrics), allows=allows, lockdown=lockdown
        )
        uploaders = Uploaders(
            config.server.trusted_proxies,
            wanted=config.server.uploader_facts,
            salt=await made.database.run(room.salt, "uploaders"),
        )
        await made.database.run(note_sizes, made.quarantine)
        await quota.count()  # before anything is let in
        made.database.answer_within(_DATABASE_S)
        noting = Noting(made.database, sealer_with(gate_key, config), made.pictrs)
        gateway = _gateway(
            *(made, keeper, noting, placeholders, fetcher, judge, clearances, watch, uploaders)
        )
        hook = ValidationHook(
            judge=judge,
            keeper=keeper,
            clearances=clearances,
            watch=watch,
            database=made.database,
            verdict_s=config.policy.verdict_s,
        )

        async def is_ready() -> bool:
            try:
                await made.database.run(cases.listed, limit=1)
            except SQLAlchemyError:
                return False
            return True

        listeners: list[Listener | InternalListener] = [
            InternalListener(
                "internal",
                config.internal.listen,
                Internal(
                    made.metrics,
                    is_ready,
                    hook=hook,
                    hook_settings=HookSettings(
                        ids=frozenset(config.internal.scan_ids),
                        networks=tuple(config.internal.scan_networks),
                        largest_bytes=2 * config.pictrs.max_file_size_mb * MEGABYTE,
                    ),
                    pollers=made.pollers,
                    workers=made.workers,
                ),
                shutdown_s=5.0,
            ),
            # Every upload has ended by then, one way or the other.
            Listener(
                "server",
                config.server.listen,
                gateway,
                shutdown_s=config.server.upload_s + 2,
                connections=config.server.connections,
            ),
        ]
        started: list[Listener | InternalListener] = []
        decider = Decider(made.database, made.quarantine, made.known, made.lookout, made.pictrs, made.fault)
        backlog = _backlog(made, gate_key, keeper, judge, decider, clearances, lockdown)
        background = [
            asyncio.create_task(work) for work in (_tidy_up(made, decider), quota.watch(), lockdown.watch())
        ]
        if config.retention.enabled:
            retention = Retention(made.database, made.quarantine, periods_of(config), made.fault)
            background.append(asyncio.create_task(retention.daily()))
        try:
            for listener in listeners:
                host, port = await listener.start()
                started.append(listener)
                log.info("%s listens on %s port %s", listener.name, host, port)
            # Only now: a second gate that was started by mistake has ended before it takes anything.
            background.append(asyncio.create_task(backlog.run()))
            process.keep_what_is_built()
            await _told_to_stop()
            log.info("stopping: no new requests, those under way end")
        finally:
            for task in background:
                task.cancel()
            await asyncio.gather(*background, return_exceptions=True)
            for listener in reversed(started):
                await listener.stop()
            keeper.close()
            placeholders.close()
            await fetcher.close()


def _gateway(
    made: Parts,
    keeper: Keeper,
    noting: Noting,
    placeholders: Placeholders,
    fetcher: Fetcher,
    judge: Judge,
    clearances: Clearances,
    watch: HookWatch,
    uploaders: Uploaders,
) -> Gateway:
    """The `server` listener's parts, put together."""
    config, database, pictrs = made.config, made.database, made.pictrs
    largest_bytes = config.pictrs.max_file_size_mb * MEGABYTE
    memory = config.server.memory_mb * MEGABYTE
    # Apart, so that neither slow readers nor slow sites keep an upload waiting.
    most_waiting = config.server.connections // 4  # the others are for reads
    small = Budget(memory // 16, most_waiting)
    large = Budget(memory * 5 // 8, most_waiting)
    passing = Passing(pictrs, Budget(memory // 8))
    fetching = Budget(max(memory // 8, largest_bytes))
    pending = Pending(database, pictrs, placeholders)
    uploads = Uploads(
        settings=UploadSettings(
            limits=UploadLimits(config.pictrs.max_file_count, largest_bytes),
            upload_s=config.server.upload_s,
            verdict_s=config.policy.verdict_s,
            placeholders=config.placeholders,
        ),
        small=small,
        large=large,
        judge=judge,
        keeper=keeper,
        noting=noting,
        uploaders=uploaders,
        clearances=clearances,
        database=database,
        pictrs=pictrs,
        metrics=made.metrics,
        fault=made.fault,
    )
    fetches = Fetches(
        downloads=Downloads(config.fetching.downloads),
        proxied=Proxied(config.fetching.proxied),
        fetcher=fetcher,
        largest_bytes=largest_bytes,
        budget=fetching,
        watch=watch,
        pending=pending,
        uploads=uploads,
        passing=passing,
        database=database,
        pictrs=pictrs,
        metrics=made.metrics,
    )
    return Gateway(
        uploads=uploads,
        fetches=fetches,
        claims=Claims(database, pictrs, passing),
        reads=Reads(pending, fetches, passing),
        removals=Removals(database, pictrs, passing),
        passing=passing,
        pictrs=pictrs,
        api_key=api_key_of(config),
        metrics=made.metrics,
    )


def _backlog(
    made: Parts,
    gate_key: Sequence[pyrage.x25519.Identity],
    keeper: Keeper,
    judge: Judge,
    decider: Decider,
    clearances: Clearances,
    lockdown: Lockdowns,
) -> Backlog:
    """What nobody could look at, looked at later."""
    largest_bytes = made.config.pictrs.max_file_size_mb * MEGABYTE
    memory = Budget(2 * largest_bytes + 8 * MEGABYTE)
    opener = Opener(made.quarantine, gate_key, memory)
    resealer = Resealer(made.database, made.quarantine, opener, made.metrics, made.fault)
    deferred = DeferredCases(
        database=made.database,
        opener=opener,
        resealer=resealer,
        judge=judge,
        known=made.known,
        lookout=made.lookout,
        decider=decider,
        clearances=clearances,
        fault=made.fault,
    )
    unseen = UnseenUploads(
        database=made.database,
        identities=gate_key,
        memory=memory,
        largest_bytes=largest_bytes,
        judge=judge,
        known=made.known,
        lookout=made.lookout,
        keeper=keeper,
        pictrs=made.pictrs,
        fault=made.fault,
        owner=owner_of(made.config),
    )
    return Backlog(
        made.database,
        made.lookout,
        made.metrics,
        # Few, because each takes a look that an upload might want. One begins with what everybody can see
        # already, the other one with what nobody sees yet.
        workers=[[unseen, deferred], [deferred, unseen]],
        sweeper=resealer,
        owner=owner_of(made.config),
        pause=lockdown.is_on,
        public=unseen.count_public,
    )


async def _tidy_up(made: Parts, decider: Decider) -> None:
    """Ends what crashes have cut off: files without a case, confirmed cases that are being stored, and held
    ones that are stored still.
    """
    tidier = f"tidy {owner_of(made.config)}"[:200]
    while True:
        try:
            await asyncio.to_thread(made.quarantine.sweep_unfinished, older_than_s=_TIDY_EVERY_S)
            for case_id in await asyncio.to_thread(
                adopt_orphans, made.database, made.quarantine, older_than_s=_TIDY_EVERY_S
            ):
                log.warning("case %s was sealed before a crash and is pending now", case_id)
        except (OSError, SQLAlchemyError) as error:
            log.error("sealed files could not be looked through: %s", said(error))
        try:
            await decider.take_back_overtaken()
        except (PictrsError, SQLAlchemyError) as error:
            log.error("confirmed cases could not be looked through: %s", said(error))
        try:
            await take_rest(made.database, made.pictrs, made.fault, by=tidier, older_than_s=_TIDY_EVERY_S)
        except SQLAlchemyError as error:
            log.error("cases of what is stored could not be looked through: %s", said(error))
        await asyncio.sleep(_TIDY_EVERY_S)


async def _told_to_stop() -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    await stop.wait()
