"""One gate, one pict-rs and one classifier for each module here."""

from __future__ import annotations

import functools
from collections.abc import Iterator

import pytest

from tests import nginx
from tests.adversarial.rig import Looker, Rig, Store, gate_between, wait_until_idle
from tests.gate import Gate


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    """pict-rs in its dummy mode."""
    made = Store(tmp_path_factory.mktemp("pictrs"))
    yield made
    made.running.stop()


@pytest.fixture(scope="module")
def looker() -> Iterator[Looker]:
    """The classifier that notes what it saw."""
    made = Looker()
    yield made
    made.server.close()


@pytest.fixture(scope="module")
def attacked_gate(tmp_path_factory: pytest.TempPathFactory, store: Store, looker: Looker) -> Iterator[Gate]:
    """The gate between the two."""
    made = gate_between(tmp_path_factory.mktemp("gate"), store, looker)
    yield made
    made.stop()


@pytest.fixture(scope="module")
def rig(store: Store, looker: Looker, attacked_gate: Gate) -> Iterator[Rig]:
    """Sends through the gate."""
    settle = functools.partial(wait_until_idle, attacked_gate)
    made = Rig(store, looker.seen, attacked_gate.port, settle=settle)
    yield made
    made.close()


@pytest.fixture(scope="module")
def behind_nginx(
    tmp_path_factory: pytest.TempPathFactory, store: Store, looker: Looker, attacked_gate: Gate
) -> Iterator[Rig]:
    """Sends through the example site of nginx, which passes on to that gate, and plain reads to pict-rs."""
    program, port = nginx.start(
        tmp_path_factory.mktemp("nginx"),
        nginx.BETWEEN,
        gate=attacked_gate.port,
        pictrs=store.running.port,
    )
    settle = functools.partial(wait_until_idle, attacked_gate)
    made = Rig(store, looker.seen, port, settle=settle)
    yield made
    made.close()
    program.stop()
