"""`keys rotate`: every case for the new recipients, none lost, wherever it is killed."""

from __future__ import annotations

import hashlib
import io
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyrage
import pytest

from proxy import cli, parts
from proxy.cases import rotating
from proxy.cases.quarantine import Quarantine
from proxy.cases.rotating import Keys, Rotation
from proxy.cases.sealing import (
    Sealer,
    decrypt,
    gate_identities,
    open_sealed,
    read_identities,
    recipients_in,
    write_new_identity,
)
from proxy.commands.keys import gate_recipient
from proxy.config import load
from proxy.database import Case, CaseState, Database, backlog, cases
from proxy.database import rotating as database_rotating
from proxy.errors import SealingError
from proxy.faults import nowhere
from tests import pictures
from tests.gate import Gate
from tests.kept import held, still_gate
from tests.test_backlog_races import a_case, leased

Rotate = Callable[..., tuple[int, str, str]]


@pytest.fixture
def gate(tmp_path: Path) -> Gate:
    """In place of the one that runs. Strict mode: no private key is configured."""
    made = still_gate(tmp_path / "gate")
    made.config.write_text(made.config.read_text().replace('identity_file = "reviewer.key"', ""))
    return made


@pytest.fixture
def rotate(gate: Gate, capsys: pytest.CaptureFixture[str]) -> Iterator[Rotate]:
    """`pictrs-gate keys rotate` as ann, in this process: exit status, what it said, what went wrong."""
    before = os.umask(0o022)

    def run(*words: str) -> tuple[int, str, str]:
        capsys.readouterr()
        shared = ["--config", str(gate.config), "--reviewer", "ann"]
        status = cli.main(["--log-level", "error", "keys", "rotate", *words, *shared])
        return status, *capsys.readouterr()

    yield run
    os.umask(before)


def new_recipients(gate: Gate, *names: str) -> list[Path]:
    """Puts new keys in the place of the configured one; where they lie."""
    keys = [gate.folder / f"{name}.key" for name in names]
    recipients = ", ".join(f'"{write_new_identity(key)}"' for key in keys)
    text = gate.config.read_text()
    assert f'["{gate.recipient}"]' in text
    gate.config.write_text(text.replace(f'["{gate.recipient}"]', f"[{recipients}]"))
    return keys


def sealed(gate: Gate, case: str) -> Path:
    return gate.folder / "cases" / f"{case}.age"


def opens(path: Path, key: Path) -> bool:
    try:
        open_sealed(path, read_identities(key))
    except SealingError:
        return False
    return True


def test_every_case_is_sealed_for_the_new_recipients_and_for_no_other(gate: Gate, rotate: Rotate) -> None:
    contents = {held(gate, content): content for content in map(pictures.png, [(8, 8), (9, 9), (10, 10)])}
    before = {case: decrypt(sealed(gate, case), read_identities(gate.key)) for case in contents}
    keys = new_recipients(gate, "bo", "cleo")
    status, said, _ = rotate("--identity", str(gate.key), "--dry-run")
    assert status == 0 and "3 cases would be resealed, 0 could not be" in said
    assert all(opens(sealed(gate, case), gate.key) for case in contents)

    status, said, warned = rotate("--identity", str(gate.key))
    assert status == 0 and "3 cases resealed for 2 recipients, 0 left" in said
    assert "only the headers" in warned
    for case, content in contents.items():
        assert not opens(sealed(gate, case), gate.key)
        for key in keys:
            assert decrypt(sealed(gate, case), read_identities(key)) == before[case]
            assert open_sealed(sealed(gate, case), read_identities(key)).original == content
    assert sorted(path.suffix for path in (gate.folder / "cases").iterdir()) == [".age"] * 3
    resealed = [entry for entry in gate.ledger() if entry.act == "resealed"]
    assert {entry.case_id for entry in resealed} == set(contents)
    assert {entry.actor for entry in resealed} == {"ann"} and resealed[0].facts["recipients"] == 2
    last = gate.ledger()[-1]
    assert (last.act, last.facts["resealed"], last.facts["failed"]) == ("keys rotated", 3, 0)

    status, said, _ = rotate("--identity", str(keys[0]))
    assert status == 0 and said.startswith("0 cases resealed") and gate.ledger()[-1].number == last.number


