"""From Latin text to whole words: words of Dutch, English and Chinese, a trained vocabulary, a prepared corpus."""

from __future__ import annotations

import itertools
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jieba
import numpy as np
import pytest
import rjieba

from configs.errors import ConfigError, DataError
from data_prep.config import DataConfig, MaskConfig, SegmentConfig, SequenceConfig, SourceConfig
from data_prep.corpus import Corpus
from data_prep.pipeline import prepare, verify
from data_prep.segment import open_segmenter
from data_prep.sentences import sentences
from data_prep.tokenizer import open_tokenizer, train_tokenizer
from data_prep.tokenizer_base import Tokenizer
from data_prep.tokenizer_training import train_bpe
from tests.data_prep.awkward import SAMPLE_LINES, config
from tests.data_prep.latin import DUTCH, ENGLISH, LETTERS, TEXTS, bpe, bytes_of, only_bytes, shared
from tests.data_prep.streams import encoded

# ---------------------------------------------------------------- words


def slow_words(text: str) -> list[int]:
    """For each character the number of its word: runs of letters and digits, and everything else by itself."""
    out: list[int] = []
    for i, c in enumerate(text):
        latin = c.isalnum() and not "\u4e00" <= c <= "\u9fff"
        before = text[i - 1] if i else " "
        same = latin and before.isalnum() and not "\u4e00" <= before <= "\u9fff"
        out.append(out[-1] if same else (out[-1] + 1 if out else 0))
    return out


@pytest.fixture(scope="module", params=["bpe", "wordpiece", "wordpiece-cased"])
def latin(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    if request.param == "bpe":
        return shared()
    rule = config(vocab_size=400, lowercase=request.param == "wordpiece")
    return train_tokenizer(iter(TEXTS), rule, tmp_path_factory.mktemp("wordpiece"))


@pytest.mark.parametrize("text", [*DUTCH, *ENGLISH, "\n".join(DUTCH), "We zien 北京大学 en 3D-films, c'est ça."])
def test_words_of_latin_text_are_whole(latin: Tokenizer, text: str) -> None:
    """A token continues a word exactly when its first character and the one of the token before share a word."""
    (document,) = encoded([text], latin, open_segmenter(SegmentConfig(kind="none")))
    for unit, (found, continues) in zip(sentences(text), document, strict=True):
        words = slow_words(unit)
        ((again, starts),) = latin.encode([unit])
        assert found == again.tolist()
        owners = [words[start] for start in starts.tolist()]
        assert continues == [i > 0 and owners[i] == owners[i - 1] for i in range(len(owners))]


def words_of(tokenizer: Tokenizer, text: str, kind: Any) -> list[str]:
    (document,) = encoded([text], tokenizer, open_segmenter(SegmentConfig(kind=kind)))
    out: list[list[int]] = []
    for found, continues in document:
        for token, inner in zip(found, continues, strict=True):
            if inner:
                out[-1].append(token)
            else:
                out.append([token])
    return [tokenizer.decode(word).strip() for word in out]


def test_words_of_a_dutch_sentence() -> None:
    tokenizer = only_bytes()
    right = ["Foto", "'", "s", "van", "café", "1953", ",", "auto", "-", "ongeluk", ".", "Zij", "ook", "!"]
    assert words_of(tokenizer, "Foto's van café 1953, auto-ongeluk. Zij ook!", "none") == right
    assert words_of(shared(), "de brug, de regen!", "none") == ["de", "brug", ",", "de", "regen", "!"]


@pytest.mark.parametrize(("kind", "cut"), [("jieba", jieba.lcut), ("rjieba", rjieba.cut)])
def test_words_of_chinese_are_those_of_the_segmenter(kind: str, cut: Any) -> None:
    tokenizer = only_bytes()
    text = "我们在北京大学学习。今天天气很好！"
    assert words_of(tokenizer, text, kind) == cut(text)
    mixed = words_of(tokenizer, "我们 use BERT models", kind)
    assert mixed == ["我们", "use", "BERT", "models"]


def test_merged_chinese_characters_keep_words_in_order() -> None:
    """Pieces may hold several characters; joined, the words still give the text."""
    segmenter = open_segmenter(SegmentConfig())
    texts = SAMPLE_LINES[:40]
    for text, document in zip(texts, encoded(texts, shared(), segmenter), strict=True):
        for _, continues in document:
            assert not continues[0]
        assert b"".join(bytes_of(shared(), found) for found, _ in document) == text.encode()


# ---------------------------------------------------------------- training and preparing


def test_trained_vocabulary() -> None:
    trained = shared()
    assert trained.pieces[:5] == ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    assert set(trained.pieces[5:261]) == set(LETTERS)
    assert trained.vocab_size <= 900
    assert "Ġde" in trained.pieces
    ((found, _),) = trained.encode(["de regen op de natte brug"])
    assert len(found) < 20
    with pytest.raises(DataError, match="too few"):
        train_bpe(["abc"], bpe())


def test_training_is_deterministic() -> None:
    """In another process hash tables have another order."""
    code = (
        "import sys; from data_prep.config import TokenizerConfig; from data_prep.tokenizer_training import train_bpe;"
        "from tests.data_prep.latin import TEXTS;"
        "print(train_bpe(TEXTS, TokenizerConfig(kind='bpe', vocab_size=900)).hash)"
    )
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=root, check=True)
    assert done.stdout.strip() == shared().hash


