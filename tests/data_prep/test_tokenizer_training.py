"""Training: the same corpus gives the same vocabulary, in every process; no character is lost."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
import tokenizers

from configs.errors import ConfigError, DataError
from configs.loader import validate
from data_prep.config import TokenizerConfig
from data_prep.readers import SAMPLE
from data_prep.sentencepiece_model import BPE
from data_prep.tokenizer import open_tokenizer, train_tokenizer
from data_prep.tokenizer_base import SPECIALS
from data_prep.tokenizer_training import first_characters

LATIN = "the quick brown fox jumps over lazy dogs while training tokenizers deterministically again and again"
SAMPLE_TEXTS = [path.read_text(encoding="utf-8") for path in sorted(SAMPLE.glob("*.txt"))]
TEXTS = [*SAMPLE_TEXTS, *(f"{word}{end} {word}" for word in LATIN.split() for end in ("", "s", "ed", "ing"))]

PROGRAM = """
import sys
from pathlib import Path
from data_prep.config import TokenizerConfig
from data_prep.readers import SAMPLE
from data_prep.sentencepiece_model import BPE
from data_prep.tokenizer import train_tokenizer
texts = Path(sys.argv[1]).read_text(encoding="utf-8").split("\\0")
for name, kind in (("wordpiece", {}), ("sentencepiece", {}), ("bpe", {"kind": "sentencepiece", "algorithm": "bpe"})):
    config = TokenizerConfig(**{"kind": name, "vocab_size": 2800, **kind})
    print(train_tokenizer(iter(texts), config, Path(sys.argv[2]) / name).hash)
"""


def test_same_vocabulary_in_every_process(tmp_path: Path) -> None:
    (tmp_path / "texts").write_text("\0".join(TEXTS), encoding="utf-8")
    answers = []
    for seed, threads in (("1", "false"), ("2", "true")):
        environment = {**os.environ, "PYTHONHASHSEED": seed, "TOKENIZERS_PARALLELISM": threads}
        environment["PYTHONPATH"] = os.pathsep.join(p for p in sys.path if p)
        folder = tmp_path / seed
        done = subprocess.run(
            [sys.executable, "-c", PROGRAM, str(tmp_path / "texts"), str(folder)],
            env=environment,
            capture_output=True,
            text=True,
            check=True,
        )
        answers.append(done.stdout.split())
        assert len(answers[-1]) == 3
    assert answers[0] == answers[1]
    for name in ("wordpiece/vocab.txt", "wordpiece/tokenizer.json", "sentencepiece/spiece.model", "bpe/spiece.model"):
        assert (tmp_path / "1" / name).read_bytes() == (tmp_path / "2" / name).read_bytes()


def test_wordpiece_keeps_every_character_seen_twice(tmp_path: Path) -> None:
    config = TokenizerConfig(vocab_size=4000)
    tokenizer: Any = train_tokenizer(iter(TEXTS), config, tmp_path)
    assert tokenizer.pieces[:5] == list(SPECIALS.values())
    counts = Counter("".join(TEXTS).lower())
    twice = {c for c, n in counts.items() if n >= 2 and "\u4e00" <= c <= "\u9fff"}
    assert len(twice) > 500
    assert twice <= set(tokenizer.pieces)
    once = {c for c, n in counts.items() if n == 1 and "\u4e00" <= c <= "\u9fff"}
    assert once.isdisjoint(tokenizer.pieces)
    assert "deterministically" in tokenizer.pieces
    assert tokenizer.vocab_size <= 4000
    assert not [p for p in tokenizer.pieces if len(p.removeprefix("##")) > 1 and not p.isascii() and p[2:3] > "\u4e00"]
    assert open_tokenizer(tmp_path, config).hash == tokenizer.hash


def test_wordpiece_of_a_small_size_keeps_the_most_frequent(tmp_path: Path) -> None:
    tokenizer: Any = train_tokenizer(iter(TEXTS), TokenizerConfig(vocab_size=200), tmp_path)
    assert tokenizer.vocab_size == 200
    assert {"的", "，", "。"} <= set(tokenizer.pieces)


@pytest.mark.parametrize("lowercase", [True, False])
def test_wordpiece_case(tmp_path: Path, lowercase: bool) -> None:
    config = TokenizerConfig(lowercase=lowercase)
    tokenizer: Any = train_tokenizer(iter(["Zhengliu Zhengliu ÉÉ abcdefghijklmn abcdefghijklmn"]), config, tmp_path)
    assert ("Zhengliu" in tokenizer.pieces) is not lowercase
    assert ("zhengliu" in tokenizer.pieces) is lowercase
    assert open_tokenizer(tmp_path, TokenizerConfig()).hash == tokenizer.hash


@pytest.mark.parametrize("algorithm", ["unigram", "bpe"])
@pytest.mark.parametrize("size", [200, 1000, 400_000])
def test_sentencepiece_of_any_size(tmp_path: Path, size: int, algorithm: Any) -> None:
    """Small ones, and one with more pieces than the text has."""
    config = TokenizerConfig(kind="sentencepiece", algorithm=algorithm, vocab_size=size)
    tokenizer: Any = train_tokenizer(iter(TEXTS), config, tmp_path)
    assert tokenizer.vocab_size <= size
    assert tokenizer.pieces[:5] == list(SPECIALS.values())
    assert [p for p in tokenizer.pieces[5:] if len(p) > 1]


def test_sentencepiece_bpe_is_trained(tmp_path: Path) -> None:
    """By merges: an independent reading of the model's file says so, and its ids are those of both libraries."""
    config = TokenizerConfig(kind="sentencepiece", algorithm="bpe", vocab_size=2000)
    ours: Any = train_tokenizer(iter(TEXTS), config, tmp_path)
    assert ours._model.algorithm == BPE and ours.vocab_size == 2000
    lines = [line for text in TEXTS for line in text.split("\n")]
    right = sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / "spiece.model")).encode(lines)
    assert [ids.tolist() for ids, _ in ours.encode(lines)] == right
    library = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    assert [found.ids for found in library.encode_batch(lines, add_special_tokens=False)] == right
    longest = max(ours.pieces[5:], key=len)
    assert any(longest[:cut] in ours.pieces and longest[cut:] in ours.pieces for cut in range(1, len(longest)))