@pytest.mark.parametrize("point", ["case-resealed", "case-swapped", "case-reseal-noted"])
@pytest.mark.parametrize("resumed_with", [("reviewer",), ("bo", "reviewer")])
def test_killed_anywhere_no_case_is_lost_and_it_goes_on(
    gate: Gate, rotate: Rotate, point: str, resumed_with: tuple[str, ...]
) -> None:
    contents = {held(gate, content): content for content in map(pictures.png, [(8, 8), (9, 9)])}
    (key,) = new_recipients(gate, "bo")
    words = ["--config", str(gate.config), "--identity", str(gate.key)]
    killed = gate.run("keys", "rotate", *words, check=False, env={"PICTRS_GATE_FAULT": point})
    assert killed.returncode == -9
    for case, content in contents.items():
        found = open_sealed(sealed(gate, case), read_identities(gate.key) + read_identities(key))
        assert found.original == content
    identities = [word for name in resumed_with for word in ("--identity", f"{gate.folder}/{name}.key")]
    status, _, troubles = rotate(*identities)
    assert status == 0, troubles
    for case, content in contents.items():
        assert open_sealed(sealed(gate, case), read_identities(key)).original == content
        assert not opens(sealed(gate, case), gate.key)
    left = {path.suffix for path in (gate.folder / "cases").iterdir()} - {".unfinished"}
    assert left == {".age"}
    assert {entry.case_id for entry in gate.ledger() if entry.act == "resealed"} == set(contents)


def test_two_files_of_one_case_that_no_key_tells_apart_are_both_kept(gate: Gate, rotate: Rotate) -> None:
    case = held(gate, pictures.png((8, 8)))
    sealed(gate, case).with_suffix(".before").write_bytes(b"age-encryption.org/v1\n")
    write_new_identity(gate.folder / "stranger.key")
    status, _, troubles = rotate("--identity", str(gate.folder / "stranger.key"))
    assert status == 1 and f"{case}.before lies beside it" in troubles
    assert opens(sealed(gate, case), gate.key) and sealed(gate, case).with_suffix(".before").exists()


def test_a_case_that_cannot_be_opened_is_said_and_stays_and_the_others_are_done(
    gate: Gate, rotate: Rotate
) -> None:
    first, second = held(gate, pictures.png((8, 8))), held(gate, pictures.png((9, 9)))
    altered = bytearray(sealed(gate, first).read_bytes())
    altered[-30] ^= 1
    sealed(gate, first).write_bytes(altered)
    (key,) = new_recipients(gate, "bo")
    status, said, troubles = rotate("--identity", str(gate.key), "--dry-run")
    assert status == 1 and "1 could not be" in said
    status, said, troubles = rotate("--identity", str(gate.key))
    assert status == 1 and "1 cases resealed for 1 recipients, 1 left" in said and "damaged" in troubles
    assert sealed(gate, first).read_bytes() == altered and opens(sealed(gate, second), key)


def test_what_the_gate_has_still_to_look_at_stays_readable_for_it(gate: Gate, rotate: Rotate) -> None:
    gate_key = gate.folder / "gate.key"
    both = [gate.recipient, write_new_identity(gate_key)]
    deferred, pending = held(gate, pictures.png((8, 8))), held(gate, pictures.png((9, 9)))
    with gate.database() as database, database.writing() as session:
        case = session.get_one(Case, deferred)
        case.gate_reads, case.state = True, CaseState.DEFERRED
    opened = open_sealed(sealed(gate, deferred), read_identities(gate.key))
    with sealed(gate, deferred).open("wb") as file:
        Sealer(both).seal(file, opened.facts, opened.original)
    (key,) = new_recipients(gate, "bo")
    assert rotate("--identity", str(gate.key))[0] == 0
    assert opens(sealed(gate, deferred), gate_key) and opens(sealed(gate, deferred), key)
    assert recipients_in(sealed(gate, deferred)) == 2
    assert not opens(sealed(gate, pending), gate_key) and recipients_in(sealed(gate, pending)) == 1
    assert not opens(sealed(gate, deferred), gate.key)


