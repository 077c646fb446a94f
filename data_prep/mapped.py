"""Kernels that read sequences straight out of the mapped files of all shards: one call a batch, whatever the shards.

Numba takes no list of arrays of changing length without a Python object for each, so the kernels get a table of the
addresses of the mapped files. Whoever makes the table keeps the arrays (:class:`Mapped` does), and :func:`locate` holds
every sequence against the sizes of the files before anything else is read.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numba
import numpy as np
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic
from numpy.typing import NDArray

Ints = NDArray[np.int64]
carray: Any = numba.carray  # type: ignore[attr-defined]

TOKENS, BITS, OFFSETS, PIECES, FIRSTS, ORDER = range(6)
"""Columns of the table of addresses, and of the table of first-touch blocks."""


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
    """The same int64 array without its reference count, which kernels would go on changing, one atom at a time, at each
    call of another. The caller of the kernel keeps the array."""
    return i64(np.uint64(array.ctypes.data), len(array))


@njit(cache=True, nogil=True, inline="always")
def bare_shards(shards: Any) -> Any:
    """:class:`Shards` of a plain tuple; numba unpickles the class of a named one whenever it is handed over."""
    n = len(shards[2]) - 1
    addresses = carray(_pointer(np.uint64(shards[0].ctypes.data)), (n, 6), np.uint64)
    sizes = carray(_pointer(np.uint64(shards[1].ctypes.data)), (n, 2), np.int64)
    return Shards(addresses, sizes, bare(shards[2]), shards[3], shards[4])


# ---------------------------------------------------------------- where sequences lie


@njit(cache=True, nogil=True)
def owners(starts: Any, index: Any) -> Any:
    """(shard, number in the shard) of each sequence, int64 [n] each; a shard of -1: there is no such sequence."""
    n = len(index)
    owner, local = np.empty(n, np.int64), np.empty(n, np.int64)
    for i in range(n):
        low, high = 0, len(starts) - 1
        if index[i] < 0 or index[i] >= starts[high]:
            owner[i] = -1
            continue
        while high - low > 1:  # the last shard that begins at or before it; empty ones begin where the next does
            middle = (low + high) >> 1
            if starts[middle] <= index[i]:
                low = middle
            else:
                high = middle
        owner[i], local[i] = low, index[i] - starts[low]
    return owner, local


@njit(cache=True, nogil=True)
def lengths_of(shards: Any, owner: Any, local: Any) -> Any:
    """(int64 [n], tokens of each sequence without special ones; the first shard whose index is not sound, or -1)."""
    out, bad = np.empty(len(owner), np.int64), -1
    shards = bare_shards(shards)
    for i in range(len(owner)):
        s, own = owner[i], local[i]
        offsets = i64(shards.addresses[s, OFFSETS], own + 2)
        first, last = offsets[own], offsets[own + 1]
        out[i] = 0
        if first < 0 or last < first or last > shards.sizes[s, 1]:
            bad = s
            continue
        pieces = i64(shards.addresses[s, PIECES], 2 * last)
        for p in range(first, last):
            start, count = pieces[2 * p], pieces[2 * p + 1]
            if start < 0 or count < 0 or count > shards.sizes[s, 0] - start:
                bad = s
            else:
                out[i] += count
    return out, bad


# ---------------------------------------------------------------- reading


@njit(cache=True, nogil=True, inline="always")
def copy_tokens(shards: Any, s: Any, start: Any, count: Any, ids: Any, at: Any) -> None:
    target = ids[at : at + count]  # of its own, so that the loops become vector instructions
    if shards.wide:
        wide = u32(shards.addresses[s, TOKENS] + np.uint64(4 * start), count)
        for j in range(len(target)):
            target[j] = wide[j]
    else:
        narrow = u16(shards.addresses[s, TOKENS] + np.uint64(2 * start), count)
        for j in range(len(target)):
            target[j] = narrow[j]


@njit(cache=True, nogil=True, forceinline=True)
def copy_sequence(shards: Any, s: Any, own: Any, marks: Any, ids: Any, at: Any) -> Any:
    """Write [CLS] tokens [SEP] (of pairs: with a [SEP] between) into ``ids`` from ``at`` on; returns where it ends."""
    offsets = i64(shards.addresses[s, OFFSETS], own + 2)
    pieces = i64(shards.addresses[s, PIECES], 2 * offsets[own + 1])
    ids[at] = marks.cls
    at += 1
    for p in range(offsets[own], offsets[own + 1]):
        if shards.pairs and p > offsets[own]:
            ids[at] = marks.sep
            at += 1
        copy_tokens(shards, s, pieces[2 * p], pieces[2 * p + 1], ids, at)
        at += pieces[2 * p + 1]
    ids[at] = marks.sep
    return at + 1


@njit(cache=True, nogil=True, forceinline=True)
def pair_of(shards: Any, s: Any, own: Any, begin: Any, end: Any, kinds: Any) -> Any:
    """Write the token types of a pair; returns its label."""
    first = u16(shards.addresses[s, FIRSTS], own + 1)[own]
    kinds[begin : begin + first + 2] = 0
    kinds[begin + first + 2 : end] = 1
    return u8(shards.addresses[s, ORDER], own + 1)[own]


@njit(cache=True, nogil=True, forceinline=True)
def unpack(bits: Any, start: Any, out: Any) -> None:
    """The continuation bits of one piece; a word never reaches over the border of two."""
    j, n = 0, len(out)
    while j < n and (start + j) & 7:
        out[j] = (bits[(start + j) >> 3] >> np.uint8((start + j) & 7)) & np.uint8(1)
        j += 1
    eights = bits[(start + j) >> 3 : (start + n) >> 3]
    middle = out[j : j + 8 * len(eights)].reshape((len(eights), 8))
    for b in range(len(eights)):
        for k in range(8):
            middle[b, k] = (eights[b] >> np.uint8(k)) & np.uint8(1)
    for k in range(j + 8 * len(eights), n):
        out[k] = (bits[(start + k) >> 3] >> np.uint8((start + k) & 7)) & np.uint8(1)
    if n > 0:
        out[0] = False


@njit(cache=True, nogil=True)
def gather(
    shards: Any, owner: Any, local: Any, offsets: Any, marks: Any, ids: Any, continues: Any, kinds: Any, order: Any
) -> None:
    """Fill int64 ``ids`` [N] and bool ``continues`` [N]; of pairs also int64 ``kinds`` [N] and ``order`` [n]."""
    shards, marks, ids = bare_shards(shards), Marks(marks[0], marks[1]), bare(ids)
    for i in range(len(owner)):
        s, own, at = owner[i], local[i], offsets[i]
        copy_sequence(shards, s, own, marks, ids, at)
        if shards.pairs:
            order[i] = pair_of(shards, s, own, at, offsets[i + 1], kinds)
        index = i64(shards.addresses[s, OFFSETS], own + 2)
        pieces = i64(shards.addresses[s, PIECES], 2 * index[own + 1])
        bits = u8(shards.addresses[s, BITS], (shards.sizes[s, 0] + 7) >> 3)
        continues[at] = False
        at += 1
        for p in range(index[own], index[own + 1]):
            if shards.pairs and p > index[own]:
                continues[at] = False
                at += 1
            start, count = pieces[2 * p], pieces[2 * p + 1]
            unpack(bits, start, continues[at : at + count])
            at += count
        continues[at] = False


@njit(cache=True, nogil=True)
def gather_stored(
    shards: Any,
    views: Any,
    owner: Any,
    local: Any,
    which: Any,
    offsets: Any,
    masked: Any,
    marks: Any,
    ids: Any,
    positions: Any,
    kinds: Any,
    order: Any,
    rows: Any,
    labels: Any,
) -> Any:
    """Fill a masked batch from stored views; returns the first shard whose view is not sound, or -1.

    ``masked``: int64 [n + 1], where each sequence's rows begin.
    """
    shards, marks, ids = bare_shards(shards), Marks(marks[0], marks[1]), bare(ids)
    for i in range(len(owner)):
        s, own, at = owner[i], local[i], offsets[i]
        copy_sequence(shards, s, own, marks, ids, at)
        count_up(positions, at, offsets[i + 1])
        if shards.pairs:
            order[i] = pair_of(shards, s, own, at, offsets[i + 1], kinds)
        first = np.int64(i64(views[which[i], s, 0], own + 1)[own])
        m, n = masked[i], masked[i + 1] - masked[i]
        places = u16(views[which[i], s, 1] + np.uint64(2 * first), n)
        highest = np.int64(0)
        for k in range(n):
            highest = max(highest, np.int64(places[k]))
            rows[m + k] = at + places[k]
        if at + highest >= offsets[i + 1]:
            return s
        for k in range(n):
            labels[m + k] = ids[rows[m + k]]
        if shards.wide:
            wide = u32(views[which[i], s, 2] + np.uint64(4 * first), n)
            for k in range(n):
                ids[rows[m + k]] = wide[k]
        else:
            narrow = u16(views[which[i], s, 2] + np.uint64(2 * first), n)
            for k in range(n):
                ids[rows[m + k]] = narrow[k]
    return -1


@njit(cache=True, nogil=True, inline="always")
def count_up(positions: Any, begin: Any, end: Any) -> None:
    target = positions[begin:end]
    for t in range(len(target)):
        target[t] = t


@njit(cache=True, nogil=True)
def stored_counts(views: Any, sizes: Any, owner: Any, local: Any, which: Any) -> Any:
    """(int64 [n], stored selected tokens of each sequence; the first shard whose view is not sound, or -1)."""
    out, bad = np.zeros(len(owner), np.int64), -1
    for i in range(len(owner)):
        s, own = owner[i], local[i]
        offsets = i64(views[which[i], s, 0], own + 2)
        if offsets[own] < 0 or offsets[own + 1] < offsets[own] or offsets[own + 1] > sizes[which[i], s]:
            bad = s
        else:
            out[i] = offsets[own + 1] - offsets[own]
    return out, bad


@njit(cache=True, nogil=True)
def stored(
    views: Any, wide: Any, owner: Any, local: Any, which: Any, masked: Any, positions: Any, replaced: Any
) -> None:
    """Fill int64 ``positions`` and ``replaced`` [m] from stored views."""
    for i in range(len(owner)):
        s, own = owner[i], local[i]
        first = np.int64(i64(views[which[i], s, 0], own + 1)[own])
        m, n = masked[i], masked[i + 1] - masked[i]
        places = u16(views[which[i], s, 1] + np.uint64(2 * first), n)
        for k in range(n):
            positions[m + k] = places[k]
        if wide:
            ids32 = u32(views[which[i], s, 2] + np.uint64(4 * first), n)
            for k in range(n):
                replaced[m + k] = ids32[k]
        else:
            ids16 = u16(views[which[i], s, 2] + np.uint64(2 * first), n)
            for k in range(n):
                replaced[m + k] = ids16[k]
