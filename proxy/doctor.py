"""Checks a live set-up end to end and says in words what to mend. Changes nothing, and shows no secret.

Each check is one function: it looks at one thing and returns what it found, a line each.
"""

from __future__ import annotations

import enum
import shutil
import stat
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import aiohttp
import pyrage
from pydantic import SecretStr

from proxy.cases.rotating import Keys
from proxy.cases.sealing import open_sealed, read_identities
from proxy.channels.looks import Channel, ChannelError
from proxy.database import Case, Database, checking, engine, rotating
from proxy.errors import ConfigError, PictrsError, SealingError
from proxy.pictrs import Pictrs
from proxy.sections import CasesSection, host_and_port

_LITTLE_SPACE, _NO_SPACE = 2 * 1024**3, 200 * 1024**2  # bytes
_LAST_ENTRIES = 1000
_GATE_S = 5.0


class Level(enum.StrEnum):
    """How it stands."""

    OK = "ok"
    WARN = "warn"  # it works, and could be lost or seen one day
    FAIL = "fail"


@dataclass(frozen=True, slots=True)
class Finding:
    """What one check has found.

    Attributes:
        about: what was looked at.
        says: how it stands and, where something is to be mended, what to do.
    """

    about: str
    level: Level
    says: str


def _ok(about: str, says: str) -> Finding:
    return Finding(about, Level.OK, says)


def _warn(about: str, says: str) -> Finding:
    return Finding(about, Level.WARN, says)


def _fail(about: str, says: str) -> Finding:
    return Finding(about, Level.FAIL, says)


def check_database(url: str, password: SecretStr | None) -> Finding:
    """Whether the database can be reached and is as new as this program; it is not migrated here."""
    about = "database"
    try:
        pending = engine.pending(url, password)
    except ConfigError as error:
        return _fail(about, str(error))
    if pending.is_done:
        return _ok(about, f"can be reached, version {pending.found}")
    if pending.found is None:
        return _warn(about, "there is none yet; `pictrs-gate serve` makes it")
    if pending.is_safe:
        return _warn(about, f"has to be migrated, {pending}; the next start of the gate does it")
    return _fail(about, f"has to be migrated, {pending}; stop every gate and run `pictrs-gate migrate`")


def check_ledger(database: Database) -> Finding:
    """Whether the last entries hang together; `ledger verify` looks at all."""
    broken = checking.first_broken_of_last(database, _LAST_ENTRIES)
    if broken is not None:
        return _fail(
            "ledger",
            f"entry {broken} was altered, or one before it is missing: keep the database as it is, and "
            "compare it with a copy",
        )
    return _ok("ledger", f"its last entries hold (at most {_LAST_ENTRIES} were looked at)")


def check_folder(folder: Path) -> list[Finding]:
    """Whether the folder of sealed cases is there, private, can be written and has room."""
    about = "cases folder"
    if not folder.is_dir():
        return [
            _warn(about, f"{folder} is not there; `pictrs-gate serve` makes it where there is no case yet")
        ]
    found = []
    if folder.stat().st_mode & 0o077:
        found.append(_warn(about, f"others can look into {folder}; chmod 700 {folder}"))
    try:
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        return [*found, _fail(about, f"{folder} cannot be written: {error.strerror}")]
    free = shutil.disk_usage(folder).free
    room = f"{free / 1024**3:.1f} GiB free"
    if free < _NO_SPACE:
        found.append(_fail(about, f"{room}: uploads get 503 once a case cannot be written; make room"))
    elif free < _LITTLE_SPACE:
        found.append(_warn(about, f"{room}; a flood of uploads fills that, make room"))
    return found or [_ok(about, f"{folder} is private and can be written, {room}")]


def check_recipients(recipients: Sequence[str]) -> Finding:
    """Whether a lost key would lose the cases."""
    about = "recipients"
    for recipient in recipients:
        try:
            pyrage.x25519.Recipient.from_str(recipient)
        except pyrage.RecipientError:
            return _fail(
                about, f"{recipient[:80]!r} is no public key of age; `pictrs-gate keys new` makes one"
            )
    if len(set(recipients)) < 2:
        return _warn(
            about,
            "there is one only, and a lost key cannot be replaced: make a second one with `pictrs-gate keys "
            "new`, keep it somewhere else, add it to cases.recipients, and run `pictrs-gate keys rotate`",
        )
    return _ok(about, f"{len(set(recipients))} keys open each case")


def check_identity(path: Path, recipients: Sequence[str], *, is_on_server: bool) -> list[Finding]:
    """Whether a private key is private, and one of those that new cases are sealed to.

    Args:
        is_on_server: whether the configuration names it, so that it lies there for good.
    """
    about = "identity"
    try:
        identities = read_identities(path)
    except SealingError as error:
        return [_fail(about, str(error))]
    found = []
    if path.stat().st_mode & (stat.S_IRWXG | stat.S_IRWXO):
        found.append(_warn(about, f"{path} can be read by others; chmod 600 {path}"))
    if not any(str(one.to_public()) in recipients for one in identities):
        found.append(
            _fail(
                about,
                f"{path} is none of cases.recipients, so it opens no new case; add its public key and run "
                "`pictrs-gate keys rotate`, or name another key",
            )
        )
    mode = (
        "convenient mode: whoever takes this server opens every case" if is_on_server else "opens new cases"
    )
    return found or [_ok(about, f"{path} is private; {mode}")]


def check_gate_key(path: Path) -> list[Finding]:
    """Whether the gate's own key, where it has one, is private: it opens what has still to be looked at."""
    about = "gate's own key"
    if not path.exists():
        return []
    if path.stat().st_mode & (stat.S_IRWXG | stat.S_IRWXO):
        return [_warn(about, f"{path} can be read by others; chmod 600 {path}")]
    return [_ok(about, f"{path} is private")]


