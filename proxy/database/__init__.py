"""Everything that survives a restart, but for the sealed bytes. No SQL stands outside this package."""

from proxy.cases.life import CaseState
from proxy.database.engine import Database
from proxy.database.models import (
    BackfillHit,
    BackfillRun,
    Case,
    KnownHash,
    LedgerEntry,
    Lockdown,
    Note,
    Promise,
    UnseenUpload,
)

__all__ = [
    "BackfillHit",
    "BackfillRun",
    "Case",
    "CaseState",
    "Database",
    "KnownHash",
    "LedgerEntry",
    "Lockdown",
    "Note",
    "Promise",
    "UnseenUpload",
]
