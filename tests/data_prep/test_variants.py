from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from configs.errors import ConfigError
from data_prep.shards import Index
from data_prep.variants import VARIANTS, documents

corpora = st.lists(st.lists(st.integers(1, 30), min_size=1, max_size=8), max_size=8)
"""Sentence lengths, document by document."""


def index_of(corpus: list[list[int]]) -> Index:
    lengths = [n for document in corpus for n in document]
    return Index(np.array(lengths, np.int32), np.cumsum([0, *map(len, corpus)]).astype(np.int64))


@given(corpora, st.integers(1, 40), st.integers(0, 2**32 - 1))
@settings(max_examples=150, deadline=None)
def test_documents_covers_every_token_once_in_order(corpus: list[list[int]], room: int, seed: int) -> None:
    index = index_of(corpus)
    total = int(index.lengths.sum())
    continues = np.random.default_rng(seed).random(total) < 0.4
    sentence_starts = np.cumsum([0, *index.lengths.tolist()])[:-1]
    continues[sentence_starts] = False
    found = documents(index, continues, room)

    assert found.offsets.tolist() == list(range(len(found.pieces) + 1))
    ends = found.pieces.sum(axis=1)
    assert found.pieces[:, 0].tolist() == [0, *ends[:-1].tolist()] if total else len(found.pieces) == 0
    assert (ends[-1] if len(ends) else 0) == total
    assert (found.pieces[:, 1] >= 1).all() and (found.pieces[:, 1] <= room).all()
    document_starts = set(np.cumsum([0, *(sum(d) for d in corpus)]).tolist())
    starts = set(found.pieces[:, 0].tolist())
    assert document_starts - {total} <= starts

    for start, count in found.pieces.tolist():  # a cut inside a sentence is made before a word where one begins
        inside = start not in sentence_starts and start not in document_starts
        if inside and continues[start]:
            assert continues[start - room + 1 : start].all()
        following = start + count
        sentence = int(np.searchsorted(sentence_starts, following, side="right")) - 1
        if following in sentence_starts and following not in document_starts:
            assert count + int(index.lengths[sentence]) > room, "the next sentence would still have fitted"


def test_a_long_sentence_is_cut_at_words() -> None:
    continues = np.array([False, True, True, False, True, False, False, True, True, True])
    found = documents(index_of([[10]]), continues, 4)
    assert found.pieces.tolist() == [[0, 3], [3, 3], [6, 4]]


def test_unknown_kind_is_named() -> None:
    with pytest.raises(ConfigError, match="documents"):
        VARIANTS["document"]
