"""Uploads that `on_unavailable = "allow"` has let pass unseen: noted, and looked at through pict-rs later.

What turns out a hit is sealed first, then stands at its alias as a placeholder, and only then is taken away
from pict-rs. At no moment is it in neither place.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pyrage
from sqlalchemy.exc import IntegrityError

from proxy.aliases import alias_key
from proxy.cases.backlog import NotNow
from proxy.cases.deferred import look_facts, not_seen
from proxy.cases.keeping import Keeper, Origin
from proxy.cases.sealing import Sealer, open_facts
from proxy.cases.stored import stored_promises, take_away
from proxy.channels.lookout import Lookout
from proxy.channels.looks import Look, Priority, Unseen
from proxy.database import Case, Database, UnseenUpload, taking
from proxy.database import unseen as rows
from proxy.database.backlog import Lease, lease_unseen
from proxy.errors import PictrsError, Refusal, SealingError, Unreadable
from proxy.faults import FaultPoint
from proxy.intake.budget import Budget
from proxy.intake.uploads import Upload, upload_of
from proxy.judging import Judge
from proxy.known_hashes import KnownHashes
from proxy.pictrs import Pictrs
from proxy.policy import Decision, Verdict
from proxy.saying import said

log = logging.getLogger(__name__)

_LOOK_S = 30.0
_PICTRS_S = 30.0  # after which pict-rs is asked again
_MOST_COUNTED = 10_000


class Noting:
    """Writes down what passed unseen, as soon as pict-rs has said under which alias."""

    def __init__(self, database: Database, sealer: Sealer, pictrs: Pictrs) -> None:
        """
        Args:
            sealer: to the reviewers and the gate; who sent something is in no database in the clear.
        """
        self._database, self._sealer, self._pictrs = database, sealer, pictrs

    async def note(
        self, unseen: Sequence[Upload | None], stored: Sequence[Mapping[str, Any]], origin: Origin
    ) -> None:
        """Durable on return: these uploads will be looked at.

        Args:
            unseen: what pict-rs was sent; None for what was seen.
            stored: pict-rs's entries for it, in the same order.

        Raises:
            SealingError: it could not be written, and pict-rs has none of it any more.
            PictrsError: nor could it be taken away from pict-rs.
        """

        def work(database: Database) -> None:
            passed = [
                self._row(upload, entry, origin)
                for upload, entry in zip(unseen, stored, strict=True)
                if upload is not None
            ]
            rows.passed_unseen(database, passed)

        try:
            await self._database.run(work)  # in its few threads, of which each finds a connection
        except Exception as error:  # noqa: BLE001 — the border: whatever it is, nothing stays there unnoted
            for entry in stored:
                if isinstance(entry, Mapping) and "file" in entry:
                    await self._pictrs.delete(str(entry["file"]))
            raise SealingError(f"what passed unseen could not be written down: {said(error)}") from None

    def _row(self, upload: Upload, entry: Mapping[str, Any], origin: Origin) -> UnseenUpload:
        facts = {
            "file_name": upload.file_name,
            "declared_type": upload.declared_type,
            "route": origin.route,
            "arguments": [list(pair) for pair in origin.arguments],
            "uploader": dict(origin.uploader),
        }
        return UnseenUpload(
            alias=str(entry["file"]),
            delete_token=str(entry["delete_token"]),
            sha256=upload.sha256,
            created_at=datetime.now(UTC),
            facts=self._sealer.seal_facts(facts),
        )


class UnseenUploads:
    """The queue of what passed unseen."""

    def __init__(
        self,
        *,
        database: Database,
        identities: Sequence[pyrage.x25519.Identity],
        memory: Budget,
        largest_bytes: int,
        judge: Judge,
        known: KnownHashes,
        lookout: Lookout,
        keeper: Keeper,
        pictrs: Pictrs,
        fault: FaultPoint,
        owner: str,
    ) -> None:
        """
        Args:
            memory: for one file at a time, whatever its size.
            largest_bytes: of a file that pict-rs stores.
            owner: a name of this gate, the same after a restart and no other gate's.
        """
        self._database, self._identities = database, identities
        self._memory, self._largest_bytes = memory, largest_bytes
        self._judge, self._known, self._lookout = judge, known, lookout
        self._keeper, self._pictrs, self._fault, self._owner = keeper, pictrs, fault, owner
        self._hits: set[int] = set()  # that could perhaps not be sealed yet; for the metrics alone

    async def count_public(self) -> int:
        """How many are known to be hits, and pict-rs has them still.

        Raises:
            SQLAlchemyError: the database cannot be asked.
        """
        asked = set(self._hits)
        found = await self._database.run(rows.still_public, asked)
        self._hits -= asked - found
        return len(found)

    async def lease(self, lease: Lease, *, looking: bool) -> UnseenUpload | None:
        """See `Queue.lease`. What is sealed already has only to be taken away."""
        return await self._database.run(lease_unseen, lease, looking=looking)

    async def settle(self, item: UnseenUpload) -> None:
        """See `Queue.settle`."""
        await self._settle(item, None)

    async def give_up(self, item: UnseenUpload, reason: str) -> None:
        """See `Queue.give_up`."""
        await self._settle(item, Decision(Verdict.HOLD, reason))

    async def _settle(self, item: UnseenUpload, decision: Decision | None) -> None:
        try:
            if item.case_id is None:
                async with self._memory.lend(self._memory.total):
                    is_held = await self._look(item, decision)
                if not is_held:
                    return
                self._fault("unseen-held")
            await take_away(self._database, self._pictrs, self._fault, str(item.case_id), by=self._owner)
            await self._database.run(rows.done_with, item)
        except PictrsError as error:
            raise NotNow(str(error), again_s=_PICTRS_S) from None

    async def _look(self, item: UnseenUpload, decision: Decision | None) -> bool:
        """Looks at an upload; whether it is a case now."""
        await self._database.run(rows.still_unseen, item)
        try:
            content = await self._pictrs.original(item.alias, largest=2 * self._largest_bytes)
        except PictrsError as error:
            if error.status != 404:
                raise
            await self._database.run(rows.gone_since, item, alias_key=alias_key(item.alias))
            return False
        sha256 = await asyncio.to_thread(lambda: hashlib.sha256(content).hexdigest())
        try:
            upload = upload_of(content, sha256, file_name="", declared_type=None)
        except Refusal:
            raise NotNow("pict-rs has given what is no media", again_s=_PICTRS_S) from None
        look: Look | None = None
        if decision is None:
            decision = await self._known.find(item.sha256)
        if decision is None:
            look, decision = await self._judge.judge(
                *(content, upload.media, sha256),
                priority=Priority.BACKFILL,
                within_s=_LOOK_S,
                despite_lockdown=True,
            )
        if isinstance(look, Unseen):
            raise not_seen(look, self._lookout)
        self._fault("unseen-looked")
        log.info("passed unseen, looked at: verdict=%s reason=%r", decision.verdict, decision.reason)
        if decision.verdict is Verdict.ALLOW:
            await self._database.run(rows.seen_since, item, reason=decision.reason)
            return False
        if len(self._hits) < _MOST_COUNTED:
            self._hits.add(item.number)
        await self._hold(item, upload, look, decision)
        return True

    async def _hold(self, item: UnseenUpload, upload: Upload, look: Look | None, decision: Decision) -> None:
        """Makes a case of what pict-rs has, which stands at all its aliases."""
        known = facts_of(item, self._identities)
        upload = Upload(
            upload.content,
            upload.sha256,
            upload.media,
            str(known.get("file_name") or ""),
            known.get("declared_type"),
        )
        origin = Origin(
            str(known.get("route") or ""), known.get("arguments") or [], known.get("uploader") or {}
        )
        passed = _passed(item)
        aliases = await self._free(item)
        promises = await stored_promises(
            upload, look, aliases, await self._database.run(rows.tokens, aliases)
        )
        held = replace(decision, verdict=Verdict.HOLD)
        # Others have sent the very same picture: it is one case, and says who they were.
        others = await self._database.run(rows.same_picture, item, aliases)

        def record(case: Case, facts: dict[str, Any]) -> None:
            noted = {**facts, "passed_unseen": passed}
            rows.held_since(self._database, item, case, others=others, facts=noted)

        facts = {
            "passed_unseen": {**passed, **known},
            "also_passed_unseen": [
                {**_passed(other), **facts_of(other, self._identities)} for other in others
            ],
            "looked_later": look_facts(decision, look),
        }
        try:
            item.case_id = await self._keeper.keep_stored(
                upload, held, look, origin, promises=promises, facts=facts, record=record
            )
        except IntegrityError:
            raise NotNow("an alias of it has just become a case's", again_s=_PICTRS_S) from None

    async def _free(self, item: UnseenUpload) -> list[str]:
        """All aliases of the file in pict-rs, but for those that stand for a case and stay there.

        One file has several where several have uploaded the same picture. It goes as a whole.

        Raises:
            NotNow: its own alias is not among them.
        """
        aliases = sorted({item.alias, *await self._pictrs.aliases(item.alias)})
        there = await self._database.run(taking.promised, aliases)
        taken = {promise.alias for promise in there if not taking.may_take_over(promise)}
        if item.alias in taken:
            raise NotNow("its alias has just become a case's", again_s=_PICTRS_S)
        return [alias for alias in aliases if alias not in taken]


def facts_of(item: UnseenUpload, identities: Sequence[pyrage.x25519.Identity]) -> Mapping[str, Any]:
    """Who sent an upload and how; `sealed`, in base64, where the gate cannot open it and a reviewer can."""
    try:
        return open_facts(item.facts, identities)
    except Unreadable as error:
        log.error("upload %s: %s", item.number, error)
        return {"sealed": base64.b64encode(item.facts).decode()}


def _passed(item: UnseenUpload) -> dict[str, Any]:
    return {"at": item.created_at.isoformat(), "uploaded_sha256": item.sha256, "alias": item.alias}
