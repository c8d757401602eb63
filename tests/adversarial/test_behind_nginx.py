"""The hand-made cases through nginx and the gate: two readings before pict-rs's, and still nothing unseen.

nginx answers some of them itself, and in its own way, so only the promise is asserted here.
"""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from tests.adversarial import bodies, content_types, framing, paths
from tests.adversarial.case import Case
from tests.adversarial.rig import Rig

TABLES = {"paths": paths, "framing": framing, "types": content_types, "bodies": bodies}


@pytest.mark.parametrize("cases", [table.CASES for table in TABLES.values()], ids=TABLES)
def test_nothing_is_stored_that_was_not_looked_at(behind_nginx: Rig, cases: Sequence[Case]) -> None:
    outcomes = {case.name: behind_nginx.attack(case) for case in cases}
    assert {name: outcome.unseen for name, outcome in outcomes.items() if outcome.unseen} == {}
    assert any(outcome.stored for outcome in outcomes.values())
