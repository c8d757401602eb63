"""The memory of decisions: by the same bytes, by what looks alike, from whichever process it came."""

from __future__ import annotations

import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import pytest
from sqlalchemy import text

from proxy.channels.looks import Look, Seen, Undecodable, Unseen
from proxy.database import Case, CaseState, Database, cases, decisions, hash_lists, ledger
from proxy.database.models import KnownPicture, ListedHash
from proxy.errors import HashesError
from proxy.known_hashes import KnownHashes
from proxy.policy import Earlier, Verdict

PDQ = "5a" * 32
SHA = f"{7:064x}"


def alike(bits: int) -> str:
    """A hash that differs from `PDQ` in so many bits."""
    return f"{int(PDQ, 16) ^ ((1 << bits) - 1):064x}"


def seen(pdq: str | None, quality: int | None = 90) -> Seen:
    return Seen({"sexual": 0.0}, [], "test 1", "png", 10, 10, pdq, quality)


def case(number: int = 1, **changes: object) -> Case:
    facts: dict[str, object] = {
        "id": f"case-{number}",
        "state": CaseState.PENDING,
        "created_at": datetime.now(UTC),
        "reason": "test",
        "file": f"case-{number}.age",
        "sha256": f"{number:064x}",
        "pdq": PDQ,
        "pdq_quality": 90,
    }
    return Case(**{**facts, **changes})


def confirm(database: Database, number: int = 1, **changes: object) -> None:
    cases.add(database, case(number, **changes), facts={})
    decisions.confirmed(database, f"case-{number}", by="ann", sha256=f"{number:064x}")


def imported(
    database: Database,
    name: str,
    *,
    sha256: str | None = None,
    pdq: str | None = None,
    verdict: str = "block",
) -> None:
    into = hash_lists.begin_import(database, name, verdict, by="bob", facts={})
    for kind, value in (("sha256", sha256), ("pdq", pdq)):
        if value is not None:
            hash_lists.add(database, into, kind, [bytes.fromhex(value)])


async def test_what_looks_like_a_confirmed_case_is_known_up_to_the_distance_that_is_set(
    database: Database,
) -> None:
    confirm(database)
    usual, narrow = KnownHashes(database, []), KnownHashes(database, [], 5)
    expected = Earlier("pdq", Verdict.BLOCK, "case-1", None, "ann", 31)
    assert await usual.find_near(seen(alike(31))) == expected
    assert await usual.find_near(seen(alike(32))) is None
    assert await narrow.find_near(seen(alike(5))) is not None
    assert await narrow.find_near(seen(alike(6))) is None


@pytest.mark.parametrize(
    "look", [seen(PDQ, 49), seen(PDQ, None), seen(None, None), Undecodable("x"), Unseen("x")]
)
async def test_a_flat_picture_or_one_that_nobody_saw_looks_like_nothing(
    database: Database, look: Look
) -> None:
    confirm(database)
    assert await KnownHashes(database, []).find_near(look) is None


async def test_nothing_looks_like_a_confirmed_picture_that_is_flat(database: Database) -> None:
    confirm(database, pdq_quality=49)
    confirm(database, 2, pdq_quality=None)
    confirm(database, 3, pdq=None)
    assert await KnownHashes(database, []).find_near(seen(PDQ)) is None


async def test_a_released_picture_is_known_by_its_bytes_and_by_those_that_pict_rs_made_of_it(
    database: Database,
) -> None:
    known = KnownHashes(database, [])
    cases.add(database, case(), facts={})
    decisions.releasing(database, "case-1", by="ann", sha256=f"{1:064x}")
    decisions.released(database, "case-1", by="ann", stored_as=[SHA])
    for sha256 in (f"{1:064x}", SHA):
        found = await known.find(sha256)
        assert found is not None and found.verdict is Verdict.ALLOW
        assert found.earlier == Earlier("sha256", Verdict.ALLOW, "case-1", None, "ann")
    assert await known.find_near(seen(PDQ)) is None


