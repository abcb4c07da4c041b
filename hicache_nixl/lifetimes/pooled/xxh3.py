"""XXH3 with 64 bits, of pieces of memory one after another: the digests of the package ``xxhash``.

That package holds the lock of the interpreter while it computes a digest, so two threads would take turns.  The
algorithm is that of the xxHash specification for inputs of more than 240 bytes.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic

from .compiled import Number, ReadNumberMatrix, ReadNumbers, Word, Words, compiled, unlocked

LEAST = 241  # bytes of a piece
_LANES, _STRIPE, _STRIPES = 8, 64, 16
_BLOCK = _STRIPE * _STRIPES
_SECRET = np.frombuffer(
    bytes.fromhex(
        "b8fe6c3923a44bbe7c01812cf721ad1cded46de9839097db7240a4a4b7b3671fcb79e64eccc0e578825ad07dccff7221"
        "b8084674f743248ee03590e6813a264c3c2852bb91c300cb88d0658b1b532ea371644897a20df94e3819ef46a9deacd8"
        "a8fa763fe39c343ff9dcbbc7c70b4f1d8a51e04bcdb45931c89f7ec9d9787364eac5ac8334d3ebc3c581a0fffa1363eb"
        "170ddd51b7f0da49d316552629d4689e2b16be587d47a1fc8ff8b8d17ad031ce45cb3a8f95160428afd7fbcabb4b407e"
    ),
    np.uint64,
)
_LATER = 7  # bytes before the end of the secret, at which that of the last stripe ends
_MERGED = 11  # where in the secret the words for the sums begin
_PRIMES_32 = 0x9E3779B1, 0x85EBCA77, 0xC2B2AE3D
_PRIMES_64 = (
    0x9E3779B185EBCA87,
    0xC2B2AE3D27D4EB4F,
    0x165667B19E3779F9,
    0x85EBCA77C2B2AE63,
    0x27D4EB2F165667C5,
)
_INITIAL = np.array([_PRIMES_32[2], *_PRIMES_64[:4], _PRIMES_32[1], _PRIMES_64[4], _PRIMES_32[0]], np.uint64)
_BY_LENGTH, _BY_BLOCK = np.uint64(_PRIMES_64[0]), np.uint64(_PRIMES_32[0])
_AVALANCHE, _LOWER = np.uint64(0x165667919E3779F9), np.uint64(2**32 - 1)
_BYTES = ir.IntType(8).as_pointer()
_TO_READ = [ir.Constant(ir.IntType(32), number) for number in (0, 3, 1)]  # into all caches
_AHEAD = 1024  # bytes; fetched into the cache meanwhile: a third faster where a piece has 512 KiB
_32, _37, _47 = np.uint64(32), np.uint64(37), np.uint64(47)


def _prefetch(module: Any) -> Any:
    flags = [ir.IntType(32)] * 3
    function = ir.FunctionType(ir.VoidType(), [_BYTES, *flags])
    return cgutils.get_or_insert_function(module, function, "llvm.prefetch.p0")


def _accumulate(typing: Any, sums: Any, memory: Any, secret: Any, stripes: Any) -> Any:
    """Add stripes of 64 bytes to the eight sums at an address; each has its part of the secret, 8 bytes on."""
    vector, word = ir.VectorType(ir.IntType(64), _LANES), ir.IntType(64)

    def all_lanes(number: int) -> Any:
        return ir.Constant(vector, [number] * _LANES)

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        sums, memory, secret, stripes = arguments
        total = cgutils.alloca_once_value(builder, ir.Constant(vector, [0] * _LANES))
        others = cgutils.alloca_once_value(builder, ir.Constant(vector, [0] * _LANES))

        def at(address: Any, offset: Any) -> Any:
            return builder.inttoptr(builder.add(address, offset), vector.as_pointer())

        with cgutils.for_range(builder, stripes) as loop:
            here = builder.mul(loop.index, ir.Constant(word, _STRIPE))
            ahead = builder.inttoptr(
                builder.add(builder.add(memory, here), ir.Constant(word, _AHEAD)), _BYTES
            )
            builder.call(_prefetch(builder.module), [ahead, *_TO_READ])
            data = builder.load(at(memory, here), align=1)
            part = builder.load(at(secret, builder.mul(loop.index, ir.Constant(word, 8))), align=1)
            key = builder.xor(data, part)
            product = builder.mul(builder.and_(key, all_lanes(2**32 - 1)), builder.lshr(key, all_lanes(32)))
            builder.store(builder.add(builder.load(total), product), total)
            builder.store(builder.add(builder.load(others), data), others)
        swapped = builder.load(others)
        neighbours = ir.Constant(ir.VectorType(ir.IntType(32), _LANES), [lane ^ 1 for lane in range(_LANES)])
        swapped = builder.shuffle_vector(swapped, swapped, neighbours)
        whole = at(sums, ir.Constant(word, 0))
        so_far = builder.add(builder.load(whole, align=8), builder.load(total))
        builder.store(builder.add(so_far, swapped), whole, align=8)
        return context.get_dummy_value()

    return types.none(types.int64, types.int64, types.int64, types.int64), generate


def _word_at(typing: Any, address: Any) -> Any:
    """Return the 8 bytes at any address."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.load(builder.inttoptr(arguments[0], ir.IntType(64).as_pointer()), align=1)

    return types.uint64(types.int64), generate