def test_bpe_is_cased() -> None:
    assert bpe().lowercase is False
    assert bpe(lowercase=False).lowercase is False
    assert config().lowercase is True
    assert type(bpe()).model_validate(bpe().model_dump()) == bpe()
    with pytest.raises((ValueError, ConfigError), match="lowercase: true is not for kind: bpe"):
        bpe(lowercase=True)
    with pytest.raises((ValueError, ConfigError), match="256 bytes"):
        bpe(vocab_size=261)
    assert bpe(vocab_size=261, vocab="x").vocab == "x"


def documents() -> Iterator[str]:
    for i in range(24):
        lines = [DUTCH[(i + k) % len(DUTCH)] for k in range(3)] + [ENGLISH[i % len(ENGLISH)], f"Nummer {i} is klaar."]
        yield "\n".join(lines)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    where = tmp_path_factory.mktemp("dutch")
    (where / "nl.txt").write_text("\n\n".join(documents()) + "\n", encoding="utf-8")
    rule = DataConfig(
        sources=[SourceConfig(path=str(where / "nl.txt"))],
        tokenizer=bpe(vocab_size=500),
        segment=SegmentConfig(kind="none"),
        sequences=SequenceConfig(max_length=48),
        masks=MaskConfig(views=2),
        held_out=0.2,
        workers=1,
    )
    prepare(rule, where / "data")
    assert prepare(rule, where / "data").hash  # once more: it is reused
    return Corpus.open(where / "data")


def test_prepared_corpus_reads_back(prepared: Corpus) -> None:
    assert verify(prepared.folder) == []
    assert prepared.special_ids == {"cls": 0, "pad": 1, "sep": 2, "unk": 3, "mask": 4}
    tokenizer = open_tokenizer(prepared.tokenizer_folder, bpe())
    train = prepared.split("train")
    index = np.arange(len(train))
    gathered = train.gather(index)
    known = "".join("".join(text.split("\n")) for text in documents())
    for a, b in zip(gathered.offsets[:-1], gathered.offsets[1:], strict=True):
        found = gathered.ids[a:b]
        assert (found[0], found[-1]) == (0, 2)
        assert tokenizer.decode(found[1:-1].tolist()) in known


def test_prepared_masks_take_whole_words(prepared: Corpus) -> None:
    tokenizer = open_tokenizer(prepared.tokenizer_folder, bpe())
    train = prepared.split("train")
    index = np.arange(len(train))
    gathered, masks = train.gather(index), train.masks(index, np.zeros(len(index), np.int64))
    vocabulary = {word for text in documents() for word in re.findall(r"\w+|[^\w\s]", text)}
    longer = 0
    for i in range(len(index)):
        a, b = gathered.offsets[i], gathered.offsets[i + 1]
        chosen = set(masks.positions[masks.offsets[i] : masks.offsets[i + 1]].tolist())
        starts = [*np.flatnonzero(~gathered.continues[a:b]).tolist(), int(b - a)]
        for begin, end in itertools.pairwise(starts[1:-1]):
            inside = chosen.intersection(range(begin, end))
            assert inside in (set(), set(range(begin, end)))
            word = tokenizer.decode(gathered.ids[a + begin : a + end].tolist()).strip()
            if inside and begin > 1 and end < b - a - 1:  # a sequence may begin and end inside a word
                assert word in vocabulary or not word.isalnum()
                longer += len(inside) > 1
    assert longer > 10


def test_dutch_and_english_text_is_cut_at_its_marks() -> None:
    assert sentences("Zij keek om! Was het voorbij? Ja.") == ["Zij keek om!", " Was het voorbij?", " Ja."]