@pytest.mark.parametrize("kind", ["wordpiece", "sentencepiece"])
@pytest.mark.parametrize("texts", [[], [""], ["好好"]])
def test_corpus_too_small_is_refused(tmp_path: Path, kind: Any, texts: list[str]) -> None:
    with pytest.raises(DataError, match="too few"):
        train_tokenizer(iter(texts), TokenizerConfig(kind=kind), tmp_path / "none")
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"kind": "sentencepiece", "lowercase": True}, "lowercase: true is not for kind: sentencepiece"),
        ({"kind": "wordpiece", "algorithm": "bpe"}, "algorithm is read by kind: sentencepiece only, not by wordpiece"),
        ({"kind": "bpe", "algorithm": "bpe"}, "algorithm is read by kind: sentencepiece only, not by bpe"),
    ],
)
def test_settings_of_other_kinds_are_refused(keys: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=f"(?i){message}"):
        validate(keys, TokenizerConfig)


def test_sentencepiece_is_never_lowercased() -> None:
    config = TokenizerConfig(kind="sentencepiece")
    assert config.lowercase is False
    assert TokenizerConfig.model_validate(config.model_dump()) == config


@pytest.mark.parametrize("kind", ["wordpiece", "sentencepiece"])
def test_awkward_texts_train(tmp_path: Path, kind: Any) -> None:
    texts = ["\0[MASK] [UNK] ▁▁ \u2028x\x85", "字" * 100_000, "[MASK] ## ##a", *SAMPLE_TEXTS]
    tokenizer = train_tokenizer(iter(texts), TokenizerConfig(kind=kind, vocab_size=3000), tmp_path)
    assert tokenizer.special_ids["mask"] not in tokenizer.encode(["[MASK]"])[0][0]
    assert open_tokenizer(tmp_path, TokenizerConfig(kind=kind)).hash == tokenizer.hash


def test_first_characters() -> None:
    taken = first_characters(iter(["abc", "def", "ghi"]), 5)
    assert list(taken) == ["abc", "de"]
    assert list(first_characters(iter(["abc"]), 5)) == ["abc"]
    assert list(first_characters(iter(["abc", "d"]), 3)) == ["abc"]
