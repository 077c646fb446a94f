"""Laws of whole word masking, and a slow reference written from the rule in the module's docstring."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
import xxhash
from hypothesis import given, settings
from hypothesis import strategies as st

from data_prep.config import MaskConfig
from data_prep.masking import MaskRule, Masks, draw, mask_rule
from tests.data_prep.hashes import GOLDEN, MASK64, hashed, mix

SPECIALS = (0, 1, 2, 3, 4)
RULE = MaskRule(rate=0.15, mask=0.8, random=0.1, mask_id=4, vocab_size=300, special_ids=SPECIALS)
Sequence = list[tuple[int, bool]]
"""(id, continues) of each token."""

tokens = st.tuples(st.integers(0, 299), st.booleans())
sequences = st.lists(st.lists(tokens, min_size=0, max_size=40), min_size=1, max_size=6)


def masks_of(batch: list[Sequence], ids: list[int], view: int = 0, seed: int = 7, rule: MaskRule = RULE) -> Masks:
    flat = [token for sequence in batch for token in sequence]
    offsets = np.cumsum([0, *(len(s) for s in batch)])
    return draw(
        rule,
        seed,
        np.full(len(batch), view),
        np.array(ids, np.uint64),
        np.array([t for t, _ in flat], np.int64),
        np.array([c for _, c in flat], np.bool_),
        offsets,
    )


def of_sequence(masks: Masks, i: int) -> dict[int, int]:
    here = slice(masks.offsets[i], masks.offsets[i + 1])
    return dict(zip(masks.positions[here].tolist(), masks.ids[here].tolist(), strict=True))


def words_of(sequence: Sequence) -> list[list[int]]:
    """Words as lists of places (0-based)."""
    words: list[list[int]] = []
    for place, (_, continues) in enumerate(sequence):
        if continues and words:
            words[-1].append(place)
        else:
            words.append([place])
    return words


# ------------------------------------------------------------ a slow reference


def reference(sequence: Sequence, number: int, view: int, seed: int, rule: MaskRule) -> dict[int, int]:
    """Position -> id after masking, word by word."""
    base = mix(mix((mix((seed + GOLDEN) & MASK64) + view * GOLDEN + GOLDEN) & MASK64) ^ number)
    words = [w for w in words_of(sequence) if all(sequence[p][0] not in rule.special_ids for p in w)]
    maskable = sum(len(w) for w in words)
    if not maskable:
        return {}
    budget = max(1, math.floor(rule.rate * maskable + 0.5))
    chosen, room = [], budget
    for word in sorted(words, key=lambda w: hashed(base, 1, w[0])):
        if len(word) <= room:
            chosen.append(word)
            room -= len(word)
    if not chosen and len(words) > 1:
        chosen = [min(sorted(words, key=lambda w: hashed(base, 1, w[0])), key=len)]
    out = {}
    for place in sorted(p for w in chosen for p in w):
        share = (hashed(base, 2, place) >> 11) / 2**53
        ordinary = [i for i in range(rule.vocab_size) if i not in rule.special_ids]
        if share < rule.mask:
            out[place + 1] = rule.mask_id
        elif share < rule.mask + rule.random:
            out[place + 1] = ordinary[hashed(base, 3, place) % len(ordinary)]
        else:
            out[place + 1] = sequence[place][0]
    return out


@given(sequences, st.integers(0, 5), st.integers(0, 2**63))
@settings(max_examples=80, deadline=None)
def test_equals_the_slow_reference(batch: list[Sequence], view: int, seed: int) -> None:
    ids = [(i << 32) | 5 for i in range(len(batch))]
    masks = masks_of(batch, ids, view, seed)
    for i, sequence in enumerate(batch):
        assert of_sequence(masks, i) == reference(sequence, ids[i], view, seed, RULE)


@pytest.mark.parametrize("rate", [0.01, 0.15, 0.6, 0.97])
@pytest.mark.parametrize("longest", [1, 4, 200])
def test_long_sequences_equal_the_slow_reference(rate: float, longest: int) -> None:
    """Many times the 64 tokens that kernels look at together, with words over their borders, and special tokens."""
    rng = np.random.default_rng([longest, int(100 * rate)])
    batch: list[Sequence] = []
    for length in (63, 64, 65, 127, 128, 129, 510, *rng.integers(1, 900, 40).tolist()):
        sizes = rng.integers(1, longest + 1, length)
        bits = [bit for size in sizes.tolist() for bit in [False] + [True] * (size - 1)][:length]
        tokens = np.where(rng.random(length) < 0.01, 1, rng.integers(5, 300, length))
        batch.append(list(zip(tokens.tolist(), bits, strict=True)))
    rule = replace(RULE, rate=rate)
    masks = masks_of(batch, list(range(len(batch))), 1, 11, rule)
    for i, sequence in enumerate(batch):
        assert of_sequence(masks, i) == reference(sequence, i, 1, 11, rule)


# ------------------------------------------------------------ laws


@given(sequences)
@settings(max_examples=60, deadline=None)
def test_words_are_whole_and_specials_stay(batch: list[Sequence]) -> None:
    masks = masks_of(batch, list(range(len(batch))))
    for i, sequence in enumerate(batch):
        selected = {p - 1 for p in of_sequence(masks, i)}
        for word in words_of(sequence):
            assert selected.issuperset(word) or selected.isdisjoint(word)
            if any(sequence[p][0] in SPECIALS for p in word):
                assert selected.isdisjoint(word)
        for place in selected:
            replaced = of_sequence(masks, i)[place + 1]
            assert replaced == 4 or replaced not in SPECIALS


@given(sequences, st.randoms(use_true_random=False))
@settings(max_examples=40, deadline=None)
def test_does_not_depend_on_the_grouping(batch: list[Sequence], draw_order) -> None:  # type: ignore[no-untyped-def]
    together = masks_of(batch, list(range(len(batch))))
    order = list(range(len(batch)))
    draw_order.shuffle(order)
    shuffled = masks_of([batch[i] for i in order], order)
    for place, i in enumerate(order):
        alone = masks_of([batch[i]], [i])
        assert of_sequence(alone, 0) == of_sequence(together, i) == of_sequence(shuffled, place)


@pytest.fixture(scope="module")
def many() -> tuple[list[Sequence], Masks]:
    """2,000 sequences of Chinese-like words (1 to 4 tokens)."""
    rng = np.random.default_rng(1)
    batch = []
    for _ in range(2000):
        sizes = rng.choice([1, 2, 3, 4], p=[0.5, 0.35, 0.1, 0.05], size=30)
        bits = list(itertools.chain.from_iterable([False] + [True] * (n - 1) for n in sizes.tolist()))
        batch.append(list(zip(rng.integers(5, 300, len(bits)).tolist(), bits, strict=True)))
    return batch, masks_of(batch, list(range(2000)))


def test_rates(many: tuple[list[Sequence], Masks]) -> None:
    batch, masks = many
    total = sum(map(len, batch))
    assert len(masks.ids) / total == pytest.approx(0.15, abs=0.004)
    original = np.array([batch[i][p - 1][0] for i in range(2000) for p in of_sequence(masks, i)])
    assert (masks.ids == 4).mean() == pytest.approx(0.8, abs=0.015)
    kept = (masks.ids == original).mean()
    assert kept == pytest.approx(0.1 + 0.1 / 295, abs=0.01)
    drawn = masks.ids[(masks.ids != 4) & (masks.ids != original)]
    assert drawn.min() >= 5 and drawn.max() < 300
    assert len(np.unique(drawn)) > 280


def test_every_place_is_reached(many: tuple[list[Sequence], Masks]) -> None:
    """No position is favoured: the first, middle and last third are selected alike."""
    batch, masks = many
    share = np.array([(p - 1) / len(batch[i]) for i in range(2000) for p in of_sequence(masks, i)])
    thirds = np.histogram(share, bins=3, range=(0, 1))[0] / len(share)
    assert thirds == pytest.approx([1 / 3] * 3, abs=0.02)


def test_views_and_seeds_differ(many: tuple[list[Sequence], Masks]) -> None:
    batch, masks = many
    ids = list(range(2000))
    for other in (masks_of(batch, ids, view=1), masks_of(batch, ids, seed=8)):
        same = sum(of_sequence(masks, i) == of_sequence(other, i) for i in range(2000))
        assert same < 20


def test_golden() -> None:
    """These masks are part of the format: stored data of older versions must stay valid."""
    sequence = [(10 + i, i % 3 == 2) for i in range(40)]
    assert of_sequence(masks_of([sequence], [3 << 32 | 9], view=2, seed=1337), 0) == GOLDEN_MASKS


GOLDEN_MASKS = {1: 4, 14: 4, 15: 4, 19: 129, 26: 4, 27: 36}


def test_golden_of_a_batch() -> None:
    """A hash of many sequences, from before there were other units, limits and weights."""
    n = np.arange(4000, dtype=np.int64)
    offsets = np.append(np.arange(0, 4000, 37), 4000)
    k = len(offsets) - 1
    numbers = np.arange(k, dtype=np.uint64) << np.uint64(3)
    masks = draw(RULE, 1337, np.arange(k) % 5, numbers, n * n % 301 % 300, n * 7919 % 11 < 4, offsets)
    content = b"".join(a.astype("<i8").tobytes() for a in (masks.offsets, masks.positions, masks.ids))
    assert (len(masks.ids), xxhash.xxh3_64_hexdigest(content)) == (579, "03d3e06c70248b9a")


# ------------------------------------------------------------ other rules


@given(sequences, st.integers(0, 2**63))
@settings(max_examples=40, deadline=None)
def test_single_tokens(batch: list[Sequence], seed: int) -> None:
    """The same as words of one token each; the budget is always filled."""
    rule = replace(RULE, whole_words=False)
    masks = masks_of(batch, list(range(len(batch))), seed=seed, rule=rule)
    for i, sequence in enumerate(batch):
        split = [(token, False) for token, _ in sequence]
        assert of_sequence(masks, i) == reference(split, i, 0, seed, RULE)
        maskable = sum(token not in SPECIALS for token, _ in sequence)
        expected = min(maskable, max(1, math.floor(0.15 * maskable + 0.5)))
        assert len(of_sequence(masks, i)) == expected


@given(sequences)
@settings(max_examples=30, deadline=None)
def test_rate_0_masks_nothing(batch: list[Sequence]) -> None:
    masks = masks_of(batch, list(range(len(batch))), rule=replace(RULE, rate=0))
    assert masks.offsets.tolist() == [0] * (len(batch) + 1)
    assert len(masks.positions) == len(masks.ids) == 0


@given(sequences, st.integers(1, 8))
@settings(max_examples=40, deadline=None)
def test_a_limit_is_held(batch: list[Sequence], most: int) -> None:
    rule = replace(RULE, rate=0.6)
    free, limited = (masks_of(batch, list(range(len(batch))), rule=r) for r in (rule, replace(rule, max_masked=most)))
    assert np.diff(limited.offsets).max(initial=0) <= most
    for i, sequence in enumerate(batch):
        budget = math.floor(0.6 * sum(len(w) for w in words_of(sequence) if not is_special(sequence, w)) + 0.5)
        if budget <= most and len(of_sequence(free, i)) <= most:
            assert of_sequence(limited, i) == of_sequence(free, i)


def is_special(sequence: Sequence, word: list[int]) -> bool:
    return any(sequence[place][0] in SPECIALS for place in word)


def inclusion(weights: list[float], k: int) -> list[float]:
    """Chance of each thing to be among ``k`` successive draws without replacement, by all orders."""
    chances = [0.0] * len(weights)
    for order in itertools.permutations(range(len(weights)), k):
        chance, left = 1.0, sum(weights)
        for thing in order:
            chance *= weights[thing] / left
            left -= weights[thing]
        for thing in order:
            chances[thing] += chance
    return chances


def test_smoothing_draws_in_proportion_without_replacement() -> None:
    counts = np.zeros(300, np.int64)
    tokens = [10, 11, 12, 13, 14]
    counts[tokens] = [1, 5, 40, 1000, 0]
    config = MaskConfig(mode="dynamic", unit="token", smoothing=0.7, rate=0.4)
    special_ids = {"pad": 0, "unk": 1, "cls": 2, "sep": 3, "mask": 4}
    rule = mask_rule(config, "train", special_ids, 300, counts)
    n = 40_000
    batch = [[(token, False) for token in tokens] + [(1, False)]] * n  # [UNK] is never taken
    masks = masks_of(batch, list(range(n)), rule=rule)
    assert (np.diff(masks.offsets) == 2).all()
    found = np.bincount(masks.positions, minlength=7) / n
    expected = inclusion([max(c, 1) ** -0.7 for c in (1, 5, 40, 1000, 0)], 2)
    assert found[0] == found[6] == 0
    assert found[1:6] == pytest.approx(expected, abs=4 * math.sqrt(0.25 / n))


def test_equal_weights_select_uniformly() -> None:
    rule = replace(RULE, whole_words=False, weights=np.ones(300), rate=0.2)
    n = 20_000
    masks = masks_of([[(10 + i, True) for i in range(10)]] * n, list(range(n)), rule=rule)
    assert np.bincount(masks.positions, minlength=11)[1:] / n == pytest.approx([0.2] * 10, abs=0.012)


def test_rates_of_the_splits() -> None:
    special_ids = {"pad": 0, "unk": 1, "cls": 2, "sep": 3, "mask": 4}
    unmasked = MaskConfig(rate=0)
    assert mask_rule(unmasked, "train", special_ids, 300).rate == 0
    assert mask_rule(unmasked, "held_out", special_ids, 300).rate == 0.15
    assert not unmasked.stored("train") and unmasked.stored("held_out")
    assert mask_rule(MaskConfig(rate=0.3), "held_out", special_ids, 300).rate == 0.3


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"smoothing": 0.7}, "set unit: token"),
        ({"smoothing": 0.7, "unit": "token"}, "set mode: dynamic"),
        ({"rate": 1.0}, "less than 1"),
        ({"max_masked": 0}, "greater than or equal to 1"),
        ({"mask": 0.9, "random": 0.2}, "at most 1"),
    ],
)
def test_refused(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MaskConfig.model_validate(settings)
