"""The kernels behind masking.py that choose: where words lie, and which of them are taken.

They work on a bit for each token, 64 at a time. Stages are inlined (``forceinline``), as handing over a rule and
the scratch arrays takes longer than a stage does.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit

from data_prep.gathering import word_from
from data_prep.hashing import hashed, unit
from data_prep.mapped import BITS, OFFSETS, PIECES, TOKENS, i64, u16, u32
from data_prep.mask_tables import ALL, ONE, is_set, ones, rounded, spell_out, trailing_zeros, within16, within32

_NEVER = np.int64(1) << 62
_HALF, _END = np.uint64(32), np.int64(1) << 32
"""Keys are told apart by their upper halves, uint32, as long as that is enough: twice as many are compared at once."""
SURE = 2.0
_ORDER, _NGRAM = np.uint64(1), np.uint64(4)


# ---------------------------------------------------------------- words


@njit(cache=True, nogil=True, forceinline=True)
def find_borders(shards: Any, whole_words: Any, s: Any, own: Any, scratch: Any) -> Any:
    """Fill ``borders``, ``free`` and ``firsts`` of a sequence, and clear ``taken``; returns its tokens."""
    borders, firsts = scratch.borders, scratch.firsts
    offsets = i64(shards.addresses[s, OFFSETS], own + 2)
    pieces = i64(shards.addresses[s, PIECES], 2 * offsets[own + 1])
    length = 0
    for p in range(offsets[own], offsets[own + 1]):
        length += pieces[2 * p + 1]
    blocks, size = (length >> 6) + 2, (shards.sizes[s, 0] + 7) >> 3
    borders[:blocks] = 0
    firsts[:blocks] = 0
    scratch.taken[:blocks] = 0
    t = 0
    for p in range(offsets[own], offsets[own + 1]):
        start, count = pieces[2 * p], pieces[2 * p + 1]
        for j in range(0, count, 64):
            found = ALL >> np.uint64(64 - min(64, count - j))
            if whole_words:
                found &= ~word_from(shards.addresses[s, BITS], start + j, size)
            block, shift = (t + j) >> 6, np.uint64((t + j) & 63)
            borders[block] |= found << shift
            borders[block + 1] |= found >> (np.uint64(63) - shift) >> ONE
        if count > 0:  # a word never reaches over the border of two pieces
            borders[t >> 6] |= ONE << np.uint64(t & 63)
            firsts[t >> 6] |= ONE << np.uint64(t & 63)
        t += count
    for block in range(blocks):
        scratch.free[block] = borders[block]
    borders[length >> 6] |= ONE << np.uint64(length & 63)
    return length


@njit(cache=True, nogil=True, inline="always")
def size_of(borders: Any, t: Any) -> Any:
    """Tokens of the word that begins at ``t``."""
    block = (t + 1) >> 6
    bits = borders[block] >> np.uint64((t + 1) & 63)
    if bits != 0:
        return trailing_zeros(bits) + 1
    block += 1
    while borders[block] == 0:
        block += 1
    return (block << 6) + trailing_zeros(borders[block]) - t


@njit(cache=True, nogil=True, inline="always")
def start_of(borders: Any, t: Any) -> Any:
    """Where the word of token ``t`` begins."""
    while not is_set(borders, t):
        t -= 1
    return t


@njit(cache=True, nogil=True, inline="always")
def row_of(first: Any, gap: Any, t: Any) -> Any:
    """Where token ``t`` of the sequence stands in the stream."""
    return first + t + (t >= gap)


@njit(cache=True, nogil=True, forceinline=True)
def _hits(specials: Any, wide: Any, address: Any, begin: Any, count: Any) -> Any:
    """The special ones among 64 tokens from ``begin`` on of a piece of ``count`` tokens at an address, a bit each."""
    n, hits = min(64, count - begin), np.uint64(0)
    shift = np.uint64(64 - n)
    for k in range(len(specials)):
        low, span = np.uint64(specials[k, 0]), np.uint64(specials[k, 1] - 1)
        if count < 64:
            for j in range(begin, count):
                token = np.uint64(u32(address, count)[j]) if wide else np.uint64(u16(address, count)[j])
                hits |= np.uint64(token - low <= span) << np.uint64(j - begin)
        elif wide:  # of the last tokens, those before them as well: nothing behind a file is read
            hits |= within32(address + np.uint64(4 * (begin + n - 64)), low, span) >> shift
        else:
            hits |= within16(address + np.uint64(2 * (begin + n - 64)), low, span) >> shift
    return hits


@njit(cache=True, nogil=True, forceinline=True)
def without_specials(shards: Any, specials: Any, s: Any, own: Any, scratch: Any) -> Any:
    """Free no word that holds a special token; returns the tokens of those words."""
    offsets = i64(shards.addresses[s, OFFSETS], own + 2)
    pieces = i64(shards.addresses[s, PIECES], 2 * offsets[own + 1])
    t, torn, size = 0, 0, 4 if shards.wide else 2
    for p in range(offsets[own], offsets[own + 1]):
        address, count = shards.addresses[s, TOKENS] + np.uint64(size * pieces[2 * p]), pieces[2 * p + 1]
        last = np.int64(-1)
        for begin in range(0, count, 64):
            hits = _hits(specials, shards.wide, address, begin, count)
            while hits != 0:
                place = t + begin + trailing_zeros(hits)
                hits &= hits - ONE
                word = place
                while word > last and not is_set(scratch.borders, word):
                    word -= 1
                if word > last:  # else the special token before it stands in the same word
                    scratch.free[word >> 6] &= ~(ONE << np.uint64(word & 63))
                    torn += size_of(scratch.borders, word)
                last = place
        t += count
    return torn


# ---------------------------------------------------------------- selection


@njit(cache=True, nogil=True, forceinline=True)
def draw_keys(base: Any, length: Any, scratch: Any) -> None:
    """A key for each token, of which words use their first one's: all of them at once are vector instructions."""
    keys, tops = scratch.keys, scratch.tops
    for t in range(rounded(length)):
        key = hashed(base, _ORDER, t)
        keys[t] = key
        tops[t] = np.uint32(key >> _HALF)