async def test_a_confirmation_remembers_what_pict_rs_had_made_of_the_file_too(database: Database) -> None:
    cases.add(database, case(), facts={})
    decisions.confirmed(database, "case-1", by="ann", sha256=f"{1:064x}", stored_as=[SHA])
    for sha256 in (f"{1:064x}", SHA):
        found = await KnownHashes(database, []).find(sha256)
        assert found is not None and found.verdict is Verdict.BLOCK


async def test_looks_that_become_known_after_the_confirmation_are_remembered_once(database: Database) -> None:
    known = KnownHashes(database, [])
    confirm(database, pdq=None, pdq_quality=None)
    assert await known.find_near(seen(PDQ)) is None
    for _ in range(2):
        decisions.seen_since(database, "case-1", pdq=PDQ, pdq_quality=90)
    assert (await known.find_near(seen(alike(3)))) == Earlier("pdq", Verdict.BLOCK, "case-1", None, "ann", 3)
    assert hash_lists.decided(database)["pdq"] == 1


async def test_a_look_at_a_case_that_nobody_has_confirmed_is_not_remembered(database: Database) -> None:
    cases.add(database, case(pdq=None, pdq_quality=None), facts={})
    decisions.seen_since(database, "case-1", pdq=PDQ, pdq_quality=90)
    assert await KnownHashes(database, []).find_near(seen(PDQ)) is None


async def test_who_confirmed_stays_known_whatever_becomes_of_the_case(database: Database) -> None:
    confirm(database)
    with database.writing() as session:
        session.get_one(Case, "case-1").decided_by = "retention"
    found = await KnownHashes(database, []).find_near(seen(PDQ))
    assert found is not None and found.by == "ann"


async def test_a_process_sees_at_once_what_another_one_has_decided_imported_and_removed(
    database: Database, database_url: str
) -> None:
    other = Database(database_url)
    known = KnownHashes(database, [])
    await known.read_ahead()
    assert await known.find_near(seen(PDQ)) is None
    imported(other, "theirs", sha256=SHA, pdq=alike(3))
    assert (await known.find_near(seen(PDQ))) == Earlier("pdq", Verdict.BLOCK, None, "theirs", "bob", 3)
    found = await known.find(SHA)
    assert found is not None and found.earlier == Earlier("sha256", Verdict.BLOCK, None, "theirs", "bob")
    confirm(other)
    nearest = await known.find_near(seen(PDQ))
    assert nearest is not None and (nearest.case, nearest.distance) == ("case-1", 0)
    hash_lists.remove(other, "theirs", by="ann")
    assert await known.find(SHA) is None
    assert (await known.find_near(seen(alike(34)))) is None  # 31 from theirs, 34 from the case
    assert (await known.find_near(seen(PDQ))) is not None
    index = known._look_alikes.catch_up(database)
    assert index is not None and len(index) == 1  # its memory is given back too
    other.close()


async def test_the_sternest_of_several_decisions_holds(database: Database) -> None:
    known = KnownHashes(database, [])
    imported(database, "suspects", sha256=SHA, pdq=PDQ, verdict="hold")
    found = await known.find(SHA)
    assert found is not None and found.verdict is Verdict.HOLD
    near = await known.find_near(seen(PDQ))
    assert near is not None and (near.verdict, near.list) == (Verdict.HOLD, "suspects")
    # A human's word about this very file goes before a suspicion …
    cases.add(database, case(sha256=SHA), facts={})
    decisions.releasing(database, "case-1", by="ann", sha256=SHA)
    decisions.released(database, "case-1", by="ann", stored_as=[])
    found = await known.find(SHA)
    assert found is not None and found.verdict is Verdict.ALLOW
    # … and before neither a list that blocks nor a picture further away that was confirmed.
    imported(database, "known", sha256=SHA, pdq=alike(20))
    found = await known.find(SHA)
    assert found is not None and (found.verdict, found.reason) == (Verdict.BLOCK, "known: on a list (known)")
    near = await known.find_near(seen(PDQ))
    assert near is not None and (near.verdict, near.list, near.distance) == (Verdict.BLOCK, "known", 20)


