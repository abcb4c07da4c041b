"""What the pieces of a page are called, and which names are a connector's own."""

from __future__ import annotations

from types import SimpleNamespace
from typing import NamedTuple

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support import storage_config

from hicache_nixl.errors import ConfigError, HiCacheNixlError, KeyRefusedError
from hicache_nixl.names import NAME_MAX, PageNames, check_key

SGLANG_KEYS = st.text("0123456789abcdef", min_size=64, max_size=64)
MODELS = st.text("am_/-01kv+", max_size=12)
PLAIN = st.booleans()


@pytest.mark.parametrize("key", ["page", "0123456789abcdef" * 4, "a.b", ".", "ключ", "a key", "-k"])
def test_a_plain_file_name_is_a_key(key):
    check_key(key, 20)


@pytest.mark.parametrize("key", ["", "/", "a/b", "/etc/passwd", "..", "../a", "a..b", "a\0b", "\0"])
def test_a_key_that_could_leave_the_folder_is_refused(key):
    with pytest.raises(KeyRefusedError):
        check_key(key, 20)


def test_the_length_of_a_key_counts_bytes_and_the_suffix():
    check_key("k" * (NAME_MAX - 20), 20)
    check_key("ß" * ((NAME_MAX - 21) // 2), 20)
    for key in ("k" * (NAME_MAX - 19), "ß" * ((NAME_MAX - 18) // 2)):
        with pytest.raises(KeyRefusedError, match="longer than 255 bytes"):
            check_key(key, 20)


def test_a_refused_key_is_a_value_error_of_ours():
    assert issubclass(KeyRefusedError, HiCacheNixlError)
    assert issubclass(KeyRefusedError, ValueError)


def test_multi_head_names_have_the_rank_and_two_pieces():
    names = PageNames(storage_config(model="org/model", tp_rank=1, tp_size=4))
    assert names.of_pages(["a", "b"], zero_copy=True).names == [
        "a_org-model_1_4_k",
        "a_org-model_1_4_v",
        "b_org-model_1_4_k",
        "b_org-model_1_4_v",
    ]
    assert names.of_pages(["a"], zero_copy=False).names == names.of_values(["a"]).names == ["a_org-model_1_4"]


def test_mla_names_have_no_rank_and_one_piece():
    names = PageNames(storage_config(model="org/model", mla=True, tp_rank=1, tp_size=4))
    assert names.of_pages(["a"], zero_copy=True).names == ["a_org-model_k"]
    assert names.of_pages(["a"], zero_copy=False).names == ["a_org-model"]


@pytest.mark.parametrize("model", ["m" * 250, "a\0b"])
def test_a_model_name_that_cannot_be_part_of_a_file_name_is_an_error(model):
    with pytest.raises(ConfigError, match="model_name"):
        PageNames(storage_config(model=model))


@given(key=SGLANG_KEYS, model=MODELS, mla=st.booleans(), zero_copy=st.booleans(), plain=PLAIN)
def test_every_name_that_is_given_is_own(key, model, mla, zero_copy, plain):
    names = PageNames(storage_config(model=model, mla=mla), plain=plain)
    assert all(names.is_own(name) for name in names.of_pages([key, f"d:{key}", "any_key"], zero_copy).names)


@given(
    key=SGLANG_KEYS,
    mine=MODELS,
    other=MODELS,
    longer=st.booleans(),
    mla=st.booleans(),
    zero_copy=st.booleans(),
)
def test_no_name_of_another_model_is_own(key, mine, other, longer, mla, zero_copy):
    other = f"{other}_{mine}" if longer else other
    names, others = (PageNames(storage_config(model=model, mla=mla)) for model in (mine, other))
    if names.suffix != others.suffix:
        assert not any(names.is_own(name) for name in others.of_pages([key], zero_copy).names)


def test_other_files_of_the_folder_are_not_own():
    names = PageNames(storage_config(model="model"))
    assert not any(
        map(names.is_own, ["", "notes.txt", "_model_0_1", "_model_0_1_k", "a_model_0_2", "a_model"])
    )


# -- several host pools ----------------------------------------------------------------------------------

WORDS = st.sampled_from(["m", "k", "0", "1", "mamba", "temporal", "conv", "swa", "draft", "indexer", "pool"])
WORD_MODELS = st.lists(WORDS, min_size=1, max_size=4).map("_".join)
POOLS = st.sampled_from(["kv", "mamba", "swa", "draft", "draft_swa", "indexer", "new", "draft_new", "page32"])
SHAPES = st.builds(
    SimpleNamespace,
    layout=st.sampled_from(["layer_first", "page_first", "page_first_direct"]),
    dtype=st.sampled_from([torch.bfloat16, torch.float16, torch.int32]),
    temporal_dtype=st.sampled_from([torch.float32, torch.bfloat16]),
    page_size=st.sampled_from([64, 32]),
)


class OfAPool(NamedTuple):
    """A pool of a configuration."""

    model: str
    mla: bool
    rank: int
    pool: str
    shape: SimpleNamespace
    pieces: int

    def names(self, key):
        """Return the names of a page, and all names of the configuration."""
        names = PageNames(storage_config(model=self.model, mla=self.mla, tp_rank=self.rank, tp_size=2))
        if self.pool == "kv":
            zero_copy = self.shape.layout != "layer_first"
            names.for_pool(self.shape, zero_copy)
            return names.of_pages([key], zero_copy).names, names
        return names.for_other_pool(self.pool, self.shape, self.pieces).of([key]).names, names

    @property
    def bytes(self):
        """Return what pages have in common that are the same."""
        same_on_all_ranks = self.mla and self.pool != "mamba"
        rank = None if same_on_all_ranks else self.rank
        return self.model, self.pool, rank, *vars(self.shape).values()


@st.composite
def two_pools(draw):
    """Return two pools, of which the other differs in some things only: pages must not be mixed up by any of them."""
    pool = OfAPool(
        draw(WORD_MODELS), draw(st.booleans()), draw(st.integers(0, 1)), draw(POOLS), draw(SHAPES), 1
    )
    pool = pool._replace(pieces=draw(st.integers(1, 3)))
    others = {"model": WORD_MODELS, "rank": st.integers(0, 1), "pool": POOLS, "shape": SHAPES}
    changed = draw(st.sets(st.sampled_from([*others, "mla"]), min_size=1, max_size=2))
    changes = {name: draw(others[name]) for name in sorted(changed - {"mla"})}
    if "mla" in changed and "model" in changed:  # a model is either
        changes["mla"] = not pool.mla
    return pool, pool._replace(**changes)


@settings(max_examples=1000)
@given(two=two_pools())
def test_pages_have_the_same_name_only_if_they_have_the_same_bytes(two):
    (names, of_one), (others, of_other) = (pool.names("a" * 64) for pool in two)
    assert all(map(of_one.is_own, names))
    assert all(map(of_other.is_own, others))
    one, other = two
    if one.bytes != other.bytes:
        assert not set(names) & set(others)
    if one.bytes == other.bytes and one.mla == other.mla:
        assert names == others
    if one.model != other.model:
        assert not any(map(of_one.is_own, others))


def test_what_is_own_is_found_out_once(monkeypatch):
    """A folder may have a million files."""
    names = PageNames(storage_config(model="model"))
    names.for_other_pool("swa", SimpleNamespace(layout="page_first", dtype=torch.bfloat16, page_size=64), 2)
    monkeypatch.setattr(names, "own", lambda: pytest.fail("for each file"))
    assert names.is_own("page_model_0_1_swa_k")
    assert not names.is_own("page_model_0_1_draft_k")
