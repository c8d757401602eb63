"""Aliases are compared as pict-rs compares them."""

from __future__ import annotations

import uuid

import pytest

from proxy.aliases import alias_key, make_alias
from tests import pictures
from tests.client import form, get, send
from tests.pictrs import Pictrs

U = "61626364-6566-6768-696a-6b6c6d6e6f70"
SAME = [
    (f"{U}.png", f"{U.upper()}.png"),
    (f"{U}.png", f"{U.replace('-', '')}.png"),
    (f"{U}.png", f"{{{U}}}.png"),
    (f"{U}.png", f"urn:uuid:{U}.png"),
    (f"{U}.png", "abcdefghijklmnop.png"),
]
OTHER = [
    (f"{U}.png", f"{U}.PNG"),
    (f"{U}.png", f"{U}"),
    (f"{U}.png", f"{U}.webp"),
    (f"{U}.png", f"{{{U.replace('-', '')}}}.png"),
    (f"{U}.png", f"6162-6364{U[8:]}.png"),
    (f"{U}.png", f"{U}.x.png"),
    ("name.png", "NAME.png"),
]


@pytest.mark.parametrize(("one", "other"), SAME)
def test_spellings_of_one_alias_have_one_key(one: str, other: str) -> None:
    assert alias_key(one) == alias_key(other)


@pytest.mark.parametrize(("one", "other"), OTHER)
def test_other_aliases_have_other_keys(one: str, other: str) -> None:
    assert alias_key(one) != alias_key(other)


def test_an_alias_of_the_gate_looks_like_one_of_pict_rs() -> None:
    stem, _, extension = make_alias("jpeg").rpartition(".")
    assert uuid.UUID(stem).version == 4 and extension == "jpeg"


def test_pict_rs_agrees(running_pictrs: Pictrs) -> None:
    content_type, body = form([(f"{U}.png", pictures.png(seed=401))])
    headers = {"Content-Type": content_type, "X-Api-Token": running_pictrs.api_key}
    made = send(running_pictrs.url, "POST", "/internal/import", headers=headers, body=body)
    assert made.status == 201
    for _, other in SAME:
        target = "/image/original/" + other.replace("{", "%7B").replace("}", "%7D")
        assert get(running_pictrs.url, target).status == 200, other
    for one, other in OTHER:
        if one.startswith(U):
            target = "/image/original/" + other.replace("{", "%7B").replace("}", "%7D")
            assert get(running_pictrs.url, target).status == 404, other
