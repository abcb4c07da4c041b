"""Segments of objects: whatever is in one is read again, and what is not as it was stored is refused."""

from __future__ import annotations

import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hicache_nixl.errors import DamagedError
from hicache_nixl.lifetimes.pooled_objects.segment import Name, folder_of, head, read_head, since

PAGES = st.integers(1, 200)


def made(pages, page_bytes=4096, space=7):
    name = Name.new(space, pages, page_bytes)
    chance = np.random.default_rng(pages)
    keys = chance.integers(0, 2**64, (pages, 4), np.uint64)
    checks = chance.integers(1, 2**64, pages, np.uint64)
    return name, keys, checks


@given(pages=PAGES, page_bytes=st.integers(1, 2**40), space=st.integers(0, 2**64 - 1))
def test_a_name_tells_all_that_is_needed_to_read_the_index(pages, page_bytes, space):
    name = Name.new(space, pages, page_bytes)
    assert Name.read(space, name.path) == name
    assert name.path.startswith(folder_of(space))


@given(pages=PAGES)
def test_an_index_is_read_as_it_was_written(pages):
    name, keys, checks = made(pages)
    content = head(name, keys, checks)
    assert len(content) == name.head_bytes
    assert name.size == len(content) + pages * name.page_bytes
    found, sums = read_head(name, content)
    assert b"".join(found) == keys.tobytes()
    assert (sums == checks).all()


@given(pages=st.integers(1, 20), where=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
def test_a_changed_bit_is_noticed_wherever_it_is(pages, where, bit):
    name, keys, checks = made(pages)
    content = bytearray(head(name, keys, checks))
    at = int(where * len(content))
    if 40 <= at < 64:  # behind the header, where nothing is kept
        return
    content[at] ^= 1 << bit
    with pytest.raises(DamagedError, match="its index is not as it was stored"):
        read_head(name, bytes(content))


@pytest.mark.parametrize("other", [{"space": 8}, {"page_bytes": 8192}], ids=["space", "bytes of a page"])
def test_the_index_of_another_segment_is_refused(other):
    name, keys, checks = made(3)
    with pytest.raises(DamagedError):
        read_head(Name.new(**{"space": 7, "pages": 3, "page_bytes": 4096, **other}), head(name, keys, checks))


@pytest.mark.parametrize(
    "path", ["pooled-1/0000000000000007/readme", "pooled-1/0000000000000007/", "x-y-z", "0123-4567-1-1"]
)
def test_other_objects_are_no_segments(path):
    assert Name.read(7, path) is None


def test_names_are_unique_and_in_the_order_of_their_time():
    names = [Name.new(7, 1, 1) for _ in range(1000)]
    assert len({name.base for name in names}) == 1000
    assert sorted(names, key=lambda name: name.path) == sorted(names, key=lambda name: name.base)
    parts = {name.base.split("-")[1][:12] for name in names}
    assert len(parts) == 1000, "a process that is forked shares nothing that would make its names the same"
    moment = time.time_ns()
    later = Name.new(7, 1, 1)
    assert names[-1].path <= since(7, moment) <= later.path