def test_an_expired_case_is_left_alone(gate: Gate, rotate: Rotate) -> None:
    case = held(gate, pictures.png((8, 8)), state=CaseState.EXPIRED)
    sealed(gate, case).unlink()
    new_recipients(gate, "bo")
    assert rotate("--identity", str(gate.key))[0] == 0
    assert not sealed(gate, case).exists()


def test_without_a_key_nothing_can_be_rotated(gate: Gate, rotate: Rotate) -> None:
    status, _, troubles = rotate()
    assert status == 1 and "--identity" in troubles


def rotation(gate: Gate, recipients: list[str], fault: Callable[[str], None]) -> Iterator[Rotation]:
    keys = Keys(recipients, None, read_identities(gate.key))
    with gate.database() as database:
        yield Rotation(database, Quarantine(gate.folder / "cases", Sealer([]), fault), keys, fault)


@pytest.mark.parametrize("what", ["replaced", "expired"])
def test_a_case_that_changes_meanwhile_is_not_written_over(gate: Gate, what: str) -> None:
    case = held(gate, pictures.png((8, 8)))
    other = write_new_identity(gate.folder / "bo.key")

    def change(point: str) -> None:
        if point != "case-resealed":
            return
        if what == "replaced":  # as the gate does when it has looked
            copy = sealed(gate, case).with_suffix(".copy")
            copy.write_bytes(sealed(gate, case).read_bytes())
            copy.rename(sealed(gate, case))
            return
        with gate.database() as database, database.writing() as session:
            session.get_one(Case, case).state = CaseState.EXPIRED
        sealed(gate, case).unlink()

    for one in rotation(gate, [other], change):
        assert one.reseal(case, by="ann") is False
    names = [path.name for path in (gate.folder / "cases").iterdir()]
    assert names == ([f"{case}.age"] if what == "replaced" else [])
    if what == "replaced":
        assert opens(sealed(gate, case), gate.key)


