"""Kernels that write batches out of mapped shards (mapped.py): plain ones, and masked ones from stored views.

They write into arrays of the caller's types: tokens in the type of the file, or the one that a training step takes.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic

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
AHEAD, LINE, STRIDE = 4, 64, 32
"""So many sequences before its turn a sequence is fetched; bytes of a cache line; tokens that are copied at once."""


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


def _mover(narrow: int, wide: int) -> Any:
    """Copies ``STRIDE`` unsigned numbers of ``narrow`` bits from one address to another, to ``wide`` bits each."""

    @intrinsic
    def move(typing_context: Any, source: Any, target: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            vectors = [ir.VectorType(ir.IntType(bits), STRIDE) for bits in (narrow, wide)]
            places = [builder.inttoptr(at, ir.PointerType(v)) for at, v in zip(arguments, vectors, strict=True)]
            values = builder.load(places[0], align=narrow // 8)
            builder.store(values if narrow == wide else builder.zext(values, vectors[1]), places[1], align=wide // 8)
            return context.get_dummy_value()

        return types.none(types.uint64, types.uint64), generate

    return move


move16, move32, widen = _mover(16, 16), _mover(32, 32), _mover(16, 32)


@njit(cache=True, nogil=True, inline="always")
def _move(wide: Any, source: Any, size: Any, target: Any) -> None:
    if wide:
        move32(source, target)
    elif size == 2:
        move16(source, target)
    else:
        widen(source, target)


@njit(cache=True, nogil=True, inline="always")
def copy_tokens(shards: Any, s: Any, start: Any, count: Any, ids: Any, at: Any) -> None:
    """Whole vectors, the last one over part of the one before it: what a loop leaves over takes as long as all else."""
    wide, size = shards.wide, np.int64(ids.itemsize)
    step = 4 if wide else 2
    source, target = shards.addresses[s, TOKENS] + np.uint64(step * start), np.uint64(ids.ctypes.data + size * at)
    if count >= STRIDE:
        for j in range(0, count - STRIDE, STRIDE):
            _move(wide, source + np.uint64(step * j), size, target + np.uint64(size * j))
        j = count - STRIDE
        _move(wide, source + np.uint64(step * j), size, target + np.uint64(size * j))
    elif wide:
        for j in range(count):
            ids[at + j] = u32(source, count)[j]
    else:
        for j in range(count):
            ids[at + j] = u16(source, count)[j]


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


@njit(cache=True, nogil=True, inline="always")
def word_from(address: Any, start: Any, size: Any) -> Any:
    """64 bits of a file of ``size`` bytes from bit ``start`` on; those behind its end are 0."""
    first, past = start >> 3, np.uint64(start & 7)
    if first + 16 <= size:
        words = u64(address + np.uint64(first), 2)
        return (words[0] >> past) | (words[1] << (np.uint64(63) - past) << ONE)
    low = bits_from(address, start, size) & np.uint64(0xFFFFFFFF)
    return low | (bits_from(address, start + 32, size) << np.uint64(32) if first + 4 < size else np.uint64(0))


@njit(cache=True, nogil=True, forceinline=True)
def copy_bits(shards: Any, s: Any, start: Any, count: Any, bits: Any, at: Any) -> None:
    """Put the continuation bits of a piece behind the first ``at`` bits of a stream whose other bits are 0.

    ``bits``: the address of the stream, whole words of 64 bits. The first token of a piece continues
    nothing, as a word never reaches over the border of two.
    """
    if count == 0:
        return
    source, size = shards.addresses[s, BITS], (shards.sizes[s, 0] + 7) >> 3
    stream, word, shift = u64(bits, (at + count + 63) >> 6), at >> 6, at & 63
    n = min(64 - shift, count)
    begun = word_from(source, start, size) & (ALL >> np.uint64(64 - n)) & ~ONE
    stream[word] |= begun << np.uint64(shift)
    for j in range(n, count - 63, 64):
        word += 1
        stream[word] = word_from(source, start + j, size)
    rest = (count - n) & 63
    if rest > 0:
        stream[word + 1] = word_from(source, start + count - rest, size) & (ALL >> np.uint64(64 - rest))


@njit(cache=True, nogil=True)
def gather(
    shards: Any, owner: Any, local: Any, offsets: Any, marks: Any, ids: Any, bits: Any, kinds: Any, order: Any
) -> None:
    """Fill ``ids`` [N] and, unless it is empty, ``bits`` uint64 [(N + 63) // 64], which are 0 so far; of pairs
    also ``kinds`` [N] and ``order`` [n]."""
    shards, marks, ids = bare_shards(shards), Marks(marks[0], marks[1]), bare(ids)
    stream, with_bits = np.uint64(bits.ctypes.data), len(bits) > 0
    for i in range(-AHEAD, len(owner)):
        if i + AHEAD < len(owner):
            fetch(shards, owner[i + AHEAD], local[i + AHEAD], with_bits)
        if i < 0:
            continue
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
def exchange(places: Any, replaced: Any, ids: Any, begin: Any, end: Any, rows: Any, labels: Any) -> Any:
    """Put ``replaced`` into the sequence ``ids[begin:end]``, and what stood there into ``labels``; returns whether all
    ``places`` are inside of it."""
    for k in range(len(places)):
        row = begin + places[k]
        if row >= end:
            return False
        rows[k], labels[k] = row, ids[row]
        ids[row] = replaced[k]
    return True


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
    for i in range(-AHEAD, len(owner)):
        if i + AHEAD < len(owner):
            fetch(shards, owner[i + AHEAD], local[i + AHEAD], False)
            fetch_masks(views, shards.wide, which[i + AHEAD], owner[i + AHEAD], local[i + AHEAD])
        if i < 0:
            continue
        s, own, at = owner[i], local[i], offsets[i]
        copy_sequence(shards, s, own, marks, ids, at)
        count_up(positions, at, offsets[i + 1])
        if shards.pairs:
            order[i] = pair_of(shards, s, own, at, offsets[i + 1], kinds)
        first = np.int64(i64(views[which[i], s, 0], own + 1)[own])
        m, n = masked[i], masked[i + 1] - masked[i]
        places = u16(views[which[i], s, 1] + np.uint64(2 * first), n)
        address, own_rows, own_labels = views[which[i], s, 2], rows[m : m + n], labels[m : m + n]
        if shards.wide:
            replaced = u32(address + np.uint64(4 * first), n)
            inside = exchange(places, replaced, ids, at, offsets[i + 1], own_rows, own_labels)
        else:
            narrow = u16(address + np.uint64(2 * first), n)
            inside = exchange(places, narrow, ids, at, offsets[i + 1], own_rows, own_labels)
        if not inside:
            return s
    return -1


@njit(cache=True, nogil=True)
def stored_counts(views: Any, sizes: Any, owner: Any, local: Any, which: Any) -> Any:
    """(int64 [n + 1], where the stored selected tokens of each sequence begin in a batch; the first shard whose view is
    not sound, or -1)."""
    out, bad = np.zeros(len(owner) + 1, np.int64), -1
    for i in range(len(owner)):
        prefetch(views[which[i], owner[i], 0] + np.uint64(8 * local[i]))
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
