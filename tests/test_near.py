"""The index over PDQ hashes: what is near enough is found, all of it, and nothing else."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from proxy.near import Near, NearIndex

MANY = 6000  # more than are compared one by one
RANDOM = np.random.default_rng(6)
HASHES = [RANDOM.bytes(32) for _ in range(MANY)]
INDEX = NearIndex(range(1, MANY + 1), b"".join(HASHES))


def flipped(pdq: bytes, bits: list[int]) -> bytes:
    """`pdq` with these of its 256 bits turned over."""
    return (int.from_bytes(pdq, "big") ^ sum(1 << bit for bit in bits)).to_bytes(32, "big")


def by_comparing_all(hashes: list[bytes], pdq: bytes, distance: int) -> list[Near]:
    found = (
        Near(number, (int.from_bytes(one) ^ int.from_bytes(pdq)).bit_count())
        for number, one in enumerate(hashes, start=1)
    )
    near = [one for one in found if one.distance <= distance]
    return sorted(near, key=lambda one: (one.distance, one.number))


BITS = st.lists(st.integers(0, 255), unique=True, max_size=70)


@settings(max_examples=400, deadline=None)
@given(which=st.integers(0, MANY - 1), bits=BITS, distance=st.integers(0, 63))
def test_it_finds_what_comparing_with_all_of_them_finds(which: int, bits: list[int], distance: int) -> None:
    query = flipped(HASHES[which], bits)
    found = INDEX.within(query, distance)
    assert (Near(which + 1, len(bits)) in found) is (len(bits) <= distance)
    # Random hashes are some hundred bits apart, so no other one is near.
    assert found == ([Near(which + 1, len(bits))] if len(bits) <= distance else [])


@pytest.mark.parametrize("spread", ["over all words evenly", "in as few words as hold them"])
def test_the_last_distance_that_counts_is_found_and_the_next_one_is_not(spread: str) -> None:
    for which in range(0, MANY, 40):
        order = list(range(256))
        if spread.startswith("over"):
            order = [16 * (n % 16) + n // 16 for n in order]
        for distance in (0, 7, 15, 16, 30, 31, 32, 47, 48, 63):
            near, far = (flipped(HASHES[which], order[:count]) for count in (distance, distance + 1))
            assert INDEX.within(near, distance) == [Near(which + 1, distance)]
            assert INDEX.within(far, distance) == []


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**32), distance=st.integers(0, 63), alike=st.integers(1, 250))
def test_hashes_that_are_much_alike_are_all_found(seed: int, distance: int, alike: int) -> None:
    """Clusters, repetitions, and more candidates than there are hashes."""
    random = np.random.default_rng(seed)
    hashes = [
        flipped(HASHES[n % 3], random.choice(256, random.integers(0, alike + 1), replace=False).tolist())
        for n in range(500)
    ] * 10
    index = NearIndex(range(1, len(hashes) + 1), b"".join(hashes))
    query = flipped(HASHES[0], random.choice(256, random.integers(0, 40), replace=False).tolist())
    assert index.within(query, distance) == by_comparing_all(hashes, query, distance)


@pytest.mark.parametrize("step", [1, 700, 5000])
def test_what_is_put_in_later_is_found_like_what_was_there(step: int) -> None:
    index, count = NearIndex(), 0
    asked = flipped(HASHES[0], list(range(20)))
    while count < (300 if step == 1 else MANY):
        more = HASHES[count : count + step]
        before, index = index, index.with_more(range(count + 1, count + len(more) + 1), b"".join(more))
        assert len(before) == count  # it never changes
        count += len(more)
        assert index.within(asked, 31) == [Near(1, 20)]
        assert index.within(HASHES[count - 1], 31) == [Near(count, 0)]


def test_where_nothing_is_known_nothing_is_near() -> None:
    assert NearIndex().within(HASHES[0], 31) == []
