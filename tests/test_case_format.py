"""The sealed file as `docs/cases.md` writes it down: `age` and `tar` open it, without the gate.

The vector is a case that was sealed once and never again: what opens it today opens it in ten years.
"""

from __future__ import annotations

import hashlib
import io
import json
import re
import shutil
import subprocess
import tarfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from proxy.cases.sealing import open_sealed, read_identities, recipients_in
from proxy.database import Case
from proxy.errors import SealingError
from tests import pictures
from tests.kept import held, still_gate

VECTORS = Path(__file__).parent / "vectors"
CASE, KEYS = VECTORS / "case-format-1.age", [VECTORS / "first.key", VECTORS / "second.key"]
DOCS = Path(__file__).parents[1] / "docs" / "cases.md"


def by_age(path: Path, key: Path) -> tuple[list[str], dict[str, Any], bytes]:
    """Names of the members, facts and original, as Debian's `age` and a tar reader give them."""
    age = shutil.which("age")
    if age is None:
        pytest.fail("age is not installed: apt-get install age")
    clear = subprocess.run([age, "-d", "-i", key, path], capture_output=True, check=True).stdout
    with tarfile.open(fileobj=io.BytesIO(clear), mode="r:") as tar:
        members = [tar.extractfile(name) for name in tar.getnames()]
        facts, original = (member.read() for member in members if member is not None)
        return tar.getnames(), json.loads(facts), original


def expected() -> Mapping[str, Any]:
    found: dict[str, Any] = json.loads((VECTORS / "case-format-1.json").read_text())
    return found


@pytest.mark.parametrize("key", KEYS, ids=lambda key: key.name)
def test_the_vector_opens_with_each_of_its_keys_by_age_and_by_the_gate(key: Path) -> None:
    names, facts, original = by_age(CASE, key)
    assert names == ["facts.json", "original"]
    assert facts == expected()
    opened = open_sealed(CASE, read_identities(key))
    assert (opened.facts, opened.original) == (facts, original)
    assert recipients_in(CASE) == 2


def test_the_vector_s_picture_is_what_its_facts_say() -> None:
    _, facts, original = by_age(CASE, KEYS[0])
    assert facts["size"] == len(original)
    for name in ("sha256", "md5", "sha1"):
        assert facts[name] == hashlib.new(name, original).hexdigest()
    assert Image.open(io.BytesIO(original)).size == (8, 8)


def test_a_fresh_case_opens_with_age_and_has_what_the_format_says(tmp_path: Path) -> None:
    gate, content = still_gate(tmp_path / "gate"), pictures.png(seed=90)
    case = held(gate, content, file_name="../bä.png")
    names, facts, original = by_age(gate.folder / "cases" / f"{case}.age", gate.key)
    assert names == ["facts.json", "original"] and original == content
    assert facts.keys() == expected().keys()
    for name in ("sha256", "md5", "sha1"):
        assert facts[name] == hashlib.new(name, content).hexdigest()
    assert (facts["format"], facts["case"], facts["size"]) == (1, case, len(content))
    assert (facts["pdq"], facts["pdq_quality"]) == ("ab" * 32, 90)
    assert (facts["ensemble"], facts["ensemble_version"]) == ("own", "0123456789abcdef")
    assert (facts["file_name"], facts["declared_type"]) == ("../bä.png", "image/png")
    assert facts["media"]["name"] == "png" and facts["rule"] == "a suspicion"
    assert facts["frames"] == [{"index": 0, "signals": {"sexual": 0.9, "minor": 0.8}}]
    assert facts["uploader"] == {"address": "192.0.2.7", "claimed_user_id": "42"}


def test_the_documentation_names_every_fact_and_no_other() -> None:
    text = DOCS.read_text()
    table = text[text.index("### Facts") :][4:].partition("\n##")[0]
    named = [name for line in table.splitlines() if line.startswith("| `") for name in _names(line)]
    assert sorted(named) == sorted(expected())


def _names(line: str) -> list[str]:
    return re.findall(r"`(\w+)`", line.split("|")[1])


def test_a_sealed_file_s_row_says_for_whom_it_is(tmp_path: Path) -> None:
    gate = still_gate(tmp_path / "gate")
    case = held(gate, pictures.png(seed=91))
    with gate.database() as database, database.reading() as session:
        assert session.get_one(Case, case).sealed_to == hashlib.sha256(gate.recipient.encode()).hexdigest()


def test_a_file_that_is_no_age_file_has_no_recipients() -> None:
    with pytest.raises(SealingError, match="no age file"):
        recipients_in(VECTORS / "case-format-1.json")
