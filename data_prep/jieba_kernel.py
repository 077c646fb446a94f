"""Where words start, exactly as ``jieba.cut`` says (jieba 0.42), over streams of code points.

A run of jieba's alphabet is cut along the route of highest probability through the words of the dictionary; single
characters that are left standing side by side are cut by the hidden Markov model (ideographs) or a regular expression
(ASCII). Everything outside of runs is a word of its own, CR LF is one.

The work goes through chunks of some thousand characters, in stages that are loops without branches where they meet each
character, so that neither a mispredicted branch nor a missed cache line makes the next character wait:

1. ids of characters; a filter that fits the cache of a core finds the pairs of characters that may begin a word;
2. those are looked up in a small table of frequent ones, what is left in the large one;
3. where a third character may follow, a second filter, then the words of three and more characters are listed;
4. the route, from right to left, in jieba's rounding and its ties (the longer word wins);
5. the words are walked through, and what was left standing is cut again.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numba import njit

from data_prep.jieba_tables import (
    ASCII,
    FIRST_HAN,
    FORCED,
    HAN,
    HASH,
    LONG_KEY,
    LONG_NEXT,
    N_HAN,
    N_LONG_NEXT,
    N_PAIR_NEXT,
    PAIR_KEY,
    PAIR_NEXT,
    PAIR_WEIGHT,
    UNLISTED,
    Tables,
)

CHUNK = 4096
"""Characters that are worked on together; the result does not depend on it."""
LONGEST_RUN = 1 << 20
"""A run of the alphabet that is longer (no text is) is cut there, so that memory is bounded."""

U = np.uint64
_u32 = np.uint32
"""Indices are unsigned: negative ones would be checked for."""
_0, _1, _2 = U(0), U(1), U(2)
_NEVER = -np.inf
_PAIR_MASK, _LONG_MASK = U((1 << PAIR_KEY) - 1), U((1 << LONG_KEY) - 1)
_WEIGHT_MASK = U((1 << (PAIR_NEXT - PAIR_WEIGHT)) - 1)
_LOW = U(sum(1 << ord(c) for c in ASCII if ord(c) < 64))
_HIGH = U(sum(1 << (ord(c) - 64) for c in ASCII if ord(c) >= 64))


class Scratch(NamedTuple):
    """Arrays of a chunk's length and a little more; words of three and more characters are listed in the last two."""

    ids: Any
    """uint16, with zeros at the end."""
    one: Any
    """float64: weight of the character as a word."""
    two: Any
    """float64: weight of the pair that begins here, -inf if it is no word."""
    route: Any
    """float64: the best route's weight from here to the end of the run."""
    size: Any
    """int32: its first word's characters."""
    first: Any
    """uint32: 1 + place of the first longer word that begins here in ``long_size``, 0 if there is none."""
    found: Any
    again: Any
    """uint32: lists of positions."""
    back: Any
    """uint8: for each state of the model the one before it."""
    long_size: Any
    """int32: lengths of longer words, ascending, 0 after the last one that begins at a position."""
    long_weight: Any
    """float64."""


@njit(nogil=True, cache=True)
def _scratch(n: Any) -> Any:
    n += 8
    return Scratch(
        np.empty(n, np.uint16),
        np.empty(n, np.float64),
        np.empty(n, np.float64),
        np.empty(n, np.float64),
        np.empty(n, np.int32),
        np.empty(n, np.uint32),
        np.empty(n, np.uint32),
        np.empty(n, np.uint32),
        np.empty(n, np.uint8),
        np.empty(n, np.int32),
        np.empty(n, np.float64),
    )


# ---------------------------------------------------------------- which words begin where


@njit(nogil=True, cache=True)
def _member(char: Any) -> Any:
    """The id of a code point, 0 outside of the alphabet."""
    han = _u32(char - _u32(FIRST_HAN))
    word = _LOW if char < _u32(64) else _HIGH
    inside = char < _u32(128) and (word >> U(char & _u32(63))) & U(1) != _0
    return _u32(han + _u32(HAN)) if han < _u32(N_HAN) else (char if inside else _u32(0))


