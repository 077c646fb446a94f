"""Whole word masks: one pure function of (seed, view, sequence), for stored views and for dynamic masks.

The rule, per sequence of content tokens (no [CLS]/[SEP]):

1. a word is a token and the tokens after it whose continuation bit is set; special tokens are not maskable and
   a word that holds one is left alone;
2. the budget is ``max(1, round(rate * maskable tokens))``;
3. the words are visited in a random order; a word is taken if all of it still fits into the budget, else passed
   over. If none fits, the shortest one is taken, unless it is all there is to mask;
4. of the taken tokens a share ``mask`` becomes [MASK], a share ``random`` a token drawn uniformly from the
   vocabulary without the special ones, the rest is kept (drawn per token, as BERT and MiniRBT do).

Every draw is a hash of (seed, view, sequence id, purpose, place), so nothing depends on how sequences are grouped.
Sources: Devlin et al. 2019 (arXiv 1810.04805); Cui et al. 2021, whole word masking (arXiv 1906.08101).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

Ints = NDArray[np.int64]

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_ORDER, _KIND, _TOKEN = np.uint64(1), np.uint64(2), np.uint64(3)


@dataclass(frozen=True)
class MaskRule:
    """``rate``: share of maskable tokens; ``mask``, ``random``: shares of the selected ones."""

    rate: float
    mask: float
    random: float
    mask_id: int
    vocab_size: int
    special_ids: tuple[int, ...]


@dataclass(frozen=True)
class Masks:
    """Selected tokens of n sequences: those of sequence i are ``offsets[i]:offsets[i + 1]``.

    ``offsets``: int64 [n + 1]; ``positions``: int64 [m], ascending within a sequence, counted with [CLS] at 0;
    ``ids``: int64 [m], what stands there after masking.
    """

    offsets: Ints
    positions: Ints
    ids: Ints


@njit(cache=True, nogil=True, inline="always")
def _mix(x: Any) -> Any:
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


@njit(cache=True, nogil=True, inline="always")
def _hash(base: Any, purpose: Any, place: Any) -> Any:
    return _mix(_mix(base + purpose * _GOLDEN) + np.uint64(place) * _GOLDEN + _GOLDEN)


@njit(cache=True, nogil=True)
def _words(ids: Any, continues: Any, specials: Any, base: Any, starts: Any, sizes: Any, keys: Any) -> Any:
    """Fill start, size and random key of each maskable word; returns (words, maskable tokens)."""
    words, maskable, t = 0, 0, 0
    while t < len(ids):
        stop = t + 1
        while stop < len(ids) and continues[stop]:
            stop += 1
        clean = True
        for i in range(t, stop):
            for special in specials:
                if ids[i] == special:
                    clean = False
        if clean:
            starts[words], sizes[words], keys[words] = t, stop - t, _hash(base, _ORDER, t)
            words += 1
            maskable += stop - t
        t = stop
    return words, maskable


@njit(cache=True, nogil=True)
def _select(budget: int, starts: Any, sizes: Any, keys: Any, taken: Any) -> None:
    """Mark the tokens of the words that are taken."""
    left = budget
    shortest = -1
    for w in np.argsort(keys):
        if shortest < 0 or sizes[w] < sizes[shortest]:
            shortest = w
        if sizes[w] <= left:
            taken[starts[w] : starts[w] + sizes[w]] = True
            left -= sizes[w]
        if left == 0:
            break
    if left == budget and len(keys) > 1:
        taken[starts[shortest] : starts[shortest] + sizes[shortest]] = True


@njit(cache=True, nogil=True)
def _replacement(token: Any, base: Any, t: Any, shares: Any, mask_id: Any, vocab_size: Any, specials: Any) -> Any:
    """What stands at a selected place after masking; ``specials`` ascend."""
    kind = float(_hash(base, _KIND, t) >> np.uint64(11)) * (1.0 / 9007199254740992.0)
    if kind < shares[0]:
        return mask_id
    if kind >= shares[0] + shares[1]:
        return token
    drawn = np.int64(_hash(base, _TOKEN, t) % np.uint64(vocab_size - len(specials)))
    for special in specials:  # step over the special ids
        if drawn >= special:
            drawn += 1
    return drawn


@njit(cache=True, nogil=True)
def _draw(
    rate: float,
    shares: Any,
    mask_id: Any,
    vocab_size: Any,
    specials: Any,
    seed: Any,
    views: Any,
    sequence_ids: Any,
    ids: Any,
    continues: Any,
    offsets: Any,
) -> Any:
    n = len(offsets) - 1
    out_offsets = np.zeros(n + 1, np.int64)
    positions, replaced = np.empty(len(ids), np.int64), np.empty(len(ids), np.int64)
    longest = 0
    for s in range(n):
        longest = max(longest, offsets[s + 1] - offsets[s])
    starts, sizes = np.empty(longest, np.int64), np.empty(longest, np.int64)
    keys, taken = np.empty(longest, np.uint64), np.empty(longest, np.bool_)
    m = 0
    for s in range(n):
        own, bits = ids[offsets[s] : offsets[s + 1]], continues[offsets[s] : offsets[s + 1]]
        base = _mix(_mix(_mix(seed + _GOLDEN) + np.uint64(views[s]) * _GOLDEN + _GOLDEN) ^ sequence_ids[s])
        words, maskable = _words(own, bits, specials, base, starts, sizes, keys)
        taken[: len(own)] = False
        if maskable > 0:
            budget = max(1, int(np.floor(rate * maskable + 0.5)))
            _select(budget, starts[:words], sizes[:words], keys[:words], taken)
        for t in range(len(own)):
            if taken[t]:
                positions[m] = t + 1
                replaced[m] = _replacement(own[t], base, t, shares, mask_id, vocab_size, specials)
                m += 1
        out_offsets[s + 1] = m
    return out_offsets, positions[:m].copy(), replaced[:m].copy()


def draw(
    rule: MaskRule,
    seed: int,
    views: Ints,
    sequence_ids: NDArray[np.uint64],
    ids: NDArray[np.integer],
    continues: NDArray[np.bool_],
    offsets: Ints,
) -> Masks:
    """Masks of n sequences, each under its view.

    Args:
        rule: what is selected and what becomes of it.
        seed: the data's mask seed.
        views: [n]; the epoch for dynamic masks.
        sequence_ids: [n], stable ids.
        ids, continues: [N], the content tokens of the sequences as one stream, and their continuation bits.
        offsets: [n + 1], where each sequence begins in the stream.
    """
    found = _draw(
        rule.rate,
        (rule.mask, rule.random),
        rule.mask_id,
        rule.vocab_size,
        np.array(sorted(rule.special_ids), np.int64),
        np.uint64(seed & 0xFFFFFFFFFFFFFFFF),
        np.asarray(views, np.int64),
        np.asarray(sequence_ids, np.uint64),
        np.asarray(ids).astype(np.int64),
        np.asarray(continues, np.bool_),
        np.asarray(offsets, np.int64),
    )
    return Masks(*found)
