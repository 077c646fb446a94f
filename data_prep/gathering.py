"""Kernels that write batches out of mapped shards (mapped.py): plain ones, and masked ones from stored views.

They write into arrays of the caller's types: tokens in the type of the file, or the one that a training step takes.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit

from data_prep.mapped import (
    BITS,
    FIRSTS,
    OFFSETS,
    ORDER,
    PIECES,
    TOKENS,
    Marks,
    bare,
    bare_shards,
    i64,
    prefetch,
    u8,
    u16,
    u32,
    u64,
)

ONE, ALL = np.uint64(1), np.uint64(0xFFFFFFFFFFFFFFFF)
AHEAD, LINE = 4, 64
"""So many sequences before its turn a sequence is fetched; bytes of a cache line."""


# ---------------------------------------------------------------- sequences


@njit(cache=True, nogil=True, inline="always")
def fetch(shards: Any, s: Any, own: Any, with_bits: Any) -> None:
    """Begin to fetch the tokens of a sequence, and its continuation bits.

    Sequences of a batch lie anywhere in memory, so that each is a wait otherwise.
    """
    index, size = i64(shards.addresses[s, OFFSETS], own + 2), 4 if shards.wide else 2
    pieces = i64(shards.addresses[s, PIECES], 2 * index[own + 1])
    for p in range(index[own], index[own + 1]):
        start, end = pieces[2 * p], pieces[2 * p] + pieces[2 * p + 1]
        for byte in range(size * start, size * end, LINE):
            prefetch(shards.addresses[s, TOKENS] + np.uint64(byte))
        for byte in range(start >> 3, (end >> 3) + 1 if with_bits else 0, LINE):
            prefetch(shards.addresses[s, BITS] + np.uint64(byte))


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


@njit(cache=True, nogil=True, inline="always")
def bits_from(address: Any, start: Any, size: Any) -> Any:
    """57 bits or more of a file of ``size`` bytes from bit ``start`` on, as the lowest ones of a uint64."""
    first = start >> 3
    if first + 8 <= size:
        found = u64(address + np.uint64(first), 1)[0]
    else:
        found, content = np.uint64(0), u8(address, size)
        for b in range(first, size):
            found |= np.uint64(content[b]) << np.uint64(8 * (b - first))
    return found >> np.uint64(start & 7)


@njit(cache=True, nogil=True, forceinline=True)
def copy_bits(shards: Any, s: Any, start: Any, count: Any, bits: Any, at: Any) -> None:
    """Put the continuation bits of a piece behind the first ``at`` bits of a stream whose other bits are 0.

    ``bits``: the address of the stream, whole words of 64 bits. The first token of a piece continues
    nothing, as a word never reaches over the border of two.
    """
    source, size = shards.addresses[s, BITS], (shards.sizes[s, 0] + 7) >> 3
    stream, j = u64(bits, (at + count + 63) >> 6), 0
    while j < count:  # a word of the stream at a time
        shift = (at + j) & 63
        n = min(64 - shift, count - j)
        low = bits_from(source, start + j, size) & np.uint64(0xFFFFFFFF)
        found = low | (bits_from(source, start + j + 32, size) << np.uint64(32))
        found &= ALL >> np.uint64(64 - n)
        if j == 0:
            found &= ~ONE
        stream[(at + j) >> 6] |= found << np.uint64(shift)
        j += n


@njit(cache=True, nogil=True)
def gather(
    shards: Any, owner: Any, local: Any, offsets: Any, marks: Any, ids: Any, bits: Any, kinds: Any, order: Any
) -> None:
    """Fill ``ids`` [N] and, unless it is empty, ``bits`` uint64 [(N + 63) // 64], which are 0 so far; of pairs
    also ``kinds`` [N] and ``order`` [n]."""
    shards, marks, ids = bare_shards(shards), Marks(marks[0], marks[1]), bare(ids)
    stream, with_bits = np.uint64(bits.ctypes.data), len(bits) > 0
    for i in range(len(owner)):
        if i + AHEAD < len(owner):
            fetch(shards, owner[i + AHEAD], local[i + AHEAD], with_bits)
        s, own, at = owner[i], local[i], offsets[i]
        copy_sequence(shards, s, own, marks, ids, at)
        if shards.pairs:
            order[i] = pair_of(shards, s, own, at, offsets[i + 1], kinds)
        if with_bits:
            index = i64(shards.addresses[s, OFFSETS], own + 2)
            pieces = i64(shards.addresses[s, PIECES], 2 * index[own + 1])
            for p in range(index[own], index[own + 1]):
                at += 1 if shards.pairs or p == index[own] else 0
                copy_bits(shards, s, pieces[2 * p], pieces[2 * p + 1], stream, at)
                at += pieces[2 * p + 1]


# ---------------------------------------------------------------- stored masks


@njit(cache=True, nogil=True, inline="always")
def count_up(positions: Any, begin: Any, end: Any) -> None:
    target = positions[begin:end]
    for t in range(len(target)):
        target[t] = t


@njit(cache=True, nogil=True, inline="always")
def put(source: Any, rows: Any, ids: Any) -> None:
    """``ids[rows] = source``"""
    for k in range(len(rows)):
        ids[rows[k]] = source[k]


@njit(cache=True, nogil=True, inline="always")
def fetch_masks(views: Any, wide: Any, view: Any, s: Any, own: Any) -> None:
    """Begin to fetch the masks of a sequence."""
    index = i64(views[view, s, 0], own + 2)
    for column, size in ((1, 2), (2, 4 if wide else 2)):
        for byte in range(size * index[own], size * index[own + 1], LINE):
            prefetch(views[view, s, column] + np.uint64(byte))


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
        if i + AHEAD < len(owner):
            fetch(shards, owner[i + AHEAD], local[i + AHEAD], False)
            fetch_masks(views, shards.wide, which[i + AHEAD], owner[i + AHEAD], local[i + AHEAD])
        s, own, at = owner[i], local[i], offsets[i]
        copy_sequence(shards, s, own, marks, ids, at)
        count_up(positions, at, offsets[i + 1])
        if shards.pairs:
            order[i] = pair_of(shards, s, own, at, offsets[i + 1], kinds)
        first = np.int64(i64(views[which[i], s, 0], own + 1)[own])
        m, n = masked[i], masked[i + 1] - masked[i]
        places = u16(views[which[i], s, 1] + np.uint64(2 * first), n)
        highest, own_rows, own_labels = np.int64(0), rows[m : m + n], labels[m : m + n]
        for k in range(n):
            highest = max(highest, np.int64(places[k]))
            own_rows[k] = at + places[k]
        if at + highest >= offsets[i + 1]:
            return s
        for k in range(n):
            own_labels[k] = ids[own_rows[k]]
        if shards.wide:
            put(u32(views[which[i], s, 2] + np.uint64(4 * first), n), own_rows, ids)
        else:
            put(u16(views[which[i], s, 2] + np.uint64(2 * first), n), own_rows, ids)
    return -1


@njit(cache=True, nogil=True)
def stored_counts(views: Any, sizes: Any, owner: Any, local: Any, which: Any) -> Any:
    """(int64 [n + 1], where the stored selected tokens of each sequence begin in a batch; the first shard whose view is
    not sound, or -1)."""
    out, bad = np.zeros(len(owner) + 1, np.int64), -1
    for i in range(len(owner)):
        s, own = owner[i], local[i]
        offsets = i64(views[which[i], s, 0], own + 2)
        out[i + 1] = out[i]
        if offsets[own] < 0 or offsets[own + 1] < offsets[own] or offsets[own + 1] > sizes[which[i], s]:
            bad = s
        else:
            out[i + 1] += offsets[own + 1] - offsets[own]
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
