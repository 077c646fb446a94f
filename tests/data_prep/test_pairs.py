"""Sentence pairs: a slow reference in the shape of the published scripts, and the laws."""

from __future__ import annotations

import bisect
from itertools import chain, pairwise

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from data_prep.pairs import pairs
from data_prep.variants import Sequences, Units
from tests.data_prep.hashes import GOLDEN, MASK64, hashed, mix, share
from tests.data_prep.test_variants import config_of, corpora, rooms, seeds, units_of

Pair = tuple[list[int], list[int], int]


def config(room: int, **own: object):  # type: ignore[no-untyped-def]
    """``room``: tokens of A and B together."""
    return config_of("pairs", room + 1, **own)


def texts_of(found: Sequences) -> list[Pair]:
    """(token places of A, of B, label) of each pair."""
    assert found.order is not None and found.firsts is not None
    assert np.array_equal(found.offsets, 2 * np.arange(len(found.order) + 1))
    assert np.array_equal(found.firsts, found.pieces[::2, 1])
    sides = [list(range(start, start + count)) for start, count in found.pieces.tolist()]
    return list(zip(sides[::2], sides[1::2], found.order.tolist(), strict=True))


class Draws:
    """Numbers of one document and copy by place."""

    def __init__(self, key: int) -> None:
        self.key = key

    def share(self, place: int) -> float:
        return share(hashed(self.key, 4, place))

    def below(self, n: int, place: int) -> int:
        return int(self.share(place) * n)


def reference(units: Units, room: int, copies: int, short: float, swapped: bool) -> list[Pair]:
    """BERT's loop over segments, on lists of token places."""
    ends = np.cumsum([0, *units.lengths]).tolist()
    segments = [list(range(a, b)) for a, b in pairwise(ends)]
    bounds = units.documents.tolist()
    owner = [bisect.bisect_right(bounds, s) - 1 for s in range(len(segments))]
    out = []
    for copy in range(copies):
        for d in range(len(bounds) - 1):
            document = segments[bounds[d] : bounds[d + 1]]
            key = mix((units.seed + GOLDEN) & MASK64)
            for place in (p for segment in document for p in segment):
                key = mix(key ^ ((int(units.tokens[place]) + GOLDEN) & MASK64))
            draws = Draws(hashed(key, 3, copy))
            target = 2 + draws.below(room - 1, 1) if draws.share(0) < short else room
            chunk: list[list[int]] = []
            i, first = 0, 5
            while i < len(document):
                chunk.append(document[i])
                if i == len(document) - 1 or sum(map(len, chunk)) >= target:
                    n = len(chunk)
                    a_end = 1 if n == 1 else 1 + draws.below(n - 1, first)
                    a, b = list(chain(*chunk[:a_end])), list(chain(*chunk[a_end:]))
                    coin, label = draws.share(first + 1) < 0.5, 0
                    others = [s for s in range(len(segments)) if owner[s] != d]
                    if not swapped and others and (coin or n == 1):
                        s = others[draws.below(len(others), first + 2)]
                        wanted, of, b, label = target - len(a), owner[s], [], 1
                        while True:
                            b = b + segments[s]
                            s += 1
                            if len(b) >= wanted or s == len(segments) or owner[s] != of:
                                break
                        i -= n - a_end
                    elif n == 1:
                        a, b = halves(a, units)
                    if swapped and coin:
                        a, b, label = b, a, 1
                    truncate = Draws(hashed(draws.key, 4, first + 3))
                    if a and b:
                        out.append((*truncated(a, b, room, truncate), label))
                    chunk, first = [], first + 4
                i += 1
    return out


