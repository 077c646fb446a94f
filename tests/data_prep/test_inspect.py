from __future__ import annotations

import re

import numpy as np

from data_prep.corpus import Corpus
from data_prep.inspect import LEGEND, draw_sequence, samples, totals
from data_prep.tokenizer_wordpiece import WordPieceTokenizer


def test_words_and_masks_are_visible() -> None:
    entries = ["[CLS]", "[SEP]", "[MASK]", "北", "京", "很", "大", "play", "##ing", "[PAD]", "[UNK]"]
    ids = np.array([0, 3, 4, 5, 6, 7, 8, 1])
    continues = np.array([0, 0, 1, 0, 0, 0, 1, 0], bool)
    drawn = draw_sequence(ids, continues, {1: 2, 2: 2, 4: 6, 5: 5, 6: 2}, WordPieceTokenizer(entries, "the test"))
    assert drawn == "[CLS]│【北京→[MASK][MASK]】│很│【大→大】│【playing→很[MASK]】│[SEP]"


def test_whole_words_are_drawn_masked(sample_corpus: Corpus) -> None:
    """Every mark holds one whole word: taking the marks away gives back the unmasked drawing."""
    drawn = samples(sample_corpus, "train", 20, 1)
    train = sample_corpus.split("train")
    assert len(drawn) == 20
    for number, text in enumerate(drawn):
        words = re.sub("【([^】]*?)→[^】]*】", r"\1", text).split("│")
        gathered = train.gather(np.array([number]))
        assert len(words) == int((~gathered.continues).sum())
        assert words[0] == "[CLS]" and words[-1] == "[SEP]"
        masks = train.masks(np.array([number]), np.array([1]))
        marked = [i for i, word in enumerate(text.split("│")) if word.startswith("【")]
        word_of = np.cumsum(~gathered.continues) - 1
        assert marked == sorted(set(word_of[masks.positions].tolist()))
    assert "│" in LEGEND


def test_totals(sample_corpus: Corpus) -> None:
    facts = totals(sample_corpus)
    assert "jieba 0.42" in facts["segmenter"]
    assert facts["masks"] == "stored, 3 views, rate 15%"
    assert facts["dropped documents"] == "none"
