"""Sealed cases: opened by the reviewer's key and by nothing else, whole on the disk or not there."""

from __future__ import annotations

import errno
import io
import json
import shutil
import stat
import subprocess
import tarfile
from pathlib import Path
from typing import Any

import pytest

from proxy.cases.quarantine import Quarantine
from proxy.cases.sealing import Sealer, open_sealed, read_identities, write_new_identity
from proxy.errors import ConfigError, SealingError

CONTENT = b"the uploaded bytes " * 100
FACTS = {"case": "1", "file_name": "bä.png"}


@pytest.fixture
def key(tmp_path: Path) -> Path:
    write_new_identity(tmp_path / "reviewer.key")
    return tmp_path / "reviewer.key"


@pytest.fixture
def quarantine(tmp_path: Path, key: Path) -> Quarantine:
    return Quarantine(tmp_path / "cases", Sealer([_recipient(key)]), _no_fault)


class Full(io.RawIOBase):
    """A disk that takes so many bytes and no more."""

    def __init__(self, room: int) -> None:
        self.room = room

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        if len(data) > self.room:
            raise OSError(errno.ENOSPC, "No space left on device")
        self.room -= len(data)
        return len(data)


@pytest.mark.parametrize("size", [10, 4_000, 70_000, 200_000])
def test_a_case_that_is_not_written_to_its_very_end_is_not_sealed(key: Path, size: int) -> None:
    sealer, content, whole = Sealer([_recipient(key)]), bytes(size), io.BytesIO()
    sealer.seal(whole, FACTS, content)
    length = len(whole.getvalue())
    for room in (0, 1, length // 2, length - 1_000):  # headers are not all of the same length
        with pytest.raises(SealingError, match="No space left on device"):
            sealer.seal(Full(room), FACTS, content)  # type: ignore[arg-type]


def _no_fault(_point: str) -> None:
    """Nothing dies here."""


def _recipient(key: Path) -> str:
    return key.read_text().splitlines()[1].removeprefix("# public key: ")


def test_a_case_opens_with_a_reviewer_s_key(quarantine: Quarantine, key: Path) -> None:
    name = quarantine.seal("a-case", FACTS, CONTENT)
    opened = open_sealed(quarantine.path(name), read_identities(key))
    assert (opened.original, opened.facts) == (CONTENT, FACTS)


def test_every_recipient_can_open_it_and_nobody_else(tmp_path: Path, key: Path) -> None:
    keys = [key, tmp_path / "second.key", tmp_path / "stranger.key"]
    for path in keys[1:]:
        write_new_identity(path)
    name = Quarantine(tmp_path / "cases", Sealer([_recipient(path) for path in keys[:2]]), _no_fault).seal(
        "a-case", FACTS, CONTENT
    )
    for path in keys[:2]:
        assert open_sealed(tmp_path / "cases" / name, read_identities(path)).original == CONTENT
    with pytest.raises(SealingError, match="not sealed to this key"):
        open_sealed(tmp_path / "cases" / name, read_identities(keys[2]))


def test_the_age_command_opens_it_without_the_gate(quarantine: Quarantine, key: Path) -> None:
    age = shutil.which("age")
    if age is None:
        pytest.fail("age is not installed: apt-get install age")
    path = quarantine.path(quarantine.seal("a-case", FACTS, CONTENT))
    clear = subprocess.run([age, "-d", "-i", key, path], capture_output=True, check=True).stdout
    with tarfile.open(fileobj=io.BytesIO(clear)) as tar:
        assert tar.getnames() == ["facts.json", "original"]
        facts, original = (tar.extractfile(name) for name in tar.getnames())
        assert facts is not None and json.loads(facts.read()) == FACTS
        assert original is not None and original.read() == CONTENT


def test_a_case_that_was_altered_does_not_open(quarantine: Quarantine, key: Path) -> None:
    path = quarantine.path(quarantine.seal("a-case", FACTS, CONTENT))
    sealed = bytearray(path.read_bytes())
    sealed[-30] ^= 1
    path.write_bytes(sealed)
    with pytest.raises(SealingError, match="damaged"):
        open_sealed(path, read_identities(key))


def test_nothing_readable_lies_in_the_folder(quarantine: Quarantine, tmp_path: Path) -> None:
    quarantine.seal("a-case", FACTS, CONTENT)
    (file,) = (tmp_path / "cases").iterdir()
    assert b"uploaded" not in file.read_bytes() and b"file_name" not in file.read_bytes()
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert stat.S_IMODE((tmp_path / "cases").stat().st_mode) == 0o700


def test_a_case_is_never_written_over(quarantine: Quarantine, key: Path) -> None:
    path = quarantine.path(quarantine.seal("a-case", FACTS, CONTENT))
    (path.parent / "a-case.unfinished").write_bytes(b"")
    with pytest.raises(SealingError):
        quarantine.seal("a-case", FACTS, b"others")
    assert open_sealed(path, read_identities(key)).original == CONTENT


def test_a_full_disk_leaves_nothing_half_written(
    quarantine: Quarantine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(SealingError, match="No space left"):
        quarantine.seal("a-case", FACTS, CONTENT)
    assert list((tmp_path / "cases").iterdir()) == []


def test_what_a_crash_left_is_told_apart(quarantine: Quarantine, tmp_path: Path) -> None:
    name = quarantine.seal("a-case", FACTS, CONTENT)
    (tmp_path / "cases" / "b-case.unfinished").write_bytes(b"half")
    assert list(quarantine.orphans({name}, older_than_s=0)) == []
    assert list(quarantine.orphans(set(), older_than_s=0)) == [name]
    assert list(quarantine.orphans(set(), older_than_s=60)) == []
    assert quarantine.sweep_unfinished(older_than_s=60) == 0
    assert quarantine.sweep_unfinished(older_than_s=0) == 1
    assert [path.name for path in (tmp_path / "cases").iterdir()] == [name]


@pytest.mark.parametrize("name", ["../gate.toml", "/etc/passwd", "x", "a/b.age", ".age", ""])
def test_only_names_of_cases_are_paths(quarantine: Quarantine, name: str) -> None:
    with pytest.raises(SealingError):
        quarantine.path(name)


def test_a_folder_that_cannot_be_written_is_said_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"cases\.folder"):
        Quarantine(tmp_path / "file" / "cases", Sealer([]), _no_fault)


def test_a_key_is_private_and_never_overwritten(key: Path) -> None:
    assert stat.S_IMODE(key.stat().st_mode) == 0o600
    with pytest.raises(SealingError, match="--output"):
        write_new_identity(key)


@pytest.mark.parametrize("text", ["", "# nothing\n", "AGE-SECRET-KEY-1NOTONE\n", "hello"])
def test_a_file_without_a_key_is_not_quoted(tmp_path: Path, text: str) -> None:
    (tmp_path / "key").write_text(text)
    with pytest.raises(SealingError, match="holds no age identity") as error:
        read_identities(tmp_path / "key")
    assert "NOTONE" not in str(error.value) and "hello" not in str(error.value)
