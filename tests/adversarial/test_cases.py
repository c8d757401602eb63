"""Every hand-made case: nothing is stored, or every stored file was looked at, byte for byte."""

from __future__ import annotations

import pytest

from tests.adversarial import bodies, content_types, framing, paths
from tests.adversarial.case import Case
from tests.adversarial.rig import Rig, wait_until_idle
from tests.gate import Gate

TABLES = {"paths": paths, "framing": framing, "types": content_types, "bodies": bodies}
CASES = [
    pytest.param(case, id=f"{name}: {case.name}") for name, table in TABLES.items() for case in table.CASES
]


@pytest.mark.parametrize("case", CASES)
def test_nothing_is_stored_that_was_not_looked_at(rig: Rig, case: Case) -> None:
    outcome = rig.attack(case)
    assert outcome.unseen == []
    if case.statuses:
        assert outcome.status in case.statuses
    assert list(outcome.statuses[1:]) == list(case.then)
    if 202 not in outcome.statuses:  # which says "later" of an upload, and of a variant
        assert (outcome.stored != []) == (201 in outcome.statuses)


def test_nothing_came_late(rig: Rig, attacked_gate: Gate) -> None:
    wait_until_idle(attacked_gate)
    assert rig.send(b"", ends=True).unseen == []


def test_every_case_is_another_one() -> None:
    assert len({case.request for table in TABLES.values() for case in table.CASES}) > 500
    names = [param.id for param in CASES]
    assert len(names) == len(set(names))
