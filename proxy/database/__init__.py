"""Everything that survives a restart, but for the sealed bytes. No SQL stands outside this package."""

from proxy.cases.life import CaseState
from proxy.database.engine import Database
from proxy.database.models import (
    BackfillFile,
    BackfillHit,
    BackfillRun,
    BackfillUnreadable,
    Case,
    HashList,
    KnownHash,
    LedgerEntry,
    Lockdown,
    Note,
    Promise,
    Salt,
    UnseenUpload,
)

__all__ = [
    "BackfillFile",
    "BackfillHit",
    "BackfillRun",
    "BackfillUnreadable",
    "Case",
    "CaseState",
    "Database",
    "HashList",
    "KnownHash",
    "LedgerEntry",
    "Lockdown",
    "Note",
    "Promise",
    "Salt",
    "UnseenUpload",
]
