"""Makes a case of an upload: sealed and on the disk, then in the database, then promised."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import re
import secrets
import threading
import uuid
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any, TypeVar

from sqlalchemy.exc import SQLAlchemyError

from proxy import __version__
from proxy.aliases import alias_key, make_alias, make_delete_token
from proxy.cases import placeholder
from proxy.cases.evidence import file_sha256
from proxy.cases.quarantine import Quarantine
from proxy.cases.quota import Quota
from proxy.cases.sealing import FORMAT
from proxy.channels.looks import Look, Seen
from proxy.database import Case, CaseState, Database, Promise, cases, ledger, room
from proxy.database.evidence import SEALED
from proxy.errors import NoRoom, SealingError
from proxy.faults import FaultPoint
from proxy.intake.uploads import Upload
from proxy.media import Format, Size
from proxy.metrics import Metrics
from proxy.policy import Decision, Verdict
from proxy.saying import said

log = logging.getLogger(__name__)

# Sorts by time, can be read aloud, and is no secret.
_CASE_ID = re.compile(r"\d{8}-\d{6}-[0-9a-f]{8}")

Query = Sequence[tuple[str, str]]
T = TypeVar("T")

# That an upload waits for its case. A hanging disk, say; the database gives up sooner.
_KEPT_S = 20.0


@dataclass(frozen=True, slots=True)
class Origin:
    """Where an upload came from.

    Attributes:
        route: method and path, for the facts.
        arguments: its query, for the release.
        uploader: what is known of who sent it; see `proxy.server.uploaders`.
        tag: by which his share of the quarantine is counted; None where there is nothing to count by.
    """

    route: str
    arguments: Query
    uploader: Mapping[str, Any]
    tag: str | None = None


@dataclass(frozen=True, slots=True)
class Wanted:
    """What an uploader is to be promised.

    Attributes:
        size: size and frames of the placeholder, worked out only once the bytes are safe.
        alias: that was asked for by name; None where the gate makes one.
        backgrounded: whether the promise is to be claimed by an upload id.
    """

    size: Callable[[], tuple[Size | None, int | None]]
    alias: str | None = None
    backgrounded: bool = False


class Keeper:
    """Turns uploads into cases."""

    def __init__(
        self,
        database: Database,
        quarantine: Quarantine,
        quota: Quota,
        metrics: Metrics,
        fault: FaultPoint,
    ) -> None:
        self._database, self._quarantine, self._quota = database, quarantine, quota
        self._metrics, self._fault = metrics, fault
        # Of its own, so that evidence never waits behind other work. Encryption is bound by the processor.
        self._threads = ThreadPoolExecutor(2, thread_name_prefix="sealing")

    async def keep(
        self, upload: Upload, decision: Decision, look: Look | None, origin: Origin, wanted: Wanted | None
    ) -> Promise | None:
        """Seals an upload and records it; on return a kill -9 loses nothing of it.

        Args:
            upload: what was uploaded.
            decision: `hold` or `defer`.
            look: what it rests on; None where only the hash was known.
            origin: where it came from.
            wanted: None where the uploader is told nothing.

        Returns:
            What the uploader may be told; None where nothing is wanted.

        Raises:
            AliasTaken: the alias that was asked for stands for another case; the upload is sealed.
            NoRoom: nothing was kept, because a limit of the quarantine would be passed.
            SealingError: nothing was kept, or nobody knows in time: then it may be kept, without a promise.
        """
        case, facts = self._case(upload, decision, look, origin)
        too_late = threading.Event()

        def work() -> Promise | None:
            sealed_sha256 = self._seal(case, facts, upload)
            if too_late.is_set():  # nobody could be told; the sealed file is adopted as a case
                raise SealingError(f"case {case.id} could not be recorded in time")
            promise = None
            if wanted is not None:
                size, frames = wanted.size()
                promise = make_promise(
                    placeholder.details(upload.media, size, frames), upload.media, origin.arguments, wanted
                )
                case.promises.append(promise)
            self._record(case, {**_noted(facts), SEALED: sealed_sha256})
            return promise

        try:
            async with asyncio.timeout(_KEPT_S):
                promise = await self._in_room(case, upload, work)
        except NoRoom:
            await self._note_refused(facts)
            raise
        except TimeoutError:
            too_late.set()
            self._metrics.sealing_failures.inc()
            raise SealingError(f"case {case.id} could not be kept within {_KEPT_S:.0f} s") from None
        self._fault("case-recorded")
        return promise

    async def _note_refused(self, facts: Mapping[str, Any]) -> None:
        """Of what was a hit there is nothing else to be seen later."""
        names = ("sha256", "verdict", "reason", "signals", "route")
        noted = {name: facts[name] for name in names}
        try:
            await self._database.run(ledger.record, "refused: no room", actor="gate", facts=noted)
        except SQLAlchemyError as error:  # a full disk may be the database's too
            log.error("an upload without room could not be noted: %s", said(error))

    async def keep_stored(
        self,
        upload: Upload,
        decision: Decision,
        look: Look | None,
        origin: Origin,
        *,
        promises: Sequence[Promise],
        facts: Mapping[str, Any],
        record: Callable[[Case, dict[str, Any]], None],
    ) -> str:
        """Makes a case of what pict-rs has already.

        Args:
            promises: for its aliases.
            facts: more of them, to be sealed.
            record: makes the case durable, with a ledger entry that carries what it is given.

        Returns:
            The id of the case.

        Raises:
            IntegrityError, CaseError: of `record`. pict-rs has it, so it is tried again.
            NoRoom: nothing was kept, because a limit of the quarantine would be passed.
            SealingError: nothing was kept.
        """
        case, known = self._case(upload, decision, look, origin)
        case.promises.extend(promises)

        def work() -> None:
            sealed_sha256 = self._seal(case, {**known, **facts}, upload)
            # Where that fails the sealed file stays, and is adopted as a case: nothing here deletes one.
            record(case, {**_noted(known), SEALED: sealed_sha256})

        await self._in_room(case, upload, work, is_public=True)
        return case.id

    def _case(
        self, upload: Upload, decision: Decision, look: Look | None, origin: Origin
    ) -> tuple[Case, dict[str, Any]]:
        """A new case, neither sealed nor recorded yet, and its facts."""
        now = datetime.now(UTC)
        case_id = f"{now:%Y%m%d-%H%M%S}-{secrets.token_hex(4)}"
        facts = _facts(case_id, now, upload, decision, look, origin)
        seen = look if isinstance(look, Seen) else None
        case = Case(
            id=case_id,
            state=CaseState.DEFERRED if decision.verdict is Verdict.DEFER else CaseState.PENDING,
            created_at=now,
            reason=decision.reason[:500],
            rule=decision.rule and decision.rule[:200],
            sha256=upload.sha256,
            size=len(upload.content),
            content_type=upload.media.content_type,
            pdq=seen and seen.pdq,
            pdq_quality=seen and seen.pdq_quality,
            signals=seen and dict(seen.signals),
            ensemble=seen and seen.ensemble[:200],
            earlier=decision.earlier and decision.earlier.facts(),
            uploader=origin.tag,
            gate_reads=decision.verdict is Verdict.DEFER,
        )
        return case, facts

    async def _in_room(
        self, case: Case, upload: Upload, work: Callable[[], T], *, is_public: bool = False
    ) -> T:
        """Does `work`, which seals a case, where there is room for it."""
        with self._quota.place(len(upload.content), case.uploader, is_public=is_public) as place:
            try:
                return await asyncio.get_running_loop().run_in_executor(self._threads, work)
            except SealingError as error:
                if not isinstance(error, NoRoom):
                    self._metrics.sealing_failures.inc()
                raise
            finally:
                if case.file:
                    place.written(case.id, case.sealed_size or 0)

    def _seal(self, case: Case, facts: Mapping[str, Any], upload: Upload) -> str:
        """Seals a case; SHA-256 of the file."""
        self._quota.check_disk(len(upload.content))
        facts = {**facts, **_for_forms(upload.content)}
        case.file = self._quarantine.seal(case.id, facts, upload.content, gate_reads=case.gate_reads)
        case.sealed_to = self._quarantine.sealed_to(gate_reads=case.gate_reads)
        case.sealed_size = self._quarantine.size(case.file)
        sealed_sha256 = file_sha256(self._quarantine.path(case.file))
        self._fault("case-sealed")
        return sealed_sha256

    def close(self) -> None:
        """Waits for what is being sealed."""
        self._threads.shutdown()

    def _record(self, case: Case, facts: dict[str, Any]) -> None:
        try:
            cases.add(self._database, case, facts=facts)
        except SQLAlchemyError as error:
            # The sealed file stays: it is adopted as a case when the database is back.
            raise SealingError(f"case {case.id} could not be recorded: {said(error)}") from None


def _noted(facts: Mapping[str, Any]) -> dict[str, Any]:
    """What of the facts stands in the ledger."""
    names = ("sha256", "verdict", "reason", "earlier", "signals", "ensemble", "ensemble_version")
    return {name: facts[name] for name in names}


def make_promise(details: dict[str, Any], media: Format, arguments: Query, wanted: Wanted) -> Promise:
    """A promise with an alias and a delete token that look like pict-rs's; not recorded yet."""
    alias = wanted.alias or make_alias(media.extension)
    return Promise(
        alias=alias,
        alias_key=alias_key(alias),
        delete_token=make_delete_token(),
        details=details,
        arguments=[list(pair) for pair in arguments],
        upload_id=str(uuid.uuid4()) if wanted.backgrounded else None,
    )


