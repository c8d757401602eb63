"""`pictrs-gate doctor`: is everything as it should be?"""

from __future__ import annotations

import argparse
import asyncio
import json
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import asdict
from pathlib import Path

from proxy import doctor, parts
from proxy.commands import Commands, Shared, database_of
from proxy.commands.keys import gate_recipient
from proxy.config import Config, load
from proxy.database import checking
from proxy.doctor import Finding, Level
from proxy.errors import ConfigError, SealingError
from proxy.pictrs import Pictrs
from proxy.review.terminal import harmless


def add(commands: Commands, shared: Shared) -> None:
    """Adds the command."""
    command = commands.add_parser(
        "doctor",
        parents=[shared.configured, shared.as_json, shared.keyed],
        help="check a set-up from end to end; changes nothing",
    )
    command.set_defaults(run=_run)


async def _run(options: argparse.Namespace) -> int:
    found = []
    async with aclosing(_findings(options)) as findings:
        async for finding in findings:
            found.append(finding)
            if not options.json:
                print(f"{finding.level.value:<5}{finding.about}: {harmless(finding.says)}", flush=True)
    if options.json:
        print(json.dumps([asdict(finding) for finding in found], indent=1))
    return 1 if any(finding.level is Level.FAIL for finding in found) else 0


async def _findings(options: argparse.Namespace) -> AsyncGenerator[Finding, None]:
    """All checks, in the order in which one would mend what they find."""
    try:
        config = load(options.config)
    except ConfigError as error:
        for line in str(error).splitlines():
            yield Finding("configuration", Level.FAIL, line)
        return
    yield Finding("configuration", Level.OK, f"{options.config} is complete")
    for finding in await asyncio.to_thread(_of_keys_and_folder, config, options.identity):
        yield finding
    for finding in await asyncio.to_thread(_of_database, config, options.identity):
        yield finding
    yield await doctor.check_gate(config.internal.listen)
    key = config.pictrs.api_key
    pictrs = Pictrs(
        config.pictrs.url, key.get_secret_value() if key else None, min(config.pictrs.timeout_s, 10.0)
    )
    try:
        yield await doctor.check_pictrs(pictrs, has_key=key is not None)
    finally:
        await pictrs.close()
    needed = parts.policy_of(config).signals
    for index, section in enumerate(config.classifiers):
        if section.kind != "http":
            yield Finding(
                f"classifier {index}",
                Level.OK,
                f"{section.kind}: comes by itself; the running gate's /metrics tell whether it is there",
            )
            continue
        try:
            channel = parts.channel_of(index, section)
        except ConfigError as error:
            yield Finding(f"classifier {section.url}", Level.FAIL, str(error))
            continue
        try:
            yield await doctor.check_classifier(channel, needed)
        finally:
            await channel.close()


def _of_keys_and_folder(config: Config, identity: Path | None) -> list[Finding]:
    found = [doctor.check_recipients(config.cases.recipients)]
    for path, is_on_server in ((config.cases.identity_file, True), (identity, False)):
        if path is not None:
            found += doctor.check_identity(path, config.cases.recipients, is_on_server=is_on_server)
    found += doctor.check_gate_key(config.cases.gate_identity_file)
    found += doctor.check_ledger_key(config.ledger.key_file)
    return found + doctor.check_folder(config.cases.folder)


def _of_database(config: Config, identity: Path | None) -> list[Finding]:
    found = [doctor.check_database(config.database.url, config.database.password)]
    if found[0].level is not Level.OK:
        return found  # whatever opens it would make or migrate it
    try:
        gate = gate_recipient(config)
    except SealingError as error:
        found.append(Finding("gate's own key", Level.FAIL, str(error)))
        gate = None
    with database_of(config) as database:
        found.append(doctor.check_ledger(database))
        found.append(doctor.check_sealed_files(database, config.cases.folder))
        found += doctor.check_gate_reads(database, config.cases.folder, config.cases.gate_identity_file)
        found.append(doctor.check_sealing(database, config.cases.recipients, gate))
        if (key := identity or config.cases.identity_file) is not None:
            newest = checking.newest_sealed(database)
            found.append(doctor.check_newest_case(newest, config.cases, key))
    return found
