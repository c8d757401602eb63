"""A human's decision about a case, and what it does: to pict-rs, to the memory of hashes, to the ledger.

What pict-rs is told and what the database says cannot change together. So a release is written down before
it begins, may be repeated until it has ended, and is taken back where a confirmation overtakes it.
"""

from __future__ import annotations

import asyncio
import random
import secrets
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from proxy.aliases import alias_key
from proxy.cases.life import RELEASE_S, Act, CaseState
from proxy.cases.opening import open_case
from proxy.cases.quarantine import Quarantine
from proxy.cases.sealing import Opened, read_identities
from proxy.cases.stored import take_away
from proxy.channels.lookout import Lookout
from proxy.channels.looks import File, Priority, Seen
from proxy.database import Case, Database, Promise, cases, decisions, ledger, promising
from proxy.errors import CaseError, ConfirmedMeanwhile, PictrsError, SealingError, StoredMeanwhile
from proxy.faults import FaultPoint
from proxy.intake.multipart import OutgoingFile
from proxy.known_hashes import KnownHashes
from proxy.media import recognise
from proxy.pictrs import Pictrs
from proxy.policy import Verdict

_LOOK_S = 10.0
_ABOUT_THE_FILE = frozenset(
    {"command-failure", "duplicate-alias", "invalid-process-path", "invalid-query", "media-disallowed"}
)

# After which nothing of a release can come to pict-rs any more: its longest request, several times over.
_LATE = timedelta(seconds=5 * RELEASE_S)
_MOST_NAMED = 100  # aliases in one entry of the ledger
_MOST_UNANSWERED = 3


