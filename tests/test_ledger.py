"""The ledger: whatever is done to it behind the gate's back is found, and the place is named."""

from __future__ import annotations

import hashlib
import json
import stat
import subprocess
import threading
import tracemalloc
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import delete, insert, text, update
from sqlalchemy.orm import Session

from proxy.database import Database, LedgerEntry, checkpoints, ledger
from proxy.database.models import SignedCheckpoint
from proxy.errors import ConfigError
from proxy.ledger.chain import FIRST, Entry, Kind, canonical, entry_hash
from proxy.ledger.checkpoints import Checkpoint, Copies, append_missing, read
from proxy.ledger.signing import Signer, is_signed, signer
from proxy.ledger.verifying import Report, verify

NOW = timedelta(0)  # a checkpoint is due at once
DOC = Path(__file__).parents[1] / "docs" / "ledger.md"


@dataclass
class Written:
    """A ledger as a gate writes it: entries 1 and 2 about its start, 3 to 6, a checkpoint of 6 told of in 7,
    8 to 11, a checkpoint of 11 told of in 12, and 13 to 14."""

    database: Database
    signer: Signer
    copies: list[Checkpoint]

    def verify(self, **choices: Any) -> Report:
        return verify(self.database, **{"own": self.signer.key, **choices})


@pytest.fixture
def written(database: Database, tmp_path: Path) -> Written:
    key = signer(tmp_path / "ledger.key")
    ledger.started(database, "a 127.0.0.1:8080", {"policy.verdict_s": 10.0}, key=key.key)
    for number in range(3, 7):
        ledger.record(database, "noted", actor="gate", facts={"n": number})
    assert checkpoints.make(database, key, every=NOW) is not None
    for number in range(8, 12):
        ledger.record(database, "noted", actor="ann", facts={"n": number})
    assert checkpoints.make(database, key, every=NOW) is not None
    for number in range(13, 15):
        ledger.record(database, "noted", actor="gate", facts={"n": number})
    return Written(database, key, checkpoints.listed(database))


def test_a_ledger_that_nobody_has_touched_holds(written: Written) -> None:
    report = written.verify(copies=[Copies("copy", written.copies)], trusted=[written.signer.key])
    assert (report.broken, report.findings, report.notes) == (0, [], [])
    assert (report.entries, report.last, report.checkpoints, report.held) == (14, 14, 2, 2)
    assert report.last_held == written.copies[-1] and report.last_held.number == 11
    assert [(key.key, key.number) for key in report.keys] == [(written.signer.key, 2)]


# --- tampered with ---


def change(number: int, /, **values: Any) -> Callable[[Session], None]:
    """Overwrites columns of an entry."""
    return lambda session: session.execute(
        update(LedgerEntry).where(LedgerEntry.number == number).values(**values)
    )  # type: ignore[return-value]


def remove(*numbers: int) -> Callable[[Session], None]:
    return lambda session: session.execute(delete(LedgerEntry).where(LedgerEntry.number.in_(numbers)))  # type: ignore[return-value]


def swap(first: int, second: int) -> Callable[[Session], None]:
    def tamper(session: Session) -> None:
        for before, after in ((first, 1000), (second, first), (1000, second)):
            change(before, number=after)(session)

    return tamper


def renumber(session: Session, numbers: range, by: int) -> None:
    for number in reversed(numbers) if by > 0 else numbers:
        change(number, number=number + by)(session)


def rehash(session: Session, *numbers: int, link: bool = True) -> None:
    """Gives entries the hash of what they say, and has each name the one before it."""
    for number in numbers:
        row = session.get_one(LedgerEntry, number, populate_existing=True)
        if link:
            before = session.get(LedgerEntry, number - 1, populate_existing=True)
            row.previous = before.hash if before else FIRST
        row.hash = entry_hash(
            Entry(row.number, row.time, row.act, row.actor, row.case_id, row.facts, row.previous)
        )
        session.flush()


