"""What the tests share: one pict-rs, one classifier whose head is scripted, gates as they are needed."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from proxy.database import Database
from tests import forking, migrated, pictrs, pictures, processes
from tests.gate import Classifier, Gate, scripted
from tests.postgresql import Postgresql

_HITS = 150
# Files that take a quarter of a minute or more, longest first: one of them last, and the other processes
# would wait for it. (`--no-loadscope-reorder` keeps xdist from putting those of few tests last.)
_LONG = (
    *("test_7_", "test_gate_reads", "test_lemmy", "test_backfill_hold", "test_backfill_ray"),
    *("test_starting", "test_outage", "test_classifier_heads", "test_routes", "test_gate_uploads"),
    *("test_crashes", "test_full_disks", "test_dialling_in", "test_backfill_runs"),
    *("test_classifier_concepts", "test_backfill."),
    *("test_media", "test_review", "test_classifier_decoding", "test_ledger.", "test_backlog."),
    *("test_real_clients", "test_nginx", "test_hook", "test_known_hashes", "test_classifier_ensembles"),
    *("test_backfill_kills", "test_lockdown", "test_classifier_stopping", "test_entrances"),
    *("test_look_alikes", "test_several_gates", "test_backfill_sources", "test_classifier_frames"),
    *("test_memory", "test_channel_health", "test_3_", "test_retention", "test_the_suite_bites"),
    *("test_classifier_fetching", "test_postgresql", "test_fetching", "test_classifier_server"),
    *("test_8_", "test_worker_link"),
)
SIGNALS = {"sexual": 0.9, "minor": 0.8}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Puts the long files first; within a file nothing changes."""

    def place(item: pytest.Item) -> int:
        name = item.path.name
        return next((place for place, long in enumerate(_LONG) if name.startswith(long)), len(_LONG))

    items.sort(key=place)


def pytest_collection_finish() -> None:
    """Thousands of tests and what they import stay: garbage is not to be looked for among them each time."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session", autouse=True)
def forks() -> Iterator[None]:
    """Our own programs start quickly."""
    processes.forks = forking.Forks()
    yield
    processes.forks.close()
    processes.forks = None


@pytest.fixture(scope="session")
def hits() -> list[bytes]:
    """Pictures that the scripted classifier takes for what has to be held. Drawn shapes, in truth."""
    return [pictures.jpeg((320, 240), seed=10_000 + number) for number in range(_HITS)]


@pytest.fixture
def hit(hits: list[bytes]) -> bytes:
    """One of them that no other test has."""
    return hits.pop()


@pytest.fixture(scope="session")
def postgresql() -> Iterator[Postgresql]:
    """A PostgreSQL, started for whoever asks first."""
    running = Postgresql()
    yield running
    running.close()


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Of a new database, of each kind."""
    if request.param == "sqlite":
        return migrated.new(tmp_path / "gate.db")
    running: Postgresql = request.getfixturevalue("postgresql")
    return running.new_database()


@pytest.fixture
def database(database_url: str) -> Iterator[Database]:
    """A new database, of each kind."""
    opened = Database(database_url)
    yield opened
    opened.close()


@pytest.fixture(scope="session")
def running_pictrs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[pictrs.Pictrs]:
    """pict-rs: the real one where there is one."""
    running = pictrs.Pictrs(tmp_path_factory.mktemp("pictrs"), real=pictrs.find())
    yield running
    running.stop()


@pytest.fixture(scope="session")
def classifier(tmp_path_factory: pytest.TempPathFactory, hits: list[bytes]) -> Iterator[Classifier]:
    """A classifier with a scripted head."""
    folder = tmp_path_factory.mktemp("classifier")
    running = Classifier(folder, ensemble=scripted(folder, dict.fromkeys(hits, SIGNALS)))
    yield running
    running.stop()


@pytest.fixture(scope="module")
def gate(
    tmp_path_factory: pytest.TempPathFactory, running_pictrs: pictrs.Pictrs, classifier: Classifier
) -> Iterator[Gate]:
    """A gate as the documentation configures it, between the two."""
    running = Gate(
        tmp_path_factory.mktemp("gate"),
        pictrs_url=running_pictrs.url,
        api_key=running_pictrs.api_key,
        classifier_url=classifier.url,
    )
    yield running
    running.stop()


@pytest.fixture
def new_gate(
    tmp_path: Path, running_pictrs: pictrs.Pictrs, classifier: Classifier
) -> Iterator[Callable[..., Gate]]:
    """Makes gates that differ from the usual one; stops them after the test."""
    made: list[Gate] = []

    def make(**changes: object) -> Gate:
        usual: dict[str, object] = {
            "pictrs_url": running_pictrs.url,
            "api_key": running_pictrs.api_key,
            "classifier_url": classifier.url,
        }
        new = Gate(tmp_path / f"gate-{len(made)}", **{**usual, **changes})  # type: ignore[arg-type]
        made.append(new)
        return new

    yield make
    for one in made:
        if one.program is not None:
            one.program.kill()
