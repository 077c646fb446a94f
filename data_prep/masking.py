"""Masks: one pure function of (seed, view, sequence), for stored views and for dynamic masks.

The rule, per sequence of content tokens (no [CLS]/[SEP]):

1. a word is a token and the tokens after it whose continuation bit is set (``unit: token``: every token is a word);
   special tokens are not maskable and a word that holds one is left alone;
2. the budget is ``max(1, round(rate * maskable tokens))``, but at most ``max_masked``; with rate 0 nothing is masked;
3. the words are visited in a random order; a word is taken if all of it still fits into the budget, else passed
   over. If none fits, the shortest one is taken, unless it is all there is to mask or longer than ``max_masked``;
4. with ``ngram`` a visited word begins an n-gram: n is drawn, and the n - 1 words that follow it at once are taken
   too, up to the first that is taken already, does not fit, is not maskable or belongs to another piece (another
   document, the other text of a pair). So an n-gram that is too long for the budget is cut, as in ALBERT's code;
5. of the taken tokens a share ``mask`` becomes [MASK], a share ``random`` a token drawn uniformly from the
   vocabulary without the special ones, a share ``similar.share`` a word like the one that stood there (similar.py) of
   as many tokens, or random tokens if there is none; the rest is kept. What becomes of it is drawn per token, as BERT
   and MiniRBT do, or per word (``replace: word``), as MacBERT does for each word of an n-gram.

With ``smoothing`` s the order of step 3 is that of successive draws without replacement, each in proportion to
count(token)^-s: ascending -log(u) / weight with uniform u (Efraimidis & Spirakis 2006). DistilBERT's code draws
so from all tokens of a batch together; here each sequence keeps its own budget, so that masks do not depend on
what else is in a batch. A sequence of frequent tokens is therefore masked as much as one of rare tokens.

Every draw is a hash of (seed, view, sequence id, purpose, place), so nothing depends on how sequences are grouped.
Sources: Devlin et al. 2019 (arXiv 1810.04805); Cui et al. 2021, whole word masking (arXiv 1906.08101); Sanh et al.
2019, DistilBERT (arXiv 1910.01108); Cui et al. 2020, MacBERT (arXiv 2004.13922): n-grams and similar words; Lan et al.
2020, ALBERT (arXiv 1909.11942): n-grams.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from data_prep.config import MaskConfig
from data_prep.mapped import Arrays, Mapped, extents, owners
from data_prep.mask_kernels import draw_views, gather_drawn
from data_prep.mask_tables import Rule, room_for
from data_prep.similar import NO_WORDS, SimilarWords

Ints = NDArray[np.int64]

_NO_WEIGHTS = np.zeros(0)
_NO_LIMIT = 1 << 62


@dataclass(frozen=True)
class MaskRule:
    """``rate``: share of maskable tokens; ``mask``, ``random``: shares of the selected ones.

    ``whole_words``: else every token is selected by itself; ``max_masked``: tokens of a sequence, None for no limit;
    ``weights``: float64 [V], how readily each token is selected (needs ``whole_words=False``), None: all alike;
    ``by_word``: one draw decides what becomes of a word; ``ngrams``: chances of n-grams of 1, 2, ... words;
    ``similar``: share of selected words that become a similar one, out of ``words``.
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
    by_word: bool = False
    ngrams: tuple[float, ...] = (1.0,)
    similar: float = 0.0
    words: SimilarWords = NO_WORDS

    @cached_property
    def kernel(self) -> tuple[Any, ...]:
        """The fields of mask_tables.Rule, as kernels take them."""
        several = len(self.ngrams) > 1
        fields = Rule(
            float(self.rate),
            _NO_LIMIT if self.max_masked is None else int(self.max_masked),
            _NO_WEIGHTS if self.weights is None else self.weights,
            (
                _of_draws(self.mask),
                _of_draws(self.mask + self.random),
                _of_draws(self.mask + self.random + self.similar),
            ),
            int(self.mask_id),
            int(self.vocab_size - len(self.special_ids)),
            _runs(sorted(self.special_ids)),
            bool(self.whole_words),
            bool(self.by_word),
            np.cumsum(self.ngrams) / sum(self.ngrams) if several else _NO_WEIGHTS,
            *self.words.tables,
        )
        return tuple(fields)