def test_a_list_has_one_verdict_and_can_be_begun_anew_after_it_was_removed(database: Database) -> None:
    imported(database, "one", sha256=SHA, pdq=PDQ)
    with pytest.raises(HashesError, match="is there with the verdict block"):
        imported(database, "one", verdict="hold")
    into = hash_lists.named(database, "one")
    assert hash_lists.remove(database, "one", by="ann") == hash_lists.Sizes(1, 1)
    with database.reading() as session:
        assert session.query(ListedHash).count() == session.query(KnownPicture).count() == 0
    with pytest.raises(HashesError, match="no such list"):
        hash_lists.remove(database, "one", by="ann")
    with pytest.raises(HashesError, match="was removed meanwhile"):
        hash_lists.add(database, into, "sha256", [bytes.fromhex(SHA)])
    imported(database, "one", verdict="hold")
    assert [(one.verdict, size) for one, size in hash_lists.listed(database)] == [
        ("hold", hash_lists.Sizes(0, 0))
    ]
    acts = [(entry.act, entry.actor) for entry in ledger.entries(database)]
    assert ("hashes removed", "ann") in acts and ledger.first_broken(database) is None


async def test_what_a_removal_that_was_cut_off_has_left_has_no_effect(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    imported(database, "one", sha256=SHA, pdq=PDQ)
    with monkeypatch.context() as patched:
        patched.setattr(hash_lists, "sweep", lambda _: None)
        hash_lists.remove(database, "one", by="ann")
    known = KnownHashes(database, [])
    assert await known.find(SHA) is None and await known.find_near(seen(PDQ)) is None
    imported(database, "two", verdict="hold")
    assert await known.find(SHA) is None  # no part of the next list


def test_what_was_confirmed_before_there_was_a_memory_of_looks_is_remembered(tmp_path: Path) -> None:
    from alembic import command
    from alembic.config import Config as AlembicConfig

    from proxy.database import sqlite

    url = f"sqlite:///{tmp_path}/gate.db"
    config = AlembicConfig()
    config.set_main_option("script_location", "proxy:database/migrations")
    older = sqlite.Sqlite(url).engine()
    with older.execution_options(writes=True).begin() as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, "0002")
        for number, (state, quality) in enumerate([("confirmed", 90), ("confirmed", 10), ("released", 90)]):
            connection.execute(
                text(
                    "INSERT INTO cases "
                    "(id, state, created_at, reason, file, pdq, pdq_quality, decided_by) VALUES "
                    f"('case-{number}', '{state}', '2026-11-22 20:00:00', 'x', 'x', "
                    f"'{PDQ}', {quality}, 'ann')"
                )
            )
    older.dispose()
    newer = Database(url)
    with newer.reading() as session:
        (one,) = session.query(KnownPicture).all()
    assert (one.case_id, one.pdq.hex(), one.added_by) == ("case-0", PDQ, "ann")
    newer.close()


def test_numpy_is_loaded_only_where_there_is_a_picture_to_compare_with(
    database: Database, database_url: str
) -> None:
    code = (
        "import asyncio, sys\n"
        "from proxy.database import Database\n"
        "from proxy.known_hashes import KnownHashes\n"
        f"known = KnownHashes(Database({database_url!r}), [])\n"
        "asyncio.run(known.read_ahead())\n"
        "print('numpy' in sys.modules)"
    )

    def is_loaded() -> str:
        return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout

    imported(database, "one", sha256=SHA)
    assert is_loaded() == "False\n"
    confirm(database)
    assert is_loaded() == "True\n"