def check_gate_reads(database: Database, folder: Path, path: Path) -> list[Finding]:
    """Whether the gate's own key opens what it has still to look at; nothing where there is no such case."""
    about = "cases for the gate"
    count = rotating.count_for_gate(database)
    if not count:
        return []
    if not path.exists():
        return [
            _fail(
                about,
                f"{path} is away, and {count} cases wait for the gate to open them: put it back, or "
                "reviewers have to look at them",
            )
        ]
    newest = checking.newest_for_gate(database)
    if newest is None or not (folder / newest.file).exists():  # said elsewhere
        return []
    try:
        open_sealed(folder / newest.file, read_identities(path))
    except SealingError as error:
        says = f"{error}; {count} cases wait for the gate to open them: put back the key that it had"
        return [_fail(about, says)]
    return [_ok(about, f"opens {newest.id}, the newest of {count} cases that wait for the gate")]


def check_ledger_key(path: Path) -> list[Finding]:
    """Whether the key that signs the ledger's checkpoints is private."""
    if path.exists() and path.stat().st_mode & (stat.S_IRWXG | stat.S_IRWXO):
        return [_warn("ledger's key", f"{path} can be read by others; chmod 600 {path}")]
    return []


def check_sealed_files(database: Database, folder: Path) -> Finding:
    """Whether the sealed file of each case is there and as long as it was when it was written."""
    about = "sealed files"
    away, other = _damaged(database, folder)
    if away or other:  # a running gate may have been replacing one just then
        again = _damaged(database, folder)
        away, other = away & again[0], other & again[1]
    if not away and not other:
        return _ok(about, "each case has its own")
    some = ", ".join(sorted(away | other)[:3])
    return _fail(
        about,
        f"{len(away)} are missing, {len(other)} have another size than was written (among them those of "
        f"{some}): mount {folder}, or restore them from a copy",
    )


def _damaged(database: Database, folder: Path) -> tuple[set[str], set[str]]:
    """Ids of the cases without a file, and of those whose file has another size."""
    away, other = set(), set()
    for case_id, file, size in checking.sealed(database):
        try:
            found = (folder / file).lstat()
        except OSError:
            away.add(case_id)
            continue
        if not stat.S_ISREG(found.st_mode) or size not in (None, found.st_size):
            other.add(case_id)
    return away, other


def check_newest_case(case: Case | None, cases: CasesSection, identity_file: Path) -> Finding:
    """Whether a key opens what is there: a key that was lost is better missed today."""
    about = "newest case"
    if case is None:
        return _ok(about, "there is none yet")
    try:
        open_sealed(cases.folder / case.file, read_identities(identity_file))
    except SealingError as error:
        return _fail(
            about, f"{error}; with a key that opens it, run `pictrs-gate keys rotate --identity THAT-KEY`"
        )
    return _ok(about, f"{case.id} opens with {identity_file}")


def check_sealing(database: Database, recipients: Sequence[str], gate: str | None) -> Finding:
    """Whether all cases are sealed to those that are configured now."""
    about = "sealed cases"
    count = rotating.count_to_reseal(database, Keys(recipients, gate, ()).wanted)
    if count:
        return _warn(
            about,
            f"{count} are sealed to others than cases.recipients; "
            "run `pictrs-gate keys rotate --identity KEY`",
        )
    return _ok(about, "all are sealed to cases.recipients")


async def check_gate(listen: str) -> Finding:
    """Whether a gate runs with this configuration, and is ready.

    Args:
        listen: of the internal listener.
    """
    about, (host, port) = "gate", host_and_port(listen)
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104 — nobody listens here
    at = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    timeout = aiohttp.ClientTimeout(total=_GATE_S)
    try:
        async with (
            aiohttp.ClientSession(timeout=timeout) as session,
            session.get(f"http://{at}/readyz") as answer,
        ):
            status = answer.status
    except (aiohttp.ClientError, TimeoutError, OSError):
        return _warn(
            about, f"none answers at {at}: start it with `pictrs-gate serve`, or see internal.listen"
        )
    if status != 200:
        return _fail(about, f"runs at {at} and is not ready ({status}); its log says why")
    return _ok(about, f"runs, and is ready at {at}")


async def check_pictrs(pictrs: Pictrs, *, has_key: bool) -> Finding:
    """Whether pict-rs answers, and takes the API key."""
    about = "pict-rs"
    try:
        if not has_key:
            await pictrs.has("nobody")
            return _warn(
                about,
                "answers; without pictrs.api_key held uploads are refused rather than promised, and nothing "
                "can be released: set it to pict-rs's server.api_key",
            )
        await pictrs.stored(limit=1)
    except PictrsError as error:
        if error.code == "invalid-api-token" or error.status in (401, 403):
            return _fail(about, "refuses the API key; set pictrs.api_key to pict-rs's server.api_key")
        return _fail(about, f"{error}; see pictrs.url")
    return _ok(about, "answers, and takes the API key")


async def check_classifier(channel: Channel, needed: Iterable[str]) -> Finding:
    """Whether a classifier answers, with every signal that a rule names."""
    about = f"classifier {channel.name}"
    try:
        signals = await channel.signals()
    except ChannelError as error:
        return _fail(about, f"{error}; until it is back, policy.on_unavailable decides")
    if missing := sorted(set(needed) - signals):
        return _fail(
            about,
            f"has no signal {', '.join(missing)}, which a rule names; "
            f"name some of {', '.join(sorted(signals))}",
        )
    return _ok(about, f"answers, and has {', '.join(sorted(signals))}")