def mask_rule(
    config: MaskConfig,
    split: str,
    special_ids: dict[str, int],
    vocab_size: int,
    counts: Ints | None = None,
    words: SimilarWords | None = None,
) -> MaskRule:
    """The rule for ``split``.

    Args:
        special_ids: by name, with ``mask``.
        counts: int64 [V], how often each token stands in the training split; needed for ``config.smoothing`` only.
            A token that never does counts as one that does once.
        words: needed for ``config.similar`` only.
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
        by_word=config.replace == "word",
        ngrams=tuple(config.ngram or (1.0,)),
    )
    if config.similar is not None:
        assert words is not None, "masks.similar needs the table of words"
        rule = replace(rule, similar=config.similar.share, words=words)
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


def draw(
    rule: MaskRule,
    seed: int,
    views: Ints,
    sequence_ids: NDArray[np.uint64],
    ids: NDArray[np.integer],
    continues: NDArray[np.bool_],
    offsets: Ints,
    breaks: Ints | None = None,
) -> Masks:
    """Masks of n sequences that lie in memory, each under its view.

    Args:
        rule: what is selected and what becomes of it.
        seed: the data's mask seed.
        views: [n]; the epoch for dynamic masks.
        sequence_ids: [n], stable ids.
        ids, continues: [N], the content tokens of the sequences as one stream, and their continuation bits.
        offsets: [n + 1], where each sequence begins in the stream.
        breaks: ascending places in the stream where a piece begins inside a sequence, which neither words nor n-grams
            cross; None: each sequence is one piece.
    """
    inner = np.zeros(0, np.int64) if breaks is None else np.asarray(breaks, np.int64)
    starts = np.sort(np.concatenate([offsets[:-1], inner])).astype(np.int64)
    pieces = np.stack([starts, np.append(starts[1:], offsets[-1:]) - starts], axis=1)
    bits = np.packbits(np.asarray(continues, np.bool_), bitorder="little")
    index = np.searchsorted(starts, offsets).astype(np.int64)
    index[-1] = len(starts)
    shard = Arrays(np.asarray(ids).astype(np.uint32), bits, index, pieces)
    return drawn(Mapped([shard], wide=True, pairs=False), rule, seed, views, sequence_ids, np.arange(len(offsets) - 1))


def drawn(
    shards: Mapped, rule: MaskRule, seed: int, views: Ints, sequence_ids: NDArray[np.uint64], index: Ints
) -> Masks:
    """Masks of the sequences ``index`` (int64 [n]) of some shards; the rest as in :func:`draw`."""
    owner, local, _ = owners(shards.table, np.asarray(index, np.int64))
    offsets, _ = extents(shards.table, owner, local)
    none = np.zeros(0, np.int32)
    ids = np.empty(int(offsets[-1]), np.int32)
    where, out = (owner, local, offsets), (ids, none, none, np.zeros(0, np.int64))
    masked, rows, _ = draw_into(shards, rule, seed, views, sequence_ids, where, (-1, -1), out, np.empty)
    return Masks(masked, rows - np.repeat(offsets[:-1], np.diff(masked)), ids[rows].astype(np.int64))


class Empty(Protocol):
    """``numpy.empty``, or what gives arrays in other memory."""

    def __call__(self, shape: int, dtype: Any, /) -> NDArray[Any]: ...


def draw_into(
    shards: Mapped,
    rule: MaskRule,
    seed: int,
    views: Ints,
    sequence_ids: NDArray[np.uint64],
    where: tuple[Ints, Ints, Ints],
    marks: tuple[int, int],
    batch: tuple[NDArray[np.int32], NDArray[np.int32], NDArray[np.int32], Ints],
    empty: Empty,
) -> tuple[Ints, Ints, Ints]:
    """Read and mask sequences in one go.

    Args:
        shards, rule, seed, views, sequence_ids: as in :func:`drawn`.
        where: int64, for each sequence its shard [n] and number in it [n], and its offsets in the batch [n + 1].
        marks: ids of [CLS] and [SEP].
        batch: filled: ids int32 [N], and unless they are empty positions int32 [N], and of pairs types int32 [N] and
            labels int64 [n].
        empty: makes the arrays of rows and labels.

    Returns:
        (int64 [n + 1], where the selected rows of each sequence begin; int64 [M], rows in the batch; int64 [M], the
        tokens that stood there).
    """
    offsets = where[2]
    n, total = len(offsets) - 1, int(offsets[-1])
    room = room_for(int(np.diff(offsets).max(initial=0)))
    masked = np.zeros(n + 1, np.int64)
    key = (np.uint64(seed & 0xFFFFFFFFFFFFFFFF), np.asarray(views, np.int64), np.asarray(sequence_ids, np.uint64))
    for capacity in capacities(rule, n, total):
        rows, labels = empty(capacity, np.int64), empty(capacity, np.int64)
        if gather_drawn(shards.table, rule.kernel, *key, *where, marks, *batch, room, rows, labels, masked):
            break
    m = int(masked[-1])
    return masked, rows[:m], labels[:m]


def capacities(rule: MaskRule, n: int, tokens: int) -> tuple[int, int]:
    """How many tokens are selected in n sequences: mostly, and at most.

    A budget is at most its share and 1; a word that is longer than the budget may be taken where nothing else fits.
    """
    return int(rule.rate * tokens) + n, tokens


def drawn_views(
    shards: Mapped, rule: MaskRule, seed: int, views: range, base: np.uint64, first: int, last: int
) -> list[tuple[Ints, NDArray[np.uint16], NDArray[Any]]]:
    """Masks of the sequences ``first`` to ``last - 1`` of a shard under each view, as they are stored.

    Args:
        base: the id of sequence 0.

    Returns:
        For each view int64 [n + 1], where those of each sequence begin; uint16 [m], positions; [m], ids in the type of
        the shard's tokens.
    """
    local = np.arange(first, last, dtype=np.int64)
    owner = np.zeros(len(local), np.int64)
    offsets, _ = extents(shards.table, owner, local)
    longest = int(np.diff(offsets).max(initial=0))
    key = (np.uint64(seed & 0xFFFFFFFFFFFFFFFF), np.array(views, np.int64), base | local.astype(np.uint64))
    room = (room_for(longest), np.empty(longest, np.int32), np.empty((2, longest), np.int64))
    starts = np.empty((len(views), len(local) + 1), np.int64)
    for capacity in capacities(rule, len(local), int(offsets[-1])):
        positions = np.empty((len(views), capacity), np.uint16)
        ids = np.empty((len(views), capacity), np.uint32 if shards.wide else np.uint16)
        if draw_views(shards.table, rule.kernel, *key, owner, local, *room, positions, ids, starts):
            break
    return [(own, positions[v, : own[-1]], ids[v, : own[-1]]) for v, own in enumerate(starts)]


def _runs(numbers: list[int]) -> Ints:
    """int64 [k, 2]: (first, how many) of each run of consecutive numbers among these, which ascend."""
    ends = np.flatnonzero(np.diff(numbers) != 1) + 1
    runs = np.split(np.array(numbers, np.int64), ends)
    return np.array([(run[0], len(run)) for run in runs if len(run)], np.int64).reshape(-1, 2)


def _of_draws(share: float) -> int:
    """How many of the 2**53 draws are below ``share``."""
    return math.ceil(share * 2.0**53)
