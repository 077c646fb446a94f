"""The kernels behind masking.py: what stands where words are taken (mask_words.py), and whole masked batches."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit

from data_prep.hashing import GOLDEN, hashed, mix, unit
from data_prep.mapped import FIRSTS, Marks, bare, bare_shards, copy_sequence, count_up, i64, pair_of, u16
from data_prep.mask_tables import ONE, bare_rule, scratch_of, trailing_zeros
from data_prep.mask_words import draw_keys, find_borders, row_of, select, size_of, start_of, weigh, without_specials

_KIND, _TOKEN, _SIMILAR = (np.uint64(purpose) for purpose in (2, 3, 5))


# ---------------------------------------------------------------- replacement


@njit(cache=True, nogil=True)
def hash_of(ids: Any, begin: Any, count: Any) -> Any:
    """uint64 of a word's token ids."""
    key = mix(np.uint64(count) + GOLDEN)
    for t in range(begin, begin + count):
        key = mix(key ^ (np.uint64(ids[t]) + GOLDEN))
    return key


@njit(cache=True, nogil=True)
def find_word(rule: Any, ids: Any, begin: Any, count: Any) -> Any:
    """The number of a word in the table of similar words, or -1."""
    last = np.uint64(len(rule.slots) - 1)
    slot = hash_of(ids, begin, count) & last
    while rule.slots[slot] >= 0:
        word = rule.slots[slot]
        at = rule.starts[word]
        if rule.starts[word + 1] - at == count:
            same = True
            for k in range(count):
                same &= rule.ids[at + k] == ids[begin + k]
            if same:
                return np.int64(word)
        slot = (slot + ONE) & last
    return np.int64(-1)


@njit(cache=True, nogil=True, forceinline=True)
def _random(rule: Any, base: Any, t: Any) -> Any:
    """Uniform in the vocabulary without the special tokens."""
    drawn = np.int64(hashed(base, _TOKEN, t) % np.uint64(rule.vocab_size - len(rule.specials)))
    for special in rule.specials:  # step over the special ids
        if drawn >= special:
            drawn += 1
    return drawn


@njit(cache=True, nogil=True)
def _similar(rule: Any, base: Any, ids: Any, row: Any, t: Any, size: Any) -> Any:
    """Where the ids of a similar word of as many tokens begin in ``rule.ids``, or -1."""
    if len(rule.slots) == 0:
        return np.int64(-1)
    word = find_word(rule, ids, row, size)
    if word < 0:
        return np.int64(-1)
    choices = 0
    while choices < rule.near.shape[1] and rule.near[word, choices] >= 0:
        choices += 1
    if choices == 0:
        return np.int64(-1)
    return rule.starts[rule.near[word, hashed(base, _SIMILAR, t) % np.uint64(choices)]]


@njit(cache=True, nogil=True, forceinline=True)
def _another(rule: Any, base: Any, ids: Any, row: Any, t: Any, similar: Any, borders: Any) -> Any:
    """What stands instead of token ``t``, at ``row`` of the stream: that of a similar word, or a random one."""
    if similar and len(rule.slots) > 0:
        start = start_of(borders, t)
        twin = _similar(rule, base, ids, row - (t - start), start, size_of(borders, start))
        if twin >= 0:
            return rule.ids[twin + t - start]
    return _random(rule, base, t)


@njit(cache=True, nogil=True, forceinline=True)
def _places(taken: Any, length: Any, places: Any) -> Any:
    """Fill ``places`` with the taken tokens; returns how many."""
    count = 0
    for block in range((length + 63) >> 6):
        bits = taken[block]
        while bits != 0:
            places[count] = (block << 6) + trailing_zeros(bits)
            bits &= bits - ONE
            count += 1
    return count


