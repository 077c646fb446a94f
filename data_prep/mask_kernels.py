"""The kernels behind masking.py: what stands where words are taken (mask_words.py), and whole masked batches."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit

from data_prep.gathering import AHEAD, copy_sequence, count_up, fetch, pair_of
from data_prep.hashing import GOLDEN, hashed, mix
from data_prep.mapped import FIRSTS, Marks, bare, bare_shards, u16
from data_prep.mask_tables import bare_rule, rounded, scratch_of, spell_out
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
        slot = (slot + np.uint64(1)) & last
    return np.int64(-1)


@njit(cache=True, nogil=True, forceinline=True)
def _random(rule: Any, base: Any, t: Any) -> Any:
    """Uniform in the vocabulary without the special tokens."""
    drawn = np.int64(hashed(base, _TOKEN, t) % np.uint64(rule.ordinary))
    for run in range(len(rule.specials)):  # step over the special ids
        drawn += rule.specials[run, 1] if drawn >= rule.specials[run, 0] else 0
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
def _emit(
    rule: Any, base: Any, ids: Any, first: Any, gap: Any, length: Any, scratch: Any, out_rows: Any, out_labels: Any
) -> Any:
    """Write rows and labels of the taken tokens, and into ``ids`` what stands there now; returns how many they are, or
    -1: no room."""
    count = 0
    for block in range((length + 63) >> 6):
        count = spell_out(scratch.taken[block], block, 12, scratch.places, count)
    if count > len(out_rows):
        return -1
    mask_id, masked, similar, other = rule.mask_id, rule.bounds[0], rule.bounds[1], rule.bounds[2]
    places, kinds, changed, drawn = scratch.places, scratch.kinds, scratch.more, scratch.places
    if rule.by_word:  # where what becomes of a token is drawn
        drawn = scratch.sizes
        for k in range(count):
            drawn[k] = start_of(scratch.borders, places[k])
    for k in range(rounded(count)):
        kinds[k] = np.int64(hashed(base, _KIND, drawn[k]) >> np.uint64(11))
    changes = 0
    for k in range(count):
        row = row_of(first, gap, places[k])
        label = ids[row]
        out_rows[k], out_labels[k] = row, label
        ids[row] = mask_id if kinds[k] < masked else label
        changed[changes] = k
        changes += (kinds[k] >= masked) & (kinds[k] < other)
    if len(rule.slots) > 0:
        _exchange(rule, base, ids, count, changes, similar, scratch, out_rows, out_labels)
    else:
        for c in range(changes):
            k = changed[c]
            ids[out_rows[k]] = _random(rule, base, places[k])
    return count


@njit(cache=True, nogil=True)
def _exchange(
    rule: Any, base: Any, ids: Any, count: Any, changes: Any, similar: Any, scratch: Any, rows: Any, labels: Any
) -> None:
    """Put other words' tokens into ``ids``. They are looked up by what stood there, also before and after the token."""
    found = scratch.sizes
    for k in range(count):
        found[k] = ids[rows[k]]
        ids[rows[k]] = labels[k]
    for c in range(changes):
        k = scratch.more[c]
        place, among = scratch.places[k], scratch.kinds[k] >= similar
        found[k] = _another(rule, base, ids, rows[k], place, among, scratch.borders)
    for k in range(count):
        ids[rows[k]] = found[k]


# ---------------------------------------------------------------- sequences


@njit(cache=True, nogil=True, inline="always")
def _base(seed: Any, view: Any, number: Any) -> Any:
    """What all draws of a sequence under a view are hashed with."""
    return mix(mix(mix(seed + GOLDEN) + np.uint64(view) * GOLDEN + GOLDEN) ^ number)


@njit(cache=True, nogil=True, forceinline=True)
def _words_of(shards: Any, rule: Any, s: Any, own: Any, scratch: Any) -> Any:
    """Put the words of a sequence into ``scratch``; returns how many tokens it has, before which of them a [SEP] stands
    (of pairs), and how many may be masked."""
    length = find_borders(shards, rule.whole_words, s, own, scratch)
    gap = np.int64(u16(shards.addresses[s, FIRSTS], own + 1)[own]) if shards.pairs else length
    return length, gap, length - without_specials(shards, rule.specials, s, own, scratch)