accumulate: Any = intrinsic(_accumulate)
word_at: Any = intrinsic(_word_at)


@compiled
def _high(a: Word, b: Word) -> Word:
    """Return the upper 64 of the 128 bits of a product."""
    low, high, other_low, other_high = a & _LOWER, a >> _32, b & _LOWER, b >> _32
    middle = high * other_low + (low * other_low >> _32)
    cross = low * other_high + (middle & _LOWER)
    return high * other_high + (middle >> _32) + (cross >> _32)


@compiled
def _digest(memory: Number, size: Number, seed: Word, sums: Words, secret: Words) -> Word:
    for pair in range(0, len(_SECRET), 2):
        secret[pair], secret[pair + 1] = _SECRET[pair] + seed, _SECRET[pair + 1] - seed
    sums[:] = _INITIAL
    to, key, end = np.int64(sums.ctypes.data), np.int64(secret.ctypes.data), memory + size
    last = key + secret.nbytes - _STRIPE
    while memory + _BLOCK < end:
        accumulate(to, memory, key, _STRIPES)
        for lane in range(_LANES):
            sums[lane] = (sums[lane] ^ (sums[lane] >> _47) ^ secret[_STRIPES + lane]) * _BY_BLOCK
        memory += _BLOCK
    accumulate(to, memory, key, (end - memory - 1) // _STRIPE)
    accumulate(to, end - _STRIPE, last - _LATER, 1)
    total = np.uint64(size) * _BY_LENGTH
    for pair in range(0, _LANES, 2):
        a = sums[pair] ^ word_at(key + _MERGED + 8 * pair)
        b = sums[pair + 1] ^ word_at(key + _MERGED + 8 * pair + 8)
        total += a * b ^ _high(a, b)
    total = (total ^ (total >> _37)) * _AVALANCHE
    return total ^ (total >> _32)


@unlocked
def digests(starts: ReadNumberMatrix, sizes: ReadNumbers, found: Words) -> Number:
    """Compute the digests of n pages of k pieces, each seeded with that of the piece before.

    Parameters
    ----------
    starts, sizes
        (n, k) and (k,): address and bytes of each piece, at least ``LEAST``.
    found
        (n,), filled in.
    """
    sums, secret = np.empty(_LANES, np.uint64), np.empty(len(_SECRET), np.uint64)
    for page in range(len(starts)):
        digest = np.uint64(0)
        for piece in range(len(sizes)):
            digest = _digest(starts[page, piece], sizes[piece], digest, sums, secret)
        found[page] = digest
    return len(starts)
