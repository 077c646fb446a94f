"""Signatures against exact Jaccard similarities, which come from sets of strings."""

from __future__ import annotations

import random
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from data_prep.config_quality import NearConfig
from data_prep.minhash import EMPTY, RECALL, band_keys, bands, describe_signatures, ngram_hashes, signatures
from data_prep.stream import raw_stream

ALPHABET = [chr(0x4E00 + i) for i in range(3000)]


def arrays(texts: list[str]) -> tuple[NDArray[np.uint32], NDArray[np.int64]]:
    stream = raw_stream(texts)
    return stream.chars, stream.documents


def ngrams(text: str, n: int) -> set[str]:
    """The slow definition of what a document is a set of."""
    letters = "".join(lower(c) for c in text if c.isalnum())
    return {letters[i : i + n] for i in range(max(1, len(letters) - n + 1))} if letters else set()


def lower(character: str) -> str:
    return character.lower() if len(character.lower()) == 1 else character


def jaccard(a: str, b: str, n: int) -> float:
    left, right = ngrams(a, n), ngrams(b, n)
    return len(left & right) / len(left | right)


def similar_pairs(count: int, seed: int) -> list[tuple[str, str]]:
    """Pairs of random documents of 60 to 600 characters, of all similarities."""
    rng = random.Random(seed)
    pairs = []
    for _ in range(count):
        text = rng.choices(ALPHABET, k=rng.randint(60, 600))
        rate = rng.random() ** 2 / 4
        pairs.append(("".join(text), "".join(rng.choice(ALPHABET) if rng.random() < rate else c for c in text)))
    return pairs


@settings(max_examples=200, deadline=None)
@given(st.lists(st.text("的好ab AZİß１2，。\n𠀀é", max_size=30), min_size=1, max_size=6), st.integers(1, 7))
def test_ngrams_are_those_of_the_strings(texts: list[str], n: int) -> None:
    """Hashes and strings correspond one to one, and each document has its own."""
    hashes, rows = ngram_hashes(*arrays(texts), n)
    meaning: dict[int, str] = {}
    for text, (begin, end) in zip(texts, pairwise(rows.tolist()), strict=True):
        letters = "".join(lower(c) for c in text if c.isalnum())
        expected = [letters[i : i + n] for i in range(max(1, len(letters) - n + 1))] if letters else []
        found = hashes[begin:end].tolist()
        assert len(found) == len(expected)
        for value, gram in zip(found, expected, strict=True):
            assert meaning.setdefault(value, gram) == gram
    assert len(set(meaning.values())) == len(meaning)


def agreements(pairs: list[tuple[str, str]], near: NearConfig) -> NDArray[np.float64]:
    values = signatures(*arrays([text for pair in pairs for text in pair]), near)
    return np.asarray((values[::2] == values[1::2]).mean(axis=1))


def test_agreement_estimates_the_jaccard_similarity() -> None:
    near, pairs = NearConfig(permutations=256), similar_pairs(400, 0)
    exact = np.array([jaccard(a, b, near.ngram) for a, b in pairs])
    errors = agreements(pairs, near) - exact
    assert abs(errors.mean()) < 0.004
    between = (exact > 0.1) & (exact < 0.9)
    deviation = np.sqrt(exact * (1 - exact) / 256)[between]
    assert between.sum() > 150 and 0.7 < (errors[between] / deviation).std() < 1.1
    assert np.abs(errors[between] / deviation).max() < 4.5
    assert (errors[exact == 1] == 0).all()


def test_the_curve_of_bands_is_the_formula() -> None:
    """Pairs meet in a band with probability 1 - (1 - J^rows)^bands."""
    near, pairs = NearConfig(), similar_pairs(3000, 1)
    count, rows = bands(near)
    exact = np.array([jaccard(a, b, near.ngram) for a, b in pairs])
    values = signatures(*arrays([text for pair in pairs for text in pair]), near)
    met = np.zeros(len(pairs), np.bool_)
    for band in range(count):
        keys = band_keys(values, band, rows)
        met |= keys[::2] == keys[1::2]
    for low in np.arange(0.05, 0.95, 0.1):
        here = (exact >= low) & (exact < low + 0.1)
        expected = (1 - (1 - exact[here] ** rows) ** count).mean()
        error = np.sqrt(max(expected * (1 - expected), 0.01) / max(here.sum(), 1))
        assert here.sum() > 20 and abs(met[here].mean() - expected) < 4 * error


def test_precision_and_recall_of_bands_with_comparison() -> None:
    near, pairs = NearConfig(threshold=0.7), similar_pairs(3000, 2)
    count, rows = bands(near)
    exact = np.array([jaccard(a, b, near.ngram) for a, b in pairs])
    values = signatures(*arrays([text for pair in pairs for text in pair]), near)
    met = np.zeros(len(pairs), np.bool_)
    for band in range(count):
        keys = band_keys(values, band, rows)
        met |= keys[::2] == keys[1::2]
    found = met & ((values[::2] == values[1::2]).mean(axis=1) >= near.threshold)
    assert found[exact >= 0.85].all()
    assert not found[exact < 0.5].any()
    assert found[exact >= 0.7].mean() > 0.85 and (exact[found] >= 0.6).mean() > 0.98


@pytest.mark.parametrize("threshold", [0.3, 0.5, 0.75, 0.9, 1.0])
@pytest.mark.parametrize("permutations", [16, 112, 256])
def test_bands_find_what_is_at_the_threshold(threshold: float, permutations: int) -> None:
    near = NearConfig(threshold=threshold, permutations=permutations)
    count, rows = bands(near)
    assert count * rows <= permutations
    assert 1 - (1 - threshold**rows) ** count >= RECALL or (count, rows) == (permutations, 1)


def test_spaces_punctuation_and_case_make_no_difference() -> None:
    near = NearConfig()
    values = signatures(
        *arrays(["今天，天气很好。Hello World", "今天 天气\n很好！！hello-world", "今天天气不好"]), near
    )
    assert np.array_equal(values[0], values[1])
    assert not np.array_equal(values[0], values[2])


def test_texts_without_letters_are_like_no_other() -> None:
    values = signatures(*arrays(["！！！", "你好", "你", "？？"]), NearConfig())
    assert (values[[0, 3]] == EMPTY).all()
    assert (values[[1, 2]] != EMPTY).any(axis=1).all() and not np.array_equal(values[1], values[2])


def test_signatures_do_not_depend_on_the_batch() -> None:
    texts = [text for pair in similar_pairs(10, 3) for text in pair]
    near = NearConfig()
    together = signatures(*arrays(texts), near)
    single = np.concatenate([signatures(*arrays([text]), near) for text in texts])
    assert np.array_equal(together, single) and together.dtype == np.uint32
    # They lie on disk while a preparation is restarted; with another version of rensa they may be others.
    assert together[0, :3].tolist() == FIRST and describe_signatures() == "rensa RMinHash 2"


FIRST = [572638352, 576177084, 50363257]
