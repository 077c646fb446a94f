"""Sentence pairs [CLS] A [SEP] B [SEP], as BERT, TinyBERT and ALBERT prepare them."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

from data_prep.config import SequenceConfig
from data_prep.hashing import hashed, unit
from data_prep.variants import VARIANTS, Sequences, Units

Ints = NDArray[np.int64]

_COPY, _DRAW = np.uint64(3), np.uint64(4)


@VARIANTS.add("pairs")
def pairs(units: Units, config: SequenceConfig) -> Sequences:
    """Two texts of together at most ``max_length - 3`` tokens, each a run of units.

    For each document and each of ``copies`` passes over it:

    1. the target is ``max_length - 3`` tokens; with probability ``short_sequence_probability`` it is drawn from
       2 .. max_length - 3;
    2. units are taken until they reach the target or the document ends; A is the first 1 .. n - 1 of these n;
    3. ``next``: with probability 0.5, and always if n is 1, B is random (label 1): units of another document of the
       shard from a random one on, until the target is reached or that document ends (documents are drawn in
       proportion to their units, which is to draw one unit of all the others), and the units after A are taken up
       again. Else B is the other units (label 0). ``swapped``: B is the other units, and A and B change places with
       probability 0.5 (label 1);
    4. while A and B are too long, the longer of them loses its first or last token with equal chance. What is cut
       off here stands in no other pair of this pass, as in the scripts below.

    Where nothing random may be taken (``swapped``, or a shard with one document only), a unit without a partner is
    cut in two at the word border nearest to its middle, and left out if it is one token. Which units a random B has
    depends on the shard, and so on ``block_megabytes``.

    Source: BERT's ``create_pretraining_data`` and TinyBERT's ``pregenerate_training_data`` (arXiv 1909.10351);
    ``swapped``: ALBERT (arXiv 1909.11942), which takes a random B for a unit without a partner.
    """
    assert config.short_sequence_probability is not None and config.copies is not None
    pieces, order = _pairs(
        units.lengths,
        units.documents,
        units.continues,
        config.max_length - 3,
        units.keys,
        config.copies,
        config.short_sequence_probability,
        config.pair_order == "swapped",
    )
    offsets = 2 * np.arange(len(order) + 1, dtype=np.int64)
    return Sequences(offsets, pieces, firsts=pieces[::2, 1].copy(), order=order)


@njit(cache=True, nogil=True)
def _pairs(
    lengths: Any, docs: Any, continues: Any, room: int, keys: Any, copies: int, short: float, swapped: bool
) -> Any:
    """(pieces: A and B in turn, labels)."""
    n_units = len(lengths)
    begins = np.zeros(n_units + 1, np.int64)
    for s in range(n_units):
        begins[s + 1] = begins[s] + lengths[s]
    pieces = np.empty((2 * copies * n_units, 2), np.int64)  # each pair uses up one unit at least
    order = np.empty(copies * n_units, np.uint8)
    made = 0
    for copy in range(copies):
        for d in range(len(docs) - 1):
            key, drawn = hashed(keys[d], _COPY, copy), 1
            target = room
            if unit(hashed(key, _DRAW, 0)) < short:
                target = 2 + _below(room - 1, key, 1)
            s = docs[d]
            while s < docs[d + 1]:
                end = s + 1
                while end < docs[d + 1] and begins[end] - begins[s] < target:
                    end += 1
                drawn += 4
                foreign = n_units - (docs[d + 1] - docs[d])
                split = s + 1 if end - s == 1 else s + 1 + _below(end - s - 1, key, drawn)
                a, b, n_a, n_b = begins[s], begins[split], begins[split] - begins[s], begins[end] - begins[split]
                label = unit(hashed(key, _DRAW, drawn + 1)) < 0.5
                if not swapped:
                    label = foreign > 0 and (label or n_b == 0)
                if label and not swapped:
                    b, n_b = _random(begins, docs, d, _below(foreign, key, drawn + 2), target - n_a)
                    s = split
                else:
                    s = end
                    if n_b == 0:
                        n_b = n_a - _middle(continues, a, n_a)
                        n_a -= n_b
                        b = a + n_a
                        if n_a == 0:
                            continue
                    if label:
                        a, b, n_a, n_b = b, a, n_b, n_a
                a, b, n_a, n_b = _truncated(a, b, n_a, n_b, room, hashed(key, _DRAW, drawn + 3))
                pieces[2 * made] = a, n_a
                pieces[2 * made + 1] = b, n_b
                order[made] = label
                made += 1
    return pieces[: 2 * made].copy(), order[:made].copy()


@njit(cache=True, nogil=True, inline="always")
def _below(n: int, key: Any, place: Any) -> Any:
    """Uniform in 0 .. n - 1."""
    return np.int64(unit(hashed(key, _DRAW, place)) * n)


@njit(cache=True, nogil=True)
def _random(begins: Any, docs: Any, d: int, number: int, wanted: int) -> Any:
    """(first token, tokens) of a random B: from unit ``number`` of those outside document ``d`` on."""
    first = number if number < docs[d] else number + docs[d + 1] - docs[d]
    last = docs[np.searchsorted(docs, first, side="right")]
    end = first + 1
    while end < last and begins[end] - begins[first] < wanted:
        end += 1
    return begins[first], begins[end] - begins[first]


@njit(cache=True, nogil=True)
def _middle(continues: Any, start: int, count: int) -> Any:
    """How many of ``count`` tokens stand before the word border nearest to their middle; half, if there is none."""
    half = count // 2
    for step in range(count - half):
        for cut in (half - step, half + step):
            if 0 < cut < count and not continues[start + cut]:
                return cut
    return half


@njit(cache=True, nogil=True)
def _truncated(a: int, b: int, n_a: int, n_b: int, room: int, key: Any) -> Any:
    """Both texts, (first token, count) each, cut to ``room`` tokens together."""
    for excess in range(n_a + n_b - room):
        front = unit(hashed(key, _DRAW, excess)) < 0.5
        if n_a > n_b:
            n_a -= 1
            a += front
        else:
            n_b -= 1
            b += front
    return a, b, n_a, n_b