def _facts(
    case_id: str, now: datetime, upload: Upload, decision: Decision, look: Look | None, origin: Origin
) -> dict[str, Any]:
    """What is sealed beside the bytes: all that a reviewer or an investigator may ask."""
    seen = look if isinstance(look, Seen) else None
    ensemble, version = name_and_version(seen.ensemble) if seen else (None, None)
    return {
        "format": FORMAT,
        "case": case_id,
        "uploaded_at": now.isoformat(),
        "sha256": upload.sha256,
        "pdq": seen and seen.pdq,
        "pdq_quality": seen and seen.pdq_quality,
        "size": len(upload.content),
        "file_name": upload.file_name,
        "declared_type": upload.declared_type,
        "media": asdict(upload.media),
        "route": origin.route,
        "arguments": [list(pair) for pair in origin.arguments],
        "uploader": dict(origin.uploader),
        "verdict": decision.verdict.value,
        "reason": decision.reason,
        "rule": decision.rule,
        "earlier": decision.earlier and decision.earlier.facts(),
        "signals": seen and dict(seen.signals),
        "frames": seen and list(seen.frames),
        "ensemble": ensemble,
        "ensemble_version": version,
        "gate_version": __version__,
    }


def _for_forms(content: bytes) -> dict[str, str]:
    """The hashes that reporting forms ask for beside SHA-256. They name a file; they prove nothing."""
    return {name: hashlib.new(name, content, usedforsecurity=False).hexdigest() for name in ("md5", "sha1")}


