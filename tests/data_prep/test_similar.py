"""Tables of similar words: from vectors to masked batches."""

from __future__ import annotations

import gzip
import struct
from pathlib import Path

import numpy as np
import pytest

from configs.errors import DataError
from data_prep.config import MaskConfig, SimilarConfig, TokenizerConfig
from data_prep.corpus import Corpus
from data_prep.inspect import totals
from data_prep.pipeline import prepare, verify
from data_prep.similar import NO_WORDS, find_similar, open_similar
from data_prep.tokenizer import open_tokenizer
from data_prep.vectors import read_vectors
from tests.data_prep.conftest import sample_config

WORDS = ["我们", "他们", "今天", "明天", "天气", "公园", "时间", "中国", "上", "下", "人", "大"]


def table(seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {word: rng.normal(size=6).astype(np.float32) for word in WORDS}


def as_text(path: Path, vectors: dict[str, np.ndarray]) -> Path:
    rows = [f"{len(vectors)} 6", *(f"{word} {' '.join(map(repr, v.tolist()))}" for word, v in vectors.items())]
    path.write_text("\n".join(rows) + "\n", encoding="utf-8")
    return path


def as_binary(path: Path, vectors: dict[str, np.ndarray], newline: bytes = b"\n") -> Path:
    content = f"{len(vectors)} 6\n".encode()
    for word, vector in vectors.items():
        content += word.encode() + b" " + vector.astype("<f4").tobytes() + newline
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return path


@pytest.mark.parametrize(("name", "newline"), [("v.bin", b"\n"), ("v.bin", b""), ("v.bin.gz", b"\n")])
def test_word2vecs_binary_format_is_the_text_format(tmp_path: Path, name: str, newline: bytes) -> None:
    text = read_vectors(as_text(tmp_path / "v.txt", table()), 10)
    binary = read_vectors(as_binary(tmp_path / name, table(), newline), 10)
    assert text.words == binary.words == WORDS[:10]
    assert np.array_equal(text.units, binary.units)


@pytest.mark.parametrize("content", [b"", b"word 1 2\n", b"2 4\nword " + struct.pack("<3f", 1, 2, 3), b"9 0\n"])
def test_a_broken_binary_file_is_an_error(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "v.bin").write_bytes(content)
    with pytest.raises(DataError, match=r"v\.bin"):
        read_vectors(tmp_path / "v.bin", 10)


def test_the_nearest_of_as_many_tokens(sample_corpus: Corpus, tmp_path: Path) -> None:
    vectors = table()
    tokenizer = open_tokenizer(sample_corpus.tokenizer_folder, TokenizerConfig())
    settings = SimilarConfig(vectors=str(as_text(tmp_path / "v.txt", vectors)), neighbours=3, min_cosine=-0.2)
    found = find_similar(settings, tokenizer)
    words = {
        tuple(ids.tolist()): word for ids, word in zip((i for i, _ in tokenizer.encode(WORDS)), WORDS, strict=True)
    }
    rows = [tuple(found.ids[a:b].tolist()) for a, b in zip(found.starts[:-1], found.starts[1:], strict=True)]
    specials = set(tokenizer.special_ids.values())
    assert set(rows) == {ids for ids in words if specials.isdisjoint(ids)} and len(rows) >= 8

    def cosine(a: str, b: str) -> float:
        x, y = vectors[a].astype(float), vectors[b].astype(float)
        return float(x @ y / np.sqrt((x @ x) * (y @ y)))

    for row, near in zip(rows, found.near, strict=True):
        others = [r for r in rows if len(r) == len(row) and r != row and cosine(words[r], words[row]) >= -0.2]
        others.sort(key=lambda r: -cosine(words[r], words[row]))
        assert [rows[number] for number in near if number >= 0] == others[:3]


def test_nothing_is_similar(sample_corpus: Corpus, tmp_path: Path) -> None:
    tokenizer = open_tokenizer(sample_corpus.tokenizer_folder, TokenizerConfig())
    settings = SimilarConfig(vectors=str(as_text(tmp_path / "v.txt", table())), min_cosine=1.0)
    with pytest.raises(DataError, match=r"lower masks\.similar\.min_cosine"):
        find_similar(settings, tokenizer)
    assert len(NO_WORDS.tables[0]) == 0


@pytest.fixture(scope="module")
def macbert(sample_corpus: Corpus, tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    folder = tmp_path_factory.mktemp("macbert")
    similar = {"vectors": str(as_text(folder / "v.txt", table())), "min_cosine": -1.0}
    masks = MaskConfig.model_validate({"similar": similar, "ngram": [0.4, 0.3, 0.2, 0.1], "views": 2})
    vocab = TokenizerConfig(vocab=str(sample_corpus.tokenizer_folder / "vocab.txt"))
    return prepare(sample_config(masks=masks, tokenizer=vocab), folder / "data")


def test_masks_are_the_same_stored_or_drawn(macbert: Corpus) -> None:
    train = macbert.split("train")
    index = np.arange(len(train))
    stored, drawn = train.stored_masks(index, index % 2), train.drawn_masks(index, index % 2)
    assert np.array_equal(stored.positions, drawn.positions) and np.array_equal(stored.ids, drawn.ids)
    assert macbert.special_ids["mask"] not in drawn.ids
    assert totals(macbert)["masks"] == (
        "stored, 2 views, rate 15%, n-grams 0.4/0.3/0.2/0.1, similar words 80%, random 10%, drawn per word"
    )


def test_similar_words_are_used(macbert: Corpus) -> None:
    train = macbert.split("train")
    index = np.arange(len(train))
    tokenizer = open_tokenizer(macbert.tokenizer_folder, TokenizerConfig())
    known = {tuple(ids.tolist()) for ids, _ in tokenizer.encode(["我们", "今天", "公园", "时间"])}
    gathered = train.gather(index)
    words = np.cumsum(~gathered.continues)
    hits = others = 0
    for view in range(2):
        masked = train.masked(index, np.full(len(index), view))
        for word in np.unique(words[masked.rows]).tolist():
            rows = np.flatnonzero(words == word)
            if tuple(gathered.ids[rows].tolist()) in known:
                after = tuple(masked.ids[rows].tolist())
                assert len(after) == len(rows)
                text = tokenizer.decode(list(after))
                hits, others = hits + (text in WORDS), others + (text not in WORDS)
    assert hits > 3 * others


def test_the_table_is_verified_and_made_once(macbert: Corpus, monkeypatch: pytest.MonkeyPatch) -> None:
    assert verify(macbert.folder) == []
    assert len(open_similar(macbert.folder).near) > 0
    victim = macbert.folder / "similar" / "near.bin"
    content = victim.read_bytes()
    victim.write_bytes(bytes([content[0] ^ 1]) + content[1:])
    assert any(str(victim) in trouble for trouble in verify(macbert.folder))
    with pytest.raises(DataError, match="missing or damaged"):
        Corpus.open(macbert.folder).split("train")
    victim.write_bytes(content)


def test_a_missing_file_is_an_error(tmp_path: Path) -> None:
    masks = MaskConfig.model_validate({"similar": {"vectors": str(tmp_path / "none.txt")}})
    with pytest.raises(DataError, match=r"correct masks\.similar\.vectors"):
        prepare(sample_config(masks=masks), tmp_path / "data")
