"""Which words of the dictionary begin where: stages 1 to 3 of ``jieba_kernel.py``."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit

from data_prep.jieba_tables import (
    ASCII,
    FIRST_HAN,
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
)

U: Any = np.uint64
"""Of indices: numba checks signed ones for being negative."""
_u32: Any = np.uint32
ZERO, TWO = U(0), U(2)
NEVER = -np.inf
PAIR_MASK, LONG_MASK = U((1 << PAIR_KEY) - 1), U((1 << LONG_KEY) - 1)
_WEIGHT_MASK = U((1 << (PAIR_NEXT - PAIR_WEIGHT)) - 1)
_LOW = U(sum(1 << ord(c) for c in ASCII if ord(c) < 64))
_HIGH = U(sum(1 << (ord(c) - 64) for c in ASCII if ord(c) >= 64))


@njit(nogil=True, cache=True)
def member(char: Any) -> Any:
    """The id of a code point, 0 outside of the alphabet."""
    han = _u32(char - _u32(FIRST_HAN))
    word = _LOW if char < _u32(64) else _HIGH
    inside = char < _u32(128) and (word >> U(char & _u32(63))) & U(1) != ZERO
    return _u32(han + _u32(HAN)) if han < _u32(N_HAN) else (char if inside else _u32(0))


@njit(nogil=True, cache=True)
def read_ids(chars: Any, n: Any, ids: Any) -> None:
    for k in range(n):
        ids[k] = member(chars[k])
    for k in range(n, n + U(4)):
        ids[k] = 0


@njit(nogil=True, cache=True)
def maybe_pairs(
    n: Any, ids: Any, one: Any, two: Any, first: Any, found: Any, single: Any, bits: Any, shift: Any
) -> Any:
    """List in ``found`` where a pair may begin a word; returns how many. Clears ``two`` and ``first``."""
    count = ZERO
    left = U(ids[0])
    for k in range(n):
        right = U(ids[U(k) + U(1)])
        place = ((left << U(15) | right) * HASH) >> shift
        one[k] = single[left]
        two[k] = NEVER
        first[k] = 0
        found[count] = k
        count += (bits[place >> U(6)] >> (place & U(63))) & U(1)
        left = right
    return count


@njit(nogil=True, cache=True)
def pairs_at_home(
    table: Any,
    shift: Any,
    unless: Any,
    source: Any,
    n: Any,
    found: Any,
    more: Any,
    again: Any,
    ids: Any,
    one: Any,
    two: Any,
    weights: Any,
) -> Any:
    """Look up the pairs at ``source[:n]`` where they are if nothing else is there.

    Positions where a third character may follow are appended to ``found`` (of ``more``), those whose slot holds
    neither their pair nor ``unless`` are listed in ``again``; returns the lengths of both.
    """
    left = ZERO
    for j in range(n):
        k = U(source[j])
        key = U(ids[k]) << U(15) | U(ids[k + U(1)])
        slot = table[(key * HASH) >> shift]
        right = (slot & PAIR_MASK) == key
        again[left] = k
        left += U((not right) & (slot != unless))
        weight = weights[(slot >> U(PAIR_WEIGHT)) & _WEIGHT_MASK]
        two[k] = weight if right else NEVER
        if right & ((slot >> U(UNLISTED)) & U(1) != ZERO) & (weight > NEVER):
            one[k] = NEVER
        found[more] = k
        more += U(right) & (slot >> (U(PAIR_NEXT) + U(ids[k + U(2)]) % U(N_PAIR_NEXT)))
    return more, left


@njit(nogil=True, cache=True)
def pairs_elsewhere(
    table: Any, shift: Any, source: Any, n: Any, found: Any, more: Any, ids: Any, one: Any, two: Any, weights: Any
) -> Any:
    """The same for what is left, wherever it is."""
    last = U(len(table) - 1)
    for j in range(n):
        k = U(source[j])
        key = U(ids[k]) << U(15) | U(ids[k + U(1)])
        place = (key * HASH) >> shift
        slot = table[place]
        while slot != ZERO and (slot & PAIR_MASK) != key:
            place = (place + U(1)) & last
            slot = table[place]
        if slot != ZERO:
            two[k] = weights[(slot >> U(PAIR_WEIGHT)) & _WEIGHT_MASK]
            if (slot >> U(UNLISTED)) & U(1) != ZERO and two[k] > NEVER:
                one[k] = NEVER
            found[more] = k
            more += (slot >> (U(PAIR_NEXT) + U(ids[k + U(2)]) % U(N_PAIR_NEXT))) & U(1)
    return more


@njit(nogil=True, cache=True)
def maybe_longer(n: Any, found: Any, ids: Any, bits: Any, shift: Any) -> Any:
    """Keep of ``found[:n]`` where three characters may begin a word; returns how many."""
    count = ZERO
    for j in range(n):
        k = U(found[j])
        key = (U(ids[k]) << U(15) | U(ids[k + U(1)])) << U(15) | U(ids[k + U(2)])
        place = (key * HASH) >> shift
        found[count] = k
        count += (bits[place >> U(6)] >> (place & U(63))) & U(1)
    return count


@njit(nogil=True, cache=True)
def longer_words(
    n: Any, found: Any, ids: Any, one: Any, first: Any, size: Any, weight: Any, table: Any, weights: Any, shift: Any
) -> Any:
    """List the words of three and more characters at ``found[:n]``; returns both lists, which may have grown."""
    last = U(len(table) // 2 - 1)
    touched = ZERO  # all of them at first, so that memory is waited for once and not once for each
    for j in range(n):
        k = U(found[j])
        key = (U(ids[k]) << U(15) | U(ids[k + U(1)])) << U(15) | U(ids[k + U(2)])
        touched ^= table[TWO * ((key * HASH) >> shift)]
    size[0] = np.int32(touched)
    words = ZERO
    for j in range(n):
        k = U(found[j])
        key = (U(ids[k]) << U(15) | U(ids[k + U(1)])) << U(15) | U(ids[k + U(2)])
        end = k + U(3)
        begun = words
        while True:
            place = (key * HASH) >> shift
            slot = table[TWO * place]
            while slot != ZERO and (slot & LONG_MASK) != key:
                place = (place + U(1)) & last
                slot = table[TWO * place]
            if slot == ZERO:
                break
            if weights[TWO * place + U(1)] > NEVER:
                if words + TWO > U(len(size)):
                    size, weight = _grown(size), _grown(weight)
                size[words] = end - k
                weight[words] = weights[TWO * place + U(1)]
                words += U(1)
                if (slot >> U(UNLISTED)) & U(1) != ZERO:
                    one[k] = NEVER
            follower = U(ids[end])
            if (slot >> (U(LONG_NEXT) + follower % U(N_LONG_NEXT))) & U(1) == ZERO:
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
