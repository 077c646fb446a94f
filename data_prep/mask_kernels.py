"""The kernels behind masking.py: which words of a sequence are taken, and what stands there afterwards."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit

from data_prep.hashing import GOLDEN, hashed, mix, unit
from data_prep.mapped import (
    BITS,
    FIRSTS,
    OFFSETS,
    PIECES,
    Marks,
    bare,
    bare_shards,
    copy_sequence,
    count_up,
    i64,
    pair_of,
    u8,
    u16,
    u64,
)
from data_prep.mask_tables import ONE, bare_rule, is_set, scratch_of, trailing_zeros

_ORDER, _KIND, _TOKEN, _NGRAM, _SIMILAR = (np.uint64(purpose) for purpose in range(1, 6))


# ---------------------------------------------------------------- words


@njit(cache=True, nogil=True)
def _words(shards: Any, whole_words: Any, s: Any, own: Any, scratch: Any) -> Any:
    """Fill starts, sizes and follows; returns (words, tokens)."""
    starts, follows = scratch.starts, scratch.follows
    offsets = i64(shards.addresses[s, OFFSETS], own + 2)
    pieces = i64(shards.addresses[s, PIECES], 2 * offsets[own + 1])
    words, t = 0, 0
    for p in range(offsets[own], offsets[own + 1]):
        start, count, first = pieces[2 * p], pieces[2 * p + 1], words
        if whole_words:
            for j in range(0, count, 56):
                borders = ~_bits(shards.addresses[s, BITS], start + j, min(56, count - j))
                if j == 0:
                    borders |= ONE  # a word never reaches over the border of two pieces
                borders &= (ONE << np.uint64(min(56, count - j))) - ONE
                while borders != 0:
                    starts[words] = t + j + trailing_zeros(borders)
                    borders &= borders - ONE
                    words += 1
        else:
            for j in range(count):
                starts[words + j] = t + j
            words += count
        follows[first:words] = 1
        if words > first:
            follows[first] = 0
        t += count
    ends, sizes = starts[1 : words + 1], scratch.sizes[:words]
    starts[words] = t
    for w in range(words):
        sizes[w] = ends[w] - starts[w]
    return words, t


@njit(cache=True, nogil=True, inline="always")
def _bits(address: Any, start: Any, count: Any) -> Any:
    """Up to 56 bits of a file from bit ``start`` on, as the lowest ones of a uint64; no byte behind them is read."""
    size = ((start + count - 1) >> 3) - (start >> 3) + 1
    content = u8(address + np.uint64(start >> 3), size)
    found = np.uint64(0)
    if size == 8:
        found = u64(address + np.uint64(start >> 3), 1)[0]
    else:
        for b in range(size):
            found |= np.uint64(content[b]) << np.uint64(8 * b)
    return found >> np.uint64(start & 7)


@njit(cache=True, nogil=True, inline="always")
def _row(first: Any, gap: Any, t: Any) -> Any:
    """Where token ``t`` of the sequence stands in the stream."""
    return first + t + (t >= gap)


@njit(cache=True, nogil=True)
def _flag(ids: Any, specials: Any, flags: Any) -> Any:
    """Set ``flags`` to 1 at special tokens, else 0; returns how many there are."""
    flags[:] = 0
    for k in range(len(specials)):
        special = specials[k]
        for t in range(len(flags)):
            flags[t] |= np.int64(ids[t] == special)
    return flags.sum()


@njit(cache=True, nogil=True)
def _without_specials(flags: Any, words: Any, scratch: Any) -> Any:
    """Leave out the words that hold a special token; returns how many are left."""
    left, torn = 0, False
    for w in range(words):
        start, size = scratch.starts[w], scratch.sizes[w]
        hit = flags[start]
        for k in range(1, size):
            hit |= flags[start + k]
        scratch.starts[left], scratch.sizes[left] = start, size
        scratch.follows[left] = 0 if torn else scratch.follows[w]
        torn = hit != 0
        left += 0 if torn else 1
    return left


# ---------------------------------------------------------------- selection


@njit(cache=True, nogil=True)
def _weigh(ids: Any, first: Any, gap: Any, weights: Any, words: Any, scratch: Any) -> None:
    """Turn the keys into the bits of -log(u) / weight, u in (0, 1): positive floats ascend as their bits do."""
    scores = np.empty(words, np.float64)
    for w in range(words):
        u = unit(scratch.keys[w]) + 0.5 / 9007199254740992.0
        scores[w] = -np.log(u) / weights[ids[_row(first, gap, scratch.starts[w])]]
    scratch.keys[:words] = scores.view(np.uint64)


@njit(cache=True, nogil=True)
def _sorted_below(top: Any, words: Any, scratch: Any) -> Any:
    """Put the words whose key is below ``top`` (0: all) into ``order``, by key; returns how many they are.

    Keys are uniform, so that buckets as many as words are nearly a sort.
    """
    keys, order, heads = scratch.keys, scratch.order, scratch.heads
    if top == 0:
        order[:words] = np.argsort(keys[:words])
        return words
    count = 0
    for w in range(words):
        order[count] = w
        count += keys[w] < top
    scale = count / float(top)
    heads[: count + 1] = 0
    for k in range(count):
        heads[np.int64(float(keys[order[k]]) * scale)] += 1
    before = 0
    for b in range(count + 1):
        heads[b], before = before, before + heads[b]
    unsorted = scratch.sorting[:count]
    for k in range(count):
        unsorted[k] = order[k]
    for k in range(count):
        bucket = np.int64(float(keys[unsorted[k]]) * scale)
        order[heads[bucket]] = unsorted[k]
        heads[bucket] += 1
    for k in range(1, count):
        w, j = order[k], k
        while j > 0 and keys[order[j - 1]] > keys[w]:
            order[j] = order[j - 1]
            j -= 1
        order[j] = w
    return count


@njit(cache=True, nogil=True)
def _take_after(w: Any, left: Any, rule: Any, base: Any, words: Any, scratch: Any) -> Any:
    """After word ``w`` take as many as its n-gram has, are there and fit; returns what is left."""
    taken, sizes = scratch.taken, scratch.sizes
    drawn, n = unit(hashed(base, _NGRAM, scratch.starts[w])), 0
    while n < len(rule.ngrams) - 1 and drawn >= rule.ngrams[n]:
        n += 1
        w += 1
        if w >= words or scratch.follows[w] == 0 or is_set(taken, w) or sizes[w] > left:
            break
        taken[w >> 6] |= ONE << np.uint64(w & 63)
        left -= sizes[w]
    return left


@njit(cache=True, nogil=True)
def _select(rule: Any, base: Any, budget: Any, maskable: Any, words: Any, scratch: Any) -> None:
    """Mark the words that are taken. Only the smallest keys are sorted, as the budget is filled with them mostly."""
    keys, sizes, taken = scratch.keys, scratch.sizes, scratch.taken
    taken[: (words >> 6) + 1] = 0
    several = len(rule.ngrams) > 0
    top = np.uint64(0)
    if len(rule.weights) == 0:
        needed = budget * words / maskable
        share = (needed + 2 * np.sqrt(needed) + 2) / words
        if share < 0.9:
            top = np.uint64(share * 18446744073709551616.0)
        else:
            top = np.uint64(0xFFFFFFFFFFFFFFFF)
    left = budget
    for k in range(_sorted_below(top, words, scratch)):
        w = scratch.order[k]
        if sizes[w] <= left and not is_set(taken, w):
            taken[w >> 6] |= ONE << np.uint64(w & 63)
            left -= sizes[w]
            if several:
                left = _take_after(w, left, rule, base, words, scratch)
            if left == 0:
                return
    while top != 0:  # on through the words with larger keys: those that fit, smallest key first
        best = -1
        for w in range(words):
            if keys[w] >= top and sizes[w] <= left and not is_set(taken, w) and (best < 0 or keys[w] < keys[best]):
                best = w
        if best < 0:
            break
        taken[best >> 6] |= ONE << np.uint64(best & 63)
        left = _take_after(best, left - sizes[best], rule, base, words, scratch) if several else left - sizes[best]
        if left == 0:
            return
    if left == budget and words > 1:
        best = 0
        for w in range(1, words):
            if sizes[w] < sizes[best] or (sizes[w] == sizes[best] and keys[w] < keys[best]):
                best = w
        if sizes[best] <= rule.most:
            taken[best >> 6] |= ONE << np.uint64(best & 63)


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


@njit(cache=True, nogil=True)
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


@njit(cache=True, nogil=True)
def _another(rule: Any, base: Any, ids: Any, row: Any, t: Any, size: Any, k: Any, similar: Any) -> Any:
    """What stands instead of the k-th token of a word that is not to become [MASK]s: a similar word's, or a random
    one."""
    if similar:
        twin = _similar(rule, base, ids, row, t, size)
        if twin >= 0:
            return rule.ids[twin + k]
    return _random(rule, base, t + k)


@njit(cache=True, nogil=True)
def _emit(rule: Any, base: Any, ids: Any, first: Any, gap: Any, words: Any, scratch: Any, out: Any, m: Any) -> Any:
    """Write rows, labels and new ids of the words that are taken; returns where they end, or -1: no room."""
    rows, labels, after = out
    by_word, mask_id = rule.by_word, rule.mask_id
    masked, other, similar = rule.bounds[0], rule.bounds[2], rule.bounds[1]
    for block in range((words >> 6) + 1):
        bits = scratch.taken[block]
        while bits != 0:
            w = (block << 6) + trailing_zeros(bits)
            bits &= bits - ONE
            t, size = scratch.starts[w], scratch.sizes[w]
            row = _row(first, gap, t)
            if m + size > len(rows):
                return -1
            kind = unit(hashed(base, _KIND, t))
            for k in range(size):
                if k > 0 and not by_word:
                    kind = unit(hashed(base, _KIND, t + k))
                label = ids[row + k]
                rows[m], labels[m], after[m] = row + k, label, label
                if kind < masked:
                    after[m] = mask_id
                elif kind < other:
                    after[m] = _another(rule, base, ids, row, t, size, k, kind >= similar)
                m += 1
    return m


# ---------------------------------------------------------------- sequences


@njit(cache=True, nogil=True)
def _draw_one(
    shards: Any, rule: Any, base: Any, s: Any, own: Any, ids: Any, begin: Any, scratch: Any, out: Any, m: Any
) -> Any:
    """Mask the sequence that stands in ``ids`` from ``begin`` on; returns where its rows end (-1: no room)."""
    if rule.rate == 0:
        return m
    words, length = _words(shards, rule.whole_words, s, own, scratch)
    gap = np.int64(u16(shards.addresses[s, FIRSTS], own + 1)[own]) if shards.pairs else length
    first, maskable = begin + 1, length
    flags = scratch.sorting
    special = _flag(ids[first : first + gap], rule.specials, flags[:gap])
    special += _flag(ids[first + gap + 1 : first + length + 1], rule.specials, flags[gap:length])
    if special > 0:
        words = _without_specials(flags, words, scratch)
        maskable = scratch.sizes[:words].sum()
    if words == 0:
        return m
    keys, starts = scratch.keys[:words], scratch.starts[:words]
    for w in range(len(keys)):
        keys[w] = hashed(base, _ORDER, starts[w])
    if len(rule.weights) > 0:
        _weigh(ids, first, gap, rule.weights, words, scratch)
    budget = min(rule.most, max(1, int(np.floor(rule.rate * maskable + 0.5))))
    _select(rule, base, budget, maskable, words, scratch)
    return _emit(rule, base, ids, first, gap, words, scratch, out, m)


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
