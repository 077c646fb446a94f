"""How units (sentences or lines) become training sequences: index views over the same tokens.

A view is two arrays: ``pieces`` (int64 [p, 2]: first token, token count) and ``offsets`` (int64 [n + 1]: the
pieces of sequence i are ``offsets[i]:offsets[i + 1]``). A sequence is the concatenation of its pieces; a word never
reaches over the border of two pieces. Views of pairs also say where the first text ends, and have a label.

What is drawn for a document is a hash of (data seed, the document's tokens, place in it), so that it does not
depend on how the corpus is cut into blocks and shards.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

from configs.registry import Registry
from data_prep.config import SequenceConfig
from data_prep.hashing import GOLDEN, hashed, mix, unit

Ints = NDArray[np.int64]
Keys = NDArray[np.uint64]

_JOIN, _SHUFFLE = np.uint64(1), np.uint64(2)
MASK_64 = 0xFFFFFFFFFFFFFFFF


@dataclass(frozen=True)
class Units:
    """What a view is made from: one split of one shard.

    ``lengths``: int64 [u], tokens of each unit (at least 1); ``documents``: int64 [d + 1], the units of document i
    are ``documents[i]:documents[i + 1]``; ``tokens``: [N], all tokens; ``continues``: bool [N], the token continues
    the word before it; ``seed``: the data's seed; ``base``: id of the first sequence, another for every shard.
    """

    lengths: Ints
    documents: Ints
    tokens: NDArray[np.integer]
    continues: NDArray[np.bool_]
    seed: int
    base: np.uint64

    @cached_property
    def bounds(self) -> Ints:
        """int64 [d + 1]: the tokens of document i are ``bounds[i]:bounds[i + 1]``."""
        ends = np.concatenate([np.zeros(1, np.int64), np.cumsum(self.lengths)])
        return np.asarray(ends[self.documents], np.int64)

    @cached_property
    def keys(self) -> Keys:
        """uint64 [d]: a hash of the seed and of each document's tokens."""
        return np.asarray(_keys(np.asarray(self.tokens), self.bounds, np.uint64(self.seed & MASK_64)))


@dataclass(frozen=True)
class Sequences:
    """``offsets``: int64 [n + 1]; ``pieces``: int64 [p, 2].

    Of pairs only: ``firsts``: int64 [n], the tokens of the first text; ``order``: uint8 [n], the label.
    """

    offsets: Ints
    pieces: Ints
    firsts: Ints | None = None
    order: NDArray[np.uint8] | None = None


VARIANTS: Registry[Callable[[Units, SequenceConfig], Sequences]] = Registry("kind of sequences")


@VARIANTS.add("documents")
def documents(units: Units, config: SequenceConfig) -> Sequences:
    """Whole consecutive units of one document, as many as fit.

    A unit that is longer by itself is cut before a word (inside one only if the word is longer than a sequence),
    and its rest is a unit. Every token is in exactly one sequence, in order.
    """
    return _joined(units, config, 1.0)


@VARIANTS.add("lines")
def lines(units: Units, config: SequenceConfig) -> Sequences:
    """Each unit by itself; one that is too long is cut as in :func:`documents`."""
    return _joined(units, config, 0.0)


@VARIANTS.add("merged")
def merged(units: Units, config: SequenceConfig) -> Sequences:
    """Each unit is joined to the one before it with probability ``merge_probability``, if both fit together.

    Never over the end of a document. Without the limit of the length, runs are geometric with mean 1 / (1 - p).
    Source: RobBERTje (arXiv 2204.13511) names the probability; its script is not public, so the treatment of
    the limit is our reading.
    """
    assert config.merge_probability is not None
    return _joined(units, config, config.merge_probability)


@VARIANTS.add("shuffled")
def shuffled(units: Units, config: SequenceConfig) -> Sequences:
    """The units of the whole shard in random order, as many to a sequence as fit; units too long are cut before.

    Sequences cross documents. The order depends on the shard, and so on ``block_megabytes``.
    """
    pieces = lines(units, config).pieces
    ranks = _ranks(np.uint64(units.seed & MASK_64), units.base, len(pieces))
    pieces = pieces[_sorted(ranks)]
    return Sequences(_packed(pieces[:, 1], config.max_length - 2), pieces)


@VARIANTS.add("packed")
def packed(units: Units, config: SequenceConfig) -> Sequences:
    """All tokens of the shard in a row, cut after each ``max_length - 2``, wherever that is.

    Sequences cross documents, without a mark between them; a piece ends with its document, so that no word (nor n-gram
    of masked words) reaches into the next one. The last sequence of a shard is shorter, and left out with
    ``drop_remainder``. Source: MiniRBT's ``group_texts``, which packs 1000 lines at a time and drops what is over.
    """
    room, total = config.max_length - 2, int(units.bounds[-1])
    if config.drop_remainder:
        total -= total % room
    cuts = np.arange(0, total, room, dtype=np.int64)
    starts = np.union1d(cuts, units.bounds[units.bounds < total])
    pieces = np.stack([starts, np.append(starts[1:], total) - starts if len(starts) else starts], axis=1)
    return Sequences(np.append(np.searchsorted(starts, cuts), len(starts)).astype(np.int64), pieces)


