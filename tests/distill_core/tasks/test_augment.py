from __future__ import annotations

import itertools
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer, BertConfig, BertForMaskedLM, BertTokenizerFast

from configs.errors import ConfigError, DataError
from data_prep.config import SegmentConfig
from data_prep.documents import Counts
from data_prep.vectors import read_vectors
from distill_core.models import pretrained
from distill_core.models.encoder import Encoder
from distill_core.tasks.augment import AugmentConfig, Candidates, Side, augment, text_side, token_side, variants
from distill_core.tasks.augment_words import Word, Words
from distill_core.tasks.rows import Row, RowCounts, TaskKind, read_rows, write_rows
from tests.distill_core.evaluate.reference import byte_level, model_folder

SPECIALS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "[unused1]"]
LATIN = [
    "cats",
    "dogs",
    "chase",
    "mice",
    "birds",
    "sing",
    "loud",
    "red",
    "green",
    "house",
    "river",
    "slow",
    "the",
    "in",
]
PIECES = ["play", "##ing", "##ed", "##s", "walk", ".", ",", "'", "2", "##nd"]
HAN = list("北京天气喜欢图书馆学校春夏秋冬")
LIMIT = 40
"""Tokens of the test model's longest sequence."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    (folder / "vocab.txt").write_text(
        "\n".join([*SPECIALS, *LATIN, *PIECES, *HAN, "的", "##京"]) + "\n", encoding="utf-8"
    )
    tokenizer = BertTokenizerFast(vocab=str(folder / "vocab.txt"), do_lower_case=True)
    torch.manual_seed(3)
    config = BertConfig(
        vocab_size=len(tokenizer) + 2,  # padded, as models' tables often are
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=LIMIT,
        initializer_range=0.4,
    )
    model = BertForMaskedLM(config)
    with torch.no_grad():
        model.cls.predictions.bias[-2:] += 50  # never to be predicted all the same
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def theirs(folder: Path) -> Any:
    return BertForMaskedLM.from_pretrained(folder).eval()


@pytest.fixture(scope="module")
def encoder(folder: Path) -> Encoder:
    return pretrained.load(str(folder), "test").encoder


@pytest.fixture(scope="module")
def tokenizer(folder: Path) -> Any:
    return AutoTokenizer.from_pretrained(folder)


def vectors_file(path: Path, words: dict[str, list[float]], head: bool = False) -> str:
    width = len(next(iter(words.values())))
    text = f"{len(words)} {width}\n" if head else ""
    text += "".join(f"{word} {' '.join(map(str, numbers))}\n" for word, numbers in words.items())
    path.write_text(text, encoding="utf-8")
    return str(path)


SENTENCES = [
    "cats chase mice in the house.",
    "the red birds sing, walking slow dogs chase 2nd cats",
    "Green river",
    "北京的天气 cats",
    "loud 'mice'",
]
ROWS = [Row(f"r{i}", text, label=str(i % 2)) for i, text in enumerate(SENTENCES)]
PAIRS = [Row("p", "cats chase mice", "red birds sing", "yes"), Row("q", "slow dogs", "北京天气", "no")]


# ---------------------------------------------------------------- candidates, against one sentence at a time


def candidates(encoder: Encoder, tokenizer: Any, config: AugmentConfig) -> Candidates:
    vectors = None if config.vectors is None else read_vectors(config.vectors, config.max_vectors)
    return Candidates(encoder, tokenizer, config, vectors)


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


# ---------------------------------------------------------------- rows


def new(
    rows: list[Row], encoder: Encoder, tokenizer: Any, kind: TaskKind = "classification", **given: Any
) -> list[Row]:
    return list(augment(rows, encoder, tokenizer, AugmentConfig(**given), kind))


def of(found: list[Row], id: str) -> list[Row]:
    return [row for row in found if row.id.split("#")[0] == id]


@pytest.mark.parametrize("budget", [1, 50, 300])
def test_neither_batches_nor_order_nor_neighbours_matter(encoder: Encoder, tokenizer: Any, budget: int) -> None:
    whole = new([*ROWS, *PAIRS], encoder, tokenizer, candidates=6, batch_tokens=8192)
    mixed = [*ROWS, *PAIRS]
    random.Random(1).shuffle(mixed)
    other = new(mixed, encoder, tokenizer, candidates=6, batch_tokens=budget)
    alone = new([ROWS[1]], encoder, tokenizer, candidates=6, batch_tokens=budget)
    assert alone == of(whole, "r1") and len(alone) > 5
    assert all(of(other, row.id) == of(whole, row.id) for row in mixed)
    assert [row.id for row in other if "#" not in row.id] == [row.id for row in mixed]


def test_windows_change_nothing(encoder: Encoder, tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = new([*ROWS, *PAIRS], encoder, tokenizer, candidates=6)
    monkeypatch.setattr("distill_core.tasks.augment.WINDOW", 2)
    assert new([*ROWS, *PAIRS], encoder, tokenizer, candidates=6) == whole


def test_the_seed_and_the_id_matter(encoder: Encoder, tokenizer: Any) -> None:
    one, two = (new([ROWS[1]], encoder, tokenizer, seed=seed) for seed in (1, 2))
    three = new([replace(ROWS[1], id="other")], encoder, tokenizer, seed=1)
    assert len({tuple(row.text_a for row in found) for found in (one, two, three)}) == 3


@pytest.mark.parametrize("given", [{"probability": 0.0}, {"copies": 0}, {"language": "chinese"}])
def test_only_the_originals(encoder: Encoder, tokenizer: Any, given: dict[str, Any]) -> None:
    assert new([ROWS[0], PAIRS[0]], encoder, tokenizer, **given) == [ROWS[0], PAIRS[0]]


def test_the_original_comes_first_and_nothing_comes_twice(encoder: Encoder, tokenizer: Any) -> None:
    found = new([*ROWS, *PAIRS], encoder, tokenizer, copies=60, candidates=3)
    for row in [*ROWS, *PAIRS]:
        mine = of(found, row.id)
        assert mine[0] == row and [r.id for r in mine[1:]] == [f"{row.id}#{i}" for i in range(1, len(mine))]
        assert len({(r.text_a, r.text_b) for r in mine}) == len(mine) > 1
        assert {r.label for r in mine} == {row.label}


def test_one_side_at_a_time_beside_the_other_original(encoder: Encoder, tokenizer: Any) -> None:
    for pair in PAIRS:
        mine = of(new(PAIRS, encoder, tokenizer, candidates=5), pair.id)[1:]
        left = [row for row in mine if row.text_a != pair.text_a]
        right = [row for row in mine if row.text_b != pair.text_b]
        assert left and right and not set(left) & set(right) and len(left) + len(right) == len(mine)
        assert mine == [*left, *right]


def test_texts_keep_all_but_the_replaced_words(encoder: Encoder, tokenizer: Any) -> None:
    row = Row("x", "The  Cats, 'mice'\tchase the 2nd house!", label="1")
    for made in new([row], encoder, tokenizer, candidates=4)[1:]:
        assert made.text_a.startswith("The  ") and made.text_a.endswith("!")
        assert not made.text_a[5].islower()  # a capital, or no letter of the Latin script
        assert "'\t" in made.text_a and " the 2nd " in made.text_a


def test_chinese_rows_keep_their_lengths(encoder: Encoder, tokenizer: Any) -> None:
    row = Row("x", "喜欢北京的图书馆，天气！", label="1")
    made = new([row], encoder, tokenizer, copies=40)[1:]
    assert len(made) > 20 and {len(r.text_a) for r in made} == {12}
    assert {r.text_a[4] + r.text_a[8] + r.text_a[11] for r in made} == {"的，！"}


def test_words_are_replaced_at_the_published_rate() -> None:
    slots = tuple((2 * i, 2 * i + 1, (("x",), ("y",), ("z",))) for i in range(60))
    side = Side(("w", " ") * 60, slots, tuple)
    made = variants(side, "row", AugmentConfig(copies=200))
    parts = np.array(made)[:, ::2]
    assert len(made) == 200  # so long that none repeats
    rate = (parts != "w").mean()
    assert rate == pytest.approx(0.4, abs=4 * (0.4 * 0.6 / parts.size) ** 0.5)
    shares = [(parts[parts != "w"] == name).mean() for name in "xyz"]
    assert shares == pytest.approx([1 / 3] * 3, abs=0.03)
    assert (parts != "w").any(axis=0).all() and (parts != "w").std(axis=0).min() > 0


def test_sixteen_bits(encoder: Encoder, folder: Path, tokenizer: Any) -> None:
    half = pretrained.load(str(folder), "test").encoder.to(torch.bfloat16)
    text = SENTENCES[0]
    exact = candidates(encoder, tokenizer, AugmentConfig()).of([text])[text]
    rounded = candidates(half, tokenizer, AugmentConfig()).of([text])[text]
    assert [word for word, _ in rounded] == [word for word, _ in exact]
    for (_, ours), (_, names) in zip(rounded, exact, strict=True):
        assert len(set(ours) & set(names)) >= 0.7 * len(names)  # rounding moves only those near the last place
    assert len(new(ROWS, half, tokenizer)) > len(ROWS)


def test_what_passes_is_counted(encoder: Encoder, tokenizer: Any, tmp_path: Path) -> None:
    counts = Counts()
    vectors = vectors_file(tmp_path / "v.txt", {"cats": [1, 0], "zero": [0, 0]})
    made = list(augment(ROWS, encoder, tokenizer, AugmentConfig(vectors=vectors), "classification", counts))
    assert counts == {"new_rows": len(made) - len(ROWS), "dropped_vector_zero_norm": 1}


# ---------------------------------------------------------------- tokens, spans, files


def test_tokens_are_replaced_whole_and_keep_their_tags(encoder: Encoder, tokenizer: Any) -> None:
    tokens = ("喜", "欢", "北", "京", "的", "cats", "mice's", "图书馆", "天", "气")
    row = Row("t", " ".join(tokens), tokens=tokens, tags=("O", "O", "B-L", "I-L", "O", "B-X", "O", "O", "O", "O"))
    made = new([row], encoder, tokenizer, "tokens", copies=40)[1:]
    assert len(made) > 20
    changed = {i for r in made for i, token in enumerate(r.tokens or ()) if token != tokens[i]}
    assert changed == {0, 1, 2, 3, 5, 7, 8, 9}
    for r in made:
        assert r.tags == row.tags and r.tokens is not None and r.text_a == " ".join(r.tokens)
        assert [len(token) for token in r.tokens[:4]] == [1] * 4 and len(r.tokens[7]) == 3 and len(r.tokens) == 10


def test_sides_are_cut_at_words() -> None:
    found = [(Word(1, 3, "ab", False), ("x", "yz")), (Word(3, 4, "北", True), ("京",))]
    side = text_side(" ab北.", found)
    assert side.parts == (" ", "ab", "", "北", ".") and side.build(side.parts) == " ab北."
    assert [slot[:2] for slot in side.slots] == [(1, 2), (3, 4)]
    tokens = ("ab", "c-d", "北京", "天", "气")  # as a text: "ab c-d北京天气"
    words = [
        (Word(0, 2, "ab", False), ("x",)),
        (Word(3, 4, "c", False), ("x",)),
        (Word(6, 10, "北京天气", True), ("春",)),
    ]
    assert token_side(tokens, words).slots == ((0, 1, (("x",),)),)


def test_spans_are_refused_at_once(encoder: Encoder, tokenizer: Any) -> None:
    with pytest.raises(ConfigError, match="Rows of span tasks are not augmented"):
        augment([], encoder, tokenizer, AugmentConfig(), "span")


@pytest.mark.parametrize("kind", ["classification", "tokens"])
def test_augmented_rows_are_read_back(encoder: Encoder, tokenizer: Any, tmp_path: Path, kind: TaskKind) -> None:
    tokens = ("喜", "欢", "cats")
    rows = PAIRS if kind == "classification" else [Row("t", " ".join(tokens), tokens=tokens, tags=("O", "O", "B"))]
    made = new(rows, encoder, tokenizer, kind)
    assert write_rows(tmp_path / "x.jsonl.gz", iter(made)) == len(made) > len(rows)
    assert read_rows(tmp_path / "x.jsonl.gz", kind, RowCounts()) == made
