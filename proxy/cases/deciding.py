"""A human's decision about a case, and what it does: to pict-rs, to the memory of hashes, to the ledger.

What pict-rs is told and what the database says cannot change together. So a release is written down before
it begins, may be repeated until it has ended, and is taken back where a confirmation overtakes it.
"""

from __future__ import annotations

import asyncio
import hashlib
import secrets
from pathlib import Path

from proxy.cases.life import Act, CaseState
from proxy.cases.quarantine import Quarantine
from proxy.cases.sealing import Opened, open_sealed, read_identities
from proxy.cases.stored import take_away
from proxy.channels.lookout import Lookout
from proxy.channels.looks import File, Priority, Seen
from proxy.database import Case, Database, Promise, cases, decisions, promising
from proxy.errors import CaseError, PictrsError
from proxy.faults import FaultPoint
from proxy.intake.multipart import OutgoingFile
from proxy.known_hashes import KnownHashes
from proxy.media import recognise
from proxy.pictrs import Pictrs
from proxy.policy import Verdict

_LOOK_S = 10.0


class Decider:
    """Releases and confirms cases."""

    def __init__(
        self,
        database: Database,
        quarantine: Quarantine,
        known: KnownHashes,
        lookout: Lookout,
        pictrs: Pictrs,
        fault: FaultPoint,
    ) -> None:
        self._database, self._quarantine, self._known = database, quarantine, known
        self._lookout, self._pictrs, self._fault = lookout, pictrs, fault

    async def release(self, case_id: str, *, identity_file: Path, reviewer: str) -> Case:
        """Harmless: stores the picture under every promised alias, and lets the same bytes pass from now on.

        May be repeated after a crash or a failure: what is stored already is not an error.

        Raises:
            CaseError: the case is decided already, the same file is known as CSAM, or the sealed bytes are
                not those that were uploaded.
            SealingError: it cannot be opened with this identity.
            PictrsError: pict-rs refuses it, and the case waits for a decision again; or it gave no answer,
                and the release has to be repeated.
        """
        case = await self._database.run(decisions.check, case_id, Act.BEGIN_RELEASE)
        opened = await self._open(case, identity_file)
        # What pict-rs had before is sent only when pict-rs has ended its taking away.
        by = f"release {secrets.token_hex(8)}"
        await take_away(self._database, self._pictrs, self._fault, case_id, by=by)
        sha256 = str(opened.facts["sha256"])
        decision = await self._known.find(sha256)
        if decision is not None and decision.verdict is Verdict.BLOCK:
            raise CaseError(f"{case_id}: the same file is {decision.reason}, so it cannot be released")
        if case.pdq is None:
            await self._look(case, opened, sha256)
        case, is_repeated = await self._database.run(decisions.releasing, case_id, by=reviewer, sha256=sha256)
        try:
            return await self._store(case, opened, reviewer, is_repeated=is_repeated)
        except (CaseError, PictrsError):
            if (await self._database.run(cases.get, case_id)).state is CaseState.CONFIRMED:
                await self._take_back(case_id)  # a confirmation has overtaken it
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
        case = await self._database.run(decisions.check, case_id, Act.CONFIRM)
        sha256 = case.sha256
        if sha256 is None:
            if identity_file is None:
                raise CaseError(
                    f"{case_id}: its hash is in the sealed file only; name the key with --identity"
                )
            sha256 = str((await self._open(case, identity_file)).facts["sha256"])
        in_pictrs = case.state in (CaseState.RELEASING, CaseState.RELEASED)
        if in_pictrs or any(promise.stored_at for promise in case.promises):
            await self._take_back(case_id)  # first: whoever reads past the gate would see it
        return await self._database.run(decisions.confirmed, case_id, by=reviewer, sha256=sha256)

    async def _open(self, case: Case, identity_file: Path) -> Opened:
        def work() -> Opened:
            opened = open_sealed(self._quarantine.path(case.file), read_identities(identity_file))
            sha256 = hashlib.sha256(opened.original).hexdigest()
            if sha256 != opened.facts.get("sha256") or case.sha256 not in (None, sha256):
                raise CaseError(f"{case.id}: the sealed bytes are not those that were uploaded")
            return opened

        return await asyncio.to_thread(work)

    async def _look(self, case: Case, opened: Opened, sha256: str) -> None:
        """Learns the perceptual hash, by which pict-rs's validation hook recognises the release."""
        media = recognise(opened.original)
        if media is None:
            return
        file = File(opened.original, media, sha256)
        look = await self._lookout.look(file, priority=Priority.LIVE, within_s=_LOOK_S)
        if isinstance(look, Seen):
            await self._database.run(
                decisions.seen_since, case.id, pdq=look.pdq, pdq_quality=look.pdq_quality
            )

    async def _store(self, case: Case, opened: Opened, reviewer: str, *, is_repeated: bool) -> Case:
        """Imports the original under every alias until there is none left, and ends the release."""
        while True:
            for promise in await self._database.run(promising.to_store, case.id):
                if not await self._database.run(promising.storing, promise):
                    continue
                token = await self._import(case, promise, opened, reviewer, is_repeated=is_repeated)
                self._fault("imported")
                if not await self._database.run(promising.stored, promise, token=token):
                    await self._pictrs.delete(promise.alias)
            case = await self._database.run(cases.get, case.id)
            found = [await self._pictrs.stored_sha256(one.alias) for one in case.promises if one.stored_at]
            released = await self._database.run(
                decisions.released, case.id, by=reviewer, stored_as={one for one in found if one}
            )
            if released is not None:
                return released

    async def _import(
        self, case: Case, promise: Promise, opened: Opened, reviewer: str, *, is_repeated: bool
    ) -> str | None:
        """Stores the original; returns pict-rs's delete token, or None where it was stored before."""
        file = OutgoingFile(promise.alias, case.content_type or "application/octet-stream", opened.original)
        try:
            entry = await self._pictrs.import_file(file, [(key, value) for key, value in promise.arguments])
        except PictrsError as error:
            # The alias is the gate's to give: whoever has it stored got it from an earlier attempt.
            if is_repeated and error.code == "duplicate-alias" and await self._pictrs.has(promise.alias):
                return None
            if error.code is not None:
                await self._take_back(case.id, but=promise if error.code == "duplicate-alias" else None)
                await self._database.run(
                    decisions.not_released, case.id, by=reviewer, reason=f"{error.status} {error.code}"
                )
                raise
            raise PictrsError(f"{case.id}: {error}; the release has not ended, so repeat it") from None
        token = entry.get("delete_token")
        return token if isinstance(token, str) else None

    async def _take_back(self, case_id: str, *, but: Promise | None = None) -> None:
        """Takes away from pict-rs what a release has stored; `but` is an alias of somebody else's picture."""
        for alias in await self._database.run(promising.not_stored, case_id):
            if but is None or alias != but.alias:
                await self._pictrs.delete(alias)
