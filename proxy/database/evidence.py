"""Which sealed file each case has to have, as the ledger tells."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass

from sqlalchemy import select

from proxy.cases.life import CaseState
from proxy.database.engine import Database
from proxy.database.models import Case, LedgerEntry

SEALED = "sealed_sha256"  # the fact of an entry that names a file which was written for its case


@dataclass(frozen=True, slots=True)
class Sealed:
    """What a case that has not expired has to have.

    Attributes:
        file: its name in the quarantine.
        sha256: of every file that was written for it, in hexadecimal; none where no entry names one, for
            cases of before and for those that were found sealed after a crash.
    """

    case: str
    file: str
    sha256: frozenset[str]


def sealed(database: Database) -> list[Sealed]:
    """For each case that has not expired, the oldest first."""
    written: defaultdict[str, set[str]] = defaultdict(set)
    entries = select(LedgerEntry.case_id, LedgerEntry.facts).where(LedgerEntry.case_id.is_not(None))
    query = (
        select(Case.id, Case.file).where(Case.state != CaseState.EXPIRED).order_by(Case.created_at, Case.id)
    )
    with database.reading() as session:
        for case_id, facts in session.execute(entries.execution_options(yield_per=1000)):
            if isinstance(facts, dict) and isinstance(facts.get(SEALED), str):
                written[case_id].add(facts[SEALED])
        return [Sealed(case, file, frozenset(written[case])) for case, file in session.execute(query)]
