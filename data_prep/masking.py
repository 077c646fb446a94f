"""Masks: one pure function of (seed, view, sequence), for stored views and for dynamic masks.

The rule, per sequence of content tokens (no [CLS]/[SEP]):

1. a word is a token and the tokens after it whose continuation bit is set (``unit: token``: every token is a word);
   special tokens are not maskable and a word that holds one is left alone;
2. the budget is ``max(1, round(rate * maskable tokens))``, but at most ``max_masked``; with rate 0 nothing is masked;
3. the words are visited in a random order; a word is taken if all of it still fits into the budget, else passed
   over. If none fits, the shortest one is taken, unless it is all there is to mask or longer than ``max_masked``;
4. of the taken tokens a share ``mask`` becomes [MASK], a share ``random`` a token drawn uniformly from the
   vocabulary without the special ones, the rest is kept (drawn per token, as BERT and MiniRBT do).

With ``smoothing`` s the order of step 3 is that of successive draws without replacement, each in proportion to
count(token)^-s: ascending -log(u) / weight with uniform u (Efraimidis & Spirakis 2006). DistilBERT's code draws
so from all tokens of a batch together; here each sequence keeps its own budget, so that masks do not depend on
what else is in a batch. A sequence of frequent tokens is therefore masked as much as one of rare tokens.

Every draw is a hash of (seed, view, sequence id, purpose, place), so nothing depends on how sequences are grouped.
Sources: Devlin et al. 2019 (arXiv 1810.04805); Cui et al. 2021, whole word masking (arXiv 1906.08101); Sanh et al.
2019, DistilBERT (arXiv 1910.01108).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

from data_prep.config import MaskConfig
from data_prep.hashing import GOLDEN, hashed, mix, unit

Ints = NDArray[np.int64]

_ORDER, _KIND, _TOKEN = np.uint64(1), np.uint64(2), np.uint64(3)
_NO_WEIGHTS = np.zeros(0)
_NO_LIMIT = 1 << 62


@dataclass(frozen=True)
class MaskRule:
    """``rate``: share of maskable tokens; ``mask``, ``random``: shares of the selected ones.

    ``whole_words``: else every token is selected by itself; ``max_masked``: tokens of a sequence, None for no limit;
    ``weights``: float64 [V], how readily each token is selected (needs ``whole_words=False``), None: all alike.
    """

    rate: float
    mask: float
    random: float
    mask_id: int
    vocab_size: int
    special_ids: tuple[int, ...]
    whole_words: bool = True
    max_masked: int | None = None
    weights: NDArray[np.float64] | None = None


def mask_rule(
    config: MaskConfig, split: str, special_ids: dict[str, int], vocab_size: int, counts: Ints | None = None
) -> MaskRule:
    """The rule for ``split``.

    Args:
        special_ids: by name, with ``mask``.
        counts: int64 [V], how often each token stands in the training split; needed for ``config.smoothing`` only.
            A token that never does counts as one that does once.
    """
    rule = MaskRule(
        config.rate_of(split),
        config.mask,
        config.random,
        special_ids["mask"],
        vocab_size,
        tuple(sorted(special_ids.values())),
        whole_words=config.unit == "word",
        max_masked=config.max_masked,
    )
    if config.smoothing is None:
        return rule
    assert counts is not None, "masks.smoothing is refused where the counts are not known"
    return replace(rule, weights=np.maximum(counts, 1).astype(np.float64) ** -config.smoothing)


@dataclass(frozen=True)
class Masks:
    """Selected tokens of n sequences: those of sequence i are ``offsets[i]:offsets[i + 1]``.

    ``offsets``: int64 [n + 1]; ``positions``: int64 [m], ascending within a sequence, counted with [CLS] at 0;
    ``ids``: int64 [m], what stands there after masking.
    """

    offsets: Ints
    positions: Ints
    ids: Ints

    def between(self, firsts: Ints | None) -> Masks:
        """The same masks with a [SEP] after the first ``firsts`` (int64 [n]) content tokens of each sequence."""
        if firsts is None:
            return self
        behind = self.positions > np.repeat(firsts, np.diff(self.offsets))
        return replace(self, positions=self.positions + behind)


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
            starts[words], sizes[words], keys[words] = t, stop - t, hashed(base, _ORDER, t)
            words += 1
            maskable += stop - t
        t = stop
    return words, maskable


@njit(cache=True, nogil=True)
def _weighted(ids: Any, starts: Any, keys: Any, weights: Any) -> Any:
    """-log(u) / weight for each word (of one token), with u in (0, 1) from its key."""
    out = np.empty(len(keys), np.float64)
    for w in range(len(keys)):
        out[w] = -np.log(unit(keys[w]) + 0.5 / 9007199254740992.0) / weights[ids[starts[w]]]
    return out


@njit(cache=True, nogil=True)
def _select(budget: int, most: int, order: Any, starts: Any, sizes: Any, taken: Any) -> None:
    """Mark the tokens of the words that are taken; ``order``: the words as they are visited."""
    left = budget
    shortest = -1
    for w in order:
        if shortest < 0 or sizes[w] < sizes[shortest]:
            shortest = w
        if sizes[w] <= left:
            taken[starts[w] : starts[w] + sizes[w]] = True
            left -= sizes[w]
        if left == 0:
            break
    if left == budget and len(order) > 1 and sizes[shortest] <= most:
        taken[starts[shortest] : starts[shortest] + sizes[shortest]] = True


@njit(cache=True, nogil=True)
def _replacement(token: Any, base: Any, t: Any, shares: Any, mask_id: Any, vocab_size: Any, specials: Any) -> Any:
    """What stands at a selected place after masking; ``specials`` ascend."""
    kind = unit(hashed(base, _KIND, t))
    if kind < shares[0]:
        return mask_id
    if kind >= shares[0] + shares[1]:
        return token
    drawn = np.int64(hashed(base, _TOKEN, t) % np.uint64(vocab_size - len(specials)))
    for special in specials:  # step over the special ids
        if drawn >= special:
            drawn += 1
    return drawn


@njit(cache=True, nogil=True)
def _draw(
    rate: float,
    most: int,
    weights: Any,
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
        base = mix(mix(mix(seed + GOLDEN) + np.uint64(views[s]) * GOLDEN + GOLDEN) ^ sequence_ids[s])
        words, maskable = _words(own, bits, specials, base, starts, sizes, keys)
        taken[: len(own)] = False
        if maskable > 0 and rate > 0:
            budget = min(most, max(1, int(np.floor(rate * maskable + 0.5))))
            if len(weights) > 0:
                order = np.argsort(_weighted(own, starts, keys[:words], weights))
            else:
                order = np.argsort(keys[:words])
            _select(budget, most, order, starts, sizes, taken)
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
        _NO_LIMIT if rule.max_masked is None else rule.max_masked,
        _NO_WEIGHTS if rule.weights is None else rule.weights,
        (rule.mask, rule.random),
        rule.mask_id,
        rule.vocab_size,
        np.array(sorted(rule.special_ids), np.int64),
        np.uint64(seed & 0xFFFFFFFFFFFFFFFF),
        np.asarray(views, np.int64),
        np.asarray(sequence_ids, np.uint64),
        np.asarray(ids).astype(np.int64),
        np.asarray(continues, np.bool_) if rule.whole_words else np.zeros(len(ids), np.bool_),
        np.asarray(offsets, np.int64),
    )
    return Masks(*found)
