"""Two configurations whose pages have different bytes never share a name; the plain one has SGLang's names."""

from __future__ import annotations

import hashlib
import sys
from dataclasses import dataclass
from itertools import product
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support import storage_config

from hicache_nixl.contract import CONTEXT_MODULE
from hicache_nixl.errors import ConfigError
from hicache_nixl.host.pools import LAYOUTS, ZERO_COPY_LAYOUTS
from hicache_nixl.lifetimes.pooled.keys import numbers_of, space_of
from hicache_nixl.names import PageNames

KEY = "0123456789abcdef" * 4
KEYS = [KEY, f"d:{KEY}"]  # as the server makes them; the second for pages of a draft model
HASH = hashlib.sha256(b"m_0_1").hexdigest()[:12]  # what stands behind the model "m_0_1"
# Names of models that could be mistaken for another one followed by something else.
MODELS = [
    "m",
    "m_0_1",
    "m_k",
    "m_k_k",
    "k",
    "m_v",
    "m+pp0of2",
    "m_0_1+pp0of2",
    "m_0_1_k",
    f"m_0_1+{HASH}",
    "",
]
SHARDS = [(0, 1), (0, 2), (1, 2)]
DTYPES = [torch.bfloat16, torch.float16, torch.float8_e4m3fn]


@dataclass(frozen=True)
class Configuration:
    """What decides the bytes of a page."""

    model: str = "org/model"
    mla: bool = False
    tp: tuple[int, int] = (0, 1)
    pp: tuple[int, int] = (0, 1)
    cp: tuple[int, int] = (0, 1)
    dtype: torch.dtype = torch.bfloat16
    layout: str = "page_first"
    page_size: int = 64
    zero_copy: bool = True

    def names(self, plain: bool = False) -> PageNames:
        config = storage_config(
            mla=self.mla, model=self.model, tp_rank=self.tp[0], tp_size=self.tp[1], pp=self.pp, cp=self.cp
        )
        names = PageNames(config, plain=plain)
        pool = SimpleNamespace(dtype=self.dtype, layout=self.layout, page_size=self.page_size)
        names.for_pool(pool, self.zero_copy)
        return names

    def page_names(self, plain: bool = False) -> list[str]:
        return self.names(plain).of_pages(KEYS, self.zero_copy).names

    def record_names(self) -> set[tuple[int, ...]]:
        """Return what its pages are listed under in the index of ``pooled``: numbers of key and space."""
        pages = self.names().of_pages(KEYS, self.zero_copy)
        space = space_of(pages.suffix, pages.endings)
        return {(*key, space) for key in numbers_of(pages.keys).tolist()}

    def own_spaces(self) -> set[int]:
        """Return the spaces that ``clear`` empties in ``pooled``."""
        return {space_of(own.suffix, own.endings) for own in self.names().own()}

    def identity(self) -> tuple:
        """Return what its pages depend on; MLA pages are the same on every rank of tensor parallelism."""
        rank = None if self.mla else self.tp
        rest = (self.pp, self.cp, self.dtype, self.layout, self.page_size, self.zero_copy)
        return (self.model, self.mla, rank, *rest)


def layouts():
    """How pages lie in a pool and are moved; with O_DIRECT page-first ones may be copied."""
    return [(layout, zero_copy) for layout in LAYOUTS for zero_copy in {layout in ZERO_COPY_LAYOUTS, False}]


FIELDS = {
    "model": MODELS,
    "mla": [False, True],
    "tp": SHARDS,
    "pp": SHARDS,
    "cp": SHARDS,
    "dtype": DTYPES,
    "page_size": [64, 32],
}
CONFIGURATIONS = st.builds(
    lambda layout, **fields: Configuration(layout=layout[0], zero_copy=layout[1], **fields),
    layout=st.sampled_from(layouts()),
    **{name: st.sampled_from(values) for name, values in FIELDS.items()},
)


def every_configuration():
    for values in product(*FIELDS.values()):
        for layout, zero_copy in layouts():
            yield Configuration(**dict(zip(FIELDS, values, strict=True)), layout=layout, zero_copy=zero_copy)


def test_no_two_configurations_share_a_name_unless_their_pages_are_the_same():
    """Every pair of them: the first that gives a name owns it."""
    owners: dict[str, tuple] = {}
    shared = []
    for configuration in every_configuration():
        for name in configuration.page_names():
            owner = owners.setdefault(name, configuration.identity())
            if owner != configuration.identity():
                shared.append((name, owner, configuration.identity()))
    assert shared == []
    assert len(owners) > 20_000


def test_no_two_configurations_share_a_record_of_pooled_unless_their_pages_are_the_same():
    owners: dict[tuple[int, ...], tuple] = {}
    for configuration in every_configuration():
        for record in configuration.record_names():
            assert owners.setdefault(record, configuration.identity()) == configuration.identity()
    assert len(owners) > 10_000


def test_ranks_of_tensor_parallelism_share_mla_pages_and_nothing_else():
    first, second = (Configuration(mla=True, tp=(rank, 2)) for rank in (0, 1))
    assert first.page_names() == second.page_names()
    first, second = (Configuration(mla=True, tp=(rank, 2), pp=(rank, 2)) for rank in (0, 1))
    assert not set(first.page_names()) & set(second.page_names())


@settings(max_examples=300)
@given(CONFIGURATIONS, CONFIGURATIONS)
def test_a_configuration_owns_its_names_and_none_of_another_one(mine, other):
    """What clear() removes."""
    names = mine.names()
    assert all(map(names.is_own, mine.page_names()))
    if mine.identity() != other.identity():
        assert not any(map(names.is_own, set(other.page_names()) - owned_too(mine)))