def remove_and_close_the_gap(session: Session) -> None:
    remove(4)(session)
    renumber(session, range(5, 15), -1)


def put_between(session: Session) -> None:
    """Another entry 5, sound by itself and with what was before it; all after it move on."""
    renumber(session, range(5, 15), 1)
    row = LedgerEntry(number=5, time="t", act="noted", actor="ann", facts={}, previous="", hash="")
    session.add(row)
    session.flush()
    rehash(session, 5)


def write_anew(session: Session) -> None:
    """Entry 9 says something else, and everything from there on is a sound chain again."""
    change(9, actor="bob")(session)
    rehash(session, *range(9, 15))


def write_anew_without_its_end(session: Session) -> None:
    """Entry 4 is gone without a gap, and so is whatever could tell of it in the ledger."""
    remove_and_close_the_gap(session)
    rehash(session, *range(4, 14))


def no_json(session: Session) -> None:
    if session.get_bind().dialect.name != "sqlite":
        pytest.skip("no other database would take it")
    session.execute(text("UPDATE ledger SET facts = '{\"n\": ' WHERE number = 4"))


TAMPERED: list[tuple[str, Callable[[Session], None], Kind, int]] = [
    ("a fact altered", change(4, facts={"n": 5}), Kind.ALTERED, 4),
    ("facts that are none", no_json, Kind.ALTERED, 4),
    ("time altered", change(4, time="2020-01-01T00:00:00.000000+00:00"), Kind.ALTERED, 4),
    ("actor altered", change(9, actor="bob"), Kind.ALTERED, 9),
    ("put to a case", change(9, case_id="20200101-000000-00000000"), Kind.ALTERED, 9),
    ("only its hash altered", change(4, hash="f" * 64), Kind.ALTERED, 4),
    ("the last one altered", change(14, act="viewed"), Kind.ALTERED, 14),
    (
        "altered, with the hash of it",
        lambda session: (change(4, actor="bob")(session), rehash(session, 4)),  # type: ignore[func-returns-value, return-value]
        Kind.REPLACED,
        4,
    ),
    ("one removed from the middle", remove(4), Kind.MISSING, 4),
    ("several removed from the middle", remove(8, 9, 10), Kind.MISSING, 8),
    ("removed, and the gap closed", remove_and_close_the_gap, Kind.MOVED, 4),
    ("removed at the start", remove(1), Kind.MISSING, 1),
    ("cut off before a checkpoint", remove(*range(10, 15)), Kind.CUT_OFF, 10),
    ("cut off right after a checkpoint", remove(12, 13, 14), Kind.CUT_OFF, 12),
    ("two swapped", swap(4, 9), Kind.MOVED, 4),
    ("two neighbours swapped", swap(13, 14), Kind.MOVED, 13),
    ("one inserted", put_between, Kind.MOVED, 6),
    ("one put before the first", change(3, number=-1), Kind.INSERTED, -1),
    ("all written anew from the ninth on", write_anew, Kind.REWRITTEN, 7),
    ("one taken out, all written anew", write_anew_without_its_end, Kind.REWRITTEN, 1),
    ("everything removed", remove(*range(1, 15)), Kind.CUT_OFF, 1),
]


@pytest.mark.parametrize(
    ("tamper", "kind", "number"), [row[1:] for row in TAMPERED], ids=[row[0] for row in TAMPERED]
)
def test_whatever_is_done_to_the_entries_is_found_where_it_was_done(
    written: Written, tamper: Callable[[Session], None], kind: Kind, number: int
) -> None:
    with written.database.writing() as session:
        tamper(session)
    report = written.verify()
    assert (report.findings[0].kind, report.findings[0].number) == (kind, number)
    assert report.broken >= 1


def test_one_entry_altered_costs_no_checkpoint_and_says_no_more(written: Written) -> None:
    with written.database.writing() as session:
        change(4, facts={"n": 5})(session)
    report = written.verify()
    assert (report.broken, report.checkpoints, report.held) == (1, 2, 2)


