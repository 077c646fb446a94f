from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from configs.errors import DataError
from data_prep.corpus import Corpus
from data_prep.documents import Counts
from data_prep.masking import Masks
from data_prep.pipeline import prepare
from data_prep.readers import open_sources
from data_prep.segment import open_segmenter
from data_prep.tokenizer import open_tokenizer
from tests.data_prep import plain
from tests.data_prep.conftest import sample_config


def everything(corpus: Corpus, split: str = "train") -> np.ndarray:
    return np.arange(len(corpus.split(split)), dtype=np.int64)  # type: ignore[arg-type]


def same(a: Masks, b: Masks) -> bool:
    pairs = ((a.offsets, b.offsets), (a.positions, b.positions), (a.ids, b.ids))
    return all(np.array_equal(x, y) for x, y in pairs)


def test_holds_the_text_it_was_made_from(sample_corpus: Corpus) -> None:
    """Both splits together are all tokens of all documents, with their word boundaries."""
    config = sample_config()
    tokenizer = open_tokenizer(sample_corpus.tokenizer_folder, config.tokenizer)
    segmenter = open_segmenter(config.segment)
    expected = []
    for reader in open_sources(config):
        for block in reader.blocks(1 << 30):
            for read in reader.documents(block, Counts()):
                text, _ = plain.clean(read.text, config.clean)
                assert text is not None
                document = plain.encode(text, tokenizer, segmenter, config.clean)
                expected.append(([t for ids, _ in document for t in ids], [b for _, bits in document for b in bits]))
    found = []
    for split in ("train", "held_out"):
        gathered = sample_corpus.split(split).gather(everything(sample_corpus, split))  # type: ignore[arg-type]
        inner = ~np.isin(gathered.ids, [sample_corpus.special_ids["cls"], sample_corpus.special_ids["sep"]])
        found += list(zip(gathered.ids[inner].tolist(), gathered.continues[inner].tolist(), strict=True))
    flat = [token for ids, bits in expected for token in zip(ids, bits, strict=True)]
    assert sorted(found) == sorted(flat)
    assert len(found) == sample_corpus.split("train").n_tokens + sample_corpus.split("held_out").n_tokens


def test_sequences_begin_and_end_as_they_should(sample_corpus: Corpus) -> None:
    train = sample_corpus.split("train")
    gathered = train.gather(everything(sample_corpus))
    lengths = np.diff(gathered.offsets)
    assert (gathered.ids[gathered.offsets[:-1]] == sample_corpus.special_ids["cls"]).all()
    assert (gathered.ids[gathered.offsets[1:] - 1] == sample_corpus.special_ids["sep"]).all()
    assert not gathered.continues[gathered.offsets[:-1]].any()
    assert not gathered.continues[gathered.offsets[1:] - 1].any()
    assert lengths.max() <= sample_corpus.max_length
    assert np.array_equal(lengths, train.lengths(everything(sample_corpus)))


@given(st.data())
@settings(max_examples=40, deadline=None)
def test_a_batch_is_its_sequences(sample_corpus: Corpus, data: st.DataObject) -> None:
    """Any index, in any order and with repetitions, over all shards."""
    train = sample_corpus.split("train")
    index = np.array(data.draw(st.lists(st.integers(0, len(train) - 1), min_size=1, max_size=20)), np.int64)
    views = np.array(data.draw(st.lists(st.integers(0, 9), min_size=len(index), max_size=len(index))), np.int64)
    gathered, masks = train.gather(index), train.masks(index, views)
    for i in range(len(index)):
        alone, own = train.gather(index[i : i + 1]), train.masks(index[i : i + 1], views[i : i + 1])
        here = slice(gathered.offsets[i], gathered.offsets[i + 1])
        assert np.array_equal(gathered.ids[here], alone.ids)
        assert np.array_equal(gathered.continues[here], alone.continues)
        there = slice(masks.offsets[i], masks.offsets[i + 1])
        assert np.array_equal(masks.positions[there], own.positions)
        assert np.array_equal(masks.ids[there], own.ids)


@pytest.mark.parametrize("split", ["train", "held_out"])
def test_stored_view_equals_dynamic_epoch(sample_corpus: Corpus, split: str) -> None:
    part = sample_corpus.split(split)  # type: ignore[arg-type]
    index = everything(sample_corpus, split)
    for view in range(3):
        views = np.full(len(index), view)
        assert same(part.stored_masks(index, views), part.drawn_masks(index, views))
    again = part.masks(index, np.full(len(index), 4))  # epoch 4 of three views is view 1
    assert same(again, part.stored_masks(index, np.full(len(index), 1)))


def test_dynamic_mode_draws_each_epoch_anew(tmp_path: Path, sample_corpus: Corpus) -> None:
    config = sample_config()
    dynamic = config.model_copy(update={"masks": config.masks.model_copy(update={"mode": "dynamic"})})
    corpus = prepare(dynamic, tmp_path / "data")
    assert not list((tmp_path / "data").rglob("view-*"))
    index = everything(corpus)
    for epoch in range(3):
        views = np.full(len(index), epoch)
        assert same(corpus.split("train").masks(index, views), sample_corpus.split("train").masks(index, views))
    first, later = (corpus.split("train").masks(index, np.full(len(index), e)) for e in (0, 3))
    assert not same(first, later)


def test_ids_are_unique_over_splits(sample_corpus: Corpus) -> None:
    ids = [sample_corpus.split(s).sequence_ids(everything(sample_corpus, s)) for s in ("train", "held_out")]  # type: ignore[arg-type]
    joined = np.concatenate(ids)
    assert len(np.unique(joined)) == len(joined)


def test_unigram_counts(sample_corpus: Corpus) -> None:
    gathered = sample_corpus.split("train").gather(everything(sample_corpus))
    counts = np.bincount(gathered.ids, minlength=sample_corpus.vocab_size)
    counts[[sample_corpus.special_ids["cls"], sample_corpus.special_ids["sep"]]] = 0
    assert np.array_equal(counts, sample_corpus.unigram)


def test_out_of_range_is_refused(sample_corpus: Corpus) -> None:
    train = sample_corpus.split("train")
    for wrong in (-1, len(train)):
        with pytest.raises(IndexError):
            train.gather(np.array([wrong]))


def test_a_damaged_folder_does_not_open(sample_corpus: Corpus, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(sample_corpus.folder, copy)
    victim = next((copy / "shards").rglob("tokens.bin"))
    victim.write_bytes(victim.read_bytes() + b"\0")
    with pytest.raises(DataError, match=r"tokens\.bin"):
        Corpus.open(copy)
