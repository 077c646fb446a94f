"""What words may become: of the masked LM, and of word vectors."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from configs.errors import DataError
from data_prep.config import SegmentConfig
from data_prep.vectors import read_vectors
from distill_core.models import pretrained
from distill_core.models.encoder import Encoder
from distill_core.tasks.augment import AugmentConfig
from distill_core.tasks.augment_words import Words
from tests.distill_core.evaluate.reference import byte_level, model_folder
from tests.distill_core.tasks.augmenting import candidates, vectors_file
from tests.distill_core.tasks.conftest import HAN, LIMIT, SPECIALS

# ---------------------------------------------------------------- candidates, against one sentence at a time


def published(theirs: Any, tokenizer: Any, sentence: str, word: str, k: int) -> set[str] | None:
    """TinyBERT's candidates for a word of one piece: the masked and the original sentence, cut at its end."""
    pieces = tokenizer.tokenize(sentence)
    place = pieces.index(word) + 1
    masked = ["[CLS]", *pieces]
    masked[place] = "[MASK]"
    tokens = [*masked, "[SEP]", *pieces, "[SEP]"][:LIMIT]
    if place >= LIMIT:
        return None
    types = ([0] * (len(pieces) + 2) + [1] * (len(pieces) + 1))[:LIMIT]
    ids = torch.tensor([tokenizer.convert_tokens_to_ids(tokens)])
    with torch.no_grad():
        logits = theirs(input_ids=ids, token_type_ids=torch.tensor([types])).logits[0, place, : len(tokenizer)]
    best = tokenizer.convert_ids_to_tokens(torch.argsort(logits, descending=True)[:k].tolist())
    return {token for token in best if not token.startswith("##") and token not in SPECIALS}


@pytest.mark.parametrize("k", [1, 4, 15, 500])
@pytest.mark.parametrize("budget", [1, 64, 8192])
def test_latin_candidates_are_the_published_ones(
    encoder: Encoder, theirs: Any, tokenizer: Any, k: int, budget: int
) -> None:
    long = "cats " + "dogs chase " * 8 + "red " + "birds sing " * 12 + "loud mice"
    texts = ["cats chase mice in the house.", "the red birds sing, slow dogs chase cats", "loud 'mice'", long]
    config = AugmentConfig(candidates=k, language="latin", batch_tokens=budget)
    found = candidates(encoder, tokenizer, config).of(texts)
    compared = 0
    for text in texts:
        ours = {word.text: set(names) for word, names in found[text]}
        for word in ("cats", "mice", "red", "loud", "house"):
            if text.split().count(word) != 1:
                continue
            wanted = published(theirs, tokenizer, text, word, k)
            if wanted is None or wanted <= {word}:
                assert word not in ours
            else:
                assert ours[word] == wanted
                compared += 1
    assert compared >= (0 if k == 1 else 6)
    assert not {"the", "in"} & {word.text for of_text in found.values() for word, _ in of_text}


def test_a_text_of_more_tokens_than_the_model_takes(encoder: Encoder, tokenizer: Any) -> None:
    text = "cats " * 37 + "house river"
    found = candidates(encoder, tokenizer, AugmentConfig()).of([text])[text]
    assert [word.text for word, _ in found] == ["cats"] * 37 + ["house", "river"]  # [CLS] and 39 words are 40 tokens
    text = "cats " * 39 + "house"
    assert len(candidates(encoder, tokenizer, AugmentConfig()).of([text])[text]) == 39


def test_chinese_words_get_the_likeliest_words_of_as_many_characters(
    encoder: Encoder, theirs: Any, tokenizer: Any
) -> None:
    text, k = "喜欢北京的图书馆", 7
    found = dict(candidates(encoder, tokenizer, AugmentConfig(candidates=k)).of([text])[text])
    assert [word.text for word in found] == ["喜欢", "北京", "图书馆"]
    pieces = tokenizer.tokenize(text)
    han = [*HAN, "的"]
    for word, names in found.items():
        places = range(word.start + 1, word.end + 1)
        tokens = [
            "[CLS]",
            *("[MASK]" if i + 1 in places else p for i, p in enumerate(pieces)),
            "[SEP]",
            *pieces,
            "[SEP]",
        ]
        types = [0] * (len(pieces) + 2) + [1] * (len(pieces) + 1)
        ids = torch.tensor([tokenizer.convert_tokens_to_ids(tokens)])
        with torch.no_grad():
            logits = theirs(input_ids=ids, token_type_ids=torch.tensor([types])).logits[0].double().log_softmax(-1)
        score = {c: [float(logits[p, tokenizer.convert_tokens_to_ids(c)]) for p in places] for c in han}
        strings = itertools.product(han, repeat=len(word.text))
        best = sorted(strings, key=lambda string: -sum(score[c][i] for i, c in enumerate(string)))[:k]
        assert set(names) == {"".join(string) for string in best}


def test_a_byte_level_vocabulary(tmp_path: Path) -> None:
    """Pieces that begin a word are candidates, the others are dropped; a word of several pieces stays."""
    model_folder(tmp_path, byte_level(tmp_path))
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    encoder = pretrained.load(str(tmp_path), "test").encoder
    text = "Zij is arts en hij is kok."
    config = AugmentConfig(candidates=len(tokenizer), language="latin")
    found = {word.text: names for word, names in candidates(encoder, tokenizer, config).of([text])[text]}
    assert "arts" in found
    beginnings = {token[1:] for token in tokenizer.get_vocab() if token.startswith("Ġ") and len(token) > 1}
    assert "werkt" in found["arts"] and set(found["arts"]) <= beginnings


# ---------------------------------------------------------------- words and vectors


