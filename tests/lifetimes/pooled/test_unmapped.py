"""Addresses of a caller without memory: False for their pages, and the process goes on."""

from __future__ import annotations

import ctypes
import mmap

import numpy as np
import pytest
from support import answer_of, run_python

from hicache_nixl.host.addresses import Addresses
from hicache_nixl.lifetimes.pooled import mapped

SIZE = 4 * mmap.PAGESIZE
LIBC = ctypes.CDLL(None, use_errno=True)
LIBC.mprotect.argtypes = ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int
LIBC.munmap.argtypes = ctypes.c_void_p, ctypes.c_size_t

# In a process of its own, because without the check it would end here.
CALLS = """
import ctypes, json, mmap, sys
import torch
from hicache_nixl import HiCacheNixl
from support import storage_config

libc = ctypes.CDLL(None)
libc.mmap.restype, libc.mmap.argtypes = ctypes.c_void_p, [ctypes.c_void_p, ctypes.c_size_t] + [ctypes.c_int] * 4
size, far = int(sys.argv[2]), 1 << 44  # far away from where the kernel maps memory by itself
anonymous = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
half = libc.mmap(far, size, mmap.PROT_READ | mmap.PROT_WRITE, anonymous, -1, 0) + size // 2
no_access = libc.mmap(None, size, 0, anonymous, -1, 0)
bad = [2 * far, half, no_access, 0, 8, 1 << 62, -size]
good = torch.arange(size // 8)
answers = {}
for lifetime, room in (("pooled", {"capacity_gb": 128 / 1024, "segment_mb": 16}), ("scoped", {})):
    with HiCacheNixl(storage_config(lifetime, **room), f"{sys.argv[1]}/{lifetime}") as store:
        answers[lifetime] = [store.set("good", good)]
        for address in bad:
            keys, target = [f"{address}-a", f"{address}-b"], torch.zeros_like(good)
            stored = store.batch_set(keys, None, [good.data_ptr(), address], [size, size])
            exist = [store.exists(key) for key in keys]
            store.batch_get(["good", "good"], [address, target.data_ptr()], [size, size])
            answers[lifetime].append([stored, *exist, target.equal(good)])
print()
print(json.dumps(answers))
"""


@pytest.mark.parametrize("size", [SIZE, 4 << 20], ids=["small", "large"])
def test_pages_without_memory_fail_and_the_others_are_stored_and_loaded(tmp_path, size):
    answers = answer_of(run_python("-c", CALLS, str(tmp_path), str(size)))
    expected = [True] + [[False, True, False, True]] * 7
    assert answers["pooled"] == expected
    assert answers["scoped"][:-1] == expected[:-1]  # with a negative address the whole call fails


@pytest.mark.parametrize("known", ["by madvise", "byte by byte"])
def test_memory_that_can_be_read_is_told_from_memory_that_cannot(monkeypatch, known):
    if known == "byte by byte":
        monkeypatch.setattr(mapped, "_madvise", lambda *args: -1)  # an older kernel
    memory = mmap.mmap(-1, 4 * SIZE)
    view = np.frombuffer(memory, np.uint8)
    start = view.ctypes.data
    assert LIBC.mprotect(start + 2 * SIZE, mmap.PAGESIZE, 0) == 0
    starts = np.array([[start], [start + SIZE + 1], [start + 2 * SIZE], [start + 3 * SIZE]])
    sizes = np.array([[SIZE], [SIZE], [1], [SIZE]])
    assert mapped.mapped(Addresses(starts, sizes), ()).tolist() == [True, False, False, True]
    everything = [(start, start + 3 * SIZE)]
    assert mapped.mapped(Addresses(starts, sizes), everything).tolist() == [True] * 4
    assert LIBC.mprotect(start + 2 * SIZE, mmap.PAGESIZE, mmap.PROT_READ | mmap.PROT_WRITE) == 0
    assert mapped.mapped(Addresses(starts, sizes), ()).all()
    del view


def test_a_large_buffer_is_looked_at_to_its_end(monkeypatch):
    monkeypatch.setattr(mapped, "_madvise", lambda *args: -1)
    size = 3 * mapped.MOST_VECTORS * mmap.PAGESIZE
    memory = mmap.mmap(-1, size)
    view = np.frombuffer(memory, np.uint8)
    start = view.ctypes.data
    place = Addresses(np.array([[start]]), np.array([size]))
    assert mapped.mapped(place, ()).tolist() == [True]
    assert LIBC.mprotect(start + size - mmap.PAGESIZE, mmap.PAGESIZE, 0) == 0
    assert mapped.mapped(place, ()).tolist() == [False]
    assert LIBC.mprotect(start + size - mmap.PAGESIZE, mmap.PAGESIZE, mmap.PROT_READ) == 0
    del view