@njit(nogil=True, cache=True)
def _read_ids(chars: Any, n: Any, ids: Any) -> None:
    for k in range(n):
        ids[k] = _member(chars[k])
    for k in range(n, n + U(4)):
        ids[k] = 0


@njit(nogil=True, cache=True)
def _maybe_pairs(n: Any, ids: Any, one: Any, two: Any, first: Any, found: Any, single: Any, bits: Any, shift: Any) -> Any:
    """List in ``found`` where a pair may begin a word; returns how many. Clears ``two`` and ``first``."""
    count = _0
    left = U(ids[0])
    for k in range(n):
        right = U(ids[U(k) + U(1)])
        place = ((left << U(15) | right) * HASH) >> shift
        one[k] = single[left]
        two[k] = _NEVER
        first[k] = 0
        found[count] = k
        count += (bits[place >> U(6)] >> (place & U(63))) & U(1)
        left = right
    return count


@njit(nogil=True, cache=True)
def _pairs_at_home(
    table: Any, shift: Any, unless: Any, source: Any, n: Any, found: Any, more: Any, again: Any, ids: Any, one: Any,
    two: Any, weights: Any
) -> Any:
    """Look up the pairs at ``source[:n]`` where they are if nothing else is there.

    Positions where a third character may follow are appended to ``found`` (of ``more``), those whose slot holds
    neither their pair nor ``unless`` are listed in ``again``; returns the lengths of both.
    """
    left = _0
    for j in range(n):
        k = U(source[j])
        key = U(ids[k]) << U(15) | U(ids[k + U(1)])
        slot = table[(key * HASH) >> shift]
        right = (slot & _PAIR_MASK) == key
        again[left] = k
        left += U((not right) & (slot != unless))
        weight = weights[(slot >> U(PAIR_WEIGHT)) & _WEIGHT_MASK]
        two[k] = weight if right else _NEVER
        if right & ((slot >> U(UNLISTED)) & U(1) != _0) & (weight > _NEVER):
            one[k] = _NEVER
        found[more] = k
        more += U(right) & (slot >> (U(PAIR_NEXT) + U(ids[k + U(2)]) % U(N_PAIR_NEXT)))
    return more, left


@njit(nogil=True, cache=True)
def _pairs_elsewhere(
    table: Any, shift: Any, source: Any, n: Any, found: Any, more: Any, ids: Any, one: Any, two: Any, weights: Any
) -> Any:
    """The same for what is left, wherever it is."""
    last = U(len(table) - 1)
    for j in range(n):
        k = U(source[j])
        key = U(ids[k]) << U(15) | U(ids[k + U(1)])
        place = (key * HASH) >> shift
        slot = table[place]
        while slot != _0 and (slot & _PAIR_MASK) != key:
            place = (place + U(1)) & last
            slot = table[place]
        if slot != _0:
            two[k] = weights[(slot >> U(PAIR_WEIGHT)) & _WEIGHT_MASK]
            if (slot >> U(UNLISTED)) & U(1) != _0 and two[k] > _NEVER:
                one[k] = _NEVER
            found[more] = k
            more += (slot >> (U(PAIR_NEXT) + U(ids[k + U(2)]) % U(N_PAIR_NEXT))) & U(1)
    return more


@njit(nogil=True, cache=True)
def _maybe_longer(n: Any, found: Any, ids: Any, bits: Any, shift: Any) -> Any:
    """Keep of ``found[:n]`` where three characters may begin a word; returns how many."""
    count = _0
    for j in range(n):
        k = U(found[j])
        key = (U(ids[k]) << U(15) | U(ids[k + U(1)])) << U(15) | U(ids[k + U(2)])
        place = (key * HASH) >> shift
        found[count] = k
        count += (bits[place >> U(6)] >> (place & U(63))) & U(1)
    return count