@njit(cache=True, nogil=True, forceinline=True)
def _emit(rule: Any, base: Any, ids: Any, first: Any, gap: Any, length: Any, scratch: Any, out: Any, m: Any) -> Any:
    """Write rows, labels and new ids of the taken tokens; returns where they end, or -1: no room."""
    count = _places(scratch.taken, length, scratch.places)
    if m + count > len(out[0]):
        return -1
    mask_id, masked, similar, other = rule.mask_id, rule.bounds[0], rule.bounds[1], rule.bounds[2]
    rows, labels, after = out[0][m : m + count], out[1][m : m + count], out[2][m : m + count]
    places, drawn, kinds, changed = scratch.places[:count], scratch.sizes[:count], scratch.scores[:count], scratch.more
    for k in range(count):  # where what becomes of a token is drawn
        drawn[k] = start_of(scratch.borders, places[k]) if rule.by_word else places[k]
    for k in range(len(kinds)):
        kinds[k] = unit(hashed(base, _KIND, drawn[k]))
    for k in range(len(rows)):
        row = row_of(first, gap, places[k])
        label = ids[row]
        rows[k], labels[k] = row, label
        after[k] = mask_id if kinds[k] < masked else label
    changes = 0
    for k in range(count):
        changed[changes] = k
        changes += (kinds[k] >= masked) & (kinds[k] < other)
    for c in range(changes):
        k = changed[c]
        after[k] = _another(rule, base, ids, rows[k], places[k], kinds[k] >= similar, scratch.borders)
    return m + count


# ---------------------------------------------------------------- sequences


@njit(cache=True, nogil=True, forceinline=True)
def _draw_one(
    shards: Any, rule: Any, base: Any, s: Any, own: Any, ids: Any, begin: Any, scratch: Any, out: Any, m: Any
) -> Any:
    """Mask the sequence that stands in ``ids`` from ``begin`` on; returns where its rows end (-1: no room)."""
    if rule.rate == 0:
        return m
    length = find_borders(shards, rule.whole_words, s, own, scratch)
    gap = np.int64(u16(shards.addresses[s, FIRSTS], own + 1)[own]) if shards.pairs else length
    first = begin + 1
    maskable = length - without_specials(shards, rule.specials, s, own, scratch)
    if maskable == 0:
        return m
    draw_keys(base, length, scratch)
    if len(rule.weights) > 0:
        weigh(ids, first, gap, rule.weights, length, scratch)
    budget = min(rule.most, max(1, int(np.floor(rule.rate * maskable + 0.5))))
    select(rule, base, budget, maskable, length, scratch)
    return _emit(rule, base, ids, first, gap, length, scratch, out, m)


@njit(cache=True, nogil=True)
def gather_drawn(
    shards: Any,
    rule: Any,
    seed: Any,
    views: Any,
    numbers: Any,
    owner: Any,
    local: Any,
    offsets: Any,
    marks: Any,
    ids: Any,
    positions: Any,
    kinds: Any,
    order: Any,
    room: Any,
    out: Any,
    masked: Any,
) -> Any:
    """Fill a masked batch, its masks drawn now; returns whether ``out`` was large enough.

    ``positions``, ``kinds`` and ``order`` are left alone if they are empty. ``room``: int64, 8 for each token of the
    longest sequence and two more; ``out``: int64 [3, M], room for rows, labels and new ids; ``masked``: int64 [n + 1],
    becomes where the rows of each sequence begin.
    """
    n, m, most = len(owner), 0, out.shape[1]
    where = np.uint64(out.ctypes.data)
    found = (i64(where, most), i64(where + np.uint64(8 * most), most), i64(where + np.uint64(16 * most), most))
    shards, rule, marks = bare_shards(shards), bare_rule(rule), Marks(marks[0], marks[1])
    ids, scratch = bare(ids), scratch_of(room)
    masked[0] = 0
    for i in range(n):
        s, own, begin, end = owner[i], local[i], offsets[i], offsets[i + 1]
        copy_sequence(shards, s, own, marks, ids, begin)
        if len(positions) > 0:
            count_up(positions, begin, end)
        if len(order) > 0:
            order[i] = pair_of(shards, s, own, begin, end, kinds)
        base = mix(mix(mix(seed + GOLDEN) + np.uint64(views[i]) * GOLDEN + GOLDEN) ^ numbers[i])
        stop = _draw_one(shards, rule, base, s, own, ids, begin, scratch, found, m)
        if stop < 0:
            return False
        for k in range(m, stop):
            ids[found[0][k]] = found[2][k]
        m = stop
        masked[i + 1] = m
    return True