def test_words_are_of_letters_and_no_function_words(tmp_path: Path) -> None:
    words = Words("auto", SegmentConfig(), None)
    found = words.find("The café isn't 2nd, H2O foo_bar 我们在北京 iPhone")
    assert [word.text for word in found] == ["café", "foo", "bar", "北京", "iPhone"]
    assert all(word.han == (word.text == "北京") for word in found)
    assert [w.text for w in Words("latin", SegmentConfig(), None).find("北京 city")] == ["city"]
    assert [w.text for w in Words("chinese", SegmentConfig(), None).find("北京 city")] == ["北京"]
    (tmp_path / "stop.txt").write_text("北京\nCity\n", encoding="utf-8")
    own = Words("auto", SegmentConfig(), str(tmp_path / "stop.txt"))
    assert [w.text for w in own.find("北京 city the")] == ["the"]
    (tmp_path / "stop.txt").write_text("\n")
    with pytest.raises(DataError, match="is empty"):
        Words("auto", SegmentConfig(), str(tmp_path / "stop.txt"))
    with pytest.raises(DataError, match="Cannot read the stop words"):
        Words("auto", SegmentConfig(), str(tmp_path / "none.txt"))


WORDS = Words("auto", SegmentConfig(), None)


@given(st.text(alphabet="北京天气ab1 ,.的'é", max_size=30))
@settings(deadline=None)
def test_words_stand_where_they_say_and_do_not_overlap(text: str) -> None:
    found = WORDS.find(text)
    assert all(text[word.start : word.end] == word.text for word in found)
    assert all(a.end <= b.start for a, b in itertools.pairwise(found))


@pytest.mark.parametrize("head", [False, True])
def test_neighbours_are_those_of_the_largest_cosine(tmp_path: Path, head: bool) -> None:
    rng = np.random.default_rng(0)
    table = {f"w{i}": rng.normal(size=5).round(3).tolist() for i in range(40)}
    found = read_vectors(vectors_file(tmp_path / "v.txt", table, head), 30)
    assert found.words == [f"w{i}" for i in range(30)]

    def cosine(a: list[float], b: list[float]) -> float:
        return sum(x * y for x, y in zip(a, b, strict=True)) / (sum(x * x for x in a) * sum(y * y for y in b)) ** 0.5

    for word in ("w3", "w29"):
        others = [other for other in found.words if other != word]
        others.sort(key=lambda other: -cosine(table[word], table[other]))
        assert found.neighbours(word, 6) == tuple(others[:6])
    assert found.neighbours("W3", 2) == found.neighbours("w3", 2)
    assert found.neighbours("w35", 2) == () and len(found.neighbours("w1", 100)) == 29


def test_blocks_change_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(1)
    path = vectors_file(tmp_path / "v.txt", {f"w{i}": rng.normal(size=4).tolist() for i in range(25)})
    whole, blocked = read_vectors(path, 100), read_vectors(path, 100)
    whole.learn(whole.words, 5)
    monkeypatch.setattr("data_prep.vectors.BLOCK", 60)
    blocked.learn(blocked.words, 5)
    assert all(whole.neighbours(word, 5) == blocked.neighbours(word, 5) for word in whole.words)


def test_bad_vectors_are_dropped_and_counted(tmp_path: Path) -> None:
    lines = [
        "a 1 0",
        "zero 0 0",
        "b 2 0.1",
        "short 1",
        "c x 1",
        "d nan 1",
        "e inf 1",
        "a 5 5",
        "f 1e-30 1e-30",
        "g -1 0",
    ]
    (tmp_path / "v.txt").write_text("\n".join(lines) + "\n")
    found = read_vectors(tmp_path / "v.txt", 100)
    assert found.words == ["a", "b", "f", "g"]
    assert np.linalg.norm(found.units, axis=1) == pytest.approx(np.ones(4), abs=1e-6)
    assert found.counts.dropped == {
        "another_length": 1,
        "not_finite": 2,
        "not_numbers": 1,
        "repeated_word": 1,
        "zero_norm": 1,
    }
    assert found.neighbours("zero", 3) == () and found.neighbours("a", 3) == ("b", "f", "g")
    (tmp_path / "v.txt").write_text("zero 0 0\n")
    with pytest.raises(DataError, match=r"holds no word vectors \(dropped: \{'zero_norm': 1\}\)"):
        read_vectors(tmp_path / "v.txt", 100)
    with pytest.raises(DataError, match="There is no file of word vectors"):
        read_vectors(tmp_path / "none.txt", 100)


def test_vectors_serve_words_of_several_pieces_and_chinese_ones(
    encoder: Encoder, tokenizer: Any, tmp_path: Path
) -> None:
    table = {
        "playing": [1, 0],
        "walked": [1, 0.1],
        "北京": [0, 1],
        "天津": [0.1, 1],
        "石家庄": [0.2, 1],
        "cats": [1, -1],
    }
    path = vectors_file(tmp_path / "v.txt", table)
    text = "Playing cats 北京 walks"
    config = AugmentConfig(candidates=3, vectors=path)
    found = {word.text: names for word, names in candidates(encoder, tokenizer, config).of([text])[text]}
    assert found["Playing"] == ("Cats", "Walked", "石家庄")
    assert found["北京"] == ("天津", "石家庄")
    assert "walks" not in found  # two pieces, and not in the file
    without = candidates(encoder, tokenizer, config.model_copy(update={"vectors": None})).of([text])[text]
    assert {word.text: names for word, names in without}["cats"] == found["cats"]  # one piece: the model's
    short = candidates(encoder, tokenizer, config).of([text], same_length=True)[text]
    assert {word.text: names for word, names in short}["北京"] == ("天津",)