@njit(cache=True, nogil=True)
def weigh(ids: Any, first: Any, gap: Any, weights: Any, length: Any, scratch: Any) -> None:
    """Turn the keys into the bits of -log(u) / weight, u in (0, 1): positive floats ascend as their bits do."""
    scores = scratch.scores[:length]
    for t in range(length):
        u = unit(scratch.keys[t]) + 0.5 / 9007199254740992.0
        scores[t] = -np.log(u) / weights[ids[row_of(first, gap, t)]]
    scratch.keys[:length] = scores.view(np.uint64)
    for t in range(length):
        scratch.tops[t] = np.uint32(scratch.keys[t] >> _HALF)


@njit(cache=True, nogil=True, forceinline=True)
def _between(low: Any, high: Any, block: Any, scratch: Any) -> Any:
    """The free words of a block of 64 tokens with low <= upper half of the key < high, a bit each; low < high."""
    tops = np.uint64(scratch.tops.ctypes.data) + np.uint64(block << 8)
    return within32(tops, np.uint64(low), np.uint64(high - low - 1)) & scratch.free[block]


@njit(cache=True, nogil=True, forceinline=True)
def _candidates(low: Any, high: Any, most: Any, length: Any, scratch: Any) -> Any:
    """Put the free words with low <= key < high (upper halves) and at most ``most`` tokens into ``places`` and
    ``sizes``; returns how many they are."""
    places, sizes, found, count = scratch.places, scratch.sizes, 0, 0
    for block in range((length + 63) >> 6):
        found = spell_out(_between(low, high, block, scratch) & ~scratch.taken[block], block, 4, places, found)
    for k in range(found):
        t = places[k]
        places[count], sizes[count] = t, size_of(scratch.borders, t)
        count += sizes[count] <= most
    return count


@njit(cache=True, nogil=True, inline="always")
def _take(taken: Any, t: Any, size: Any) -> None:
    while size > 0:
        n = min(size, 64 - (t & 63))
        taken[t >> 6] |= (ALL >> np.uint64(64 - n)) << np.uint64(t & 63)
        t += n
        size -= n


@njit(cache=True, nogil=True, inline="always")
def _take_if(wanted: Any, taken: Any, t: Any, size: Any) -> None:
    """Take a word, or not, without a branch that a processor would have to guess."""
    if size > 64:
        _take(taken, t, size if wanted else 0)
    else:
        bits = (ALL >> np.uint64(64 - size)) * np.uint64(wanted)
        taken[t >> 6] |= bits << np.uint64(t & 63)
        taken[(t >> 6) + 1] |= bits >> np.uint64(63 - (t & 63)) >> ONE


@njit(cache=True, nogil=True, forceinline=True)
def _take_below(low: Any, high: Any, left: Any, length: Any, scratch: Any) -> Any:
    """Take the free words with low <= key < high (upper halves), if they all fit together; returns their tokens.

    Added to the continuation bits, the bit behind the first token of a word runs through the word as a carry.
    """
    blocks, tokens = (length + 63) >> 6, 0
    new, carry, behind = scratch.more, np.uint64(0), np.uint64(0)
    for block in range(blocks):
        first, inner = _between(low, high, block, scratch), ~scratch.borders[block]
        second = (first << ONE) | behind
        half = inner + second
        summed = half + carry
        carry = np.uint64((half < inner) | (summed < half))
        behind = first >> np.uint64(63)
        words = first | ((summed ^ inner) & inner)
        new[block] = np.int64(words)
        tokens += ones(words)
    if tokens <= left:
        for block in range(blocks):
            scratch.taken[block] |= np.uint64(new[block])
    return tokens


