"""Buffers of pages as arrays: the same as the pool gives, page for page."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from support import make_pool

from hicache_nixl.errors import ConfigError, RegistrationError
from hicache_nixl.host.addresses import Addresses, PoolMap


@pytest.mark.parametrize("mla", [False, True], ids=["multi-head", "mla"])
@pytest.mark.parametrize("layout", ["page_first", "page_first_direct", "layer_first"])
def test_a_map_gives_what_the_pool_gives(mla, layout):
    pool = make_pool(mla, layout)
    pages = [pool.page_indices(page, 1) for page in (3, 0, pool.page_num - 1, 1)]
    addresses, sizes = pool.get_page_buffer_meta(torch.cat(pages))
    starts = torch.cat(pages).numpy()[:: pool.page_size]
    assert list(PoolMap(pool).of(starts)) == list(zip(addresses, sizes, strict=True))


def test_a_pool_with_pages_at_unequal_distances_is_refused():
    pool = make_pool(False, "page_first")
    really = pool.get_page_buffer_meta

    def uneven(indices):
        addresses, sizes = really(indices)
        return [address + 64 * (address == max(addresses)) for address in addresses], sizes

    pool.get_page_buffer_meta = uneven
    with pytest.raises(ConfigError, match="MultiHeadHostPool are not at equal distances"):
        PoolMap(pool)


@pytest.mark.parametrize(
    ("buffer", "why"),
    [
        (torch.zeros(4, 4).t(), "not contiguous"),
        (torch.zeros(8)[::2], "not contiguous"),
        (torch.zeros(0), "a buffer of 0 bytes"),
        ((4096, -8), "a buffer of -8 bytes"),
    ],
    ids=["transposed", "every other", "empty", "negative"],
)
def test_what_has_no_bytes_of_its_own_in_one_place_is_refused(buffer, why):
    with pytest.raises(RegistrationError, match=why):
        Addresses.of([torch.zeros(4) if isinstance(buffer, torch.Tensor) else (8192, 8), buffer], 1)


def test_tensors_and_pairs_become_arrays():
    tensors = [torch.zeros(4), torch.zeros(6)]
    found = Addresses.of(tensors, 2)
    assert found.starts.tolist() == [[tensor.data_ptr() for tensor in tensors]]
    assert found.sizes.tolist() == [16, 24]
    assert Addresses.of(found, 2) is found
    pairs = [(4096, 8), (8192, 16)]
    assert list(Addresses.of(pairs, 1)) == pairs == Addresses.of(pairs, 1)[:]
    uneven = Addresses.of([(4096, 8), (8192, 16)], 1)
    assert not uneven.alike
    assert [list(page) for page in uneven.each()] == [[pair] for pair in pairs]
    assert len(Addresses(np.zeros((3, 2), np.int64), np.array([8, 8]))) == 6