def test_what_was_written_anew_is_narrowed_down_to_between_two_checkpoints(written: Written) -> None:
    with written.database.writing() as session:
        write_anew(session)
    assert ledger.first_broken(written.database) is None  # as a chain there is nothing wrong with it
    report = written.verify()
    (rewritten,) = [finding for finding in report.findings if finding.kind is Kind.REWRITTEN]
    assert (rewritten.number, rewritten.checkpoint) == (7, 2) and "up to 11" in rewritten.words
    assert (report.held, report.checkpoints) == (1, 2)
    assert report.last_held is not None and report.last_held.checkpoint == 1


def test_many_broken_entries_are_counted_and_the_first_are_told(written: Written) -> None:
    for number in range(200):
        ledger.record(written.database, "noted", actor="gate", facts={"n": number})
    with written.database.writing() as session:
        session.execute(update(LedgerEntry).where(LedgerEntry.number > 14).values(actor="bob"))
    report = written.verify()
    assert (report.broken, len(report.findings), report.findings[0].number) == (200, 100, 15)


def other_key(tmp_path: Path) -> Signer:
    return signer(tmp_path / "other.key")


def overwrite(database: Database, checkpoint: Checkpoint) -> None:
    with database.writing() as session:
        session.execute(
            update(SignedCheckpoint)
            .where(SignedCheckpoint.checkpoint == checkpoint.checkpoint)
            .values(**asdict(checkpoint))
        )


def test_a_checkpoint_that_was_altered_is_found(written: Written) -> None:
    overwrite(written.database, replace(written.copies[1], time="2020-01-01T00:00:00.000000+00:00"))
    report = written.verify()
    assert {finding.kind for finding in report.findings} == {Kind.FORGED}
    assert any("signature is not that of its key" in finding.words for finding in report.findings)
    assert report.held == 1


def test_a_ledger_written_anew_with_checkpoints_of_another_key_is_found(
    written: Written, tmp_path: Path
) -> None:
    other = other_key(tmp_path)
    with written.database.writing() as session:
        write_anew(session)
        hash_ = session.get_one(LedgerEntry, 11).hash
        forged = other.signed(replace(written.copies[1], hash=hash_))
        change(12, facts={"checkpoint": 2, "entry": 11, "digest": forged.digest})(session)
        rehash(session, 12, 13, 14)
    overwrite(written.database, forged)
    assert ledger.first_broken(written.database) is None
    (finding,) = written.verify().findings
    assert (finding.kind, finding.checkpoint) == (Kind.FORGED, 2)
    assert "did not tell of its key" in finding.words
    # So it is told of, before: then the first checkpoint does not hold any more.
    with written.database.writing() as session:
        change(3, act=ledger.KEY, facts={"gate": "a", "key": other.key})(session)
        rehash(session, *range(3, 15))
    report = written.verify()
    assert report.broken > 0 and len(report.keys) == 2
    assert any("more than one key" in note for note in report.notes)


def test_a_ledger_made_up_as_a_whole_needs_a_copy_or_the_key_kept_elsewhere(
    written: Written, tmp_path: Path
) -> None:
    """Whoever has the server's root has the key too: then nothing on the server shows it."""
    with written.database.writing() as session:
        write_anew(session)
        hash_ = session.get_one(LedgerEntry, 11).hash
        forged = written.signer.signed(replace(written.copies[1], hash=hash_))
        change(12, facts={"checkpoint": 2, "entry": 11, "digest": forged.digest})(session)
        rehash(session, 12, 13, 14)
    overwrite(written.database, forged)
    assert written.verify().broken == 0
    report = written.verify(copies=[Copies("copy", written.copies)])
    assert {finding.kind for finding in report.findings} == {Kind.FORGED, Kind.REWRITTEN}
    trusting = written.verify(trusted=[other_key(tmp_path).key])
    assert (trusting.held, trusting.checkpoints) == (0, 2)


