"""A human's decision about a case, and what it does: to pict-rs, to the memory of hashes, to the ledger."""

from __future__ import annotations

import asyncio
import hashlib
from pathlib import Path

from proxy.cases.quarantine import Quarantine
from proxy.cases.sealing import Opened, open_sealed, read_identities
from proxy.database import Case, CaseState, Database, cases
from proxy.errors import CaseError, PictrsError
from proxy.faults import FaultPoint
from proxy.intake.multipart import OutgoingFile
from proxy.pictrs import Pictrs

# A case that nobody could look at may be decided like one that was held: a human has looked now.
_UNDECIDED = frozenset({CaseState.DEFERRED, CaseState.PENDING})


class Decider:
    """Releases and confirms cases."""

    def __init__(self, database: Database, quarantine: Quarantine, pictrs: Pictrs, fault: FaultPoint) -> None:
        self._database, self._quarantine, self._pictrs = database, quarantine, pictrs
        self._fault = fault

    async def release(self, case_id: str, *, identity_file: Path, reviewer: str) -> Case:
        """Harmless: stores the picture under the promised alias, and lets the same bytes pass from now on.

        May be repeated after a crash: a picture that is already stored under the alias is not an error.

        Raises:
            CaseError: the case is decided already, or its file is not what was uploaded.
            SealingError: it cannot be opened with this identity.
            PictrsError: pict-rs refuses it or cannot be reached; the case stays as it was.
        """
        case = await self._undecided(case_id)
        opened = await self._open(case, identity_file)
        token = None
        if case.alias is not None:
            token = await self._import(case, opened)
            self._fault("imported")
        return await self._database.run(
            cases.decide,
            case_id,
            to=CaseState.RELEASED,
            frm=_UNDECIDED,
            reviewer=reviewer,
            facts={"sha256": opened.facts["sha256"], "alias": case.alias},
            sha256=opened.facts["sha256"],
            stored_token=token,
        )

    async def confirm(self, case_id: str, *, identity_file: Path | None, reviewer: str) -> Case:
        """This is it: the case is preserved, and the same bytes are refused from now on.

        Args:
            identity_file: needed only for a case whose hash stands nowhere but in its sealed file.

        Raises:
            CaseError: the case is decided already.
            SealingError: it has to be opened, and cannot be with this identity.
        """
        case = await self._undecided(case_id)
        sha256 = case.sha256
        if sha256 is None:
            if identity_file is None:
                raise CaseError(
                    f"{case_id}: its hash is in the sealed file only; name the key with --identity"
                )
            sha256 = (await self._open(case, identity_file)).facts["sha256"]
        return await self._database.run(
            cases.decide,
            case_id,
            to=CaseState.CONFIRMED,
            frm=_UNDECIDED,
            reviewer=reviewer,
            facts={"sha256": sha256, "alias": case.alias},
            sha256=sha256,
        )

    async def _undecided(self, case_id: str) -> Case:
        case = await self._database.run(cases.get, case_id)
        if case.state not in _UNDECIDED:
            raise CaseError(f"{case_id}: is {case.state} already, by {case.decided_by}")
        return case

    async def _open(self, case: Case, identity_file: Path) -> Opened:
        def work() -> Opened:
            opened = open_sealed(self._quarantine.path(case.file), read_identities(identity_file))
            sha256 = hashlib.sha256(opened.original).hexdigest()
            if sha256 != opened.facts.get("sha256") or case.sha256 not in (None, sha256):
                raise CaseError(f"{case.id}: the sealed bytes are not those that were uploaded")
            return opened

        return await asyncio.to_thread(work)

    async def _import(self, case: Case, opened: Opened) -> str | None:
        """Stores the original; returns pict-rs's delete token, or None where it was stored before."""
        assert case.alias is not None
        file = OutgoingFile(case.alias, case.content_type or "application/octet-stream", opened.original)
        query = [(key, value) for key, value in case.arguments or []]
        try:
            entry = await self._pictrs.import_file(case.alias, file, query)
        except PictrsError as error:
            # The alias is a random UUID of the gate's: whoever has it stored got it from an earlier release.
            if error.code == "duplicate-alias" and await self._pictrs.has(case.alias):
                return None
            raise
        token = entry.get("delete_token")
        return token if isinstance(token, str) else None
