"""The table of model geometries."""

from __future__ import annotations

import pytest

from hicache_nixl.errors import ConfigError
from hicache_nixl.host.geometries import model_geometries, model_geometry
from hicache_nixl.host.pools import pool_for_model

# Layers, then KV heads and head size or rank and rope: known from the papers and model cards.
KNOWN = {
    "Qwen2.5-32B": (64, 8, 128),
    "Qwen3-32B": (64, 8, 128),
    "Llama-3.1-8B": (32, 8, 128),
    "Llama-3.1-70B": (80, 8, 128),
    "Mistral-7B-v0.3": (32, 8, 128),
    "gpt-oss-20b": (24, 8, 64),
    "DeepSeek-V3": (61, 512, 64),
}


def test_there_are_a_dozen_models_of_both_kinds_each_with_its_source():
    table = model_geometries()
    assert len(table) >= 12
    assert {geometry.attention for geometry in table.values()} == {"multi-head", "mla"}
    assert [name for name, geometry in table.items() if not geometry.source.startswith("https://")] == []


@pytest.mark.parametrize("name", KNOWN)
def test_well_known_models_have_their_well_known_numbers(name):
    geometry = model_geometry(name)
    if geometry.is_mla:
        numbers = (geometry.layers, geometry.kv_lora_rank, geometry.qk_rope_head_dim)
    else:
        numbers = (geometry.layers, geometry.kv_heads, geometry.head_dim)
    assert numbers == KNOWN[name]


@pytest.mark.parametrize("name", model_geometries())
def test_a_pool_can_be_made_for_every_model(name):
    geometry = model_geometry(name)
    pool = pool_for_model(name, page_size=2, pages=2, layers=2)
    assert pool.page_bytes == geometry.page_bytes(page_size=2, layers=2)
    assert pool.dtype == geometry.torch_dtype
    assert geometry.page_bytes(2) * 2 == pool.page_bytes * geometry.layers, "all layers are in proportion"


def test_case_and_organisation_of_a_name_do_not_matter():
    assert model_geometry("deepseek-ai/deepseek-v3") == model_geometry("DeepSeek-V3")


def test_an_unknown_model_is_an_error_that_names_the_known_ones():
    with pytest.raises(ConfigError) as raised:
        model_geometry("Qwen99")
    assert all(name in str(raised.value) for name in ("Qwen99", *model_geometries()))