@pytest.mark.parametrize("which", [1, 2])
def test_a_checkpoint_that_was_deleted_is_missed(written: Written, which: int) -> None:
    with written.database.writing() as session:
        session.execute(delete(SignedCheckpoint).where(SignedCheckpoint.checkpoint == which))
    report = written.verify()
    assert {(finding.kind, finding.checkpoint) for finding in report.findings} == {(Kind.GONE, which)}
    assert (7 if which == 1 else 12) in {finding.number for finding in report.findings}


def test_a_cut_off_end_with_its_checkpoint_is_found_by_a_copy(written: Written) -> None:
    with written.database.writing() as session:
        session.execute(delete(SignedCheckpoint).where(SignedCheckpoint.checkpoint == 2))
        remove(*range(9, 15))(session)
    assert written.verify().broken == 0
    report = written.verify(copies=[Copies("copy", written.copies)])
    assert {finding.kind for finding in report.findings} == {Kind.GONE, Kind.CUT_OFF}
    assert report.findings[0].number == 9


def test_a_key_that_the_ledger_never_told_of_is_seen(written: Written, tmp_path: Path) -> None:
    (finding,) = written.verify(own=other_key(tmp_path).key).findings
    assert "does not tell of this gate's own key" in finding.words


def lengthen(database: Database, by: int) -> None:
    """Appends many entries with large facts, quickly."""
    with database.writing() as session:
        number, hash_ = ledger.head(session)
        rows = []
        for step in range(1, by + 1):
            facts = {"n": step, "text": "x" * 4000}
            entry = Entry(
                number + step, "2026-11-23T08:00:00.000000+00:00", "noted", "gate", None, facts, hash_
            )
            hash_ = entry_hash(entry)
            fields = asdict(replace(entry, hash=hash_))
            rows.append({**fields, "case_id": fields.pop("case")})
        session.execute(insert(LedgerEntry), rows)


def test_a_long_ledger_is_checked_in_little_memory(written: Written) -> None:
    lengthen(written.database, 5000)  # 20 MB of facts
    tracemalloc.start()
    report = written.verify()
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert (report.broken, report.entries) == (0, 5014)
    assert peak < 15_000_000


def test_what_an_entry_costs_does_not_grow_with_the_ledger(written: Written) -> None:
    def steps() -> int:
        """Of SQLite's machine, for one entry more."""
        taken = [0]

        def step() -> int:
            taken[0] += 1
            return 0

        with written.database.writing() as session:
            driver = session.connection().connection.driver_connection
            if not hasattr(driver, "set_progress_handler"):
                pytest.skip("only SQLite counts them")
            driver.set_progress_handler(step, 1)  # type: ignore[union-attr]
            ledger.append(session, "noted", actor="gate", facts={})
            driver.set_progress_handler(None, 1)  # type: ignore[union-attr]
        return taken[0]

    before = steps()
    lengthen(written.database, 3000)
    assert steps() <= before + 20


# --- checkpoints and their key ---


