"""Where words start, exactly as ``jieba.cut`` says (jieba 0.42), over streams of code points.

A run of jieba's alphabet is cut along the route of highest probability through the words of the dictionary; single
characters that are left standing side by side are cut by the hidden Markov model (ideographs) or a regular expression
(ASCII). Everything outside of runs is a word of its own, CR LF is one.

The work goes through chunks of some thousand characters, in stages that are loops without branches where they meet each
character, so that neither a mispredicted branch nor a missed cache line makes the next character wait:

1. ids of characters; where two of them begin a word is asked of the trie (``jieba_trie.py``);
2. their weights, and where a third character may follow;
3. there, the words of three and more characters are listed;
4. the route, from right to left, in jieba's rounding and its ties (the longer word wins);
5. the words are walked through, and what was left standing is cut again.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numba import njit

from data_prep.jieba_rest import rest
from data_prep.jieba_words import ZERO, U, going_on, longer_words, member, pairs, read_ids, weigh

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
    """uint32: a list of positions."""
    slots: Any
    """uint32: their slots in the trie."""
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


@njit(nogil=True, cache=True, inline="always")
def _step(k: Any, next_one: Any, next_two: Any, at: Any, long_size: Any, long_weight: Any) -> Any:
    """The best route from ``k`` to the end of its run, where those from the two places after it are known."""
    best, pair = at.one[k] + next_one, at.two[k] + next_two
    chosen = np.int32(1) + np.int32(pair >= best)
    best = pair if pair > best else best
    word = U(at.first[k])
    if word != ZERO:
        length = long_size[word - U(1)]
        while length != 0:
            whole = long_weight[word - U(1)] + at.route[k + U(length)]
            if whole >= best:
                best, chosen = whole, length
            word += U(1)
            length = long_size[word - U(1)]
    best = best if at.ids[k] != 0 else 0.0
    at.route[k] = best
    at.size[k] = chosen
    return best


@njit(nogil=True, cache=True)
def _route(n: Any, at: Any, long_size: Any, long_weight: Any) -> None:
    """Fill ``route`` and ``size`` from right to left; of equal routes the one with the longer first word wins.

    Each place waits for the one after it, so two parts take turns.
    """
    middle = n >> U(1)
    while middle < n and at.ids[middle] != 0:
        middle += U(1)
    at.route[n] = 0.0
    at.route[middle] = 0.0
    k, i = n, middle
    one, two, one_i, two_i = 0.0, 0.0, 0.0, 0.0
    while k > middle and i > ZERO:
        k -= U(1)
        i -= U(1)
        best = _step(k, one, two, at, long_size, long_weight)
        best_i = _step(i, one_i, two_i, at, long_size, long_weight)
        one, two, one_i, two_i = best, one, best_i, one_i
    while k > middle:
        k -= U(1)
        best = _step(k, one, two, at, long_size, long_weight)
        one, two = best, one
    while i > ZERO:
        i -= U(1)
        best = _step(i, one_i, two_i, at, long_size, long_weight)
        one_i, two_i = best, one_i


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
    ids, one, found, slots = at.ids, at.one, at.found, at.slots
    check, nodes, weights = tables.check, tables.nodes, tables.weights
    read_ids(chars, n, tables.ids, ids, one, at.two, at.first, tables.single)
    count = pairs(n, ids, nodes, check, found, slots)
    count = weigh(count, found, slots, ids, one, at.two, nodes, weights)
    count = going_on(count, U(3), found, slots, ids, check)
    size, weight = longer_words(
        count, found, slots, ids, one, at.first, at.long_size, at.long_weight, nodes, check, weights
    )
    _route(n, at, size, weight)
    at.size[n] = 0
    runs = _walk(n, ids, at.size, found, starts)
    rest(runs, at, size, starts, tables, hmm)


@njit(nogil=True, cache=True)
def _chunk_end(chars: Any, begin: Any, end: Any, ids: Any) -> Any:
    """Where the chunk that begins at ``begin`` ends: behind the last run that fits, or with the first if none does."""
    if end - begin <= CHUNK:
        return end
    stop = begin + CHUNK
    while stop > begin and member(chars[stop - 1], ids) != 0:
        stop -= 1
    if stop > begin:
        return stop
    stop = begin + CHUNK
    end = min(end, begin + LONGEST_RUN)
    while stop < end and member(chars[stop], ids) != 0:
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
            stop = _chunk_end(chars, here, end, tables.ids)
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
