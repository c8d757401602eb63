"""Room: a flood cannot fill the disk, and what cannot be written down is neither passed nor promised."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

import pytest
from sqlalchemy.exc import SQLAlchemyError

from proxy.cases import keeping
from proxy.cases.keeping import adopt_orphans, note_sizes
from proxy.cases.quarantine import Quarantine
from proxy.cases.quota import Limits, Quota, free_bytes
from proxy.cases.sealing import Sealer, write_new_identity
from proxy.channels.looks import Seen
from proxy.database import Case, CaseState, Database, cases, ledger, room
from proxy.errors import ConfigError, NoRoom, SealingError
from proxy.intake.uploads import upload_of
from proxy.metrics import Metrics
from proxy.policy import Decision, Verdict
from proxy.saying import said
from tests import pictures
from tests.client import Answer, get, metric
from tests.disks import fill, small_disk
from tests.gate import Gate
from tests.kept import keeper_of
from tests.looker import sha256
from tests.pictrs import Pictrs

NewGate = Callable[..., Gate]
MB = 1024 * 1024


def stored_case(database: Database, number: int, size: int, tag: str | None = None) -> Case:
    case = Case(
        id=f"20200101-000000-{number:08x}",
        state=CaseState.PENDING,
        created_at=datetime.now(UTC),
        reason="",
        file=f"20200101-000000-{number:08x}.age",
        sealed_size=size,
        uploader=tag,
    )
    cases.add(database, case, facts={})
    return case


async def quota_of(database: Database, folder: Path, **limits: int) -> Quota:
    usual = {"quota": 10 * MB, "of_uploader": 4 * MB, "keep_free": 0}
    made = Quota(database, folder, Limits(**{**usual, **limits}), Metrics())
    await made.count()
    return made


async def test_what_all_cases_take_is_counted_also_those_of_other_gates(
    database: Database, tmp_path: Path
) -> None:
    quota = await quota_of(database, tmp_path)
    with quota.place(9 * MB, None):
        pass
    stored_case(database, 1, 5 * MB)
    with quota.place(9 * MB, None):
        pass  # nobody has counted again
    await quota.count()
    with pytest.raises(NoRoom, match=r"cases\.quota_gb"), quota.place(9 * MB, None):
        pass
    with database.writing() as session:  # its bytes were deleted
        session.get_one(Case, "20200101-000000-00000001").sealed_size = None
    await quota.count()
    with quota.place(9 * MB, None):
        pass


async def test_what_is_being_written_has_its_room_and_what_was_written_keeps_it(
    database: Database, tmp_path: Path
) -> None:
    quota = await quota_of(database, tmp_path)
    with quota.place(6 * MB, None), pytest.raises(NoRoom), quota.place(6 * MB, None):
        pass
    with quota.place(6 * MB, None) as place:
        place.written("20200101-000000-00000001", 6 * MB)
    for _ in range(2):  # sealed, and the database did not take it: it lies there all the same
        with pytest.raises(NoRoom), quota.place(6 * MB, None):
            pass
        await quota.count()
    stored_case(database, 1, 6 * MB)
    await quota.count()  # and is not counted twice once it is a case
    with quota.place(3 * MB, None):
        pass


async def test_a_hit_without_room_stands_in_the_ledger_at_least(database: Database, tmp_path: Path) -> None:
    metrics, content = Metrics(), pictures.png((8, 8))
    quota = Quota(database, tmp_path, Limits(quota=1, of_uploader=1, keep_free=0), metrics)
    quarantine = Quarantine(
        tmp_path / "cases", Sealer([write_new_identity(tmp_path / "key")]), lambda _: None
    )
    keeper = keeping.Keeper(database, quarantine, quota, metrics, lambda _: None)
    upload = upload_of(content, sha256(content), file_name="", declared_type=None)
    look = Seen({"minor": 0.9}, [], "own 1", "png", 8, 8)
    origin = keeping.Origin("POST /image", [], {})
    with pytest.raises(NoRoom):
        await keeper.keep(upload, Decision(Verdict.HOLD, "a rule"), look, origin, None)
    keeper.close()
    (told,) = ledger.entries(database)
    assert (told.act, told.case_id) == ("refused: no room", None)
    assert told.facts == {
        "sha256": sha256(content),
        "verdict": "hold",
        "reason": "a rule",
        "signals": {"minor": 0.9},
        "route": "POST /image",
    }


async def test_what_pict_rs_has_already_finds_room_when_uploads_do_not(
    database: Database, tmp_path: Path
) -> None:
    stored_case(database, 1, 10 * MB - 200 * 1024)
    quota = await quota_of(database, tmp_path)
    with pytest.raises(NoRoom, match=r"cases\.quota_gb"), quota.place(100 * 1024, None):
        pass
    with quota.place(100 * 1024, None, is_public=True) as place:
        place.written("20200101-000000-00000002", 150 * 1024)
    with pytest.raises(NoRoom), quota.place(100 * 1024, None, is_public=True):
        pass  # the quota is the quota


async def test_one_uploader_has_his_share_and_takes_nobody_else_s(database: Database, tmp_path: Path) -> None:
    stored_case(database, 1, 3 * MB, "flooder")
    quota = await quota_of(database, tmp_path)
    with pytest.raises(NoRoom, match=r"cases\.share_of_uploader"), quota.place(2 * MB, "flooder"):
        pass
    with quota.place(2 * MB, "another"), quota.place(2 * MB, None):
        pass


async def test_so_much_of_the_disk_stays_free(database: Database, tmp_path: Path) -> None:
    quota = await quota_of(database, tmp_path, keep_free=free_bytes(tmp_path) - 1 * MB)
    with pytest.raises(NoRoom, match=r"cases\.keep_free_mb"):
        quota.check_disk(2 * MB)
    with pytest.raises(SealingError, match=r"cases\.folder"):
        (await quota_of(database, tmp_path / "gone")).check_disk(1)


def test_the_sizes_of_older_cases_are_noted(database: Database, tmp_path: Path) -> None:
    quarantine = Quarantine(
        tmp_path / "cases", Sealer([write_new_identity(tmp_path / "key")]), lambda _: None
    )
    for number in (1, 2):
        stored_case(database, number, 1)
    with database.writing() as session:
        for number in (1, 2):
            session.get_one(Case, f"20200101-000000-{number:08x}").sealed_size = None
    quarantine.seal("20200101-000000-00000001", {}, b"content")
    note_sizes(database, quarantine)
    size = (tmp_path / "cases" / "20200101-000000-00000001.age").stat().st_size
    assert room.taken(database).by_uploader == {None: size}
    assert cases.get(database, "20200101-000000-00000002").sealed_size is None  # its file is gone


def test_salts_are_made_once(database: Database) -> None:
    assert room.salt(database, "uploaders") == room.salt(database, "uploaders")
    assert room.salt(database, "uploaders") != room.salt(database, "others")


def test_without_recipients_nothing_is_written(tmp_path: Path) -> None:
    quarantine = Quarantine(tmp_path / "cases", Sealer([]), lambda _: None)
    with pytest.raises(SealingError, match="nobody to seal it to"):
        quarantine.seal("a-case", {}, b"content")
    assert list((tmp_path / "cases").iterdir()) == []


async def test_an_upload_does_not_wait_for_ever_for_a_disk_that_hangs(
    database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keeping, "_KEPT_S", 0.2)
    goes_on = threading.Event()

    def hang(point: str) -> None:
        if point == "case-written":
            assert goes_on.wait(60)

    quarantine = Quarantine(tmp_path / "cases", Sealer([write_new_identity(tmp_path / "key")]), hang)
    keeper, content = keeper_of(database, quarantine, tmp_path), pictures.png((8, 8))
    upload = upload_of(content, sha256(content), file_name="", declared_type=None)
    held, wanted = Decision(Verdict.HOLD, "a rule"), keeping.Wanted(lambda: (None, None))
    for _ in range(3):  # the third one has not even begun
        with pytest.raises(SealingError, match="could not be kept within"):
            await keeper.keep(upload, held, None, keeping.Origin("", [], {}), wanted)
    goes_on.set()
    keeper.close()
    assert cases.listed(database) == []  # so nothing is promised
    assert len(adopt_orphans(database, quarantine, older_than_s=0)) == 2  # and nothing lost


# --- disks that end, for real ---


def test_a_file_that_does_not_fit_leaves_nothing_behind(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk") as disk:
        recipient = write_new_identity(tmp_path / "key")
        quarantine = Quarantine(disk / "cases", Sealer([recipient]), lambda _: None)
        with pytest.raises(SealingError, match="could not be written"):
            quarantine.seal("a-case", {}, os.urandom(3 * MB))
        assert list((disk / "cases").iterdir()) == []


def test_a_database_on_a_full_disk_says_so(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk") as disk:
        url = f"sqlite:///{disk}/gate.db"
        database = Database(url)
        fill(disk)
        with pytest.raises(SQLAlchemyError) as written:
            for number in range(1_000):  # what its log has room for already is kept
                stored_case(database, number, 1)
        assert said(written.value) == "the database: database or disk is full; make room on the disk"
        assert len(cases.listed(database, limit=1_000)) == number
        database.close()
        with pytest.raises(ConfigError, match="make room on the disk"):
            (disk / "gate.db-shm").unlink(missing_ok=True)
            fill(disk)
            Database(url)
        (disk / "filler").unlink()
        reopened = Database(url)
        assert len(cases.listed(reopened, limit=1_000)) == number
        reopened.close()


def test_a_folder_in_which_no_file_can_be_made_is_said_and_no_reason_not_to_start(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with small_disk(tmp_path / "disk") as disk:
        (disk / "cases").mkdir(mode=0o700)
        with suppress(OSError):
            for number in range(1_000):
                (disk / str(number)).touch()
        quarantine = Quarantine(
            disk / "cases", Sealer([write_new_identity(tmp_path / "key")]), lambda _: None, make=False
        )
        quarantine.make(is_new=False)
        assert "No space left on device: nothing can be kept" in caplog.text
        with pytest.raises(SealingError, match="No space left on device"):
            quarantine.seal("a-case", {}, b"content")
        with pytest.raises(ConfigError, match="No space left on device"):
            Quarantine(disk / "new", Sealer([]), lambda _: None)


@pytest.fixture
def disks(tmp_path: Path) -> Iterator[tuple[Path, Path]]:
    with small_disk(tmp_path / "first") as first, small_disk(tmp_path / "second") as second:
        yield first, second


class Cramped:
    """A gate whose cases and database have a small disk each."""

    def __init__(self, gate: Gate, disk: Path, database_disk: Path) -> None:
        self.gate, self.disk, self.database_disk = gate, disk, database_disk
        self.folder, self.url = disk / "cases", f"sqlite:///{database_disk}/gate.db"
        gate.start(
            {
                "GATE__CASES__FOLDER": str(self.folder),
                "GATE__CASES__KEEP_FREE_MB": "0",
                "GATE__CASES__QUOTA_GB": "0.001",
                "GATE__CASES__SHARE_OF_UPLOADER": "1",
                "GATE__DATABASE__URL": self.url,
            }
        )

    def promised(self) -> list[str]:
        """Aliases that somebody may have been told of, by their cases."""
        opened = Database(self.url)
        try:
            made = [one for case in cases.listed(opened, limit=1000) for one in case.promises]
            return [one.alias for one in made if one.removed_at is None]
        finally:
            opened.close()

    def sealed(self) -> list[str]:
        return sorted(path.name for path in self.folder.iterdir())

    def failures(self) -> float:
        return metric(self.gate.internal_url, "pictrs_gate_sealing_failures_total")

    def refusals(self, limit: str) -> float:
        return metric(self.gate.internal_url, "pictrs_gate_quota_refusals_total", limit=limit)


@pytest.fixture
def cramped(new_gate: NewGate, disks: tuple[Path, Path]) -> Cramped:
    return Cramped(new_gate(start=False, classifier_url="http://127.0.0.1:9"), *disks)


def is_unavailable(answer: Answer) -> bool:
    said = answer.json().get("code")
    return answer.status == 503 and said == "scan-unavailable" and "retry-after" in answer.headers


def test_where_it_cannot_be_kept_nothing_is_promised_and_where_there_is_room_again_it_is(
    cramped: Cramped, running_pictrs: Pictrs
) -> None:
    gate, stored = cramped.gate, len(running_pictrs.stored_files())
    content = pictures.jpeg((1600, 1200), seed=4_001)  # nobody looks, so it is to be deferred

    filler = fill(cramped.disk)  # no bytes left
    assert is_unavailable(gate.upload(content))
    assert (cramped.refusals("disk"), cramped.failures()) == (1, 0)
    # Of two files one has room, and goes without a promise, because the other has none.
    os.truncate(filler, filler.stat().st_size - len(content) - 24 * 1024)
    assert is_unavailable(gate.upload(content, content))
    assert len(cramped.sealed()) == 1 and cramped.promised() == []
    filler.unlink()

    many = []  # no files left
    with suppress(OSError):
        for number in range(1_000):
            many.append(cramped.disk / str(number))
            many[-1].touch()
    assert is_unavailable(gate.upload(content)) and cramped.failures() == 1
    for path in many:
        path.unlink(missing_ok=True)

    cramped.folder.rename(cramped.disk / "unmounted")  # no folder
    assert is_unavailable(gate.upload(content)) and cramped.failures() == 2
    assert not cramped.folder.exists()  # it may be a disk that is not there: nothing is written in its place
    (cramped.disk / "unmounted").rename(cramped.folder)

    assert cramped.promised() == [] and len(cramped.sealed()) == 1
    answer = gate.upload(content)
    assert answer.status == 201 and cramped.promised() == [answer.json()["files"][0]["file"]]

    for _ in range(100):  # no quota left: a megabyte
        answer = gate.upload(content)
        if answer.status != 201:
            break
    assert is_unavailable(answer) and cramped.refusals("quota") == 1
    assert sum(path.stat().st_size for path in cramped.folder.iterdir()) <= 1.024 * MB
    assert len(cramped.promised()) == len(cramped.sealed()) - 1
    assert metric(gate.internal_url, "pictrs_gate_quarantine_quota_bytes") == int(1.024 * MB)
    assert len(running_pictrs.stored_files()) == stored


def test_where_the_database_is_full_nothing_is_promised(cramped: Cramped, running_pictrs: Pictrs) -> None:
    gate, stored = cramped.gate, len(running_pictrs.stored_files())
    filler, promised = fill(cramped.database_disk), []
    for seed in range(100):  # what its log has room for already is kept
        answer = gate.upload(pictures.blank_png((64, 64 + seed)))
        if answer.status != 201:
            break
        promised.append(answer.json()["files"][0]["file"])
    assert is_unavailable(answer) and cramped.failures() >= 1
    assert len(running_pictrs.stored_files()) == stored
    filler.unlink()
    answer = gate.upload(pictures.blank_png((65, 65)))
    assert answer.status == 201
    assert {*promised, answer.json()["files"][0]["file"]} == set(cramped.promised())
    assert get(gate.internal_url, "/readyz").status == 200
