"""Word boundaries: one flag a character, true to the segmenter's words, and never another segmenter."""

from __future__ import annotations

import sys
from itertools import pairwise
from typing import Any

import pytest
import rjieba
from hypothesis import given, settings
from hypothesis import strategies as st

from configs.errors import DataError
from data_prep.config import SegmentConfig
from data_prep.segment import SEGMENTERS, describe_segmenter, open_segmenter

RJIEBA = open_segmenter(SegmentConfig(kind="rjieba"))
NONE = open_segmenter(SegmentConfig(kind="none"))
PLAIN = rjieba.Jieba()


def words(starts: Any, text: str) -> list[str]:
    cuts = [*(i for i, start in enumerate(starts) if start), len(text)]
    return [text[a:b] for a, b in pairwise(cuts)]


def test_rjieba_words() -> None:
    text = "我们在南京市长江大桥，用 WordPiece 3.14\n好😀𠀀"
    assert words(RJIEBA.word_starts(text), text) == rjieba.cut(text)
    assert "长江大桥" in rjieba.cut(text)


def test_hidden_markov_model_is_a_choice() -> None:
    text = "他来到了网易杭研大厦"  # 杭研 is not in the dictionary
    without = open_segmenter(SegmentConfig(kind="rjieba", hmm=False))
    assert "杭研" in words(RJIEBA.word_starts(text), text)
    assert "杭研" not in words(without.word_starts(text), text)


def test_own_instance_is_not_changed_by_words_added_elsewhere() -> None:
    text = "琉璃盏碎玉"
    before = RJIEBA.word_starts(text).tolist()
    rjieba._DEFAULT_JIEBA.add_word(text, 10**9, None)
    assert rjieba.cut(text) == [text]
    assert RJIEBA.word_starts(text).tolist() == before


@settings(deadline=None)
@given(st.text(max_size=60) | st.text(st.sampled_from("我们的中国人 a1.\n\t😀é"), max_size=60))
def test_one_flag_a_character(text: str) -> None:
    for segmenter in (RJIEBA, NONE):
        starts = segmenter.word_starts(text)
        assert starts.dtype == bool
        assert starts.shape == (len(text),)
        assert not text or starts[0]
    assert words(RJIEBA.word_starts(text), text) == (PLAIN.cut(text) if text else [])


def test_none_keeps_runs_of_letters_together() -> None:
    text = "我用 Wörd2vec，３ c'est"
    assert words(NONE.word_starts(text), text) == ["我", "用", " ", "Wörd2vec", "，", "３", " ", "c", "'", "est"]


@pytest.mark.parametrize(
    "sentence",
    [
        "Het| |café| |schenkt| |koffie| |én| |thee|;| |foto|'|s| |van| |één| |auto|-|ongeluk|…",
        "She| |doesn|’|t| |drive| |on| |the| |A12| |(|or| |so| |I| |think|)|,| |naïve| |reader|!",
        "Cafe\u0301| |in| |北|京|:| |2|,|5| |euro|.",
    ],
)
def test_none_gives_whole_words_of_latin_text(sentence: str) -> None:
    text = sentence.replace("|", "")
    assert words(NONE.word_starts(text), text) == sentence.split("|")


def test_description_names_version_and_dictionary() -> None:
    facts = describe_segmenter(SegmentConfig(kind="rjieba"))
    assert facts == RJIEBA.describe()
    assert facts["name"] == "rjieba"
    assert facts["version"][0].isdigit()
    assert len(facts["hash"]) == 32
    assert describe_segmenter(SegmentConfig(kind="none")) == {"name": "none", "version": "1", "hash": ""}


def test_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "rjieba", None)
    with pytest.raises(DataError, match="pip install rjieba"):
        open_segmenter(SegmentConfig(kind="rjieba"))


def test_words_that_do_not_join_back_are_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    segmenter: Any = SEGMENTERS["rjieba"](SegmentConfig())

    class Lossy:
        def cut(self, text: str, hmm: bool) -> list[str]:
            return text.split()

    monkeypatch.setattr(segmenter, "_jieba", Lossy())
    with pytest.raises(DataError, match="do not join back"):
        segmenter.word_starts("我们 的")
    with pytest.raises(DataError, match="valid Unicode"):
        RJIEBA.word_starts("\ud800")
