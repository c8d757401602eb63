"""Whether a ledger is what was written: its chain, and what signed checkpoints say of it.

Entries are read once, in order, in bounded memory. Of what cannot be shown, `docs/ledger.md` speaks.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from proxy.database import Database, checkpoints, ledger
from proxy.ledger.chain import FIRST, Chain, Entry, Finding, Kind
from proxy.ledger.checkpoints import Checkpoint, Copies
from proxy.ledger.signing import is_signed

_MOST_TOLD = 100  # findings that are kept; all are counted


@dataclass(frozen=True, slots=True)
class Key:
    """A key that checkpoints are signed with, as the ledger tells of it.

    Attributes:
        number: of the entry that tells of it first.
        gate: whose it is.
    """

    key: str
    number: int
    gate: str


@dataclass(slots=True)
class Report:
    """What was found.

    Attributes:
        entries: how many were read.
        last: the number of the last one.
        findings: the first of those that the entries show, in order, then those that checkpoints show;
            `broken` counts all.
        checkpoints: how many different ones there are; `held` of them are what they say.
        last_held: the newest of these: what was written until then is shown by it.
        keys: that the ledger tells of, in order.
        notes: what is no finding, and worth knowing.
    """

    entries: int = 0
    last: int = 0
    findings: list[Finding] = field(default_factory=list)
    broken: int = 0
    checkpoints: int = 0
    held: int = 0
    last_held: Checkpoint | None = None
    keys: list[Key] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def verify(
    database: Database,
    copies: Sequence[Copies] = (),
    *,
    trusted: Collection[str] = (),
    own: str | None = None,
) -> Report:
    """Reads the whole ledger.

    Args:
        copies: checkpoints from files, read before.
        trusted: the only keys (hexadecimal) whose checkpoints count; where there are none, those that the
            ledger tells of.
        own: the key of this gate, which the ledger has to tell of.
    """
    # In this order: what is made meanwhile is not taken for something that is gone.
    kept = checkpoints.listed(database)
    known = [*kept, *(one for copy in copies for one in copy.found)]
    reading = _Reading(known)
    report = reading.read(ledger.walk(database))
    later = checkpoints.listed(database)
    findings = [*_order(kept)]
    findings += _told(reading, kept, later)
    for copy in copies:
        findings += _copied(copy, later)
        report.notes += _notes(copy, kept)
    accepted = _Accepted(trusted, reading.keys, is_empty=report.entries == 0)
    if own is not None and reading.keys and own not in {key.key for key in reading.keys}:
        findings.append(Finding(Kind.FORGED, None, f"the ledger does not tell of this gate's own key, {own}"))
    by_digest = {(one.digest, one.signature): one for one in known}
    for one in sorted(by_digest.values(), key=lambda one: (one.checkpoint, one.digest)):
        wrong = accepted.wrong(one) or reading.wrong(one, report.last_held)
        if wrong is not None:
            findings.append(wrong)
            continue
        report.held += 1
        report.last_held = one
    report.checkpoints = len(by_digest)
    report.keys = reading.keys
    if len(reading.keys) > 1 and not trusted:
        report.notes.append("more than one key is told of: one for each gate, or somebody has changed it")
    if not known:
        report.notes.append("there is no checkpoint: a ledger written anew would not be noticed")
    findings.sort(key=lambda one: (one.number is None, one.number or 0))
    # What the entries show themselves first: they name the place.
    report.findings = reading.findings + findings[:_MOST_TOLD]
    report.broken = reading.count + len(findings)
    return report


class _Reading:
    """One pass over the entries, with what has to be remembered of them."""

    def __init__(self, known: Iterable[Checkpoint]) -> None:
        # What entries of these numbers have to have; a checkpoint a day, so there are few.
        self._wanted: dict[int, set[str]] = defaultdict(set)
        for one in known:
            self._wanted[one.number].add(one.hash)
        self._met: dict[int, str] = {}
        self.told: dict[int, tuple[int, object]] = {}
        self.keys: list[Key] = []
        self.findings: list[Finding] = []
        self.count = self.last = 0

    def read(self, entries: Iterable[Entry]) -> Report:
        """Follows the chain, collecting."""
        report, chain = Report(), Chain()
        for entry in entries:
            report.entries += 1
            for finding in chain.follow(entry):
                self.count += 1
                if len(self.findings) < _MOST_TOLD:
                    self.findings.append(finding)
            if entry.number in self._wanted:
                self._met[entry.number] = entry.hash
            if entry.actor == "gate" and isinstance(entry.facts, dict):
                self._note(entry, entry.facts)
        report.last = self.last = chain.last
        return report

    def _note(self, entry: Entry, facts: dict[str, object]) -> None:
        if entry.act == ledger.CHECKPOINT and isinstance(number := facts.get("checkpoint"), int):
            self.told.setdefault(number, (entry.number, facts.get("digest")))
        if entry.act == ledger.KEY and isinstance(key := facts.get("key"), str):
            first = Key(key, entry.number, str(facts.get("gate")))
            self.keys += [] if key in {one.key for one in self.keys} else [first]

    def wrong(self, one: Checkpoint, held: Checkpoint | None) -> Finding | None:
        """What the entries have against a checkpoint; `held` is the last one before that they agree with."""
        of = f"checkpoint {one.checkpoint} of {one.time}"
        if one.number > self.last:
            words = f"and all up to {one.number} at least are cut off, says {of}"
            return Finding(Kind.CUT_OFF, self.last + 1, words, one.checkpoint)
        if self._met.get(one.number) != one.hash:
            first = held.number + 1 if held and held.number < one.number else 1
            words = f"or a later one, up to {one.number}, was written anew or removed, says {of}"
            return Finding(Kind.REWRITTEN, first, words, one.checkpoint)
        return None


@dataclass(frozen=True, slots=True)
class _Accepted:
    """Whose checkpoints count."""

    trusted: Collection[str]
    told: Sequence[Key]
    is_empty: bool

    def wrong(self, one: Checkpoint) -> Finding | None:
        """Why a checkpoint is none."""
        if not is_signed(one):
            return _forged(one, "its signature is not that of its key")
        if self.trusted:
            return (
                None if one.key in self.trusted else _forged(one, f"it is signed by another key, {one.key}")
            )
        if self.is_empty:  # then every checkpoint says so, whoever has signed it
            return None
        if not any(key.key == one.key and key.number <= one.number for key in self.told):
            return _forged(one, f"the ledger did not tell of its key, {one.key}, before it")
        return None


def _order(kept: Sequence[Checkpoint]) -> Iterator[Finding]:
    """Whether the database's checkpoints follow each other."""
    before: Checkpoint | None = None
    for one in kept:
        expected = before.checkpoint + 1 if before else 1
        if one.checkpoint != expected:
            yield _gone(expected, None, f"checkpoint {expected} is gone from the database")
        elif one.previous != (before.digest if before else FIRST):
            yield _forged(one, "it does not follow the checkpoint before it")
        before = one