@settings(max_examples=300)
@given(CONFIGURATIONS)
def test_clear_of_pooled_empties_the_spaces_of_a_configuration_and_no_other(mine):
    """Those of its pages, in place or in copies, and of its values."""
    names = mine.names()
    kinds = (names.of_pages(KEYS, True), names.of_pages(KEYS, False), names.of_values(KEYS))
    assert mine.own_spaces() == {space_of(kind.suffix, kind.endings) for kind in kinds}


def owned_too(mine: Configuration) -> set[str]:
    """Names of the same configuration in copies or in place, which collide with no other."""
    names = mine.names()
    return {name for zero_copy in (True, False) for name in names.of_pages(KEYS, zero_copy).names} | set(
        names.of_values(KEYS).names
    )


@pytest.mark.parametrize(
    ("configuration", "names"),
    [
        (Configuration(), [f"{KEY}_org-model_0_1_k", f"{KEY}_org-model_0_1_v"]),
        (Configuration(tp=(3, 8)), [f"{KEY}_org-model_3_8_k", f"{KEY}_org-model_3_8_v"]),
        (Configuration(layout="layer_first", zero_copy=False), [f"{KEY}_org-model_0_1"]),
        (Configuration(mla=True, tp=(3, 8)), [f"{KEY}_org-model_k"]),
        (Configuration(mla=True, layout="layer_first", zero_copy=False), [f"{KEY}_org-model"]),
    ],
    ids=["one rank", "rank 3 of 8", "layer_first", "mla", "mla layer_first"],
)
def test_the_plain_case_has_sglang_s_names(configuration, names):
    assert configuration.page_names()[: len(names)] == names
    assert configuration.page_names() == configuration.page_names(plain=True)


@pytest.mark.parametrize(
    ("changed", "part"),
    [
        ({"pp": (1, 2)}, "+pp1of2"),
        ({"cp": (0, 4)}, "+cp0of4"),
        ({"dtype": torch.float16}, "+float16"),
        ({"dtype": torch.float8_e4m3fn}, "+float8_e4m3fn"),
        ({"layout": "page_first_direct"}, "+page_first_direct"),
        ({"page_size": 1}, "+page1"),
        ({"pp": (0, 2), "cp": (1, 2), "page_size": 16}, "+pp0of2+cp1of2+page16"),
    ],
    ids=str,
)
def test_what_else_changes_the_bytes_stands_behind_as_a_part(changed, part):
    configuration = Configuration(**changed)
    assert configuration.page_names()[0] == f"{KEY}_org-model_0_1{part}_k"
    assert configuration.page_names(plain=True)[0] == f"{KEY}_org-model_0_1_k", "but not in a release"


def test_values_have_the_parts_of_the_rank_and_none_of_the_pool():
    names = Configuration(pp=(1, 2), page_size=16).names()
    assert names.of_values([KEY]).names == [f"{KEY}_org-model_0_1+pp1of2"]


@pytest.mark.parametrize("model", ["m_0_1", "m+pp0of2", "m_k"])
def test_a_model_that_could_be_read_as_another_one_s_name_has_a_hash_behind_it(model):
    digest = hashlib.sha256(model.encode()).hexdigest()[:12]
    assert Configuration(model=model).page_names()[0] == f"{KEY}_{model}+{digest}_0_1_k"


def test_types_of_8_bits_have_different_names_though_sglang_stores_both_as_uint8():
    names = set()
    for dtype in (torch.float8_e4m3fn, torch.float8_e5m2):
        pool = SimpleNamespace(
            dtype=torch.uint8, layout="page_first", page_size=64, device_pool=SimpleNamespace(dtype=dtype)
        )
        made = PageNames(storage_config())
        made.for_pool(pool, True)
        names |= set(made.of_pages([KEY], True).names)
    assert len(names) == 4


@pytest.mark.parametrize(
    ("asked", "part"),
    [
        ("fp8_e4m3", "+float8_e4m3fn"),
        ("auto", "+float8_e4m3fn"),
        ("fp8_e5m2", "+float8_e5m2"),
        ("mxfp8", "+uint8_mxfp8"),
    ],
)
def test_in_0_5_23_whose_host_pools_do_not_know_the_device_pool_the_server_has_the_type(
    monkeypatch, asked, part
):
    context = SimpleNamespace(get_model=lambda: SimpleNamespace(kv_cache_dtype=asked))
    monkeypatch.setitem(sys.modules, CONTEXT_MODULE, context)
    pool = SimpleNamespace(dtype=torch.uint8, layout="page_first", page_size=64)
    names = PageNames(storage_config())
    names.for_pool(pool, True)
    assert names.page_suffix == f"_org-model_0_1{part}"
    other = names.for_other_pool("swa", pool, 2)
    assert other.suffix == "_org-model_0_1" + ("" if "e4m3" in part else part)


def test_sglang_that_is_imported_outside_a_server_tells_no_type(monkeypatch):
    def not_published():
        raise ValueError("config namespace 'model' is not published")

    monkeypatch.setitem(sys.modules, CONTEXT_MODULE, SimpleNamespace(get_model=not_published))
    names = PageNames(storage_config())
    names.for_pool(SimpleNamespace(dtype=torch.uint8, layout="page_first", page_size=64), True)
    assert names.page_suffix == "_org-model_0_1+uint8"


def test_a_part_that_makes_a_name_too_long_is_an_error():
    names = PageNames(storage_config(model="m" * (255 - 64 - len("__0_1_k"))))
    pool = SimpleNamespace(dtype=torch.bfloat16, layout="page_first", page_size=32)
    with pytest.raises(ConfigError, match="at most 255 bytes"):
        names.for_pool(pool, True)
