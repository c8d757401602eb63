"""Everything that survives a restart, but for the sealed bytes. No SQL stands outside this package."""

from proxy.cases.life import CaseState
from proxy.database.engine import Database
from proxy.database.models import (
    BackfillFile,
    BackfillHit,
    BackfillRun,
    BackfillUnreadable,
    Case,
    KnownHash,
    LedgerEntry,
    Lockdown,
    Note,
    Promise,
)

__all__ = [
    "BackfillFile",
    "BackfillHit",
    "BackfillRun",
    "BackfillUnreadable",
    "Case",
    "CaseState",
    "Database",
    "KnownHash",
    "LedgerEntry",
    "Lockdown",
    "Note",
    "Promise",
]