@dataclass(frozen=True, slots=True)
class Confirmation:
    """What came of a confirmation.

    Attributes:
        case: that was confirmed.
        with_it: other cases of the same file that the gate had released by itself: taken away, and confirmed
            where they had not expired.
        shown: other cases of the same file that are still shown, or about to be.
        aliases: further ones that pict-rs has of the very same stored file; None where it gave no answer.
    """

    case: Case
    with_it: Sequence[Case]
    shown: Sequence[Case]
    aliases: Sequence[str] | None


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
        self._fault("release-opened")
        case, is_repeated = await self._database.run(decisions.releasing, case_id, by=reviewer, sha256=sha256)
        self._fault("release-begun")
        return await self._stored(case, opened, reviewer, is_repeated=is_repeated)

    async def store_unaided(self, case: Case, opened: Opened, *, is_repeated: bool) -> Case:
        """Goes on with a release that the gate has begun by itself. No human has said that it is harmless:
        the same bytes are looked at again when they come again.

        Args:
            is_repeated: whether an earlier attempt may have stored something already.

        Raises:
            CaseError: a human has decided meanwhile.
            PictrsError: pict-rs will never take this file, and the case waits for a human; or it has not this
                time, and the case is `releasing` still.
        """
        return await self._stored(case, opened, decisions.GATE, is_repeated=is_repeated)

    async def take_back_unaided(self, case_id: str, reason: str) -> None:
        """A release that the gate has begun by itself is a human's to decide after all.

        Raises:
            PictrsError: pict-rs may have the picture still; nothing has changed.
        """
        await self._take_back(case_id)
        await self._database.run(decisions.not_released, case_id, by=decisions.GATE, reason=reason)

    async def _stored(self, case: Case, opened: Opened, by: str, *, is_repeated: bool) -> Case:
        try:
            return await self._store(case, opened, by, is_repeated=is_repeated)
        except ConfirmedMeanwhile:
            await self._take_back(case.id)
            reason = "the same file was confirmed in another case"
            await self._database.run(decisions.not_released, case.id, by=by, reason=reason)
            raise
        except (CaseError, PictrsError):
            if (await self._database.run(cases.get, case.id)).state is CaseState.CONFIRMED:
                await self._take_back(case.id)  # a confirmation has overtaken it
            raise

    async def confirm(self, case_id: str, *, identity_file: Path | None, reviewer: str) -> Confirmation:
        """This is it: the case is preserved, and the same bytes are refused from now on.

        Args:
            identity_file: needed only for a case whose hash stands nowhere but in its sealed file.

        Raises:
            CaseError: the case is decided already, or a release of it is under way.
            SealingError: it has to be opened, and cannot be with this identity.
            PictrsError: a release that did not end cannot be taken back. Or the case is confirmed, and others
                of the same file cannot be taken back yet; the message says so, and gates go on trying.
        """
        case = await self._database.run(decisions.check, case_id, Act.CONFIRM)
        sha256 = case.sha256
        if sha256 is None:
            if identity_file is None:
                raise CaseError(
                    f"{case_id}: its hash is in the sealed file only; name the key with --identity"
                )
            sha256 = str((await self._open(case, identity_file)).facts["sha256"])
        stored_as, aliases = await self._stored_as(case), await self._further_aliases(case, reviewer)
        self._fault("confirming")
        in_pictrs = case.state in (CaseState.RELEASING, CaseState.RELEASED)
        if in_pictrs or any(promise.stored_at for promise in case.promises):
            # First: whoever reads past the gate would see it.
            await self._take_away(case_id, reviewer, stored_as)
            self._fault("taken-back")
        try:
            case, with_it = await self._confirmed(case_id, reviewer, sha256, stored_as)
        except StoredMeanwhile:  # the gate has released it since it was read above
            stored_as |= await self._stored_as(await self._database.run(cases.get, case_id))
            await self._take_away(case_id, reviewer, stored_as)
            case, with_it = await self._confirmed(case_id, reviewer, sha256, stored_as)
        self._fault("confirmed")
        failed = await self._take_back_each([one.id for one in with_it])
        if case.pdq is None and identity_file is not None:
            # It is decided; what cannot be opened or looked at now stays known by its bytes alone.
            with suppress(SealingError, CaseError):
                await self._look(case, await self._open(case, identity_file), sha256)
        if failed is not None:
            raise PictrsError(
                f"{case_id} is confirmed, and so is what the gate had released of the same file; but pict-rs "
                f"may have some of that still, and a gate takes it away as soon as it can: {failed}",
                status=failed.status,
                code=failed.code,
                timed_out=failed.timed_out,
            )
        return Confirmation(case, with_it, await self._database.run(cases.same_file, case), aliases)

    async def _further_aliases(self, case: Case, reviewer: str) -> Sequence[str] | None:
        """Aliases that pict-rs has of the same stored file, of no case of the same bytes. Noted: whoever
        repeats a confirmation that was cut off cannot ask any more.
        """
        of_file = [case, *(await self._database.run(cases.same_file, case) if case.sha256 else ())]
        found: set[str] = set()
        try:
            for promise in (promise for one in of_file for promise in one.promises):
                if promise.stored_at and promise.alias not in found:
                    found.update(await self._pictrs.aliases(promise.alias))
        except PictrsError:
            return None
        ours = {promise.alias_key for one in of_file for promise in one.promises}
        further = sorted(alias for alias in found if alias_key(alias) not in ours)
        if further:
            facts = {"aliases": further[:_MOST_NAMED], "count": len(further)}
            act = "same file in pict-rs"
            await self._database.run(ledger.record, act, actor=reviewer, case_id=case.id, facts=facts)
        return further

    async def _take_away(self, case_id: str, reviewer: str, stored_as: set[str]) -> None:
        """Begins a confirmation, and takes away from pict-rs what a release has stored."""
        aliases = await self._database.run(decisions.confirming, case_id, by=reviewer, stored_as=stored_as)
        await self._delete(aliases)

    async def _confirmed(
        self, case_id: str, reviewer: str, sha256: str, stored_as: set[str]
    ) -> tuple[Case, list[Case]]:
        return await self._database.run(
            decisions.confirmed, case_id, by=reviewer, sha256=sha256, stored_as=stored_as
        )

    async def take_back_overtaken(self) -> None:
        """Sees that pict-rs has nothing of cases that were confirmed while a release of them had not ended.

        Whoever was releasing takes back what he has stored, if he lives long enough. This is for where not.

        Raises:
            PictrsError: pict-rs cannot delete some, or cannot be asked; the next time goes on.
            SQLAlchemyError: the database cannot be asked.
        """
        overtaken = await self._database.run(decisions.overtaken)
        random.shuffle(overtaken)  # what hangs may not keep the same ones waiting each time
        failed = await self._take_back_each([case_id for case_id, _ in overtaken], since=dict(overtaken))
        if failed is not None:
            raise failed

    async def _take_back_each(
        self, case_ids: Sequence[str], since: Mapping[str, datetime] | None = None
    ) -> PictrsError | None:
        """Tries each; the last error, if any. Where pict-rs gives no answer some times in a row, the rest is
        for the next time.

        Args:
            since: when each was overtaken; what was long ago is done with now.
        """
        failed, unanswered = None, 0
        for case_id in case_ids:
            try:
                await self._take_back(case_id)
            except PictrsError as error:
                failed, unanswered = error, unanswered + 1 if error.status is None else 0
                if unanswered == _MOST_UNANSWERED:
                    break
                continue
            unanswered = 0
            if since and datetime.now(UTC) - since[case_id] > _LATE:
                await self._database.run(decisions.not_overtaken_any_more, case_id)
        return failed

    async def _open(self, case: Case, identity_file: Path) -> Opened:
        def work() -> Opened:
            return open_case(self._quarantine, case, read_identities(identity_file))

        return await asyncio.to_thread(work)

    async def _look(self, case: Case, opened: Opened, sha256: str) -> None:
        """Learns the perceptual hash, by which a release is recognised, and what looks like this case."""
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
        if is_repeated:  # an earlier attempt may have died before it could
            for alias in await self._database.run(promising.withdrawn, case.id):
                await self._pictrs.delete(alias)
        while True:
            for promise in await self._database.run(promising.to_store, case.id):
                if promise.is_foreign and await self._pictrs.has(promise.alias):
                    taken = PictrsError(
                        "pict-rs has another picture under its alias", status=400, code="duplicate-alias"
                    )
                    await self._refused(case, reviewer, taken, None)
                    raise taken
                sending = await self._database.run(promising.storing, promise)
                if sending is None:
                    continue
                self._fault("importing")
                token = await self._import(
                    case, promise, opened, reviewer, sending, is_repeated=is_repeated and sending.is_again
                )
                self._fault("imported")
                is_wanted = await self._database.run(promising.stored, promise, token=token)
                self._fault("import-noted")
                if not is_wanted:
                    await self._pictrs.delete(promise.alias)
            case = await self._database.run(cases.get, case.id)
            stored_as = await self._stored_as(case)
            released = await self._database.run(decisions.released, case.id, by=reviewer, stored_as=stored_as)
            if released is not None:
                self._fault("released")
                return released

    async def _stored_as(self, case: Case) -> set[str]:
        """SHA-256 of what pict-rs has made of a case's file, where it has it; it rewrites nearly all."""
        may_be_stored = {
            one.alias
            for one in case.promises
            if one.stored_at or (case.state is CaseState.RELEASING and one.sent_at and not one.is_foreign)
        }
        found = [await self._pictrs.stored_sha256(alias) for alias in sorted(may_be_stored)]
        return {one for one in found if one is not None}

    async def _import(
        self,
        case: Case,
        promise: Promise,
        opened: Opened,
        reviewer: str,
        sending: promising.Sending,
        *,
        is_repeated: bool,
    ) -> str | None:
        """Stores the original; returns pict-rs's delete token, or None where it was stored before.

        Args:
            is_repeated: whether an earlier attempt may have stored it under this very alias.
        """
        file = OutgoingFile(promise.alias, case.content_type or "application/octet-stream", opened.original)
        try:
            entry = await self._pictrs.import_file(file, [(key, value) for key, value in promise.arguments])
        except PictrsError as error:
            is_taken = error.code == "duplicate-alias"
            # The alias is the gate's to give: whoever has it stored got it from an earlier attempt.
            if is_repeated and is_taken and await self._pictrs.has(promise.alias):
                return None
            if error.code is not None and (
                reviewer != decisions.GATE or _is_about_the_file(error.code, is_repeated=is_repeated)
            ):
                if is_taken:
                    await self._database.run(promising.taken, promise, sending)
                await self._refused(case, reviewer, error, promise if is_taken else None)
                raise
            raise PictrsError(
                f"{case.id}: {error}; the release has not ended, so repeat it",
                status=error.status,
                code=error.code,
                timed_out=error.timed_out,
            ) from None
        token = entry.get("delete_token")
        return token if isinstance(token, str) else None

    async def _refused(self, case: Case, by: str, error: PictrsError, but: Promise | None) -> None:
        """Takes back what a release has stored of a case that pict-rs refuses; a human decides anew."""
        self._fault("release-refused")
        await self._take_back(case.id, but=but)
        self._fault("release-taken-back")
        reason = f"{error.status} {error.code}"
        await self._database.run(decisions.not_released, case.id, by=by, reason=reason)

    async def _take_back(self, case_id: str, *, but: Promise | None = None) -> None:
        """Takes away from pict-rs what a release has stored; `but` is an alias of somebody else's picture."""
        aliases = await self._database.run(promising.not_stored, case_id)
        await self._delete([alias for alias in aliases if but is None or alias != but.alias])

    async def _delete(self, aliases: Sequence[str]) -> None:
        """Tries each alias, as long as pict-rs answers.

        Raises:
            PictrsError: one could not be deleted.
        """
        self._fault("taking-back")
        failed = None
        for alias in aliases:
            try:
                await self._pictrs.delete(alias)
            except PictrsError as error:
                if error.status is None:
                    raise
                failed = error
        if failed is not None:
            raise failed


def _is_about_the_file(code: str, *, is_repeated: bool) -> bool:
    """Whether pict-rs refuses this file under this alias, and always will: it is not the key, nor a pict-rs
    in need, nor its hook, whose answer may be another one the next time.
    """
    if code == "duplicate-alias" and is_repeated:  # an earlier attempt, cut off, may be about to end there
        return False
    return code.startswith("validate-") or code in _ABOUT_THE_FILE
