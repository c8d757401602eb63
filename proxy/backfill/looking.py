"""What comes of one stored file: known, looked at earlier, or looked at now by whom `viewing` has."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field

from proxy.backfill.options import Options
from proxy.backfill.pace import Pace
from proxy.backfill.sources import Entry, Source, Unreadable
from proxy.backfill.thumbnails import MOST, WORTH_BYTES, is_near, marked, side_of
from proxy.backfill.viewing import LEAST_LENT, Brought, Viewer, ViewerHere
from proxy.channels.lookout import Lookout
from proxy.channels.looks import File, Seen, Undecodable, Unseen
from proxy.database import BackfillHit, BackfillUnreadable, Database
from proxy.database import backfill as runs
from proxy.database.backfill import AGAIN, Looked
from proxy.errors import PictrsError
from proxy.intake.budget import Budget
from proxy.known_hashes import KnownHashes
from proxy.media import Kind, recognise
from proxy.media.signatures import PNG
from proxy.pictrs import StoredFile
from proxy.policy import Decision, Policy, Verdict, decide

log = logging.getLogger(__name__)

# What pict-rs knows of a file by its SHA-256 and size; None where it has no such original.
Resolve = Callable[[str, int], Awaitable[StoredFile | None]]


@dataclass(frozen=True, slots=True)
class Result:
    """What came of one file.

    Attributes:
        looked: to be kept; empty where nobody looked now.
        finding: a hit, or that it is unreadable; None where it may stay.
        signals: that were seen of it, now or earlier.
        is_reused, is_skipped: an earlier look told enough; only its bytes told that it is not asked for.
        is_recorded: all of it is durable already.
        look: that was taken now; `rule`: of the policy, by which it is a hit.
    """

    looked: tuple[Looked, ...] = ()
    finding: BackfillHit | BackfillUnreadable | None = None
    signals: Mapping[str, float] = field(default_factory=dict)
    fetched_bytes: int = 0
    is_reused: bool = False
    is_skipped: bool = False
    is_recorded: bool = False
    look: Seen | None = None
    rule: str | None = None


@dataclass(frozen=True, slots=True)
class Means:
    """What a run works with.

    Attributes:
        budget: of the memory for files that are fetched and not yet looked at.
        largest: bytes; a larger file is unreadable.
        resolve: for sources that know no aliases; None where no pict-rs can be asked.
        thumbnail: pict-rs's variant of an alias within so many pixels; None where the source is not pict-rs.
        viewer: brings files to where they are looked at; None where that is here, by `lookout`.
    """

    database: Database
    source: Source
    lookout: Lookout
    policy: Policy
    known: KnownHashes
    pace: Pace
    budget: Budget
    largest: int
    resolve: Resolve | None = None
    thumbnail: Callable[[str, int], Awaitable[bytes | None]] | None = None
    viewer: Viewer | None = None


class Looking:
    """Looks at files for one run. Many at once."""

    def __init__(self, means: Means, run_id: int, options: Options, ensembles: frozenset[str]) -> None:
        """
        Args:
            ensembles: what looks now; what else has looked is older.
        """
        self._means, self._run_id, self._options = means, run_id, options
        self._ensembles = set(ensembles)
        self._here = ViewerHere(means.source, means.lookout, means.pace, means.budget)
        self._viewer: Viewer = means.viewer or self._here

    def is_enough(self, earlier: Looked | None) -> bool:
        """Whether an earlier look tells all that a new one would."""
        if earlier is None or earlier.ensemble is None:
            return False
        ensemble, side = side_of(earlier.ensemble)
        if side is not None and (
            side < (self._options.via_thumbnails or MOST + 1) or is_near(self._means.policy, earlier.signals)
        ):
            return False
        if ensemble in self._ensembles:
            return True
        # Without a signal that a rule names, the rule would silently never match.
        return not self._options.stale and self._means.policy.signals <= earlier.signals.keys()

    async def look(self, entry: Entry, earlier: Looked | None, *, is_known: bool) -> Result:
        """What comes of one file.

        Args:
            earlier: what is kept of an earlier look at it.
            is_known: whether its hash may be known; see `sha256_of`.

        Raises:
            BackfillError: nobody can look at anything any more.
            PictrsError, and what a source raises: it cannot be reached any more.
        """
        sha256 = sha256_of(entry, earlier)
        if is_known and sha256 and (decision := await self._means.known.find(sha256)) is not None:
            finding = await self._hit(entry, decision, {}, sha256)
            return Result((Looked(entry.key, _other(entry, sha256)),), finding)
        if earlier is not None and self.is_enough(earlier):
            decision = self._decide(earlier)
            finding = await self._hit(entry, decision, earlier.signals, sha256)
            return Result(finding=finding, signals=earlier.signals, is_reused=True, rule=decision.rule)
        most = entry.size or self._means.largest
        if most > self._means.largest:
            return self._unreadable(entry, f"more than {self._means.largest} bytes")
        if (result := await self._via_thumbnail(entry)) is not None:
            return result
        async with self._viewer.brought(entry, most) as file:
            if isinstance(file, Unreadable):
                return self._unreadable(entry, file.reason, may_pass=file.may_pass)
            return await self._fetched(entry, file)

    async def _via_thumbnail(self, entry: Entry) -> Result | None:
        """What comes of a file of which pict-rs's small variant tells enough; None of all others."""
        side, fetch = self._options.via_thumbnails, self._means.thumbnail
        if side is None or fetch is None or entry.sha256 is None or not entry.aliases:
            return None
        if entry.kind is not Kind.IMAGE or entry.size < WORTH_BYTES:
            return None
        async with self._means.budget.lend(max(side * side, LEAST_LENT)):
            content = await fetch(entry.aliases[0], side)
            media = recognise(content) if content is not None else None
            if content is None or media is None:
                return None
            look = await self._here.ask(File(content, media))
        if not isinstance(look, Seen) or is_near(self._means.policy, look.signals):
            return None
        near = await self._means.known.find_near(look)
        if decide(self._means.policy, look, media, near).verdict is not Verdict.ALLOW:
            return None
        self._ensembles.add(look.ensemble)
        looked = Looked(entry.key, None, marked(look.ensemble, side), look.signals)
        return Result((looked,), None, look.signals, len(content))

    async def _fetched(self, entry: Entry, file: Brought) -> Result:
        media = file.media
        if media is None:
            return self._unreadable(entry, "no format of pict-rs's")
        if self._options.kind not in (None, media.kind):
            return Result(is_skipped=True)
        sha256 = entry.sha256
        if sha256 is None:
            sha256 = await file.sha256()
            place = Looked(entry.key, bytes.fromhex(sha256))
            if (decision := await self._means.known.find(sha256)) is not None:
                finding = await self._hit(entry, decision, {}, sha256)
                return Result((place,), finding, fetched_bytes=file.size)
            key = bytes.fromhex(sha256)
            earlier = (await self._means.database.run(runs.files, [key])).get(key)
            if earlier is not None and self.is_enough(earlier):
                decision = self._decide(earlier)
                finding = await self._hit(entry, decision, earlier.signals, sha256)
                place = Looked(entry.key, key, earlier.ensemble, earlier.signals)
                return Result((place,), finding, earlier.signals, file.size, rule=decision.rule)
        look = await file.look()
        if isinstance(look, Unseen):
            return self._unreadable(entry, f"nobody could look: {look.reason}", may_pass=True)
        if isinstance(look, Undecodable):
            return self._unreadable(entry, f"undecodable: {look.reason}")
        self._ensembles.add(look.ensemble)
        near = await self._means.known.find_near(look)
        decision = decide(self._means.policy, look, media, near)
        # A file of two readings is looked at anew each time: its signals alone do not tell about it.
        is_plain = decision == self._decide(Looked(b"", None, look.ensemble, look.signals))
        ensemble = look.ensemble if is_plain else None
        looked = [Looked(bytes.fromhex(sha256), None, ensemble, look.signals if is_plain else {})]
        if entry.sha256 is None:
            looked.append(Looked(entry.key, bytes.fromhex(sha256), ensemble, looked[0].signals))
        finding = await self._hit(entry, decision, look.signals, sha256)
        return Result(tuple(looked), finding, look.signals, file.size, look=look, rule=decision.rule)

    def _decide(self, earlier: Looked) -> Decision:
        seen = Seen(earlier.signals, (), earlier.ensemble or "", PNG.name, 1, 1)
        return decide(self._means.policy, seen, PNG)

    def _unreadable(self, entry: Entry, reason: str, *, may_pass: bool = False) -> Result:
        return Result(
            finding=BackfillUnreadable(
                run_id=self._run_id,
                hex=hex_of(entry),
                place=entry.place[:1100],
                aliases=list(entry.aliases),
                reason=reason[:400] + (AGAIN if may_pass else ""),
            )
        )

    async def _hit(
        self,
        entry: Entry,
        decision: Decision,
        signals: Mapping[str, float],
        sha256: str | None,
    ) -> BackfillHit | None:
        """The finding of a decision; None where the file may stay.

        Raises:
            PictrsError: it is to be held, and pict-rs does not say under which aliases.
        """
        if decision.verdict is Verdict.ALLOW:
            return None
        hex_, aliases, reason = hex_of(entry), list(entry.aliases), decision.reason[:450]
        if entry.sha256 is None and sha256 is not None:
            hex_ = sha256
            if self._means.resolve is not None:
                try:
                    stored = await self._means.resolve(sha256, entry.size)
                except PictrsError as error:  # a report has its place alone then; nothing is held like this
                    if self._options.action == "hold":
                        raise
                    log.warning("%s: no aliases: %s", entry.place, error)
                    stored, reason = None, f"{reason}; pict-rs could not be asked"
                if stored is not None:
                    hex_, aliases = stored.hex.lower(), list(stored.aliases)
        return BackfillHit(
            run_id=self._run_id,
            hex=hex_,
            place=entry.place[:1100],
            verdict=decision.verdict.value,
            reason=reason,
            aliases=aliases,
            signals=dict(signals),
            stored_at=entry.at,
        )


def sha256_of(entry: Entry, earlier: Looked | None) -> str | None:
    """Of a file's content, where its listing or an earlier look tells it."""
    return entry.sha256 or (earlier.content.hex() if earlier and earlier.content else None)


def hex_of(entry: Entry) -> str:
    """The key of an entry in the report, as far as its listing tells: pict-rs's own where it does."""
    return entry.place if entry.sha256 is not None else entry.key.hex()


def _other(entry: Entry, sha256: str) -> bytes | None:
    return None if entry.sha256 is not None else bytes.fromhex(sha256)
