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
        "boundary: a bare CR and the end, then a tail",
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


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    """A pict-rs whose unseen files are believed to be that soon: here they are what is looked for."""
    made = Store(tmp_path_factory.mktemp("pictrs"), patience_s=0.1)
    yield made
    made.running.stop()


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


def gets_past(rig: Rig, case: Case) -> bool:
    """Whether pict-rs stores, and says so, what nobody has looked at.

    Some cases depend on the pieces in which pict-rs happens to read a body, so each is sent up to five times.
    """
    for _ in range(5):
        outcome = rig.attack(case)
        if outcome.unseen and 200 <= outcome.status < 300:
            return True
    return False


def named(cases: Sequence[Case], names: Sequence[str]) -> list[Case]:
    """The cases of these names; all of them are there."""
    found = [case for case in cases if case.name in names]
    assert len(found) == len(names)
    return found


def test_bodies_get_past_a_second_reading(naive: Rig, read: Read) -> None:
    past = [gets_past(naive, case) for case in named(bodies.CASES, BODIES[read])]
    # The stand-in's form reader is another one, with other oddities.
    assert all(past) if naive.store.running.is_real else any(past)


def test_paths_get_past_a_list_of_forbidden_spellings(naive: Rig) -> None:
    assert all(gets_past(naive, case) for case in named(paths.CASES, PATHS))


def test_what_everybody_reads_alike_does_not_get_past(naive: Rig) -> None:
    """So it is the attacks that do."""
    ordinary = [case for case in bodies.CASES if case.name.startswith("ordinary")]
    ordinary += [case for case in paths.CASES if case.name.startswith("POST /image — ")]
    assert ordinary and not any(gets_past(naive, case) for case in ordinary)