def halves(unit: list[int], units: Units) -> tuple[list[int], list[int]]:
    borders = [c for c in range(1, len(unit)) if not units.continues[unit[c]]] or [len(unit) // 2]
    cut = min(borders, key=lambda c: (abs(c - len(unit) // 2), c))
    return unit[:cut], unit[cut:]


def truncated(a: list[int], b: list[int], room: int, draws: Draws) -> tuple[list[int], list[int]]:
    popped = 0
    while len(a) + len(b) > room:
        longer = a if len(a) > len(b) else b
        longer.pop(0 if draws.share(popped) < 0.5 else -1)
        popped += 1
    return a, b


@given(corpora, rooms, seeds, st.integers(1, 3), st.sampled_from([0, 0.1, 0.7, 1]), st.booleans())
@settings(max_examples=120, deadline=None)
def test_equals_the_slow_reference(
    corpus: list[list[int]], room: int, seed: int, copies: int, short: float, swapped: bool
) -> None:
    units = units_of(corpus, seed)
    order = "swapped" if swapped else "next"
    own = {"copies": copies, "short_sequence_probability": short, "pair_order": order}
    assert texts_of(pairs(units, config(room, **own))) == reference(units, room, copies, short, swapped)


@given(corpora, rooms, seeds, st.sampled_from(["next", "swapped"]))
@settings(max_examples=100, deadline=None)
def test_laws(corpus: list[list[int]], room: int, seed: int, order: str) -> None:
    units = units_of(corpus, seed)
    ends = np.cumsum([0, *units.lengths])
    documents = np.searchsorted(ends[units.documents], np.arange(ends[-1]), side="right") - 1
    for a, b, label in texts_of(pairs(units, config(room, pair_order=order))):
        assert a and b and len(a) + len(b) <= room
        of_a, of_b = {documents[t] for t in a}, {documents[t] for t in b}
        assert len(of_a) == len(of_b) == 1, "a text crosses documents"
        if order == "next":
            assert (of_a != of_b) == bool(label)
        else:
            assert of_a == of_b
        if of_a == of_b:
            assert (a[-1] < b[0]) == (order == "next" or not label)
            assert a[-1] < b[0] or b[-1] < a[0]


@given(corpora, seeds)
@settings(max_examples=60, deadline=None)
def test_every_unit_is_used_in_its_place(corpus: list[list[int]], seed: int) -> None:
    """What is not random, A and the consecutive B, is the whole text once, unless it is too long."""
    assume(corpus != [[1]])  # one token cannot be cut in two
    units = units_of(corpus, seed)
    found = texts_of(pairs(units, config(500)))
    kept = [token for a, b, label in found for token in (a if label else a + b)]
    assert kept == list(range(int(units.lengths.sum())))


def many(seed: int = 0) -> Units:
    rng = np.random.default_rng(5)
    return units_of([rng.integers(5, 30, rng.integers(60, 90)).tolist() for _ in range(100)], seed)


@pytest.mark.parametrize("order", ["next", "swapped"])
def test_half_of_the_labels_are_1(order: str) -> None:
    units = many()
    found = pairs(units, config(125, pair_order=order, short_sequence_probability=0, copies=2))
    assert found.order is not None and len(found.order) > 1500
    assert found.order.mean() == pytest.approx(0.5, abs=0.04)
    lengths = found.pieces.reshape(-1, 2, 2)[:, :, 1].sum(axis=1)
    assert lengths.max() <= 125 and np.median(lengths) > 100


def test_a_random_text_comes_from_a_document_in_proportion_to_its_units() -> None:
    """Three documents of 1, 10 and 40 units beside many small ones that draw."""
    sizes = [1, 10, 40] + [2] * 500
    units = units_of([[4] * n for n in sizes])
    found = [p for p in texts_of(pairs(units, config(30, copies=8))) if p[2] == 1]
    starts = np.array([b[0] // 4 for a, b, _ in found if a[0] // 4 >= 51])
    assert len(starts) > 2000
    n = units.documents[-1]
    shares = [(starts < 1).mean(), ((starts >= 1) & (starts < 11)).mean(), ((starts >= 11) & (starts < 51)).mean()]
    assert shares == pytest.approx([1 / n, 10 / n, 40 / n], abs=0.008)


def test_copies_differ_and_the_first_is_that_of_one() -> None:
    units = many()
    once, thrice = (texts_of(pairs(units, config(125, copies=n))) for n in (1, 3))
    assert thrice[: len(once)] == once
    assert 2.8 < len(thrice) / len(once) < 3.2
    unique = {(tuple(a), tuple(b)) for a, b, _ in thrice}
    assert len(unique) > 0.9 * len(thrice)
    assert texts_of(pairs(many(1), config(125))) != once


def test_short_sequences() -> None:
    units = many()
    sums = [
        pairs(units, config(125, short_sequence_probability=p)).pieces[:, 1].reshape(-1, 2).sum(axis=1).mean()
        for p in (0, 0.1, 1)
    ]
    assert sums[0] > sums[1] > 1.2 * sums[2]


def test_one_document_has_consecutive_pairs_only() -> None:
    found = texts_of(pairs(units_of([[5] * 60]), config(40)))
    assert found and all(label == 0 and a[-1] + 1 == b[0] for a, b, label in found)
    ((a, b, label),) = texts_of(pairs(units_of([[9]]), config(40)))
    assert (a + b, label) == (list(range(9)), 0)
    assert texts_of(pairs(units_of([[1]]), config(40))) == []


def test_a_document_of_one_unit_gets_a_random_text() -> None:
    found = texts_of(pairs(units_of([[9], [7]]), config(40)))
    assert [(len(a), len(b), label) for a, b, label in found] == [(9, 7, 1), (7, 9, 1)]


def test_truncation_takes_from_both_ends_of_the_longer_text() -> None:
    """A has 30 tokens and B 60: ten of A go and forty of B, from the front or back with equal chance."""
    units = units_of([[30, 60]] * 400, 2)
    pieces = [p for p in texts_of(pairs(units, config(40, short_sequence_probability=0))) if p[2] == 0]
    assert len(pieces) > 150 and all(len(a) == len(b) == 20 for a, b, _ in pieces)
    assert np.mean([a[0] % 90 for a, _, _ in pieces]) == pytest.approx(5, abs=0.5)
    assert np.mean([b[0] % 90 - 30 for _, b, _ in pieces]) == pytest.approx(20, abs=1)