@njit(cache=True, nogil=True, forceinline=True)
def _take_ranked(count: Any, left: Any, scratch: Any) -> Any:
    """Visit ``count`` candidates, smallest key first, and take those that fit; returns what is left of the budget.

    Each adds up what comes before it, so that all before the first that does not fit are taken at once. The others
    follow one by one: the budget is nearly full then.
    """
    places, sizes, before, keys, turns = scratch.places, scratch.sizes, scratch.kinds, scratch.some, rounded(count)
    for k in range(count):
        keys[k] = scratch.keys[places[k]]
    for k in range(count, turns):
        keys[k] = ALL  # before nothing
    total, stop = np.int64(0), _NEVER
    for k in range(count):
        own, ahead = keys[k], np.int64(0)
        for j in range(turns):
            ahead += sizes[j] if keys[j] < own else 0
        before[k] = ahead
        total += sizes[k]
        stop = min(stop, ahead if ahead + sizes[k] > left else _NEVER)
    for k in range(count):
        _take_if(before[k] < stop, scratch.taken, places[k], sizes[k])
    left -= min(stop, total)
    while left > 0 and stop < total:
        best, place = _NEVER, 0
        for k in range(count):
            if (before[k] > stop) & (sizes[k] <= left) & (before[k] < best):
                best, place = before[k], k
        if best == _NEVER:
            break
        _take(scratch.taken, places[place], sizes[place])
        stop, left = best, left - sizes[place]
    return left


@njit(cache=True, nogil=True, forceinline=True)
def _sift(keys: Any, heap: Any, place: Any, count: Any) -> None:
    """Let the place ``heap[place]`` sink until no key below it is smaller."""
    t = heap[place]
    while 2 * place + 1 < count:
        child = 2 * place + 1
        child += child + 1 < count and keys[heap[child + 1]] < keys[heap[child]]
        if keys[t] <= keys[heap[child]]:
            break
        heap[place] = heap[child]
        place = child
    heap[place] = t


@njit(cache=True, nogil=True, forceinline=True)
def _take_in_order(rule: Any, base: Any, count: Any, left: Any, scratch: Any) -> Any:
    """Visit candidates, smallest key first, and take those that fit; returns what is left of the budget."""
    heap, taken = scratch.places, scratch.taken
    for place in range((count >> 1) - 1, -1, -1):
        _sift(scratch.keys, heap, place, count)
    while count > 0 and left > 0:
        t = heap[0]
        count -= 1
        heap[0] = heap[count]
        _sift(scratch.keys, heap, 0, count)
        size = size_of(scratch.borders, t)
        if size <= left and not is_set(taken, t):
            _take(taken, t, size)
            left -= size
            if len(rule.ngrams) > 0:
                left = _take_after(t, size, left, rule, base, scratch)
    return left


@njit(cache=True, nogil=True)
def _take_after(t: Any, size: Any, left: Any, rule: Any, base: Any, scratch: Any) -> Any:
    """After the word at ``t`` take as many as its n-gram has, are there and fit; returns what is left."""
    drawn, n = unit(hashed(base, _NGRAM, t)), 0
    while n < len(rule.ngrams) - 1 and drawn >= rule.ngrams[n]:
        n += 1
        t += size
        if not is_set(scratch.free, t) or is_set(scratch.firsts, t) or is_set(scratch.taken, t):
            break
        size = size_of(scratch.borders, t)
        if size > left:
            break
        _take(scratch.taken, t, size)
        left -= size
    return left


@njit(cache=True, nogil=True, forceinline=True)
def select(rule: Any, base: Any, budget: Any, maskable: Any, length: Any, scratch: Any) -> None:
    """Mark the tokens that are taken. Only words with the smallest keys are looked at, as they mostly fill it."""
    low, top, left = np.int64(0), _END, budget
    uniform, step = len(rule.weights) == 0, float(_END) / maskable  # such a range of upper halves has one token
    while uniform and len(rule.ngrams) == 0 and left > 12:  # as many as surely fit, in whatever order
        top = low + np.int64((left - SURE * np.sqrt(left)) * step) + 1
        tokens = _take_below(low, top, left, length, scratch) if top < _END else left + 1
        if tokens > left:
            break
        low, left = top, left - tokens
    if uniform:
        top = min(_END, low + 1 + np.int64((left + 3 * np.sqrt(left) + 4) * step))
        if len(rule.ngrams) == 0:
            left = _take_ranked(_candidates(low, top, left, length, scratch), left, scratch)
            low, top = top, _END
    while left > 0 and low < top:
        left = _take_in_order(rule, base, _candidates(low, top, left, length, scratch), left, scratch)
        low, top = top, _END
    words = 0
    for block in range((length + 63) >> 6 if left == budget else 0):
        words += ones(scratch.free[block])
    if words > 1:
        count, best = _candidates(np.int64(0), _END, rule.most, length, scratch), 0
        for k in range(1, count):
            shorter = scratch.sizes[k] - scratch.sizes[best]
            if shorter < 0 or (shorter == 0 and scratch.keys[scratch.places[k]] < scratch.keys[scratch.places[best]]):
                best = k
        if count > 0:
            _take(scratch.taken, scratch.places[best], scratch.sizes[best])
