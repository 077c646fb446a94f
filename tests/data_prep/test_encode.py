"""Tokens and continuation bits of many documents are those of each text by itself."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_prep.config import CleanConfig, SegmentConfig
from data_prep.encode import encode
from data_prep.segment import open_segmenter
from data_prep.stream import raw_stream
from data_prep.tokenizer_base import Tokenizer
from data_prep.tokenizer_wordpiece import WordPieceTokenizer
from tests.data_prep import plain, streams
from tests.data_prep.awkward import SAMPLE_LINES
from tests.data_prep.latin import shared

PIECES = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"我们在北京大学a.！", "bert", "##b", "##a"]
TOKENIZERS: dict[str, Tokenizer] = {"wordpiece": WordPieceTokenizer(PIECES, "here"), "bpe": shared()}
SEGMENTERS = {kind: open_segmenter(SegmentConfig(kind=kind)) for kind in ("rjieba", "none")}
RULES = [CleanConfig(), CleanConfig(unit="line", min_unit_characters=5), CleanConfig(min_unit_characters=3)]
TEXTS = st.lists(
    st.text(st.sampled_from("我们在北京大学，。！ abBert.\nÉ😀"), max_size=30).filter(
        lambda text: text == plain.clean(text, CleanConfig(min_characters=0))[0]
    ),
    max_size=5,
)


@pytest.mark.parametrize("kind", ["rjieba", "none"])
@pytest.mark.parametrize("name", list(TOKENIZERS))
@settings(deadline=None, max_examples=60)
@given(texts=TEXTS, rule=st.sampled_from(RULES))
def test_as_text_by_text(name: str, kind: str, texts: list[str], rule: CleanConfig) -> None:
    tokenizer, segmenter = TOKENIZERS[name], SEGMENTERS[kind]
    right = [plain.encode(text, tokenizer, segmenter, rule) for text in texts]
    assert streams.encoded(texts, tokenizer, segmenter, rule) == [document for document in right if document]
    short = sum(len(unit) < rule.min_unit_characters for text in texts for unit in plain.units(text, rule))
    assert encode(streams.stream(texts), tokenizer, segmenter, rule).short == short


def test_chosen_documents_only() -> None:
    segmenter = SEGMENTERS["rjieba"]
    texts = SAMPLE_LINES[:30]
    found = encode(streams.stream(texts), shared(), segmenter, CleanConfig())
    choice = np.arange(30) % 3 == 0
    for chosen in (choice, ~choice):
        right = streams.encoded([t for t, c in zip(texts, chosen, strict=True) if c], shared(), segmenter)
        ids, bits, lengths, sizes = found.chosen(chosen)
        units = [unit for document in right for unit in document]
        assert plain.split(lengths, ids) == [ids for ids, _ in units]
        assert plain.split(lengths, bits) == [bits for _, bits in units]
        assert sizes.tolist() == [len(document) for document in right]


@given(st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=20), max_size=5), st.integers(-5, 1 << 64))
def test_hashes_are_of_the_utf8_text(texts: list[str], seed: int) -> None:
    keys, size = streams.stream(texts).hashes(seed)
    assert size == len("".join(texts).encode("utf-8"))
    for text, key in zip(texts, keys.tolist(), strict=True):
        assert plain.is_held_out(text, seed, key + 1) and not plain.is_held_out(text, seed, key)


@given(st.lists(st.text(max_size=20), max_size=5))
def test_texts_come_back(texts: list[str]) -> None:
    raw = raw_stream(texts)
    assert raw.chars.tolist() == [ord(c) for text in texts for c in text]
    assert raw.documents.tolist() == np.cumsum([0, *map(len, texts)]).tolist()
    if not any("\ud800" <= c <= "\udfff" for text in texts for c in text):
        assert list(raw.texts()) == texts
