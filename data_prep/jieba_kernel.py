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

from data_prep.jieba_rest import rest
from data_prep.jieba_words import (
    ZERO,
    U,
    longer_words,
    maybe_longer,
    maybe_pairs,
    member,
    pairs_at_home,
    pairs_elsewhere,
    read_ids,
)

CHUNK = 4096
"""Characters that are worked on together; the result does not depend on it."""
LONGEST_RUN = 1 << 20
"""A run of the alphabet that is longer (no text is) is cut there, so that memory is bounded."""


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


# ---------------------------------------------------------------- the best route


@njit(nogil=True, cache=True)
def _route(
    n: Any, ids: Any, one: Any, two: Any, first: Any, route: Any, size: Any, long_size: Any, long_weight: Any
) -> None:
    """Fill ``route`` and ``size`` from right to left; of equal routes the one with the longer first word wins."""
    next_one, next_two = 0.0, 0.0
    route[n] = 0.0
    k = n
    while k > ZERO:
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
        if word != ZERO:
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
    runs, k = ZERO, ZERO
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


# ---------------------------------------------------------------- documents


@njit(nogil=True, cache=True)
def _cut(chars: Any, starts: Any, at: Any, tables: Any, hmm: Any) -> None:
    """One chunk, which ends where a run ends."""
    n = U(len(chars))
    ids, one, two, first, found, again = at.ids, at.one, at.two, at.first, at.found, at.again
    shifts, weights, pairs = tables.shifts, tables.weights, tables.pairs
    read_ids(chars, n, ids)
    count = maybe_pairs(n, ids, one, two, first, found, tables.single, tables.pair_filter, shifts[3])
    more, left = pairs_at_home(tables.front, shifts[1], ~ZERO, found, count, found, ZERO, again, ids, one, two, weights)
    more, left = pairs_at_home(pairs, shifts[0], ZERO, again, left, found, more, again, ids, one, two, weights)
    more = pairs_elsewhere(pairs, shifts[0], again, left, found, more, ids, one, two, weights)
    more = maybe_longer(more, found, ids, tables.long_filter, shifts[4])
    long_weights = tables.longer.view(np.float64)
    size, weight = longer_words(
        more, found, ids, one, first, at.long_size, at.long_weight, tables.longer, long_weights, shifts[2]
    )
    _route(n, ids, one, two, first, at.route, at.size, size, weight)
    at.size[n] = 0
    runs = _walk(n, ids, at.size, found, starts)
    rest(runs, at, size, starts, tables, hmm)


@njit(nogil=True, cache=True)
def _chunk_end(chars: Any, begin: Any, end: Any) -> Any:
    """Where the chunk that begins at ``begin`` ends: behind the last run that fits, or with the first if none does."""
    if end - begin <= CHUNK:
        return end
    stop = begin + CHUNK
    while stop > begin and member(chars[stop - 1]) != 0:
        stop -= 1
    if stop > begin:
        return stop
    stop = begin + CHUNK
    end = min(end, begin + LONGEST_RUN)
    while stop < end and member(chars[stop]) != 0:
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
        returns = np.uint32(0)
        for k in range(begin, end):
            returns |= np.uint32(chars[k] == 13)
        if returns != 0:
            for k in range(begin + 1, end):
                if chars[k] == 10 and chars[k - 1] == 13:
                    starts[k] = False
    return starts
