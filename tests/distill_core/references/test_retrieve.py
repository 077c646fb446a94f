"""BM25 against a slow one written from the formula; never the text itself, a duplicate, a sibling, or a label."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from configs.errors import DataError
from data_prep.corpus import Corpus
from distill_core.references.config import RetrievalConfig
from distill_core.references.files import put_together
from distill_core.references.retrieve import NONE, Bm25Index
from distill_core.references.texts import CorpusTexts, TaskTexts, Texts, families_of, one_stream
from distill_core.tasks.config import TaskConfig
from distill_core.tasks.data import TaskData
from distill_core.tasks.rows import Row

VOCABULARY, SPECIALS = 12, (0, 1)


class Given:
    """Texts that are given as lists of tokens; each its own group, as in a corpus."""

    def __init__(self, sequences: list[list[int]], documents: bool = True) -> None:
        self.sequences = sequences
        self.documents = documents

    def __len__(self) -> int:
        return len(self.sequences)

    def texts(self, index: np.ndarray) -> Texts:
        found = one_stream([self.sequences[i] for i in index])
        return replace(found, groups=np.asarray(index, np.int64)) if self.documents else found


def slow_scores(sequences: list[list[int]], query: list[int], config: RetrievalConfig) -> dict[int, float]:
    """number -> score of each text that shares a keyword with ``query`` and is another text."""
    first = {tuple(s): i for i, s in reversed(list(enumerate(sequences)))}
    kept = sorted(first.values())
    words = {i: [t for t in sequences[i] if t not in SPECIALS] for i in kept}
    n = len(kept)
    mean = max(sum(len(w) for w in words.values()) / n, 1.0)
    df = {t: sum(t in w for w in words.values()) for t in range(VOCABULARY)}
    usable = [t for t in set(query) if t not in SPECIALS and 0 < df[t] <= max(config.max_frequency * n, 1)]
    keywords = sorted(usable, key=lambda t: (df[t], t))[: config.keywords]
    out = {}
    for i in kept:
        counts = Counter(words[i])
        score = 0.0
        for t in keywords:
            idf = math.log(1 + (n - df[t] + 0.5) / (df[t] + 0.5))
            norm = config.k1 * (1 - config.b + config.b * len(words[i]) / mean)
            score += idf * counts[t] * (config.k1 + 1) / (counts[t] + norm)
        if score > 0 and sequences[i] != query:
            out[i] = score
    return out


texts = st.lists(st.lists(st.integers(0, VOCABULARY - 1), min_size=1, max_size=8), min_size=1, max_size=12)


@settings(max_examples=150, deadline=None)
@given(texts, texts, st.integers(1, 4), st.sampled_from([0.3, 0.6, 1.0]))
def test_as_the_formula_says(corpus: list[list[int]], new: list[list[int]], keywords: int, frequency: float) -> None:
    config = RetrievalConfig(keywords=keywords, max_frequency=frequency)
    index = Bm25Index.build(Given(corpus), config, VOCABULARY, SPECIALS, seed=0)
    for queries, documents in ((corpus, True), (new, False)):
        found, scores = index.search(Given(queries, documents).texts(np.arange(len(queries))))
        for query, text, score in zip(queries, found, scores, strict=True):
            expected = slow_scores(corpus, query, config)
            if not expected:
                assert text == NONE and score == 0.0
                continue
            number = index.numbers[text]
            assert score == pytest.approx(max(expected.values()), rel=1e-5)
            assert expected[number] == pytest.approx(score, rel=1e-5)
            assert corpus[number] != query


def test_the_answer_does_not_depend_on_the_block() -> None:
    generator = np.random.default_rng(0)
    corpus = [generator.integers(0, VOCABULARY, 6).tolist() for _ in range(60)]
    config = RetrievalConfig(max_frequency=1.0)
    source = Given(corpus)
    index = Bm25Index.build(source, config, VOCABULARY, SPECIALS, seed=0)
    whole, _ = index.search(source.texts(np.arange(60)))
    single = [index.search(source.texts(np.array([i])))[0][0] for i in range(60)]
    assert whole.tolist() == single and (whole >= 0).all()


def test_of_equal_texts_the_first_wins_and_nothing_shared_gives_none() -> None:
    corpus = [[2, 3, 9], [2, 4, 9], [2, 5, 9], [7, 7]]
    index = Bm25Index.build(Given(corpus), RetrievalConfig(max_frequency=1.0), VOCABULARY, SPECIALS, seed=0)
    found, _ = index.search(one_stream([[2, 6], [10, 11], [0, 1]]))
    assert found.tolist() == [0, NONE, NONE]


def test_a_sample_of_the_texts_can_be_indexed() -> None:
    corpus = [[2 + i % 10, 2 + i // 10] for i in range(80)]
    made = [Bm25Index.build(Given(corpus), RetrievalConfig(documents=20), VOCABULARY, SPECIALS, s) for s in (1, 1, 2)]
    assert len(made[0]) == 20 and (np.diff(made[0].numbers) > 0).all()
    assert (made[0].numbers == made[1].numbers).all() and (made[0].numbers != made[2].numbers).any()


def test_saved_and_opened_it_finds_the_same(tmp_path: Path) -> None:
    generator = np.random.default_rng(1)
    corpus = [generator.integers(0, VOCABULARY, 5).tolist() for _ in range(30)]
    index = Bm25Index.build(Given(corpus), RetrievalConfig(keywords=3, max_frequency=1.0), VOCABULARY, SPECIALS, seed=0)
    put_together(tmp_path / "index", "key", index.save)
    opened = Bm25Index.open(tmp_path / "index")
    queries = Given(corpus).texts(np.arange(30))
    assert (opened.search(queries)[0] == index.search(queries)[0]).all()
    assert opened.settings == index.settings
    (tmp_path / "index" / "weights.bin").write_bytes(b"")
    with pytest.raises(DataError, match="damaged"):
        Bm25Index.open(tmp_path / "index")


def test_a_corpus_looks_for_references_without_its_masked_words(tiny_corpus: Corpus) -> None:
    split = tiny_corpus.split("train")
    source = CorpusTexts(split, documents=True)
    specials = sorted(tiny_corpus.special_ids.values())
    index = Bm25Index.build(source, RetrievalConfig(), tiny_corpus.vocab_size, specials, seed=0)
    number = np.arange(len(split))
    queries = source.texts(number)
    tokens, bounds = index.keywords(queries)
    found, _ = index.search(queries)
    assert (found >= 0).mean() > 0.8
    assert (index.hashes[found[found >= 0]] != queries.hashes[found >= 0]).all()
    masks = split.masks(number, np.zeros(len(number), np.int64))
    for place in range(0, len(number), 7):
        ids = queries.ids[queries.offsets[place] : queries.offsets[place + 1]]
        hidden = masks.positions[masks.offsets[place] : masks.offsets[place + 1]]
        seen = set(np.delete(ids, hidden).tolist()) - set(specials)
        assert set(tokens[bounds[place] : bounds[place + 1]].tolist()) <= seen


def task_data(ids: list[list[int]], rows: list[Row], owner: list[int], targets: list[int]) -> TaskData:
    stream = one_stream(ids)
    return TaskData(
        TaskConfig(kind="classification", train="x", dev="x"),
        rows,
        ["a", "b"],
        stream.ids,
        stream.offsets,
        np.diff(stream.offsets),
        np.array(targets),
        np.array(owner),
        np.full(len(stream.ids), -1),
        np.full(len(stream.ids), -1),
    )


def test_rows_of_a_task_find_neither_siblings_nor_dev_duplicates_and_read_no_label() -> None:
    ids = [[2, 3, 4, 5], [2, 3, 4, 6], [2, 7, 8], [3, 9, 10], [2, 3, 4, 5]]
    rows = [Row("1", "x"), Row("1#0", "x"), Row("2", "x"), Row("3", "x"), Row("4", "x")]
    found = []
    for targets in ([0, 0, 1, 1, 0], [1, 0, 0, 1, 1]):
        train = TaskTexts(task_data(ids, rows, [0, 1, 2, 3, 4], targets), documents=True)
        index = Bm25Index.build(train, RetrievalConfig(max_frequency=1.0), VOCABULARY, SPECIALS, seed=0)
        assert index.numbers.tolist() == [0, 1, 2, 3]  # the duplicate once
        found.append(index.search(train.texts(np.arange(5)))[0].tolist())
    assert found[0] == found[1]
    assert found[0][0] not in (0, 1) and found[0][1] not in (0, 1)  # a row made of another is no reference of it
    dev = TaskTexts(task_data([[2, 3, 4, 5], [9, 10]], rows[:2], [0, 1], [0, 1]), documents=False)
    assert index.search(dev.texts(np.arange(2)))[0].tolist() == [1, 3]  # text 0 is the query itself


def test_families() -> None:
    ids = ["t#1", "t#1#0", "t#1#1", "t#2", "t#12", "t#12#x", "a"]
    assert families_of(ids).tolist() == [0, 0, 0, 1, 2, 3, 4]
