"""Makes a case of an upload: sealed and on the disk, then in the database, then promised."""

from __future__ import annotations

import asyncio
import re
import secrets
import uuid
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any

from sqlalchemy.exc import SQLAlchemyError

from proxy import __version__
from proxy.aliases import alias_key, make_alias, make_delete_token
from proxy.cases import placeholder
from proxy.cases.quarantine import Quarantine
from proxy.channels.looks import Look, Seen
from proxy.database import Case, CaseState, Database, Promise, cases
from proxy.errors import SealingError
from proxy.faults import FaultPoint
from proxy.intake.uploads import Upload
from proxy.media import Format, Size
from proxy.policy import Decision, Verdict

# Sorts by time, can be read aloud, and is no secret.
_CASE_ID = re.compile(r"\d{8}-\d{6}-[0-9a-f]{8}")

Query = Sequence[tuple[str, str]]


@dataclass(frozen=True, slots=True)
class Origin:
    """Where an upload came from.

    Attributes:
        route: method and path, for the facts.
        arguments: its query, for the release.
        uploader: what is known of who sent it; see `proxy.server.uploaders`.
    """

    route: str
    arguments: Query
    uploader: Mapping[str, Any]


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

    def __init__(self, database: Database, quarantine: Quarantine, fault: FaultPoint) -> None:
        self._database, self._quarantine, self._fault = database, quarantine, fault
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
            SealingError: nothing was kept.
        """
        case, facts = self._case(upload, decision, look, origin)

        def work() -> Promise | None:
            self._seal(case, facts, upload)
            promise = None
            if wanted is not None:
                size, frames = wanted.size()
                promise = make_promise(
                    placeholder.details(upload.media, size, frames), upload.media, origin.arguments, wanted
                )
                case.promises.append(promise)
            self._record(case, facts)
            return promise

        promise = await asyncio.get_running_loop().run_in_executor(self._threads, work)
        self._fault("case-recorded")
        return promise

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
            SealingError: nothing was kept.
        """
        case, known = self._case(upload, decision, look, origin)
        case.promises.extend(promises)

        def work() -> None:
            self._seal(case, {**known, **facts}, upload)
            record(case, _noted(known))

        await asyncio.get_running_loop().run_in_executor(self._threads, work)
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
            rule=decision.rule,
            sha256=upload.sha256,
            size=len(upload.content),
            content_type=upload.media.content_type,
            pdq=seen and seen.pdq,
            pdq_quality=seen and seen.pdq_quality,
            signals=seen and dict(seen.signals),
            ensemble=seen and seen.ensemble,
        )
        return case, facts

    def _seal(self, case: Case, facts: Mapping[str, Any], upload: Upload) -> None:
        case.file = self._quarantine.seal(case.id, facts, upload.content)
        self._fault("case-sealed")

    def close(self) -> None:
        """Waits for what is being sealed."""
        self._threads.shutdown()

    def _record(self, case: Case, facts: dict[str, Any]) -> None:
        try:
            cases.add(self._database, case, facts=_noted(facts))
        except SQLAlchemyError as error:
            # The sealed file stays: it is adopted as a case when the database is back.
            raise SealingError(f"case {case.id} could not be recorded: {type(error).__name__}") from None


def _noted(facts: Mapping[str, Any]) -> dict[str, Any]:
    """What of the facts stands in the ledger."""
    return {name: facts[name] for name in ("sha256", "verdict", "reason", "signals", "ensemble")}


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
    return {
        "case": case_id,
        "uploaded_at": now.isoformat(),
        "sha256": upload.sha256,
        "pdq": seen and seen.pdq,
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
        "signals": seen and dict(seen.signals),
        "frames": seen and list(seen.frames),
        "ensemble": seen and seen.ensemble,
        "gate_version": __version__,
    }


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
        )
        cases.add(database, case, facts={"adopted": name})
        adopted.append(case.id)
    return adopted