def _told(reading: _Reading, kept: Sequence[Checkpoint], later: Sequence[Checkpoint]) -> Iterator[Finding]:
    """Whether the ledger tells of the database's checkpoints, and of no others."""
    there = {one.checkpoint: one for one in later}
    for number, (entry, digest) in reading.told.items():
        if number not in there:
            words = f"tells of checkpoint {number}, which is gone from the database"
            yield _gone(number, entry, words)
        elif there[number].digest != digest:
            yield _forged(there[number], f"entry {entry} tells of another one")
    for one in kept:
        if one.checkpoint in reading.told:
            continue
        if one.number == reading.last:  # the entry that tells of it is made with it
            words = f"is cut off, says checkpoint {one.checkpoint} of {one.time}"
            yield Finding(Kind.CUT_OFF, reading.last + 1, words, one.checkpoint)
        elif one.number < reading.last:
            yield _forged(one, "the ledger does not tell of it")


def _copied(copy: Copies, kept: Sequence[Checkpoint]) -> Iterator[Finding]:
    """Whether the database has what was copied from it."""
    there = {one.checkpoint: one.digest for one in kept}
    for one in copy.found:
        if one.checkpoint not in there:
            words = f"checkpoint {one.checkpoint} is gone from the database; {copy.name} has it"
            yield _gone(one.checkpoint, None, words)
        elif there[one.checkpoint] != one.digest:
            yield _forged(one, f"the database and {copy.name} have different ones")


def _notes(copy: Copies, kept: Sequence[Checkpoint]) -> Iterator[str]:
    lacking = {one.checkpoint for one in kept} - {one.checkpoint for one in copy.found}
    if lacking:
        yield f"{copy.name} lacks {len(lacking)} of the database's checkpoints, the first is {min(lacking)}"
    if copy.strange:
        lines = ", ".join(map(str, copy.strange[:10]))
        yield f"{copy.name}: no checkpoint in line {lines}; a crash may have cut one off"


def _forged(one: Checkpoint, words: str) -> Finding:
    return Finding(Kind.FORGED, None, f"checkpoint {one.checkpoint} of {one.time}: {words}", one.checkpoint)


def _gone(checkpoint: int, entry: int | None, words: str) -> Finding:
    return Finding(Kind.GONE, entry, words, checkpoint)
