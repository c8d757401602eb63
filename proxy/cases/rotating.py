"""Seals cases anew for the recipients configured now: a reviewer has come, gone or lost a key.

At any moment a case has a whole file that opens with the old keys or with the new ones. A rotation that was
killed goes on where it was, when it is run again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pyrage

from proxy.cases.evidence import file_sha256
from proxy.cases.quarantine import Quarantine
from proxy.cases.recipients import digest, sealed_to
from proxy.cases.sealing import Sealer, decrypt, is_as_uploaded, recipients_in, unpack
from proxy.database import Case, CaseState, Database, cases, ledger, rotating
from proxy.database.evidence import SEALED
from proxy.errors import CaseError, SealingError, Unreadable
from proxy.faults import FaultPoint


@dataclass(frozen=True, slots=True)
class Keys:
    """
    Attributes:
        reviewers: public keys that cases are to be sealed to.
        gate: the public half of the gate's own key, for cases that it has still to look at; None without one.
        identities: private keys that open the cases as they are.
    """

    reviewers: Sequence[str]
    gate: str | None
    identities: Sequence[pyrage.x25519.Identity]

    @property
    def wanted(self) -> rotating.Wanted:
        """For whom cases are to be sealed."""
        both = digest(sealed_to(self.reviewers, self.gate, gate_reads=True)) if self.gate else None
        return rotating.Wanted(digest(sealed_to(self.reviewers)), both)

    def are_among(self, recipients: Sequence[str]) -> bool:
        """Whether one of the private keys opens what is sealed to `recipients`."""
        return any(str(identity.to_public()) in recipients for identity in self.identities)


class Rotation:
    """Seals cases anew, one by one."""

    def __init__(self, database: Database, quarantine: Quarantine, keys: Keys, fault: FaultPoint) -> None:
        self._database, self._quarantine, self._keys, self._fault = database, quarantine, keys, fault

    def left(self) -> list[str]:
        """The ids of the cases that are not sealed as they should be."""
        return rotating.to_reseal(self._database, self._keys.wanted)

    def check(self, case_id: str) -> None:
        """Whether a case could be sealed anew; changes nothing.

        Raises:
            CaseError, SealingError: it could not, and why.
        """
        case = cases.get(self._database, case_id)
        self._recipients(case)
        self._clear(case, self._quarantine.path(case.file))

    def reseal(self, case_id: str, *, by: str) -> bool:
        """Seals one case anew; on return it is on the disk and noted.

        Returns:
            False where the case has changed meanwhile: it may have to be done again.

        Raises:
            CaseError, SealingError: it could not be done, and the case is as it was.
        """
        case = cases.get(self._database, case_id)
        recipients = self._recipients(case)
        stamp = self._quarantine.stamp(case.file)
        clear = self._clear(case, self._quarantine.path(case.file))
        sealer = Sealer(recipients)
        new = self._quarantine.write_beside(case.file, lambda file: sealer.encrypt([clear], file))
        try:
            self._check_new(new, recipients, clear)
            self._fault("case-resealed")
            # Before it takes its place: a file that no entry names is none of the gate's.
            facts = {SEALED: file_sha256(new)}
            ledger.record(self._database, "resealing", actor=by, case_id=case.id, facts=facts)
            is_done = rotating.resealed(
                self._database,
                case,
                to=sealer.sealed_to,
                size=new.stat().st_size,
                by=by,
                recipients=len(recipients),
                swap=lambda: self._quarantine.swap(case.file, new, stamp),
            )
        finally:
            self._quarantine.discard(new)
        if is_done:  # where it has failed, nobody knows whether it is noted: see `resume`
            self._fault("case-reseal-noted")
            self._quarantine.settle(case.file)
        return is_done

    def resume(self) -> list[str]:
        """Ends what a killed rotation has begun: of the two files of a case one stays, which opens.

        Returns:
            What could not be ended, in words; both files are still there.
        """
        troubles = []
        for name, before in list(self._quarantine.unsettled()):
            try:
                case = cases.get(self._database, name.removesuffix(".age"))
                if case.state is CaseState.EXPIRED or self._opens(case, self._quarantine.path(name)):
                    self._quarantine.settle(name)
                    continue
                self._clear(case, before)
                if self._is_noted(case, before):
                    self._quarantine.settle(name)
                else:
                    rotating.put_back(self._database, case, partial(self._quarantine.put_back, name))
            except (CaseError, SealingError) as error:
                troubles.append(f"{error}; a rotation was cut off there, and {before.name} lies beside it")
        return troubles

    def _recipients(self, case: Case) -> list[str]:
        try:
            return sealed_to(self._keys.reviewers, self._keys.gate, gate_reads=case.gate_reads)
        except ValueError as error:
            raise CaseError(f"{case.id}: {error}") from None

    def _clear(
        self, case: Case, path: Path, identities: Sequence[pyrage.x25519.Identity] | None = None
    ) -> bytes:
        clear = decrypt(path, self._keys.identities if identities is None else identities)
        if not is_as_uploaded(unpack(clear, path), case.sha256):
            raise CaseError(f"{case.id}: the sealed bytes are not those that were uploaded")
        return clear

    def _is_noted(self, case: Case, before: Path) -> bool:
        """Whether the case's row is about the file that has taken the place of `before`.

        It is about one of the two. What a key opens that is none of the row's recipients, it is not about.
        """
        wanted, reviewers, gate = self._keys.wanted, self._keys.reviewers, self._keys.gate
        if case.sealed_to is None or case.sealed_to not in (wanted.usual, wanted.gate_reads):
            return False
        recipients = sealed_to(reviewers, gate, gate_reads=case.sealed_to != wanted.usual)
        others = [one for one in self._keys.identities if str(one.to_public()) not in recipients]
        if not others or not self._opens(case, before, others):
            return False
        try:
            decrypt(self._quarantine.path(case.file), self._keys.identities)
        except Unreadable as error:  # a damaged one is not worth a whole one
            return error.is_for_others
        return False

    def _opens(
        self, case: Case, path: Path, identities: Sequence[pyrage.x25519.Identity] | None = None
    ) -> bool:
        try:
            self._clear(case, path, identities)
        except (CaseError, SealingError):
            return False
        return True

    def _check_new(self, path: Path, recipients: Sequence[str], clear: bytes) -> None:
        """As much as can be known: the others' private keys are not here."""
        count = recipients_in(path)
        if count != len(recipients):
            raise SealingError(f"{path}: is sealed to {count} keys, not to {len(recipients)}")
        if self._keys.are_among(recipients) and decrypt(path, self._keys.identities) != clear:
            raise SealingError(f"{path}: does not hold what was sealed")
