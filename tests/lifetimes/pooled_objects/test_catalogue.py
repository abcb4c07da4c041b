"""Reading the indexes of a bucket some of which cannot be read, and what is kept of the others."""

from __future__ import annotations

import numpy as np
import pytest

from hicache_nixl.errors import AwayError, MissingError, StoreError
from hicache_nixl.lifetimes.pooled_objects import catalogue, gathered
from hicache_nixl.lifetimes.pooled_objects.catalogue import Catalogue, Segment
from hicache_nixl.lifetimes.pooled_objects.segment import Name, head, keys_of

SPACE = 7
LOST = StoreError("the object store lists objects that NIXL cannot load")


class Store:
    """A bucket, and the requests that read it: a dict, and the errors of objects that cannot be read."""

    def __init__(self):
        self.objects, self.errors, self.asked, self.while_listing = {}, {}, [], lambda: None

    def names(self, folder=None, after=None):
        listed = sorted(name for name in self.objects if name.startswith(folder) and name > (after or ""))
        self.while_listing()
        return iter(listed)

    def remove(self, names):
        for name in list(names):
            self.objects.pop(name, None)

    def read(self, objects):
        self.asked.append([name for name, _ in objects])
        return [self.errors.get(name) or self.objects[name][:size] for name, size in objects]

    def write(self, name, content):
        self.objects[name] = content


def segment(number, pages=2):
    name = Name.new(SPACE, pages, 64)
    keys = np.full((pages, 4), number, np.uint64) + np.arange(pages, dtype=np.uint64)[:, None]
    checks = np.ones(pages, np.uint64)
    return Segment(name, keys_of(keys.tobytes()), checks), head(name, keys, checks)


@pytest.fixture
def store():
    return Store()


@pytest.fixture
def reader(store):
    return Catalogue(SPACE, store, store)


@pytest.fixture
def stored(store):
    """Seven segments of two pages each, in the order of their time."""
    made = [segment(10 * number) for number in range(7)]
    store.objects = {one.name.path: content for one, content in made}
    return [one for one, _ in made]


def found(reader, segments):
    return [all(reader.find(one.keys, 64)) for one in segments]


def test_what_could_be_read_is_found_and_the_error_of_the_rest_is_raised_once(store, reader, stored):
    store.errors = {one.name.path: LOST for one in stored[3:5]}
    with pytest.raises(StoreError, match="cannot load"):
        reader.refresh()
    assert found(reader, stored) == [True] * 3 + [False] * 2 + [True] * 2
    store.asked.clear()
    reader.refresh()
    assert store.asked == [], "it is not read again at once"


def test_indexes_that_could_not_be_read_are_read_again_some_seconds_later(store, reader, stored, monkeypatch):
    monkeypatch.setattr(catalogue, "UNREAD", 0)
    store.errors = {one.name.path: LOST for one in stored[3:5]}
    with pytest.raises(StoreError):
        reader.refresh()
    store.errors, store.asked = {}, []
    reader.refresh()
    assert store.asked == [[one.name.path for one in stored[3:5]]]
    assert all(found(reader, stored))


def test_after_a_store_was_away_the_next_lookup_reads_all(store, reader, stored):
    store.errors = {one.name.path: AwayError("away") for one in stored}
    with pytest.raises(AwayError):
        reader.refresh()
    store.errors = {}
    reader.refresh()
    assert all(found(reader, stored))


def test_a_segment_that_was_removed_meanwhile_is_no_error(store, reader, stored):
    store.errors = {stored[0].name.path: MissingError("gone")}
    reader.refresh()
    assert found(reader, stored) == [False] + [True] * 6


def test_what_was_read_before_the_store_went_away_is_found_and_the_rest_not_asked_for(
    store, reader, stored, monkeypatch
):
    monkeypatch.setattr(catalogue, "READ", 2)
    store.errors = {one.name.path: AwayError("away") for one in stored[3:]}
    with pytest.raises(AwayError):
        reader.refresh()
    assert found(reader, stored) == [True] * 3 + [False] * 4
    assert len(store.asked) == 3, "one of which had no answer"
    store.errors = {}
    reader.refresh()
    assert all(found(reader, stored))


def test_a_segment_that_is_stored_while_all_are_listed_is_not_forgotten(store, reader, stored, monkeypatch):
    """Its memory is made before it is stored, and the listing does not have it yet."""
    reader.refresh()
    monkeypatch.setattr(catalogue, "ALL_AFTER", 0)
    own, _ = segment(100)
    reader.refresh()
    store.while_listing = lambda: reader.add(own)
    reader.refresh()
    assert found(reader, [own]) == [True]


def test_segments_whose_index_cannot_be_read_are_removed_by_clear(store, reader, stored):
    store.errors = {stored[0].name.path: LOST}
    assert reader.clear() == 12
    assert store.objects == {}


@pytest.mark.parametrize("size", [0, (64 << 20) + 1, 2**40 - 1])
def test_gathered_indexes_of_an_absurd_size_are_not_read(store, size):
    of = gathered.Gathered(SPACE, store, store)
    name = f"{gathered.gathered_folder_of(SPACE)}{1:016x}-{2:016x}-{size:x}"
    store.objects[name] = b""
    assert of.load({"any"}) == {}
    assert store.asked == [[]]


def test_gathered_indexes_are_read_as_they_were_kept(store, monkeypatch):
    monkeypatch.setattr(gathered, "MANY", 3)
    monkeypatch.setattr(gathered, "IN_ONE", 1000)
    of = gathered.Gathered(SPACE, store, store)
    indexes = [(one.name, content) for one, content in map(segment, range(20))]
    of.keep(indexes)
    assert len(store.objects) == 4, "of six indexes of 144 bytes at most"
    assert of.load({one.base for one, _ in indexes}) == {one.base: content for one, content in indexes}