def _joined(units: Units, config: SequenceConfig, probability: float) -> Sequences:
    keys = units.keys if 0 < probability < 1 else np.zeros(len(units.documents) - 1, np.uint64)
    room = config.max_length - 2
    starts = _starts(units.lengths, units.documents, units.continues, room, keys, probability)
    counts = np.diff(starts)
    pieces = np.stack([starts[:-1], counts], axis=1)
    return Sequences(np.arange(len(counts) + 1, dtype=np.int64), pieces)


@njit(cache=True, nogil=True)
def _starts(lengths: Any, docs: Any, continues: Any, room: int, keys: Any, probability: float) -> Any:
    """The first token of each sequence, and the end of the last."""
    total = 0
    for length in lengths:
        total += length
    starts = np.empty(total + 1, np.int64)
    n = 0
    token = 0
    for d in range(len(docs) - 1):
        filled = room  # a new document begins a new sequence
        for s in range(docs[d], docs[d + 1]):
            length = lengths[s]
            if filled + length > room or unit(hashed(keys[d], _JOIN, s - docs[d])) >= probability:
                starts[n] = token
                n += 1
                filled = 0
            while length > room:
                cut = room
                while cut > 0 and continues[token + cut]:
                    cut -= 1
                if cut == 0:
                    cut = room
                token += cut
                length -= cut
                starts[n] = token
                n += 1
            token += length
            filled += length
    starts[n] = token
    return starts[: n + 1].copy()


@njit(cache=True, nogil=True)
def _packed(counts: Any, room: int) -> Any:
    """Sequence -> its pieces, for pieces of ``counts`` tokens in this order."""
    offsets = np.empty(len(counts) + 1, np.int64)
    n, filled = 0, room
    for p in range(len(counts)):
        if filled + counts[p] > room:
            offsets[n] = p
            n += 1
            filled = 0
        filled += counts[p]
    offsets[n] = len(counts)
    return offsets[: n + 1].copy()


@njit(cache=True, nogil=True)
def _keys(tokens: Any, ends: Any, seed: Any) -> Any:
    """Four documents at a time, of nearly the same length, as each token of one waits for the token before."""
    n = len(ends) - 1
    out = np.full(n, mix(seed + GOLDEN), np.uint64)
    order = np.argsort(ends[1:] - ends[:-1])
    for i in range(0, n - 3, 4):
        a, b, c, d = order[i], order[i + 1], order[i + 2], order[i + 3]
        at_a, at_b, at_c, at_d = ends[a], ends[b], ends[c], ends[d]
        key_a, key_b, key_c, key_d = out[a], out[b], out[c], out[d]
        shortest = ends[a + 1] - at_a
        for t in range(shortest):
            key_a = mix(key_a ^ (np.uint64(tokens[at_a + t]) + GOLDEN))
            key_b = mix(key_b ^ (np.uint64(tokens[at_b + t]) + GOLDEN))
            key_c = mix(key_c ^ (np.uint64(tokens[at_c + t]) + GOLDEN))
            key_d = mix(key_d ^ (np.uint64(tokens[at_d + t]) + GOLDEN))
        out[a] = key_a
        out[b] = _key(key_b, tokens, at_b + shortest, ends[b + 1])
        out[c] = _key(key_c, tokens, at_c + shortest, ends[c + 1])
        out[d] = _key(key_d, tokens, at_d + shortest, ends[d + 1])
    for i in range(n & ~3, n):
        out[order[i]] = _key(out[order[i]], tokens, ends[order[i]], ends[order[i] + 1])
    return out


@njit(cache=True, nogil=True)
def _key(key: Any, tokens: Any, begin: Any, end: Any) -> Any:
    """A document's key, taken further over some of its tokens."""
    for t in range(begin, end):
        key = mix(key ^ (np.uint64(tokens[t]) + GOLDEN))
    return key


@njit(cache=True, nogil=True)
def _sorted(ranks: Any) -> Any:
    """Order of uniform uint64, a stable sort: by their highest bits into as many buckets, which is nearly all of it."""
    n, bits = len(ranks), 1
    while 1 << bits < n and bits < 22:
        bits += 1
    shift = np.uint64(64 - bits)
    heads, order = np.zeros((1 << bits) + 1, np.int64), np.empty(n, np.int64)
    for i in range(n):
        heads[np.int64(ranks[i] >> shift) + 1] += 1
    for bucket in range(1 << bits):
        heads[bucket + 1] += heads[bucket]
    for i in range(n):
        own = np.int64(ranks[i] >> shift)
        order[heads[own]] = i
        heads[own] += 1
    for k in range(1, n):
        i, j = order[k], k
        while j > 0 and ranks[order[j - 1]] > ranks[i]:
            order[j] = order[j - 1]
            j -= 1
        order[j] = i
    return order


@njit(cache=True, nogil=True)
def _ranks(seed: Any, base: Any, n: int) -> Any:
    """uint64 [n]: sorted by them, n things stand in random order."""
    key = mix(mix(seed + GOLDEN) ^ base)
    out = np.empty(n, np.uint64)
    for i in range(n):
        out[i] = hashed(key, _SHUFFLE, i)
    return out