@njit(cache=True, nogil=True, forceinline=True)
def _draw_one(
    rule: Any,
    base: Any,
    ids: Any,
    first: Any,
    gap: Any,
    length: Any,
    maskable: Any,
    scratch: Any,
    rows: Any,
    labels: Any,
) -> Any:
    """Mask the sequence whose words are in ``scratch`` and whose tokens stand in ``ids`` from ``first`` on; returns
    how many are selected (-1: more than there is room for)."""
    if maskable == 0:
        return 0
    draw_keys(base, length, scratch)
    if len(rule.weights) > 0:
        weigh(ids, first, gap, rule.weights, length, scratch)
    budget = min(rule.most, max(1, int(np.floor(rule.rate * maskable + 0.5))))
    select(rule, base, budget, maskable, length, scratch)
    return _emit(rule, base, ids, first, gap, length, scratch, rows, labels)


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
    rows: Any,
    labels: Any,
    masked: Any,
) -> Any:
    """Fill a masked batch, its masks drawn now; returns whether there was room for all ``rows`` and ``labels``.

    ``positions``, ``kinds`` and ``order`` are left alone if they are empty. ``room``: memory for
    :func:`mask_tables.scratch_of`; ``masked``: int64 [n + 1], becomes where the rows of each sequence begin.
    """
    m = 0
    shards, rule, marks = bare_shards(shards), bare_rule(rule), Marks(marks[0], marks[1])
    ids, rows, labels, scratch = bare(ids), bare(rows), bare(labels), scratch_of(room)
    masked[0] = 0
    for i in range(-AHEAD, len(owner)):
        if i + AHEAD < len(owner):
            fetch(shards, owner[i + AHEAD], local[i + AHEAD], rule.rate > 0)
        if i < 0:
            continue
        s, own, begin, end = owner[i], local[i], offsets[i], offsets[i + 1]
        copy_sequence(shards, s, own, marks, ids, begin)
        if len(positions) > 0:
            count_up(positions, begin, end)
        if len(order) > 0:
            order[i] = pair_of(shards, s, own, begin, end, kinds)
        if rule.rate > 0:
            length, gap, maskable = _words_of(shards, rule, s, own, scratch)
            base = _base(seed, views[i], numbers[i])
            count = _draw_one(rule, base, ids, begin + 1, gap, length, maskable, scratch, rows[m:], labels[m:])
            if count < 0:
                return False
            m += count
        masked[i + 1] = m
    return True


@njit(cache=True, nogil=True)
def draw_views(
    shards: Any,
    rule: Any,
    seed: Any,
    views: Any,
    numbers: Any,
    owner: Any,
    local: Any,
    room: Any,
    ids: Any,
    found: Any,
    positions: Any,
    replaced: Any,
    offsets: Any,
) -> Any:
    """Masks of all sequences under each of V views, one after another, as they are stored; returns whether there was
    room for them.

    What does not depend on the view is done once. ``ids``: room for a sequence and its special tokens; ``found``: int64
    [2, its length], room; ``positions``: uint16 [V, M] and ``replaced`` [V, M], filled; ``offsets``: int64 [V, n + 1].
    """
    shards, rule = bare_shards(shards), bare_rule(rule)
    ids, scratch = bare(ids), scratch_of(room)
    rows, labels = bare(found[0]), bare(found[1])
    for v in range(len(views)):
        offsets[v, 0] = 0
    for i in range(len(owner)):
        s, own = owner[i], local[i]
        copy_sequence(shards, s, own, Marks(0, 0), ids, 0)
        length, gap, maskable = _words_of(shards, rule, s, own, scratch)
        for v in range(len(views)):
            if v > 0:
                scratch.taken[: (length >> 6) + 2] = 0
            base, m = _base(seed, views[v], numbers[i]), offsets[v, i]
            count = _draw_one(rule, base, ids, np.int64(1), gap, length, maskable, scratch, rows, labels)
            if m + count > positions.shape[1]:
                return False
            own_positions, own_ids = positions[v, m : m + count], replaced[v, m : m + count]
            for k in range(count):
                own_positions[k] = rows[k]
                own_ids[k] = ids[rows[k]]
            for k in range(count):
                ids[rows[k]] = labels[k]
            offsets[v, i + 1] = m + count
    return True
