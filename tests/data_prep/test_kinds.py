"""Every kind of sequences through a real preparation: read back, masked, verified, drawn and converted."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from data_prep.config import CleanConfig, SourceConfig, TokenizerConfig
from data_prep.convert import FORMATS, convert
from data_prep.corpus import Corpus, Gathered, Split, SplitName
from data_prep.inspect import draw_sequence, samples, totals
from data_prep.pipeline import prepare, verify
from data_prep.tokenizer import open_tokenizer
from tests.data_prep.conftest import kind_config, sample_config
from tests.data_prep.test_convert import rows

SPLITS: list[SplitName] = ["train", "held_out"]


def kind_of(corpus: Corpus) -> str:
    return str(corpus.manifest["identity"]["sequences"]["kind"])


def everything(split: Split) -> tuple[np.ndarray, Gathered]:
    index = np.arange(len(split), dtype=np.int64)
    return index, split.gather(index)


def test_is_sound(kind_corpus: Corpus) -> None:
    assert verify(kind_corpus.folder) == []
    assert kind_corpus.manifest["variant"] == f"{kind_of(kind_corpus)}-48"
    again = Corpus.open(kind_corpus.folder)
    assert len(again.split("train")) == len(kind_corpus.split("train"))


@pytest.mark.parametrize("name", SPLITS)
def test_sequences_have_their_shape(kind_corpus: Corpus, name: SplitName) -> None:
    split = kind_corpus.split(name)
    index, gathered = everything(split)
    cls, sep = (kind_corpus.special_ids[k] for k in ("cls", "sep"))
    lengths = np.diff(gathered.offsets)
    assert np.array_equal(lengths, split.lengths(index)) and lengths.max() <= 48
    assert split.n_tokens == lengths.sum() - split.specials * len(index)
    assert (gathered.ids[gathered.offsets[:-1]] == cls).all() and (gathered.ids == cls).sum() == len(index)
    assert (gathered.ids[gathered.offsets[1:] - 1] == sep).all()
    assert (gathered.ids == sep).sum() == (split.specials - 1) * len(index)
    special = np.isin(gathered.ids, [cls, sep])
    assert not gathered.continues[special].any()
    assert not gathered.continues[1:][special[:-1]].any(), "a word begins after a special token"
    if not split.pairs:
        assert gathered.types is None and gathered.order is None
        return
    assert gathered.types is not None and gathered.order is not None and split.specials == 3
    for i in range(0, len(index), 7):
        here = slice(gathered.offsets[i], gathered.offsets[i + 1])
        first = int(np.flatnonzero(gathered.ids[here] == sep)[0])
        expected = [0] * (first + 1) + [1] * (lengths[i] - first - 1)
        assert gathered.types[here].tolist() == expected and 1 < first < lengths[i] - 2
    assert set(gathered.order.tolist()) <= {0, 1} and len(gathered.order) == len(index)
    if name == "train":
        assert gathered.order.mean() == pytest.approx(0.5, abs=0.2)


def tokens_of(split: Split, corpus: Corpus) -> np.ndarray:
    """All tokens of all sequences without [CLS] and [SEP]."""
    ids = everything(split)[1].ids
    return ids[~np.isin(ids, [corpus.special_ids[k] for k in ("cls", "sep")])]


def test_holds_the_text(kind_corpus: Corpus, sample_corpus: Corpus) -> None:
    """The tokens of `documents`, once each. Lines leave out the short ones; pairs are cut, and random ones repeat."""
    split = kind_corpus.split("train")
    content, whole = (tokens_of(part, sample_corpus) for part in (split, sample_corpus.split("train")))
    found, expected = Counter(content.tolist()), Counter(whole.tolist())
    if kind_of(kind_corpus) in ("merged", "shuffled", "packed"):
        assert found == expected and kind_corpus.manifest["short_units"] == 0
    elif kind_of(kind_corpus) == "lines":
        assert found <= expected and kind_corpus.manifest["short_units"] > 0
    else:
        assert found.total() == pytest.approx(2 * expected.total(), rel=0.25) and set(found) <= set(expected)
        if kind_corpus.manifest["identity"]["sequences"]["pair_order"] == "swapped":
            assert found <= expected + expected, "each of two copies uses a token once at most"
    if kind_of(kind_corpus) in ("merged", "packed"):
        assert np.array_equal(content, whole), "the order is kept"


@pytest.mark.parametrize("name", SPLITS)
def test_masks(kind_corpus: Corpus, name: SplitName) -> None:
    split, settings = kind_corpus.split(name), kind_corpus.manifest["identity"]["masks"]
    index, gathered = everything(split)
    views = index % 2
    masks = split.masks(index, views)
    drawn = split.drawn_masks(index, views % settings["views"])
    assert np.array_equal(masks.positions, drawn.positions) and np.array_equal(masks.ids, drawn.ids)
    if name == "train" and settings["rate"] == 0:
        assert len(masks.positions) == 0 and masks.offsets.tolist() == [0] * (len(index) + 1)
        assert not list(kind_corpus.folder.glob("shards/*/train/sequences/*/masks"))
        return
    rows = np.repeat(gathered.offsets[:-1], np.diff(masks.offsets)) + masks.positions
    assert not np.isin(gathered.ids[rows], list(kind_corpus.special_ids.values())).any()
    assert len(np.unique(rows)) == len(rows)
    budget = np.diff(masks.offsets)
    assert (budget >= 1).mean() > 0.9 and budget.max() <= (settings["max_masked"] or 8)
    if settings["unit"] == "word":  # selected words are whole, on one side of the [SEP] between
        words = np.cumsum(~gathered.continues)
        chosen = np.isin(np.arange(len(words)), rows)
        assert np.array_equal(np.isin(words, words[rows]), chosen)


def test_a_batch_is_its_sequences(kind_corpus: Corpus) -> None:
    split = kind_corpus.split("train")
    index = np.random.default_rng(3).integers(0, len(split), 25)
    views = np.arange(25) % 2
    gathered, masks = split.gather(index), split.masks(index, views)
    for i in range(25):
        alone, own = split.gather(index[i : i + 1]), split.masks(index[i : i + 1], views[i : i + 1])
        here, there = slice(*gathered.offsets[i : i + 2]), slice(*masks.offsets[i : i + 2])
        assert np.array_equal(gathered.ids[here], alone.ids)
        assert np.array_equal(masks.positions[there], own.positions) and np.array_equal(masks.ids[there], own.ids)
        if gathered.types is not None and gathered.order is not None:
            assert alone.types is not None and alone.order is not None
            assert np.array_equal(gathered.types[here], alone.types) and gathered.order[i] == alone.order[0]
    empty = split.gather(index[:0])
    assert empty.offsets.tolist() == [0] and split.masks(index[:0], views[:0]).offsets.tolist() == [0]


def test_smoothing_prefers_rare_tokens(sample_corpus: Corpus, kind_corpus: Corpus) -> None:
    if kind_corpus.manifest["masking"]["smoothing"] is None:
        return
    split, counts = kind_corpus.split("train"), kind_corpus.unigram
    index, gathered = everything(split)
    masks = split.masks(index, index * 0)
    rows = np.repeat(gathered.offsets[:-1], np.diff(masks.offsets)) + masks.positions
    assert np.median(counts[gathered.ids[rows]]) < 0.5 * np.median(counts[gathered.ids])


def test_is_drawn_for_people(kind_corpus: Corpus) -> None:
    drawn = samples(kind_corpus, "train", 6, 0)
    order = kind_corpus.manifest["identity"]["sequences"]["pair_order"]
    heads = {"next": ("(B follows A) ", "(B is random) "), "swapped": ("(A, then B) ", "(swapped) "), None: ("",)}
    assert all(text.startswith(tuple(f"{h}[CLS]│" for h in heads[order])) for text in drawn)
    assert all(text.count("[SEP]") == (2 if order else 1) for text in drawn)
    facts = totals(kind_corpus)
    assert facts["sequences"].startswith(f"{kind_of(kind_corpus)}, up to 48 tokens")
    expected = {
        "lines": "stored, 3 views, rate 15%",
        "merged": "dynamic, rate 15%, single tokens, weights count^-0.7, at most 5 a sequence",
        "shuffled": "stored, 1 views, rate 15%, single tokens",
        "packed": "stored, 2 views, rate 15%, n-grams 0.4/0.3/0.2/0.1, drawn per word",
        "pairs": "stored, 2 views, rate 15%" if order == "next" else "stored, 2 views, rate 0%, held_out 15%",
    }
    assert facts["masks"] == expected[kind_of(kind_corpus)]
    assert ("dropped units" in facts) == (kind_of(kind_corpus) == "lines")


@pytest.mark.parametrize("to", list(FORMATS))
def test_is_converted(kind_corpus: Corpus, tmp_path: Path, to: str) -> None:
    split, out = kind_corpus.split("held_out"), tmp_path / f"held_out.{to}"
    convert(kind_corpus, "held_out", to, out)
    found = rows(out)
    _, gathered = everything(split)
    order = kind_corpus.manifest["identity"]["sequences"]["pair_order"]
    label = {"next": "next_sentence_label", "swapped": "sentence_order_label", None: None}[order]
    assert len(found) == len(split)
    for i, row in enumerate(found):
        here = slice(*gathered.offsets[i : i + 2])
        assert row["input_ids"] == gathered.ids[here].tolist()
        assert np.array_equal(np.diff(row["word_ids"]) == 0, gathered.continues[here][1:])
        assert set(row) == {"sequence_id", "input_ids", "word_ids", *([label, "token_type_ids"] if label else [])}
        if label and gathered.types is not None and gathered.order is not None:
            assert row["token_type_ids"] == gathered.types[here].tolist() and row[label] == gathered.order[i]


def test_a_kind_is_part_of_the_identity(kind_corpus: Corpus, sample_corpus: Corpus) -> None:
    assert kind_corpus.hash != sample_corpus.hash
    names = [{s["name"] for s in corpus.manifest["shards"]} for corpus in (kind_corpus, sample_corpus)]
    assert names[0].isdisjoint(names[1])


def test_a_flipped_label_is_found(sample_corpus: Corpus, tmp_path: Path) -> None:
    config = kind_config("next", str(sample_corpus.tokenizer_folder / "vocab.txt"))
    folder = prepare(config, tmp_path / "data").folder
    for name in ("order.bin", "firsts.bin"):
        victim = next(p for p in folder.rglob(name) if p.stat().st_size)
        content = victim.read_bytes()
        victim.write_bytes(bytes([content[0] ^ 1]) + content[1:])
        (trouble,) = verify(folder)
        assert str(victim) in trouble
        victim.write_bytes(content)


def test_short_lines_are_dropped_and_counted(tmp_path: Path) -> None:
    """Lines of the kept documents, whole and in order, without the short ones; words as in the whole text."""
    lines = ["第一行有两句话。这是第二句话！", "短行。", "公园里的天气今天非常好，适合散步。"]
    texts = ["\n".join([*lines, f"文章的编号是第{i}号文章，请记住。"]) for i in range(20)]
    (tmp_path / "a.txt").write_text("\n\n".join([*texts, "短行一。\n短行二。"]), encoding="utf-8")
    config = sample_config(
        sources=[SourceConfig(path=str(tmp_path / "a.txt"))],
        tokenizer=TokenizerConfig(vocab_size=300),
        clean=CleanConfig(unit="line", min_unit_characters=11),
        sequences=kind_config("lines", "").sequences,
    )
    corpus = prepare(config, tmp_path / "data")
    manifest = corpus.manifest
    assert manifest["dropped"] == {"short_units": 1} and manifest["documents"] == 20
    assert manifest["short_units"] == 20
    assert sum(manifest["splits"][name]["sequences"] for name in SPLITS) == 60
    drawn = [text.replace("│", "") for text in samples(corpus, "train", 3, 0)]
    assert len(drawn) == 3 and not any("短" in text for text in drawn)
    assert "公园│" in unmasked(corpus, 1)


def unmasked(corpus: Corpus, number: int) -> str:
    gathered = corpus.split("train").gather(np.array([number]))
    tokenizer = open_tokenizer(corpus.tokenizer_folder, TokenizerConfig())
    return draw_sequence(gathered.ids, gathered.continues, {}, tokenizer)