def name_and_version(ensemble: str) -> tuple[str, str | None]:
    """What looked, taken apart; some channels tell no version."""
    name, _, version = ensemble.rpartition(" ")
    return (name, version) if name else (ensemble, None)


def adopt_orphans(database: Database, quarantine: Quarantine, *, older_than_s: float) -> list[str]:
    """Makes pending cases of sealed files whose database row a crash has prevented.

    Nobody was promised anything about them, but they are evidence all the same.

    Returns:
        The ids of the cases adopted.
    """
    adopted = []
    for name in quarantine.orphans(cases.files(database), older_than_s=older_than_s):
        case_id = name.removesuffix(".age")
        if not _CASE_ID.fullmatch(case_id):  # somebody's own file
            continue
        case = Case(
            id=case_id,
            state=CaseState.PENDING,
            created_at=datetime.now(UTC),
            reason="found sealed after a crash; the facts are in the sealed file",
            file=name,
            sealed_size=quarantine.size(name),
            gate_reads=True,  # perhaps: what was deferred is sealed anew then, to the reviewers alone
        )
        cases.add(database, case, facts={"adopted": name})
        adopted.append(case.id)
    return adopted


def note_sizes(database: Database, quarantine: Quarantine) -> None:
    """Notes how large the sealed files of older cases are, which were made before anybody counted."""
    found = {case_id: quarantine.size(file) for case_id, file in room.unsized(database)}
    sizes = {case_id: size for case_id, size in found.items() if size is not None}
    if sizes:
        room.note_sizes(database, sizes)