def test_a_new_file_that_is_not_for_all_recipients_takes_no_place(
    gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = held(gate, pictures.png((8, 8)))
    both = [write_new_identity(gate.folder / "bo.key"), write_new_identity(gate.folder / "cleo.key")]
    monkeypatch.setattr(rotating, "Sealer", lambda recipients: Sealer(recipients[:1]))
    for one in rotation(gate, both, lambda _: None):
        with pytest.raises(SealingError, match="sealed to 1 keys, not to 2"):
            one.reseal(case, by="ann")
    assert [path.name for path in (gate.folder / "cases").iterdir()] == [f"{case}.age"]
    assert opens(sealed(gate, case), gate.key)


def test_a_new_file_that_holds_something_else_takes_no_place(
    gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = held(gate, pictures.png((8, 8)))

    def encrypt(self: Sealer, _: object, into: io.BufferedIOBase) -> None:
        into.write(pyrage.encrypt(b"something else", self._recipients))

    monkeypatch.setattr(Sealer, "encrypt", encrypt)
    for one in rotation(gate, [gate.recipient], lambda _: None):
        with pytest.raises(SealingError, match="does not hold what was sealed"):
            one.reseal(case, by="ann")
    assert opens(sealed(gate, case), gate.key)


# --- a swap that was cut off, and what the gate has done since ---


@dataclass
class CutOff:
    """A deferred case whose rotation from `old` to `new` was killed after its swap."""

    database: Database
    folder: Path
    case_id: str
    keys: dict[str, list[pyrage.x25519.Identity]]

    def __post_init__(self) -> None:
        names = ("old", "new", "gate", "strange")
        recipients = {name: write_new_identity(self.folder / f"{name}.key") for name in names}
        self.keys = {name: read_identities(self.folder / f"{name}.key") for name in names}
        old, self.gate = recipients["old"], recipients["gate"]
        before = Quarantine(self.cases, Sealer([old]), nowhere, with_gate=Sealer([old, self.gate]))
        self.content = pictures.png((8, 8))
        facts = {"sha256": hashlib.sha256(self.content).hexdigest()}
        case = a_case("a.png", sha256=facts["sha256"], sealed_to=before.sealed_to(gate_reads=True))
        before.seal(case.id, facts, self.content, gate_reads=True)
        cases.add(self.database, case, facts={})
        self.case_id, self.recipients = case.id, recipients
        with pytest.raises(Killed):
            self.rotation("old", fault=killing("case-swapped")).reseal(case.id, by="ann")
        assert self.left == [".age", ".before"]

    @property
    def cases(self) -> Path:
        return self.folder / "cases"

    @property
    def path(self) -> Path:
        return self.cases / f"{self.case_id}.age"

    @property
    def left(self) -> list[str]:
        return sorted(path.suffix for path in self.cases.iterdir() if path.suffix != ".unfinished")

    def quarantine(self, fault: Callable[[str], None] = nowhere) -> Quarantine:
        new = self.recipients["new"]
        return Quarantine(self.cases, Sealer([new]), fault, with_gate=Sealer([new, self.gate]))

    def rotation(self, *names: str, to: str = "new", fault: Callable[[str], None] = nowhere) -> Rotation:
        identities = [one for name in (*names, "gate") for one in self.keys[name]]
        keys = Keys([self.recipients[to]], self.gate, identities)
        return Rotation(self.database, self.quarantine(fault), keys, fault)

    def look(self, fault: Callable[[str], None] = nowhere) -> None:
        """What the gate does with it: looked at, and sealed anew without the gate."""
        quarantine, item = self.quarantine(fault), leased(self.database)
        item = backlog.suspected(self.database, item, backlog.Looked("rule: x"))
        opened = open_sealed(self.path, self.keys["gate"])
        new = quarantine.seal_beside(
            f"{self.case_id}.age", {**opened.facts, "looked_later": {}}, opened.original
        )
        backlog.resealed(
            *(self.database, item),
            to=quarantine.sealed_to(),
            replace=lambda: quarantine.replace(f"{self.case_id}.age", new),
        )

    def opened_by(self, *names: str) -> list[str]:
        return [name for name in names if opens(self.path, self.folder / f"{name}.key")]


class Killed(BaseException):
    """As a kill -9: nothing of the gate's own runs any more."""


def killing(at: str) -> Callable[[str], None]:
    def fault(point: str) -> None:
        if point == at:
            raise Killed

    return fault


@pytest.fixture
def cut_off(database: Database, tmp_path: Path) -> CutOff:
    return CutOff(database, tmp_path, "", {})


def test_what_the_gate_has_sealed_since_is_not_written_over_by_what_was_before(cut_off: CutOff) -> None:
    cut_off.look()
    assert cut_off.left == [".age"]  # of what the gate can open nothing is left
    rotation = cut_off.rotation("old")
    assert rotation.resume() == [] and rotation.left() == []
    assert cut_off.opened_by("old", "new", "gate") == ["new"]
    assert "looked_later" in open_sealed(cut_off.path, cut_off.keys["new"]).facts


def test_what_was_before_is_let_go_where_the_row_is_about_the_newer_file(cut_off: CutOff) -> None:
    before = cut_off.path.with_suffix(".before").read_bytes()
    cut_off.look()
    cut_off.path.with_suffix(".before").write_bytes(before)  # as after a power cut, or of an older gate
    assert cut_off.rotation("old").resume() == []
    assert cut_off.left == [".age"] and cut_off.opened_by("old", "new", "gate") == ["new"]


def test_a_whole_file_is_put_back_over_a_damaged_one_whatever_the_row_says(cut_off: CutOff) -> None:
    before = cut_off.path.with_suffix(".before").read_bytes()
    cut_off.look()
    cut_off.path.with_suffix(".before").write_bytes(before)
    cut_off.path.write_bytes(b"age-encryption.org/v1\n")
    assert cut_off.rotation("old").resume() == []
    assert open_sealed(cut_off.path, cut_off.keys["old"]).original == cut_off.content


def test_killed_before_what_was_before_is_gone_the_case_is_still_the_backlog_s(cut_off: CutOff) -> None:
    with pytest.raises(Killed):
        cut_off.look(killing("case-replaced"))
    assert cut_off.rotation("old").resume() == []
    assert cut_off.left == [".age"]
    assert open_sealed(cut_off.path, cut_off.keys["gate"]).original == cut_off.content
    assert cases.get(cut_off.database, cut_off.case_id).gate_reads


def test_a_rotation_back_to_the_old_keys_keeps_the_file_that_they_open(cut_off: CutOff) -> None:
    """Its row has never said otherwise, and of the new file the key may be lost."""
    with cut_off.path.open("wb") as file:
        Sealer([cut_off.recipients["strange"]]).seal(file, {}, b"")
    rotation = cut_off.rotation("old", to="old")
    assert rotation.resume() == [] and cut_off.left == [".age"]
    assert cut_off.opened_by("old", "gate") == ["old", "gate"]
    assert [rotation.reseal(case, by="ann") for case in rotation.left()] == [True]
    assert cut_off.opened_by("old", "gate") == ["old", "gate"]


def test_two_rotations_that_resume_the_same_case_leave_it_whole(
    cut_off: CutOff, monkeypatch: pytest.MonkeyPatch
) -> None:
    with cut_off.path.open("wb") as file:
        Sealer([cut_off.recipients["strange"]]).seal(file, {}, b"")
    first, put_back = cut_off.rotation("old"), database_rotating.put_back

    def then_the_other_is_faster(*given: Any) -> bool:
        monkeypatch.setattr(database_rotating, "put_back", put_back)
        other = cut_off.rotation("old")
        assert other.resume() == []
        assert [other.reseal(case, by="bo") for case in other.left()] == [True]
        return put_back(*given)

    monkeypatch.setattr(database_rotating, "put_back", then_the_other_is_faster)
    assert first.resume() == [] and first.left() == []
    assert cut_off.opened_by("old", "new", "gate") == ["new", "gate"]
    with pytest.raises(SealingError, match="could not be put back"):
        cut_off.quarantine().put_back(f"{cut_off.case_id}.age")


def test_without_the_gate_s_key_its_cases_are_left_alone_and_that_is_said(gate: Gate, rotate: Rotate) -> None:
    deferred, pending = held(gate, pictures.png((8, 8)), gate_reads=True), held(gate, pictures.png((9, 9)))
    (key,) = new_recipients(gate, "bo")
    status, said, troubles = rotate("--identity", str(gate.key))
    assert status == 0 and "1 cases resealed for 1 recipients, 0 left" in said
    assert "left as they are: 1 cases that the gate has still to open" in troubles
    assert opens(sealed(gate, deferred), gate.key) and opens(sealed(gate, pending), key)


def test_of_several_keys_of_the_gate_the_same_one_is_sealed_to_everywhere(gate: Gate, rotate: Rotate) -> None:
    first = write_new_identity(gate.folder / "gate.key")
    second = write_new_identity(gate.folder / "older.key")
    with (gate.folder / "gate.key").open("a") as file:
        file.write((gate.folder / "older.key").read_text())
    config = load(gate.config)
    sealer = parts.sealer_with(gate_identities(config.cases.gate_identity_file), config)
    keys = Keys(config.cases.recipients, gate_recipient(config), [])
    assert keys.gate == first and sealer.sealed_to == keys.wanted.gate_reads
    case = held(gate, pictures.png((8, 8)), gate_reads=True)
    assert rotate("--identity", str(gate.key))[0] == 0
    assert recipients_in(sealed(gate, case)) == 2 and opens(sealed(gate, case), gate.folder / "gate.key")
    assert not opens(sealed(gate, case), gate.folder / "older.key") and second != first
