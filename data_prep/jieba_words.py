"""Which words of the dictionary begin where: stages 1 to 3 of ``jieba_kernel.py``."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit

from data_prep.jieba_trie import BASE_BITS, N_NEXT, NEXT, UNLISTED, WEIGHT, WEIGHT_BITS

U: Any = np.uint64
"""Of indices: numba checks signed ones for being negative."""
ZERO = U(0)
NEVER = -np.inf
_BASE, _WEIGHT = U((1 << BASE_BITS) - 1), U((1 << WEIGHT_BITS) - 1)


@njit(nogil=True, cache=True)
def member(char: Any, ids: Any) -> Any:
    """The id of a code point, 0 outside of the alphabet."""
    return ids[min(char, np.uint32(0xFFFF))]


@njit(nogil=True, cache=True)
def read_ids(chars: Any, n: Any, ids_of: Any, ids: Any, one: Any, two: Any, first: Any, single: Any) -> None:
    """Fill ``ids`` and ``one``, clear ``two`` and ``first``."""
    for k in range(n):
        id = ids_of[min(chars[k], np.uint32(0xFFFF))]
        ids[k] = id
        one[k] = single[id]
    two[:n] = NEVER
    first[:n] = 0
    ids[n : n + U(4)] = 0


@njit(nogil=True, cache=True)
def pairs(n: Any, ids: Any, nodes: Any, check: Any, found: Any, slots: Any) -> Any:
    """List in ``found`` where two characters begin a word, and their ``slots``; returns how many."""
    count = ZERO
    left = U(ids[0])
    for k in range(n):  # nothing here waits for what was found before
        right = U(ids[U(k) + U(1)])
        slot = (nodes[left] & _BASE) + right
        slots[k] = slot if U(check[slot]) == right else ZERO
        left = right
    for k in range(n):
        slot = slots[k]
        found[count] = k
        slots[count] = slot
        count += U(slot != 0)
    return count


@njit(nogil=True, cache=True)
def weigh(n: Any, found: Any, slots: Any, ids: Any, one: Any, two: Any, nodes: Any, weights: Any) -> Any:
    """Fill ``two`` at ``found[:n]``.

    Keeps of both lists where a third character may follow, with the slot that it would have; returns how many.
    """
    count = ZERO
    for j in range(n):
        k = U(found[j])
        node = nodes[slots[j]]
        weight = weights[(node >> U(WEIGHT)) & _WEIGHT]
        two[k] = weight
        if ((node >> U(UNLISTED)) & U(1) != ZERO) & (weight > NEVER):
            one[k] = NEVER
        follower = U(ids[k + U(2)])
        may = (node >> (U(NEXT) + follower % U(N_NEXT))) & U(1)
        slots[j] = (node & _BASE) + follower if may != ZERO else ZERO
    for j in range(n):
        slot = slots[j]
        found[count] = found[j]
        slots[count] = slot
        count += U(slot != 0)
    return count


@njit(nogil=True, cache=True)
def going_on(n: Any, length: Any, found: Any, slots: Any, ids: Any, check: Any) -> Any:
    """Keep of both lists where the beginning of ``length`` characters at the slot exists; returns how many."""
    count = ZERO
    for j in range(n):
        k, slot = found[j], slots[j]
        found[count] = k
        slots[count] = slot
        count += U(check[slot] == ids[U(k) + length - U(1)])
    return count


@njit(nogil=True, cache=True)
def longer_words(
    n: Any,
    found: Any,
    slots: Any,
    ids: Any,
    one: Any,
    first: Any,
    size: Any,
    weight: Any,
    nodes: Any,
    check: Any,
    weights: Any,
) -> Any:
    """List the words of three and more characters at ``found[:n]``; returns both lists, which may have grown."""
    touched = ZERO  # all of them at first, so that memory is waited for once and not once for each
    for j in range(n):
        touched ^= nodes[slots[j]]
    size[0] = np.int32(touched)
    words = ZERO
    for j in range(n):
        k, slot = U(found[j]), U(slots[j])
        end = k + U(3)
        begun = words
        while True:
            node = nodes[slot]
            value = weights[(node >> U(WEIGHT)) & _WEIGHT]
            if value > NEVER:
                if words + U(2) > U(len(size)):
                    size, weight = _grown(size), _grown(weight)
                size[words] = end - k
                weight[words] = value
                words += U(1)
                if (node >> U(UNLISTED)) & U(1) != ZERO:
                    one[k] = NEVER
            slot = (node & _BASE) + U(ids[end])
            if node & _BASE == ZERO or check[slot] != ids[end]:
                break
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
