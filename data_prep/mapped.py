"""Prepared shards as kernels see them: one call reads a batch straight out of the mapped files, whatever the shards.

Numba takes no list of arrays of changing length without a Python object for each, so the kernels get a table of the
addresses of the mapped files. Whoever makes the table keeps the arrays (:class:`Mapped` does), and :func:`extents`
holds every sequence against the sizes of the files before anything else is read.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numba
import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic
from numpy.typing import NDArray

Ints = NDArray[np.int64]
carray: Any = numba.carray  # type: ignore[attr-defined]

TOKENS, BITS, OFFSETS, PIECES, FIRSTS, ORDER = range(6)
"""Columns of the table of addresses, and of the table of first-touch blocks."""
OUTSIDE = -2
"""What :func:`find` returns in place of a shard."""


def offsets_of(counts: NDArray[np.integer]) -> Ints:
    """int64 [n + 1]: where each of n runs of ``counts`` things begins, and the end of the last."""
    return np.concatenate([np.zeros(1, np.int64), np.cumsum(counts, dtype=np.int64)])


def spread(starts: Ints, counts: Ints) -> Ints:
    """The numbers start, start + 1, ... of each (start, count), one after another."""
    ends = np.cumsum(counts)
    total = int(ends[-1]) if len(ends) else 0
    return np.repeat(starts - (ends - counts), counts) + np.arange(total, dtype=np.int64)


class Shards(NamedTuple):
    """What kernels know of S shards.

    ``addresses``: uint64 [S, 6], of tokens, continuation bits, offsets, pieces, and for pairs firsts and order;
    ``sizes``: int64 [S, 2], tokens and pieces; ``starts``: int64 [S + 1], number of each shard's first sequence;
    ``wide``: tokens are uint32, else uint16; ``pairs``: there is a [SEP] between the first piece and the second.
    """

    addresses: NDArray[np.uint64]
    sizes: Ints
    starts: Ints
    wide: bool
    pairs: bool


Table = tuple[NDArray[np.uint64], Ints, Ints, bool, bool]
"""The fields of :class:`Shards`, as kernels take them."""


class Marks(NamedTuple):
    """Ids of the tokens around a sequence."""

    cls: int
    sep: int


@dataclass(frozen=True)
class Arrays:
    """The arrays of one shard: tokens uint16 or uint32 [N], continuation bits uint8 [(N + 7) // 8], offsets int64
    [n + 1], pieces int64 [p, 2]; of pairs firsts uint16 [n] and order uint8 [n]."""

    tokens: NDArray[Any]
    bits: NDArray[np.uint8]
    offsets: Ints
    pieces: Ints
    firsts: NDArray[np.uint16] | None = None
    order: NDArray[np.uint8] | None = None


class Mapped:
    """The table of some shards, and the arrays that it points to."""

    def __init__(self, arrays: Sequence[Arrays], wide: bool, pairs: bool) -> None:
        self.arrays = arrays
        columns = [(a.tokens, a.bits, a.offsets, a.pieces, a.firsts, a.order) for a in arrays]
        self.table: Table = (
            np.array([[address_of(column) for column in row] for row in columns], np.uint64).reshape(len(arrays), 6),
            np.array([[len(a.tokens), len(a.pieces)] for a in arrays], np.int64).reshape(len(arrays), 2),
            offsets_of(np.array([len(a.offsets) - 1 for a in arrays], np.int64)),
            wide,
            pairs,
        )
        self.starts, self.wide, self.pairs = self.table[2:]


def address_of(array: NDArray[Any] | None) -> int:
    if array is None:
        return 0
    assert array.flags.c_contiguous and array.dtype.isnative
    return int(array.ctypes.data)


@intrinsic
def _as_pointer(typing_context: Any, address: Any) -> Any:
    """An integer as a pointer."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.inttoptr(arguments[0], cgutils.voidptr_t)

    return types.voidptr(types.uint64), generate


_pointer: Any = _as_pointer


@intrinsic
def _prefetch(typing_context: Any, address: Any) -> Any:
    """Begin to fetch the cache line of an address."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        number = ir.IntType(32)
        kind = ir.FunctionType(ir.VoidType(), [cgutils.voidptr_t, number, number, number])
        function = builder.module.declare_intrinsic("llvm.prefetch", [cgutils.voidptr_t], kind)
        where = builder.inttoptr(arguments[0], cgutils.voidptr_t)
        builder.call(function, [where, number(0), number(3), number(1)])  # to read; kept; data
        return context.get_dummy_value()

    return types.none(types.uint64), generate


prefetch: Any = _prefetch


@njit(cache=True, nogil=True, inline="always")
def u8(address: Any, n: Any) -> Any:
    return carray(_pointer(address), n, np.uint8)


@njit(cache=True, nogil=True, inline="always")
def i32(address: Any, n: Any) -> Any:
    return carray(_pointer(address), n, np.int32)


@njit(cache=True, nogil=True, inline="always")
def f64(address: Any, n: Any) -> Any:
    return carray(_pointer(address), n, np.float64)


@njit(cache=True, nogil=True, inline="always")
def u64(address: Any, n: Any) -> Any:
    return carray(_pointer(address), n, np.uint64)


@njit(cache=True, nogil=True, inline="always")
def u16(address: Any, n: Any) -> Any:
    return carray(_pointer(address), n, np.uint16)


@njit(cache=True, nogil=True, inline="always")
def u32(address: Any, n: Any) -> Any:
    return carray(_pointer(address), n, np.uint32)


@njit(cache=True, nogil=True, inline="always")
def i64(address: Any, n: Any) -> Any:
    return carray(_pointer(address), n, np.int64)


@njit(cache=True, nogil=True, inline="always")
def bare(array: Any) -> Any:
    """The same array without its reference count, which kernels would go on changing, one atom at a time, at each
    call of another. The caller of the kernel keeps the array."""
    return carray(_pointer(np.uint64(array.ctypes.data)), len(array), array.dtype)


@njit(cache=True, nogil=True, inline="always")
def bare_shards(shards: Any) -> Any:
    """:class:`Shards` of a plain tuple; numba unpickles the class of a named one whenever it is handed over."""
    n = len(shards[2]) - 1
    addresses = carray(_pointer(np.uint64(shards[0].ctypes.data)), (n, 6), np.uint64)
    sizes = carray(_pointer(np.uint64(shards[1].ctypes.data)), (n, 2), np.int64)
    return Shards(addresses, sizes, bare(shards[2]), shards[3], shards[4])


# ---------------------------------------------------------------- where sequences lie


@njit(cache=True, nogil=True)
def owners(shards: Any, index: Any) -> Any:
    """(shard, number in the shard) of each sequence, int64 [n] each, and whether there are all of them."""
    n, sound, shards = len(index), True, bare_shards(shards)
    owner, local, starts = np.empty(n, np.int64), np.empty(n, np.int64), shards.starts
    for i in range(n):
        low, left = 0, len(starts) - 1
        if index[i] < 0 or index[i] >= starts[left]:
            owner[i], local[i], sound = -1, 0, False
            continue
        while left > 1:  # the last shard that begins at or before it; empty ones begin where the next does
            low += left >> 1 if starts[low + (left >> 1)] <= index[i] else 0
            left -= left >> 1
        owner[i], local[i] = low, index[i] - starts[low]
        prefetch(shards.addresses[low, OFFSETS] + np.uint64(8 * local[i]))
    return owner, local, sound


@njit(cache=True, nogil=True)
def extents(shards: Any, owner: Any, local: Any) -> Any:
    """(int64 [n + 1], where each sequence begins in a batch, with its special tokens; the first shard whose index is
    not sound, or -1)."""
    offsets, bad, specials = np.empty(len(owner) + 1, np.int64), np.int64(-1), 3 if shards[4] else 2
    shards = bare_shards(shards)
    for i in range(len(owner)):  # they lie anywhere, and each is a wait otherwise
        index = i64(shards.addresses[owner[i], OFFSETS], local[i] + 2)
        prefetch(shards.addresses[owner[i], PIECES] + np.uint64(16 * index[local[i]]))
    total = offsets[0] = 0
    for i in range(len(owner)):
        s, own = owner[i], local[i]
        index = i64(shards.addresses[s, OFFSETS], own + 2)
        first, last = index[own], index[own + 1]
        total += specials
        if first < 0 or last < first or last > shards.sizes[s, 1]:
            bad = s
            last = first
        pieces = i64(shards.addresses[s, PIECES], 2 * last)
        for p in range(first, last):
            start, count = pieces[2 * p], pieces[2 * p + 1]
            if start < 0 or count < 0 or count > shards.sizes[s, 0] - start:
                bad = s
            else:
                total += count
        offsets[i + 1] = total
    return offsets, bad


@njit(cache=True, nogil=True)
def find(shards: Any, bases: Any, index: Any) -> Any:
    """All that is to be known of sequences before they are read, in one call.

    Returns:
        :func:`owners` of them; where they begin in a batch; their ids (uint64 [n], ``bases``: those of the first
        sequences of the shards); the first shard whose index is not sound, or -1, or :data:`OUTSIDE`: there are not
        all of these sequences.
    """
    owner, local, sound = owners(shards, index)
    names = np.empty(len(index), np.uint64)
    if not sound:
        return owner, local, np.zeros(1, np.int64), names, np.int64(OUTSIDE)
    for i in range(len(index)):
        names[i] = bases[owner[i]] | np.uint64(local[i])
    offsets, bad = extents(shards, owner, local)
    return owner, local, offsets, names, bad