@njit(nogil=True, cache=True)
def _longer_words(
    n: Any, found: Any, ids: Any, one: Any, first: Any, size: Any, weight: Any, table: Any, weights: Any, shift: Any
) -> Any:
    """List the words of three and more characters at ``found[:n]``; returns both lists, which may have grown."""
    last = U(len(table) // 2 - 1)
    words = _0
    for j in range(n):
        k = U(found[j])
        key = (U(ids[k]) << U(15) | U(ids[k + U(1)])) << U(15) | U(ids[k + U(2)])
        end = k + U(3)
        begun = words
        while True:
            place = (key * HASH) >> shift
            slot = table[_2 * place]
            while slot != _0 and (slot & _LONG_MASK) != key:
                place = (place + U(1)) & last
                slot = table[_2 * place]
            if slot == _0:
                break
            if weights[_2 * place + U(1)] > _NEVER:
                if words + _2 > U(len(size)):
                    size, weight = _grown(size), _grown(weight)
                size[words] = end - k
                weight[words] = weights[_2 * place + U(1)]
                words += U(1)
                if (slot >> U(UNLISTED)) & U(1) != _0:
                    one[k] = _NEVER
            follower = U(ids[end])
            if (slot >> (U(LONG_NEXT) + follower % U(N_LONG_NEXT))) & U(1) == _0:
                break
            key = U(1 << (LONG_KEY - 1)) | place << U(15) | follower
            end += U(1)
        if words > begun:
            first[k] = begun + U(1)
            size[words] = 0
            words += U(1)
    return size, weight


@njit(nogil=True, cache=True)
def _grown(array: Any) -> Any:
    longer = np.empty(2 * len(array), array.dtype)
    longer[: len(array)] = array
    return longer


# ---------------------------------------------------------------- the best route


@njit(nogil=True, cache=True)
def _route(
    n: Any, ids: Any, one: Any, two: Any, first: Any, route: Any, size: Any, long_size: Any, long_weight: Any
) -> None:
    """Fill ``route`` and ``size`` from right to left; of equal routes the one with the longer first word wins."""
    next_one, next_two = 0.0, 0.0
    route[n] = 0.0
    k = n
    while k > _0:
        k -= U(1)
        if ids[k] == 0:  # nothing is carried over from one run to the other: the processor need not wait either
            next_one, next_two = 0.0, 0.0
            route[k] = 0.0
            size[k] = 1
            continue
        best = one[k] + next_one
        pair = two[k] + next_two
        longer = pair >= best
        best = pair if longer else best
        chosen = np.int32(1) + np.int32(longer)
        word = U(first[k])
        if word != _0:
            length = long_size[word - U(1)]
            while length != 0:
                whole = long_weight[word - U(1)] + route[k + U(length)]
                if whole >= best:
                    best, chosen = whole, length
                word += U(1)
                length = long_size[word - U(1)]
        route[k] = best
        size[k] = chosen
        next_one, next_two = best, next_one


@njit(nogil=True, cache=True)
def _walk(n: Any, ids: Any, size: Any, found: Any, starts: Any) -> Any:
    """Mark where the words of the route start, and list in ``found`` where two and more single characters begin."""
    starts[:n] = False
    runs, k = _0, _0
    before, two_before = False, False
    while k < n:
        starts[k] = True
        length = U(size[k])
        single = (length == U(1)) & (ids[k] != 0)
        found[runs] = k - U(1)
        runs += U(single & before & (not two_before))
        two_before = before
        before = single
        k += length
    return runs


# ---------------------------------------------------------------- single characters side by side


@njit(nogil=True, cache=True)
def _alphanumeric(id: Any) -> Any:
    return (id >= 97 and id <= 122) or (id >= 65 and id <= 90) or (id >= 48 and id <= 57)


@njit(nogil=True, cache=True)
def _rest(n: Any, at: Any, long_size: Any, starts: Any, tables: Any, hmm: Any) -> None:
    """Cut the runs at ``found[:n]`` as jieba does what its route leaves over."""
    ids, size, two, first, found, back = at.ids, at.size, at.two, at.first, at.found, at.back
    emit, start, moves, forced = tables.emit, tables.start, tables.moves, tables.forced[0] != 0
    for j in range(n):
        begin = U(found[j])
        end = begin + U(2)
        while size[end] == 1 and ids[end] != 0:
            end += U(1)
        if not hmm:
            for k in range(begin + U(1), end):
                starts[k] = not (_alphanumeric(ids[k]) and _alphanumeric(ids[U(k) - U(1)]))
            continue
        if end - begin == U(2):
            known = two[begin] > _NEVER
        else:
            known = _is_longer_word(end - begin, U(first[begin]), long_size)
        if known:  # the dictionary holds it all the same: then jieba leaves its characters alone
            continue
        while begin < end:
            k = begin + U(1)
            if ids[begin] >= HAN:
                while k < end and ids[k] >= HAN:
                    k += U(1)
                if k > begin + U(1):
                    _viterbi(begin, k, ids, back, starts, emit, start, moves)
                    if forced:
                        _cut_forced(begin, k, ids, starts, tables)
            else:
                while k < end and ids[k] < HAN:
                    k += U(1)
                _cut_ascii(begin, k, ids, starts)
            begin = k


@njit(nogil=True, cache=True)
def _is_longer_word(length: Any, word: Any, long_size: Any) -> Any:
    while word != _0 and long_size[word - U(1)] != 0:
        if U(long_size[word - U(1)]) == length:
            return True
        word += U(1)
    return False


@njit(nogil=True, cache=True)
def _viterbi(begin: Any, end: Any, ids: Any, back: Any, starts: Any, emit: Any, start: Any, moves: Any) -> None:
    """``jieba.finalseg``'s most probable states B, M, E, S (0 to 3) of two and more ideographs, with its ties."""
    eb, sb, bm, mm = moves[0], moves[1], moves[2], moves[3]
    be, me, es, ss = moves[4], moves[5], moves[6], moves[7]
    row = (U(ids[begin]) - U(HAN)) * U(4)
    b, m = start[0] + emit[row], start[1] + emit[row + U(1)]
    e, s = start[2] + emit[row + U(2)], start[3] + emit[row + U(3)]
    for k in range(begin + U(1), end):
        row = (U(ids[k]) - U(HAN)) * U(4)
        at_b, at_m, at_e, at_s = emit[row], emit[row + U(1)], emit[row + U(2)], emit[row + U(3)]
        b0, b1 = e + eb + at_b, s + sb + at_b
        m0, m1 = b + bm + at_m, m + mm + at_m
        e0, e1 = b + be + at_e, m + me + at_e
        s0, s1 = e + es + at_s, s + ss + at_s
        b_s, m_m, e_m, s_s = b1 >= b0, m1 >= m0, e1 >= e0, s1 >= s0  # which of the two states before
        back[k] = U(0b10000010) | U(b_s) | U(m_m) << U(2) | U(e_m) << U(4) | U(s_s) << U(6)
        b, m = b1 if b_s else b0, m1 if m_m else m0
        e, s = e1 if e_m else e0, s1 if s_s else s0
    state = U(2) + U(s >= e)
    k = end - U(1)
    while k > begin:
        starts[k] = (U(0b1001) >> state) & U(1) != _0
        state = (U(back[k]) >> (state << U(1))) & U(3)
        k -= U(1)


@njit(nogil=True, cache=True)
def _cut_ascii(begin: Any, end: Any, ids: Any, starts: Any) -> None:
    """The pieces of ``[a-zA-Z0-9]+(?:\\.[0-9]+)?%?`` and what is between them."""
    while begin < end:
        k = begin + U(1)
        if _alphanumeric(ids[begin]):
            while k < end and _alphanumeric(ids[k]):
                k += U(1)
            if k + U(1) < end and ids[k] == 46 and ids[k + U(1)] >= 48 and ids[k + U(1)] <= 57:
                k += U(2)
                while k < end and ids[k] >= 48 and ids[k] <= 57:
                    k += U(1)
            if k < end and ids[k] == 37:
                k += U(1)
        else:
            while k < end and not _alphanumeric(ids[k]):
                k += U(1)
        starts[begin] = True
        for i in range(begin + U(1), k):
            starts[i] = False
        begin = k


@njit(nogil=True, cache=True)
def _cut_forced(begin: Any, end: Any, ids: Any, starts: Any, tables: Any) -> None:
    """Cut the model's words that the user wants apart into characters."""
    while begin < end:
        k = begin + U(1)
        while k < end and not starts[k]:
            k += U(1)
        if k > begin + U(1) and _is_forced(begin, k, ids, tables):
            starts[begin:k] = True
        begin = k


@njit(nogil=True, cache=True)
def _is_forced(begin: Any, end: Any, ids: Any, tables: Any) -> Any:
    key = U(ids[begin]) << U(15) | U(ids[begin + U(1)])
    if end - begin == U(2):
        last, place = U(len(tables.pairs) - 1), (key * HASH) >> tables.shifts[0]
        while tables.pairs[place] != _0 and (tables.pairs[place] & _PAIR_MASK) != key:
            place = (place + U(1)) & last
        return tables.pairs[place] >> U(FORCED) != _0
    last = U(len(tables.longer) // 2 - 1)
    key = key << U(15) | U(ids[begin + U(2)])
    k = begin + U(3)
    while True:
        place = (key * HASH) >> tables.shifts[2]
        slot = tables.longer[_2 * place]
        while slot != _0 and (slot & _LONG_MASK) != key:
            place = (place + U(1)) & last
            slot = tables.longer[_2 * place]
        if slot == _0 or k == end:
            return slot >> U(FORCED) != _0
        key = U(1 << (LONG_KEY - 1)) | place << U(15) | U(ids[k])
        k += U(1)


# ---------------------------------------------------------------- documents


@njit(nogil=True, cache=True)
def _cut(chars: Any, starts: Any, at: Any, tables: Any, hmm: Any) -> None:
    """One chunk, which ends where a run ends."""
    n = U(len(chars))
    ids, one, two, first, found, again = at.ids, at.one, at.two, at.first, at.found, at.again
    shifts, weights, pairs = tables.shifts, tables.weights, tables.pairs
    _read_ids(chars, n, ids)
    count = _maybe_pairs(n, ids, one, two, first, found, tables.single, tables.pair_filter, shifts[3])
    more, left = _pairs_at_home(
        tables.front, shifts[1], ~_0, found, count, found, _0, again, ids, one, two, weights
    )
    more, left = _pairs_at_home(pairs, shifts[0], _0, again, left, found, more, again, ids, one, two, weights)
    more = _pairs_elsewhere(pairs, shifts[0], again, left, found, more, ids, one, two, weights)
    more = _maybe_longer(more, found, ids, tables.long_filter, shifts[4])
    long_weights = tables.longer.view(np.float64)
    size, weight = _longer_words(
        more, found, ids, one, first, at.long_size, at.long_weight, tables.longer, long_weights, shifts[2]
    )
    _route(n, ids, one, two, first, at.route, at.size, size, weight)
    at.size[n] = 0
    runs = _walk(n, ids, at.size, found, starts)
    _rest(runs, at, size, starts, tables, hmm)


@njit(nogil=True, cache=True)
def _chunk_end(chars: Any, begin: Any, end: Any) -> Any:
    """Where the chunk that begins at ``begin`` ends: behind the last run that fits, or with the first if none does."""
    if end - begin <= CHUNK:
        return end
    stop = begin + CHUNK
    while stop > begin and _member(chars[stop - 1]) != 0:
        stop -= 1
    if stop > begin:
        return stop
    stop = begin + CHUNK
    end = min(end, begin + LONGEST_RUN)
    while stop < end and _member(chars[stop]) != 0:
        stop += 1
    return stop


@njit(nogil=True, cache=True)
def word_starts(chars: Any, documents: Any, tables: Any, hmm: Any) -> Any:
    """bool [N]: the character begins a word; each document by itself.

    Args:
        chars: uint32 [N], code points.
        documents: int64 [d + 1], ascending, from 0 to N.
        tables: ``Tables``.
        hmm: bool, jieba's ``HMM``.
    """
    starts = np.empty(len(chars), np.bool_)
    at = _scratch(CHUNK)
    for d in range(len(documents) - 1):
        begin, end = documents[d], documents[d + 1]
        stop = begin
        while stop < end:
            here = stop
            stop = _chunk_end(chars, here, end)
            if stop - here > len(at.ids) - 8:
                at = _scratch(stop - here)
            _cut(chars[here:stop], starts[here:stop], at, tables, hmm)
        for k in range(begin + 1, end):
            if chars[k] == 10 and chars[k - 1] == 13:
                starts[k] = False
    return starts
