"""What every command of the gate is made from: its parts, as a configuration describes them."""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import timedelta

import pyrage

from proxy import faults
from proxy.cases.quarantine import Quarantine
from proxy.cases.quota import Limits
from proxy.cases.recipients import sealed_to
from proxy.cases.sealing import Sealer, gate_identities, gate_public
from proxy.channels.http import HttpChannel
from proxy.channels.lookout import Lookout
from proxy.channels.looks import Channel
from proxy.channels.pop import PopChannel
from proxy.channels.tls import client_context
from proxy.channels.worker import Workers
from proxy.config import Config
from proxy.database import Database, checking
from proxy.database.retention import Periods
from proxy.errors import ConfigError, SealingError
from proxy.faults import FaultPoint
from proxy.known_hashes import KnownHashes
from proxy.ledger.signing import read_signer
from proxy.metrics import Metrics
from proxy.pictrs import Pictrs
from proxy.policy import Policy, Rule, Verdict
from proxy.sections import ClassifierSection

MEGABYTE = 1024 * 1024
_GIGABYTE = 1024 * MEGABYTE


@dataclass(frozen=True, slots=True)
class Parts:
    """What every command of the gate is made from."""

    config: Config
    database: Database
    quarantine: Quarantine
    pictrs: Pictrs
    lookout: Lookout
    pollers: PopChannel | None
    workers: Workers | None
    policy: Policy
    known: KnownHashes
    metrics: Metrics
    fault: FaultPoint


@asynccontextmanager
async def built(config: Config, *, gate: Sequence[pyrage.x25519.Identity] = ()) -> AsyncIterator[Parts]:
    """Builds the parts, and gives back what they hold.

    Args:
        gate: the running gate's own key, for what it defers.

    Raises:
        ConfigError: one of them cannot work with the configuration.
    """
    metrics, fault = Metrics(), faults.from_environment()
    policy = policy_of(config)
    contexts = [_context(index, section) for index, section in enumerate(config.classifiers)]
    quarantine = Quarantine(
        config.cases.folder,
        Sealer(config.cases.recipients),
        fault,
        with_gate=sealer_with(gate, config) if gate else None,
        make=False,
    )
    database = Database(config.database.url, password=config.database.password, fault=fault)
    known = KnownHashes(database, config.policy.block_lists, config.policy.near_distance)
    channels = [
        _channel(section, context)
        for section, context in zip(config.classifiers, contexts, strict=True)
        if section.kind != "worker"
    ]
    pollers = next((channel for channel in channels if isinstance(channel, PopChannel)), None)
    lookout = Lookout(channels, policy.signals, metrics)
    tokens = [_token(section) for section in config.classifiers if section.kind == "worker"]
    workers = Workers(tokens, policy.signals, lookout) if tokens else None
    pictrs = Pictrs(config.pictrs.url, api_key_of(config), config.pictrs.timeout_s)
    try:
        yield Parts(
            config, database, quarantine, pictrs, lookout, pollers, workers, policy, known, metrics, fault
        )
    finally:
        await lookout.close()
        await pictrs.close()
        database.close()


async def make_folder(made: Parts) -> None:
    """For whoever is going to seal cases: the folder is there and can be written.

    Raises:
        ConfigError: it is not, or it is gone while there are cases that were sealed into it.
    """
    newest = await made.database.run(checking.newest_sealed)
    await asyncio.to_thread(made.quarantine.make, is_new=newest is None)


def _context(index: int, section: ClassifierSection) -> ssl.SSLContext | None:
    return client_context(
        f"classifiers.{index}",
        ca_file=section.ca_file,
        certificate_file=section.certificate_file,
        key_file=section.key_file,
    )


def channel_of(index: int, section: ClassifierSection) -> Channel:
    """The channel that a section of the configuration describes; `index` is for messages.

    Raises:
        ConfigError: its certificates cannot be read.
    """
    return _channel(section, _context(index, section))


def _channel(section: ClassifierSection, context: ssl.SSLContext | None) -> Channel:
    if section.kind == "fedi-safety":
        return PopChannel(_token(section))
    return HttpChannel(section.url or "", _token(section) or None, context)


def gate_key_of(config: Config) -> list[pyrage.x25519.Identity]:
    """The gate's own key, for what it defers; none where none is configured.

    Raises:
        ConfigError: its file cannot be read.
    """
    try:
        return gate_identities(config.cases.gate_identity_file)
    except SealingError as error:
        raise ConfigError(f"cases.gate_identity_file: {error}") from None


def sealer_with(gate_key: Sequence[pyrage.x25519.Identity], config: Config) -> Sealer:
    """Seals to the reviewers and the gate itself."""
    return Sealer(sealed_to(config.cases.recipients, gate_public(gate_key), gate_reads=True))


def _token(section: ClassifierSection) -> str:
    return section.token.get_secret_value() if section.token else ""


def policy_of(config: Config) -> Policy:
    """The policy that a configuration describes."""
    return Policy(
        rules=[Rule(rule.name, Verdict(rule.verdict), rule.at_least) for rule in config.policy.rules],
        on_unavailable=Verdict(config.policy.on_unavailable),
        on_undecodable=Verdict(config.policy.on_undecodable),
        near_verdict=Verdict(config.policy.near_verdict),
    )


def owner_of(config: Config) -> str:
    """A name of this gate, the same after a restart. Hosts may have one name, so it has its ledger key's too.

    Raises:
        OSError, ConfigError: there is no such key.
    """
    key = read_signer(config.ledger.key_file).key
    return f"{key[:16]} {socket.gethostname()} {config.server.listen}"[:200]


def limits_of(config: Config) -> Limits:
    """How much room the quarantine may take."""
    quota = int(config.cases.quota_gb * _GIGABYTE)
    return Limits(quota, int(quota * config.cases.share_of_uploader), config.cases.keep_free_mb * MEGABYTE)


def periods_of(config: Config) -> Periods:
    """How long the bytes of cases are kept."""

    def period(days: int) -> timedelta | None:
        return timedelta(days=days) if days else None

    section = config.retention
    return Periods(released=period(section.released_days), confirmed=period(section.confirmed_days))


def api_key_of(config: Config) -> str | None:
    """Of pict-rs, in the clear."""
    return config.pictrs.api_key.get_secret_value() if config.pictrs.api_key else None
