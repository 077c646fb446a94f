"""Laws of the sequence views, from unit lengths that hypothesis draws."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from configs.errors import ConfigError
from data_prep.config import SequenceConfig
from data_prep.variants import VARIANTS, Sequences, Units, _sorted, documents, lines, merged, packed, shuffled
from tests.data_prep.hashes import GOLDEN, MASK64, hashed, mix, share

corpora = st.lists(st.lists(st.integers(1, 30), min_size=1, max_size=8), max_size=8)
"""Unit lengths, document by document."""
rooms = st.integers(6, 40)
seeds = st.integers(0, 2**32 - 1)


def units_of(corpus: list[list[int]], seed: int = 0) -> Units:
    """Tokens and words at random, words inside a unit only."""
    lengths = np.array([n for document in corpus for n in document], np.int64)
    rng = np.random.default_rng(seed)
    total = int(lengths.sum())
    continues = rng.random(total) < 0.4
    continues[np.cumsum(lengths) - lengths] = False
    ends = np.cumsum([0, *map(len, corpus)]).astype(np.int64)
    return Units(lengths, ends, rng.integers(5, 99, total).astype(np.uint16), continues, seed, np.uint64(7 << 32))


def part(units: Units, document: int) -> Units:
    """One document by itself, as in a block of its own."""
    first, last = units.documents[document : document + 2]
    ends = np.cumsum([0, *units.lengths])
    here = slice(ends[first], ends[last])
    bounds = np.array([0, last - first])
    return Units(units.lengths[first:last], bounds, units.tokens[here], units.continues[here], units.seed, np.uint64(9))


def config_of(kind: str, room: int, **own: object) -> SequenceConfig:
    return SequenceConfig.model_validate({"kind": kind, "max_length": room + 2, **own})


def same(a: Sequences, b: Sequences) -> bool:
    return np.array_equal(a.offsets, b.offsets) and np.array_equal(a.pieces, b.pieces)


def covers_in_order(found: Sequences, total: int, room: int) -> None:
    """One piece a sequence, together all tokens in order, none too long."""
    assert found.offsets.tolist() == list(range(len(found.pieces) + 1))
    ends = found.pieces.sum(axis=1)
    assert found.pieces[:, 0].tolist() == [0, *ends[:-1].tolist()] if total else len(found.pieces) == 0
    assert (ends[-1] if len(ends) else 0) == total
    assert (found.pieces[:, 1] >= 1).all() and (found.pieces[:, 1] <= room).all()


def starts_of(corpus: list[list[int]]) -> tuple[list[int], set[int]]:
    """(first token of each unit, first token of each document)."""
    sizes = [n for document in corpus for n in document]
    return list(itertools.accumulate([0, *sizes]))[:-1], set(itertools.accumulate([0, *map(sum, corpus)]))


@given(corpora, rooms, seeds)
@settings(max_examples=100, deadline=None)
def test_documents_covers_every_token_once_in_order(corpus: list[list[int]], room: int, seed: int) -> None:
    units = units_of(corpus, seed)
    found = documents(units, config_of("documents", room))
    total = int(units.lengths.sum())
    covers_in_order(found, total, room)
    unit_starts, document_starts = starts_of(corpus)
    assert document_starts - {total} <= set(found.pieces[:, 0].tolist())
    for start, count in found.pieces.tolist():  # a cut inside a unit is made before a word where one begins
        if start not in unit_starts and units.continues[start]:
            assert units.continues[start - room + 1 : start].all()
        following = start + count
        if following in unit_starts and following not in document_starts:
            assert count + int(units.lengths[unit_starts.index(following)]) > room, "the next unit would have fitted"


@pytest.mark.parametrize("kind", ["documents", "lines"])
def test_a_long_unit_is_cut_at_words(kind: str) -> None:
    words = np.array([0, 1, 1, 0, 1, 0, 1, 1, 0, 1, 1, 1, 1, 1, 1, 1], np.bool_)
    units = Units(np.array([16]), np.array([0, 1]), np.arange(16), words, 0, np.uint64(0))
    assert VARIANTS[kind](units, config_of(kind, 6)).pieces.tolist() == [[0, 5], [5, 3], [8, 6], [14, 2]]


def merge_reference(units: Units, room: int, p: float) -> list[tuple[int, int]]:
    """methods.md 7.2, for units that fit: a buffer, a coin for each unit, a limit."""
    out, token = [], 0
    for d in range(len(units.documents) - 1):
        first, last = units.documents[d : d + 2]
        size = int(units.lengths[first:last].sum())
        key = mix((units.seed + GOLDEN) & MASK64)
        for t in range(token, token + size):
            key = mix(key ^ ((int(units.tokens[t]) + GOLDEN) & MASK64))
        buffer = [token, 0]
        for place, length in enumerate(units.lengths[first:last].tolist()):
            joined = share(hashed(key, 1, place)) < p and buffer[1] + length <= room
            if place and not joined:
                out.append((buffer[0], buffer[1]))
                buffer = [token, 0]
            buffer[1] += length
            token += length
        out.append((buffer[0], buffer[1]))
    return out


@given(corpora, st.integers(30, 60), seeds, st.sampled_from([0.0, 0.2, 0.5, 0.9, 1.0]))
@settings(max_examples=80, deadline=None)
def test_merged_equals_the_slow_reference(corpus: list[list[int]], room: int, seed: int, p: float) -> None:
    units = units_of(corpus, seed)
    found = merged(units, config_of("merged", room, merge_probability=p))
    assert [tuple(piece) for piece in found.pieces.tolist()] == merge_reference(units, room, p)


@given(corpora, rooms, seeds, st.floats(0, 1))
@settings(max_examples=80, deadline=None)
def test_merged_keeps_tokens_order_and_documents(corpus: list[list[int]], room: int, seed: int, p: float) -> None:
    units = units_of(corpus, seed)
    found = merged(units, config_of("merged", room, merge_probability=p))
    total = int(units.lengths.sum())
    covers_in_order(found, total, room)
    assert starts_of(corpus)[1] - {total} <= set(found.pieces[:, 0].tolist()), "a sequence crosses documents"


@given(corpora, rooms, seeds)
@settings(max_examples=60, deadline=None)
def test_merged_between_lines_and_documents(corpus: list[list[int]], room: int, seed: int) -> None:
    units = units_of(corpus, seed)
    apart, whole = (merged(units, config_of("merged", room, merge_probability=p)) for p in (0, 1))
    assert same(apart, lines(units, config_of("lines", room)))
    assert same(whole, documents(units, config_of("documents", room)))
    sizes = [n for document in corpus for n in document]
    if max(sizes, default=0) <= room:
        assert apart.pieces[:, 1].tolist() == sizes


@given(corpora, rooms, seeds)
@settings(max_examples=60, deadline=None)
def test_a_documents_draw_does_not_depend_on_the_others(corpus: list[list[int]], room: int, seed: int) -> None:
    units, config = units_of(corpus, seed), config_of("merged", room)
    assert config.merge_probability == 0.5
    counts = merged(units, config).pieces[:, 1].tolist()
    alone = [merged(part(units, d), config).pieces[:, 1].tolist() for d in range(len(corpus))]
    assert list(itertools.chain.from_iterable(alone)) == counts


def test_merged_runs_have_a_mean_of_two() -> None:
    units = units_of([[1] * 400 for _ in range(100)], 3)
    runs = merged(units, config_of("merged", 500)).pieces[:, 1]
    assert runs.mean() == pytest.approx(2, abs=0.05)
    share = np.bincount(runs)[1:5] / len(runs)
    assert share == pytest.approx([1 / 2, 1 / 4, 1 / 8, 1 / 16], abs=0.01)
    other = units_of([[1] * 400 for _ in range(100)], 4)
    assert not np.array_equal(merged(other, config_of("merged", 500)).pieces[:, 1], runs)


@given(corpora, rooms, seeds)
@settings(max_examples=80, deadline=None)
def test_shuffled_packs_all_units_whole(corpus: list[list[int]], room: int, seed: int) -> None:
    units = units_of(corpus, seed)
    found = shuffled(units, config_of("shuffled", room))
    assert sorted(found.pieces.tolist()) == lines(units, config_of("lines", room)).pieces.tolist()
    sizes = [found.pieces[a:b, 1].sum() for a, b in itertools.pairwise(found.offsets.tolist())]
    assert max(sizes, default=0) <= room and found.offsets[-1] == len(found.pieces)
    for i, size in enumerate(sizes[:-1]):  # greedy: the next unit did not fit
        assert size + found.pieces[found.offsets[i + 1], 1] > room
    assert (np.diff(found.offsets) >= 1).all()


def test_shuffled_is_a_uniform_permutation_of_its_own_in_each_shard() -> None:
    units = units_of([[3] * 50 for _ in range(40)])
    order = shuffled(units, config_of("shuffled", 30)).pieces[:, 0] // 3
    assert abs(np.corrcoef(order, np.arange(2000))[0, 1]) < 0.08
    other = Units(units.lengths, units.documents, units.tokens, units.continues, units.seed, np.uint64(8 << 32))
    assert not np.array_equal(shuffled(other, config_of("shuffled", 30)).pieces[:, 0] // 3, order)
    fixed = np.mean(order == np.arange(2000))
    assert fixed < 0.005


@pytest.mark.parametrize("n", [0, 1, 2, 3, 1000, 70_000])
def test_units_are_shuffled_by_their_ranks(n: int) -> None:
    """The order is part of the format: that of a stable sort, whatever the numbers."""
    ranks = np.random.default_rng(n).integers(0, 1 << 64, n, np.uint64)
    ranks[n // 2 : n // 2 + 20] = ranks[: len(ranks[n // 2 : n // 2 + 20])]
    assert np.array_equal(_sorted(ranks), np.argsort(ranks, kind="stable"))


def test_unknown_kind_is_named() -> None:
    with pytest.raises(ConfigError, match="documents"):
        VARIANTS["document"]


@pytest.mark.parametrize(
    ("own", "message"),
    [
        ({"merge_probability": 0.5}, "belongs to kind: merged, but the kind is documents"),
        ({"kind": "lines", "copies": 3}, "belongs to kind: pairs, but the kind is lines"),
        ({"kind": "merged", "pair_order": "next"}, "belongs to kind: pairs"),
        ({"kind": "pairs", "merge_probability": 0.1}, "belongs to kind: merged"),
        ({"kind": "pairs", "short_sequence_probability": 2}, "less than or equal to 1"),
    ],
)
def test_settings_of_another_kind_are_refused(own: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SequenceConfig.model_validate(own)


def test_defaults_of_a_kind_stand_in_the_resolved_config() -> None:
    pairs = SequenceConfig(kind="pairs")
    assert (pairs.pair_order, pairs.short_sequence_probability, pairs.copies) == ("next", 0.1, 1)
    assert SequenceConfig.model_validate(pairs.model_dump()) == pairs
    assert SequenceConfig().merge_probability is None


@given(corpora, rooms, seeds, st.booleans())
@settings(max_examples=80, deadline=None)
def test_packed_is_one_row_of_tokens_cut_at_equal_lengths(
    corpus: list[list[int]], room: int, seed: int, drop: bool
) -> None:
    """Every token once, in order; all sequences but the last full; a piece ends with its document."""
    units = units_of(corpus, seed)
    found = packed(units, config_of("packed", room, drop_remainder=drop))
    total = sum(map(sum, corpus))
    kept = total - total % room if drop else total
    flat = [t for start, count in found.pieces.tolist() for t in range(start, start + count)]
    assert flat == list(range(kept))
    sizes = [int(found.pieces[a:b, 1].sum()) for a, b in itertools.pairwise(found.offsets.tolist())]
    assert sizes == [room] * (kept // room) + [kept % room] * (kept % room > 0)
    owner = np.repeat(np.arange(len(corpus)), [sum(document) for document in corpus])
    for start, count in found.pieces.tolist():
        assert count > 0 and len(set(owner[start : start + count].tolist())) == 1
    borders = {int(b) for b in np.cumsum([0, *map(sum, corpus)])} | set(range(0, total, room))
    assert set(found.pieces[:, 0].tolist()) == {b for b in borders if b < kept}


def test_drop_remainder_belongs_to_packed() -> None:
    with pytest.raises(ValueError, match="drop_remainder belongs to kind: packed"):
        config_of("lines", 20, drop_remainder=True)
    assert config_of("packed", 20).drop_remainder is False
