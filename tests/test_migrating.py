"""Migrations: done when a gate starts where that is safe, else only when somebody asks for it."""

from __future__ import annotations

import shutil
import threading
from pathlib import Path

import pytest
from sqlalchemy import text
from sqlalchemy.exc import SQLAlchemyError

from proxy import cli
from proxy.database import Database, cases, engine, migrating
from proxy.database.engine import HEAD
from proxy.errors import ConfigError
from tests.gate import Gate
from tests.postgresql import Postgresql
from tests.test_database import case

FOLDER = Path(engine.__file__).parent / "migrations"
NEXT = """
import sqlalchemy as sa
from alembic import op

revision, down_revision, branch_labels, depends_on = "9000", "{before}", None, None
{additive}

def upgrade() -> None:
    op.create_table("further", sa.Column("number", sa.Integer(), primary_key=True))
"""


@pytest.fixture(params=["sqlite", "postgresql"])
def empty_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Of a database in which nothing is."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/gate.db"
    running: Postgresql = request.getfixturevalue("postgresql")
    return running.new_database(migrated=False)


def a_gate_with_one_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, additive: str) -> None:
    """From here on the gate is one that has a further migration."""
    folder = tmp_path / "migrations"
    shutil.copytree(FOLDER, folder)
    (folder / "versions" / "9000_further.py").write_text(NEXT.format(before=HEAD, additive=additive))
    monkeypatch.setattr(migrating, "FOLDER", str(folder))
    monkeypatch.setattr(engine, "HEAD", "9000")


def test_every_migration_says_whether_older_gates_go_on_beside_it() -> None:
    files = sorted((FOLDER / "versions").glob("[0-9]*.py"))
    assert files
    for file in files:
        assert "\nis_additive = " in file.read_text(), f"{file.name}: see proxy/database/migrating.py"


def test_gates_that_start_at_once_migrate_a_new_database_once(empty_url: str) -> None:
    assert not engine.pending(empty_url).is_done
    failures: list[Exception] = []

    def start() -> None:
        try:
            Database(empty_url).close()
        except (ConfigError, SQLAlchemyError) as error:
            failures.append(error)

    threads = [threading.Thread(target=start) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert engine.pending(empty_url).is_done


def test_an_additive_migration_is_done_by_a_gate_that_starts(
    empty_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    older = Database(empty_url)
    a_gate_with_one_more(tmp_path, monkeypatch, "is_additive = True")
    assert engine.pending(empty_url).is_safe
    newer = Database(empty_url)
    with newer.reading() as session:
        assert session.execute(text("SELECT * FROM further")).all() == []
    cases.add(older, case(), facts={})  # a gate of the version before goes on
    assert cases.get(newer, "case-1").file == "case-1.age"
    newer.close()
    older.close()


@pytest.mark.parametrize("additive", ["is_additive = False", ""])
def test_any_other_migration_waits_for_a_human(
    empty_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, additive: str
) -> None:
    Database(empty_url).close()
    a_gate_with_one_more(tmp_path, monkeypatch, additive)
    with pytest.raises(ConfigError, match=rf"{HEAD} → 9000.*stop them.*pictrs-gate migrate"):
        Database(empty_url)
    missing = engine.pending(empty_url)
    assert (missing.found, missing.is_safe) == (HEAD, False)
    assert engine.migrate(empty_url).found == HEAD
    assert engine.pending(empty_url).is_done
    Database(empty_url).close()


def test_a_new_database_needs_no_human_whatever_the_migrations_are(
    empty_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    a_gate_with_one_more(tmp_path, monkeypatch, "is_additive = False")
    Database(empty_url).close()
    assert engine.pending(empty_url).is_done


def test_the_command_says_from_where_to_where(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    gate = Gate(
        tmp_path,
        pictrs_url="http://127.0.0.1:9",
        api_key="key",
        classifier_url=None,
        start=False,
    )

    def migrate(*words: str) -> tuple[int, str]:
        return cli.main(["migrate", "--config", str(gate.config), *words]), capsys.readouterr().out

    status, said = migrate("--check")
    assert status == 3 and f"empty → {HEAD}, not done" in said
    assert not (tmp_path / "gate.db").exists()
    status, said = migrate()
    assert status == 0 and f"empty → {HEAD}, done" in said
    for words in ((), ("--check",)):
        status, said = migrate(*words)
        assert status == 0 and f"{HEAD}, nothing to do" in said