def test_the_key_is_made_once_for_its_user_only_and_is_one_that_openssl_takes(tmp_path: Path) -> None:
    path = tmp_path / "ledger.key"
    keys: set[str] = set()
    threads = [threading.Thread(target=lambda: keys.add(signer(path).key)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(keys) == 1
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [one.name for one in tmp_path.iterdir()] == ["ledger.key"]
    shown = subprocess.run(
        ["openssl", "pkey", "-in", path, "-noout", "-text_pub"], capture_output=True, text=True, check=True
    ).stdout
    assert "ED25519" in shown and keys.pop() in "".join(shown.split()).replace(":", "")


@pytest.mark.parametrize("content", ["", "-----BEGIN PRIVATE KEY-----\nhush\n-----END PRIVATE KEY-----\n"])
def test_a_key_file_that_holds_no_key_is_said_and_not_shown(tmp_path: Path, content: str) -> None:
    (tmp_path / "ledger.key").write_text(content)
    with pytest.raises(ConfigError, match=r"ledger\.key_file: .*: holds no Ed25519 key") as error:
        signer(tmp_path / "ledger.key")
    assert "hush" not in str(error.value)
    with pytest.raises(ConfigError, match=r"ledger\.key_file: .*name a file that the gate may write"):
        signer(tmp_path / "nowhere" / "ledger.key")


def test_of_several_gates_one_makes_the_checkpoint_of_the_day(written: Written) -> None:
    day = timedelta(days=1)
    assert checkpoints.make(written.database, written.signer, every=day) is None
    last = written.copies[-1]
    overwrite(written.database, replace(last, time=(datetime.now(UTC) - day).isoformat()))
    made: list[Checkpoint | None] = []
    threads = [
        threading.Thread(
            target=lambda: made.append(checkpoints.make(written.database, written.signer, every=day))
        )
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len([one for one in made if one is not None]) == 1
    assert [one.checkpoint for one in checkpoints.listed(written.database)] == [1, 2, 3]


def test_a_clock_that_was_wrong_once_does_not_end_the_checkpoints(written: Written) -> None:
    overwrite(written.database, replace(written.copies[-1], time="2099-01-01T00:00:00.000000+00:00"))
    assert checkpoints.make(written.database, written.signer, every=timedelta(days=1)) is not None
    assert checkpoints.make(written.database, written.signer, every=timedelta(days=1)) is None


def test_the_file_gets_what_it_lacks_and_nothing_in_it_is_changed(written: Written, tmp_path: Path) -> None:
    path = tmp_path / "checkpoints.jsonl"
    assert append_missing(path, written.copies[:1]) == 1
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    first = path.read_bytes()
    path.write_bytes(first + b'{"checkpoint":2,"num')  # cut off by a crash
    assert append_missing(path, written.copies) == 1
    assert append_missing(path, written.copies[::-1]) == 0
    assert path.read_bytes().startswith(first)
    copies = read(path)
    assert (list(copies.found), copies.strange) == (written.copies, [2])
    report = written.verify(copies=[copies])
    assert report.broken == 0 and "line 2" in report.notes[0]


@pytest.mark.parametrize(
    "line",
    [b"{}", b"[]", b"\xff", b'{"checkpoint":true}', b"[" * 100_000, b'"\\ud800"']
    + [
        canonical({**asdict(Checkpoint(1, 1, "h", "t", "p", "k", "s")), **odd})
        for odd in ({"number": -1}, {"number": "1"}, {"hash": None}, {"hash": "\ud800"}, {"more": 1})
    ],
)
def test_a_line_that_is_no_checkpoint_is_passed_over_and_said(tmp_path: Path, line: bytes) -> None:
    (tmp_path / "file").write_bytes(line + b"\n")
    assert read(tmp_path / "file") == Copies(str(tmp_path / "file"), [], [1])


def test_a_third_party_can_check_by_the_document_alone() -> None:
    """The vectors of docs/ledger.md, read as somebody without this program would."""
    blocks = DOC.read_text().split("```json\n")[1:]
    lines = [block.split("```")[0].strip().splitlines() for block in blocks]
    entries, signed = ([json.loads(line) for line in block] for block in lines)
    previous = "0" * 64
    for entry in entries:
        hash_ = entry.pop("hash")
        written_out = json.dumps(entry, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
        assert entry["previous"] == previous
        previous = hashlib.sha256(written_out.encode()).hexdigest()
        assert previous == hash_ == entry_hash(Entry(**entry))
    (checkpoint,) = signed
    assert checkpoint["hash"] == previous and checkpoint["number"] == len(entries)
    assert is_signed(Checkpoint(**checkpoint))
