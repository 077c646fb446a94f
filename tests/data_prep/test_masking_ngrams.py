"""N-grams, whole-word replacement and similar words, against a slow masker written from the rule in masking.py."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_prep.config import MaskConfig
from data_prep.mapped import offsets_of
from data_prep.masking import MaskRule, Masks, draw
from data_prep.similar import SimilarWords
from tests.data_prep.hashes import GOLDEN, MASK64, hashed, mix, share

SPECIALS = (0, 1, 2, 3, 4)
NGRAMS = (0.4, 0.3, 0.2, 0.1)
Piece = list[tuple[int, bool]]
"""(id, continues) of each token."""

tokens = st.tuples(st.integers(0, 29), st.booleans())
pieces = st.lists(tokens, min_size=1, max_size=40)
sequences = st.lists(st.lists(pieces, min_size=1, max_size=4), min_size=1, max_size=4)
"""Sequences of pieces of tokens."""

WORDS = [(5,), (6,), (7,), (8, 9), (9, 8), (10, 11), (12, 13), (5, 6, 7), (7, 6, 5)]
NEAR = [[1, 2], [0, -1], [-1, -1], [4, 5], [3, 6], [6, 3], [-1, -1], [8, -1], [-1, -1]]


def table() -> SimilarWords:
    flat = np.array([token for word in WORDS for token in word], np.int64)
    return SimilarWords(offsets_of(np.array([len(word) for word in WORDS])), flat, np.array(NEAR, np.int32))


RULE = MaskRule(
    rate=0.3, mask=0.2, random=0.2, mask_id=4, vocab_size=30, special_ids=SPECIALS, ngrams=NGRAMS, by_word=True
)
rules = st.builds(
    lambda rate, ngrams, by_word, similar, most: replace(
        RULE,
        rate=rate,
        ngrams=ngrams,
        by_word=by_word or similar,
        similar=0.4 if similar else 0.0,
        words=table(),
        max_masked=most,
    ),
    st.sampled_from([0.15, 0.3, 0.8]),
    st.sampled_from([(1.0,), NGRAMS, (0.0, 0.0, 1.0)]),
    st.booleans(),
    st.booleans(),
    st.sampled_from([None, 3]),
)


def masks_of(batch: list[list[Piece]], numbers: list[int], rule: MaskRule, view: int = 0, seed: int = 7) -> Masks:
    flat = [token for sequence in batch for piece in sequence for token in piece]
    sizes = [sum(map(len, sequence)) for sequence in batch]
    starts = np.cumsum([0, *(len(piece) for sequence in batch for piece in sequence)])[:-1]
    offsets = np.cumsum([0, *sizes])
    breaks = np.setdiff1d(starts, offsets)
    ids, bits = np.array([t for t, _ in flat], np.int64), np.array([c for _, c in flat], np.bool_)
    return draw(rule, seed, np.full(len(batch), view), np.array(numbers, np.uint64), ids, bits, offsets, breaks)


def of_sequence(masks: Masks, i: int) -> dict[int, int]:
    here = slice(masks.offsets[i], masks.offsets[i + 1])
    return dict(zip(masks.positions[here].tolist(), masks.ids[here].tolist(), strict=True))


def words_of(sequence: list[Piece]) -> list[tuple[int, list[int]]]:
    """(piece, places in the sequence) of each word."""
    words: list[tuple[int, list[int]]] = []
    place = 0
    for number, piece in enumerate(sequence):
        for inner, (_, continues) in enumerate(piece):
            if continues and inner:
                words[-1][1].append(place)
            else:
                words.append((number, [place]))
            place += 1
    return words


def selected(sequence: list[Piece], base: int, rule: MaskRule) -> list[list[int]]:
    """The words that are taken, by their places."""
    ids = [token for piece in sequence for token, _ in piece]
    words = words_of(sequence)
    allowed = [all(ids[p] not in rule.special_ids for p in places) for _, places in words]
    total = sum(len(places) for (_, places), ok in zip(words, allowed, strict=True) if ok)
    if not total:
        return []
    budget = min(rule.max_masked or 10**9, max(1, math.floor(rule.rate * total + 0.5)))
    order = sorted((w for w, ok in enumerate(allowed) if ok), key=lambda w: hashed(base, 1, words[w][1][0]))
    taken: set[int] = set()
    left = budget
    for w in order:
        if w in taken or len(words[w][1]) > left:
            continue
        n, drawn = 1, share(hashed(base, 4, words[w][1][0]))
        while n < len(rule.ngrams) and drawn >= sum(rule.ngrams[:n]):
            n += 1
        for v in range(w, w + n):
            fits = v < len(words) and words[v][0] == words[w][0] and allowed[v] and v not in taken
            if not fits or len(words[v][1]) > left:
                break
            taken.add(v)
            left -= len(words[v][1])
    if not taken and len(order) > 1:
        shortest = min(order, key=lambda w: len(words[w][1]))
        if len(words[shortest][1]) <= (rule.max_masked or 10**9):
            taken = {shortest}
    return [words[w][1] for w in sorted(taken)]


def reference(sequence: list[Piece], number: int, view: int, seed: int, rule: MaskRule) -> dict[int, int]:
    base = mix(mix((mix((seed + GOLDEN) & MASK64) + view * GOLDEN + GOLDEN) & MASK64) ^ number)
    ids = [token for piece in sequence for token, _ in piece]
    ordinary = [i for i in range(rule.vocab_size) if i not in rule.special_ids]
    out = {}
    for places in selected(sequence, base, rule):
        word = tuple(ids[p] for p in places)
        for k, place in enumerate(places):
            kind = share(hashed(base, 2, places[0] if rule.by_word else place))
            if kind < rule.mask:
                out[place + 1] = rule.mask_id
            elif kind >= rule.mask + rule.random + rule.similar:
                out[place + 1] = ids[place]
            else:
                out[place + 1] = ordinary[hashed(base, 3, place) % len(ordinary)]
                near = [v for v in NEAR[WORDS.index(word)] if v >= 0] if word in WORDS else []
                if kind >= rule.mask + rule.random and near:
                    out[place + 1] = WORDS[near[hashed(base, 5, places[0]) % len(near)]][k]
    return out


@given(sequences, rules, st.integers(0, 3), st.integers(0, 2**63))
@settings(max_examples=150, deadline=None)
def test_equals_the_slow_masker(batch: list[list[Piece]], rule: MaskRule, view: int, seed: int) -> None:
    numbers = [(i << 32) | 3 for i in range(len(batch))]
    masks = masks_of(batch, numbers, rule, view, seed)
    for i, sequence in enumerate(batch):
        assert of_sequence(masks, i) == reference(sequence, numbers[i], view, seed, rule)


@pytest.mark.parametrize("by_word", [False, True])
def test_long_sequences_equal_the_slow_masker(by_word: bool) -> None:
    rng = np.random.default_rng(3)
    batch: list[list[Piece]] = []
    for _ in range(30):
        sizes = rng.integers(1, 200, rng.integers(1, 6)).tolist()
        batch.append(
            [list(zip(rng.integers(0, 30, n).tolist(), (rng.random(n) < 0.4).tolist(), strict=True)) for n in sizes]
        )
    for rate in (0.15, 0.8):
        rule = replace(RULE, rate=rate, by_word=by_word, similar=0.4, words=table())
        masks = masks_of(batch, list(range(len(batch))), rule)
        for i, sequence in enumerate(batch):
            assert of_sequence(masks, i) == reference(sequence, i, 0, 7, rule)


@given(sequences, st.integers(0, 2**63))
@settings(max_examples=50, deadline=None)
def test_words_are_whole_and_the_budget_is_kept(batch: list[list[Piece]], seed: int) -> None:
    masks = masks_of(batch, list(range(len(batch))), RULE, seed=seed)
    for i, sequence in enumerate(batch):
        places = {p - 1 for p in of_sequence(masks, i)}
        ids = [token for piece in sequence for token, _ in piece]
        words = [word for _, word in words_of(sequence)]
        maskable = [word for word in words if all(ids[p] not in SPECIALS for p in word)]
        for word in words:
            assert places.issuperset(word) or places.isdisjoint(word)
            assert word in maskable or places.isdisjoint(word)
        budget = max(1, math.floor(0.3 * sum(map(len, maskable)) + 0.5))
        assert len(places) <= budget or len(places) == min(map(len, maskable))


def test_shares_of_n_grams_and_rate() -> None:
    """At a low rate n-grams seldom touch one another: runs of selected words have the configured lengths."""
    n, size = 400, 500
    rule = replace(RULE, rate=0.04, vocab_size=9000)
    rng = np.random.default_rng(0)
    batch = []
    for _ in range(n):
        bits = rng.random(size) < 0.35
        batch.append([list(zip(rng.integers(5, 9000, size).tolist(), bits.tolist(), strict=True))])
    masks = masks_of(batch, list(range(n)), rule)
    assert len(masks.ids) == n * round(0.04 * size), "the last n-gram is cut, not left out"
    runs: Counter[int] = Counter()
    for i, sequence in enumerate(batch):
        places = of_sequence(masks, i)
        hit = [word[0] + 1 in places for _, word in words_of(sequence)]
        runs.update(len(list(group)) for taken, group in itertools.groupby(hit) if taken)
    total = runs.total()
    # The last n-gram of a sequence (1 in 7) is cut to what is left of the budget, some touch another one.
    assert [runs[k] / total for k in range(1, 5)] == pytest.approx(NGRAMS, abs=0.06)
    assert max(runs) > 4 and sum(v for k, v in runs.items() if k > 4) / total < 0.1


def test_one_draw_decides_on_a_word() -> None:
    rule = replace(RULE, rate=0.5, mask=0.5, random=0.0)
    batch = [[[(10 + k % 10, k % 3 > 0) for k in range(60)]]] * 50
    masks = masks_of(batch, list(range(50)), rule)
    kinds = Counter()
    for i in range(50):
        found = of_sequence(masks, i)
        for start in range(1, 61, 3):
            if start in found:
                kinds[tuple(found[start + k] == 4 for k in range(3))] += 1
    assert set(kinds) == {(True,) * 3, (False,) * 3} and min(kinds.values()) > 100


def test_similar_words_have_as_many_tokens_and_macbert_has_no_mask_token() -> None:
    rule = replace(RULE, mask=0.0, random=0.0, similar=1.0, words=table(), rate=0.5, ngrams=(1.0,))
    word = [(8, False), (9, True)]
    masks = masks_of([[word * 20]] * 20, list(range(20)), rule)
    assert 4 not in masks.ids
    pairs = Counter(map(tuple, masks.ids.reshape(-1, 2).tolist()))
    assert set(pairs) == {(9, 8), (10, 11)} and min(pairs.values()) > 60


@given(sequences, st.randoms(use_true_random=False))
@settings(max_examples=30, deadline=None)
def test_does_not_depend_on_the_grouping(batch: list[list[Piece]], shuffle) -> None:  # type: ignore[no-untyped-def]
    together = masks_of(batch, list(range(len(batch))), RULE)
    order = list(range(len(batch)))
    shuffle.shuffle(order)
    mixed = masks_of([batch[i] for i in order], order, RULE)
    for place, i in enumerate(order):
        assert of_sequence(mixed, place) == of_sequence(together, i)


@pytest.mark.parametrize(
    ("given_fields", "message"),
    [
        ({"ngram": [0.5, 0.4]}, "must sum to 1"),
        ({"ngram": []}, "at least 1"),
        ({"ngram": [0.5, 0.5], "smoothing": 0.7, "unit": "token", "mode": "dynamic"}, "remove one of them"),
        ({"similar": {"vectors": "v.txt"}, "unit": "token"}, "replaces whole words"),
        ({"similar": {"vectors": "v.txt"}, "replace": "token"}, "replaces whole words"),
        ({"similar": {"vectors": "v.txt", "share": 0.95}}, "at most 1"),
    ],
)
def test_refused(given_fields: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MaskConfig.model_validate(given_fields)


def test_defaults_with_similar_words_are_macberts() -> None:
    config = MaskConfig.model_validate({"similar": {"vectors": "v.txt"}, "ngram": list(NGRAMS)})
    assert config.similar is not None
    assert (config.mask, config.random, config.similar.share, config.replace) == (0.0, 0.1, 0.8, "word")
    assert MaskConfig.model_validate(config.model_dump()) == config
