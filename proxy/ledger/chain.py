"""The chain: what an entry's hash covers, and where a row of entries is no chain.

Pure. `docs/ledger.md` says the same in words, with test vectors, so that a third party can check a ledger.
"""

from __future__ import annotations

import enum
import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

FIRST = "0" * 64  # what the first entry names as the hash before it

# How far from its place a moved entry is looked for, and of how many findings: each try is a hash.
_FAR, _MOST_SOUGHT = 50, 20


@dataclass(frozen=True, slots=True)
class Entry:
    """One link.

    Attributes:
        number: from 1, without a gap.
        time: ISO 8601 in UTC with microseconds.
        act, actor: what was done, and who did it: `gate`, `client`, `retention` or a reviewer's name.
        case: the case that it is about, or None.
        facts: JSON values; None where what is stored is no JSON any more.
        previous: `hash` of the entry before; `FIRST` where there is none.
        hash: over all the rest.
    """

    number: int
    time: str
    act: str
    actor: str
    case: str | None
    facts: dict[str, Any] | None
    previous: str
    hash: str = ""


class Kind(enum.StrEnum):
    """What is wrong at a place."""

    ALTERED = "altered"  # its hash is not that of what it says
    MISSING = "missing"  # numbers without an entry
    MOVED = "moved"  # stands where another entry was
    REPLACED = "replaced"  # sound by itself, but what follows was written after another entry
    INSERTED = "inserted"  # before the first
    CUT_OFF = "cut off"  # a checkpoint knows of entries after the last one
    REWRITTEN = "rewritten"  # a checkpoint knows another entry of that number
    FORGED = "forged"  # a checkpoint that is not what it says
    GONE = "gone"  # a checkpoint that was made and is not there


@dataclass(frozen=True, slots=True)
class Finding:
    """Something that is not as it was written.

    Attributes:
        number: of the entry, or the first of those, that it is about; None where it is about none.
        words: what was found, as a sentence's end.
        checkpoint: the checkpoint that it is about, or that shows it.
    """

    kind: Kind
    number: int | None
    words: str
    checkpoint: int | None = None


def canonical(value: dict[str, Any]) -> bytes:
    """JSON with keys sorted, no spaces, UTF-8, no escapes beyond JSON's own."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return text.encode("utf-8", "surrogatepass")  # what came as no UTF-8 at all keeps nothing from being told


def entry_hash(entry: Entry) -> str:
    """SHA-256 (hexadecimal) over the entry as canonical JSON, without its `hash`."""
    content = {
        "number": entry.number,
        "time": entry.time,
        "act": entry.act,
        "actor": entry.actor,
        "case": entry.case,
        "facts": entry.facts,
        "previous": entry.previous,
    }
    return hashlib.sha256(canonical(content)).hexdigest()


class Chain:
    """Follows entries in the order of their numbers. It keeps one of them, however many there are."""

    def __init__(self) -> None:
        self._prior: Entry | None = None
        self._is_prior_sound = True
        self._sought = 0

    @property
    def last(self) -> int:
        """The number of the last entry followed; 0 before the first."""
        return self._prior.number if self._prior else 0

    def follow(self, entry: Entry) -> Iterator[Finding]:
        """What is wrong with the next entry, or with what should be before it."""
        if entry.number < 1:
            yield Finding(Kind.INSERTED, entry.number, "stands before the first entry")
            return
        expected = self.last + 1
        if entry.number > expected:
            yield Finding(Kind.MISSING, expected, _missing(expected, entry.number - 1))
        computed = entry_hash(entry)
        is_sound = computed == entry.hash
        if not is_sound:
            yield self._unsound(entry)
        elif entry.number == expected and self._is_prior_sound:
            yield from self._link(entry)
        # Where only the hash of an entry was overwritten, the next one still names the right one.
        self._prior, self._is_prior_sound = entry, is_sound

    def _link(self, entry: Entry) -> Iterator[Finding]:
        if self._prior is None and entry.previous != FIRST:
            yield Finding(Kind.REPLACED, 1, "is not the first entry that was written: it names one before")
        if self._prior is not None and entry.previous != self._prior.hash:
            words = f"was written anew, or the next one was: entry {entry.number} follows another one"
            yield Finding(Kind.REPLACED, self._prior.number, words)

    def _unsound(self, entry: Entry) -> Finding:
        self._sought += 1
        was = _place(entry) if self._sought <= _MOST_SOUGHT else None
        if was is None:
            return Finding(Kind.ALTERED, entry.number, "does not have the hash of what it says")
        words = f"was entry {was}: entries were removed, inserted or put elsewhere"
        return Finding(Kind.MOVED, entry.number, words)


def _place(entry: Entry) -> int | None:
    """The number under which an entry was written, where that is near and nothing else of it was altered."""
    for distance in range(1, _FAR + 1):
        for number in (entry.number - distance, entry.number + distance):
            if number > 0 and entry_hash(replace(entry, number=number)) == entry.hash:
                return number
    return None


def _missing(first: int, last: int) -> str:
    return "is missing" if first == last else f"and all up to {last} are missing"
