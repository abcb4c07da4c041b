"""Keys as numbers: SGLang's are taken as they are, and no key passes for another."""

from __future__ import annotations

import hashlib

import pytest

from hicache_nixl.lifetimes.pooled.keys import numbers_of, space_of

HEX = hashlib.sha256(b"page").hexdigest()


def test_a_hash_is_its_own_number():
    assert numbers_of([HEX, HEX]).tobytes() == 2 * bytes.fromhex(HEX)


@pytest.mark.parametrize("other", ["page0", f"d:{HEX}", HEX[:-1], "g" * 64])
def test_the_number_of_a_key_does_not_depend_on_the_batch(other):
    both = numbers_of([HEX, other])
    assert (both[0] == numbers_of([HEX])[0]).all()
    assert (both[1] == numbers_of([other])[0]).all()


def test_keys_that_read_alike_are_different():
    alike = [
        HEX,
        HEX.upper(),
        f"d:{HEX}",
        " " + HEX[1:],
        hashlib.sha256(b"d:").hexdigest(),
        "d:",
        "\udcff",
        "ÿ",
    ]
    assert len({number.tobytes() for number in numbers_of(alike)}) == len(alike)


def test_spaces_differ_in_suffix_and_in_pieces():
    spaces = [
        ("_m_0_1", ("",)),
        ("_m_0_1", ("_k",)),
        ("_m_0_1", ("_k", "_v")),
        ("_m_0_1_k", ("",)),
        ("_m_0_1", ("_k_v",)),
    ]
    assert len({space_of(*space) for space in spaces}) == len(spaces)
