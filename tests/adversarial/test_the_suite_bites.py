"""The same cases against a gate that reads once and passes on what it got: files get stored unseen.

Were they not, the cases would prove nothing about the gate that stands there now.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import pytest

from tests.adversarial import bodies, paths
from tests.adversarial.case import Case
from tests.adversarial.naive import NaiveGate, Read, by_email, by_splitting
from tests.adversarial.rig import Rig, Store

# Of each way to read a body: cases by which something must get past it.
BODIES: Mapping[Read, Sequence[str]] = {
    by_email: [
        "boundary: a bare LF, and a second file",
        "part header: LF LF among the headers, CR LF CR LF later",
        "part encoding: base64",
        "part encoding: base64 behind a picture",
        "part encoding: quoted-printable",
        "part length: one byte less",
        "part length: one byte more",
        "part length: a boundary within the length",
    ],
    by_splitting: [
        "boundary: a bare LF, and a second file",
        "boundary: nothing before, and a second file",
        "boundary: three hyphens before",
        "boundary: a boundary in a header",
        "part length: one byte less",
        "part length: one byte more",
    ],
}
PATHS = [
    "POST /im%61ge — an encoded letter is the letter",
    "POST /%69nternal/import — the administrator's door",
    "POST /image/background%65d — an encoded letter",
    "POST http://gate/image — absolute form is the path",
    "POST http://gate/internal/import — absolute form of another door",
    "POST /image# — an empty fragment",
    "GET /image/downl%6fad?url=<url> — an encoded letter",
    "GET /image/original?%70roxy=<url> — an encoded letter in the key",
]


@pytest.fixture(params=list(BODIES), ids=lambda read: read.__name__)
def read(request: pytest.FixtureRequest) -> Read:
    """A way to read a body."""
    chosen: Read = request.param
    return chosen


@pytest.fixture
def naive(store: Store, read: Read) -> Iterator[Rig]:
    """Sends through the naive gate."""
    gate = NaiveGate(store.running.port, read)
    rig = Rig(store, gate.seen, gate.port)
    yield rig
    rig.close()
    gate.close()


def got_past(rig: Rig, cases: Sequence[Case]) -> set[str]:
    """The names of the cases by which pict-rs stored, and said so, what nobody had looked at."""
    names = set()
    for case in cases:
        outcome = rig.attack(case)
        if outcome.unseen and 200 <= outcome.status < 300:
            names.add(case.name)
    return names


def test_bodies_get_past_a_second_reading(naive: Rig, read: Read) -> None:
    names = got_past(naive, bodies.CASES)
    assert names
    if naive.store.running.is_real:  # the stand-in's form reader is another one, with other oddities
        assert names >= set(BODIES[read])
    # What everybody reads alike it does look at, so it is the attacks that get past it.
    assert not [name for name in names if name.startswith("ordinary")]


def test_paths_get_past_a_list_of_forbidden_spellings(naive: Rig) -> None:
    names = got_past(naive, paths.CASES)
    assert names >= set(PATHS)
    assert not [name for name in names if name.startswith("POST /image — ")]
