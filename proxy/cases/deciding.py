"""A human's decision about a case, and what it does: to pict-rs, to the memory of hashes, to the ledger.

What pict-rs is told and what the database says cannot change together. So a release is written down before
it begins, may be repeated until it has ended, and is taken back where a confirmation overtakes it.
"""

from __future__ import annotations

import asyncio
import hashlib
from datetime import UTC, datetime, timedelta
from pathlib import Path

from proxy.cases.quarantine import Quarantine
from proxy.cases.sealing import Opened, open_sealed, read_identities
from proxy.database import Case, CaseState, Database, cases
from proxy.errors import CaseError, PictrsError
from proxy.faults import FaultPoint
from proxy.intake.multipart import OutgoingFile
from proxy.known_hashes import KnownHashes
from proxy.pictrs import Pictrs
from proxy.policy import Verdict

# After this, whoever began a release is gone: pict-rs is given `pictrs.timeout_s` for it, 30 s by default.
_RELEASE_S = 120.0


class Decider:
    """Releases and confirms cases."""

    def __init__(
        self,
        database: Database,
        quarantine: Quarantine,
        known: KnownHashes,
        pictrs: Pictrs,
        fault: FaultPoint,
    ) -> None:
        self._database, self._quarantine, self._known = database, quarantine, known
        self._pictrs, self._fault = pictrs, fault

    async def release(self, case_id: str, *, identity_file: Path, reviewer: str) -> Case:
        """Harmless: stores the picture under the promised alias, and lets the same bytes pass from now on.

        May be repeated after a crash or a failure: what is stored already is not an error.

        Raises:
            CaseError: the case is decided already, the same file is known as CSAM, or the sealed bytes are
                not those that were uploaded.
            SealingError: it cannot be opened with this identity.
            PictrsError: pict-rs refuses it, and the case waits for a decision again; or it gave no answer,
                and the release has to be repeated.
        """
        case = await self._database.run(cases.undecided, case_id)
        opened = await self._open(case, identity_file)
        sha256 = str(opened.facts["sha256"])
        decision = await self._known.find(sha256)
        if decision is not None and decision.verdict is Verdict.BLOCK:
            raise CaseError(f"{case_id}: the same file is {decision.reason}, so it cannot be released")
        case = await self._database.run(cases.releasing, case_id, reviewer=reviewer, sha256=sha256)
        token = await self._import(case, opened, reviewer) if case.alias is not None else None
        self._fault("imported")
        try:
            return await self._database.run(cases.released, case_id, reviewer=reviewer, stored_token=token)
        except CaseError:
            if case.alias is not None:  # a confirmation has overtaken it
                await self._pictrs.delete(case.alias)
            raise

    async def confirm(self, case_id: str, *, identity_file: Path | None, reviewer: str) -> Case:
        """This is it: the case is preserved, and the same bytes are refused from now on.

        Args:
            identity_file: needed only for a case whose hash stands nowhere but in its sealed file.

        Raises:
            CaseError: the case is decided already, or a release of it is under way.
            SealingError: it has to be opened, and cannot be with this identity.
            PictrsError: a release that did not end cannot be taken back.
        """
        case = await self._database.run(cases.undecided, case_id)
        sha256 = case.sha256
        if sha256 is None:
            if identity_file is None:
                raise CaseError(
                    f"{case_id}: its hash is in the sealed file only; name the key with --identity"
                )
            sha256 = str((await self._open(case, identity_file)).facts["sha256"])
        before = datetime.now(UTC) - timedelta(seconds=_RELEASE_S)
        cases.check_no_release_since(case, before)
        if case.state is CaseState.RELEASING and case.alias is not None:
            await self._pictrs.delete(case.alias)  # first: whoever reads past the gate would see it
        return await self._database.run(
            cases.confirmed, case_id, reviewer=reviewer, sha256=sha256, before=before
        )

    async def _open(self, case: Case, identity_file: Path) -> Opened:
        def work() -> Opened:
            opened = open_sealed(self._quarantine.path(case.file), read_identities(identity_file))
            sha256 = hashlib.sha256(opened.original).hexdigest()
            if sha256 != opened.facts.get("sha256") or case.sha256 not in (None, sha256):
                raise CaseError(f"{case.id}: the sealed bytes are not those that were uploaded")
            return opened

        return await asyncio.to_thread(work)

    async def _import(self, case: Case, opened: Opened, reviewer: str) -> str | None:
        """Stores the original; returns pict-rs's delete token, or None where it was stored before."""
        assert case.alias is not None
        file = OutgoingFile(case.alias, case.content_type or "application/octet-stream", opened.original)
        query = [(key, value) for key, value in case.arguments or []]
        try:
            entry = await self._pictrs.import_file(file, query)
        except PictrsError as error:
            # The alias is a random UUID of the gate's: whoever has it stored got it from an earlier release.
            if error.code == "duplicate-alias" and await self._pictrs.has(case.alias):
                return None
            if error.code is not None:
                await self._database.run(
                    cases.not_released, case.id, reviewer=reviewer, reason=f"{error.status} {error.code}"
                )
                raise
            raise PictrsError(f"{case.id}: {error}; the release has not ended, so repeat it") from None
        token = entry.get("delete_token")
        return token if isinstance(token, str) else None
