"""SentencePiece: ids of `sentencepiece` and `transformers`, offsets into the input, refusals."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import pytest
import sentencepiece

from configs.errors import DataError
from data_prep.tokenizer import open_tokenizer, train_tokenizer
from tests.data_prep.awkward import LINES, SAMPLE_LINES, check_auto_tokenizer, config, ids


@pytest.fixture(scope="module")
def trained_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sp")
    train_tokenizer(iter(SAMPLE_LINES), config(kind="sentencepiece", vocab_size=2000), folder)
    return folder


def test_sentencepiece_ids_are_those_of_sentencepiece(trained_model: Path) -> None:
    from transformers import AutoTokenizer

    ours = open_tokenizer(trained_model, config(kind="sentencepiece"))
    theirs = sentencepiece.SentencePieceProcessor(model_file=str(trained_model / "spiece.model"))
    assert ids(ours, LINES) == theirs.encode(LINES)
    assert ours.special_ids == {"pad": 0, "unk": 1, "cls": 2, "sep": 3, "mask": 4}
    assert ours.vocab_size <= 2000
    assert (trained_model / "vocab.txt").read_text(encoding="utf-8").split("\n")[:-1] == ours.pieces
    check_auto_tokenizer(ours, AutoTokenizer.from_pretrained(trained_model))
    special = set(ours.special_ids.values()) - {ours.special_ids["unk"]}
    assert all(special.isdisjoint(found) for found in ids(ours, LINES))
    assert ours.hash == pickle.loads(pickle.dumps(ours)).hash


def test_sentencepiece_is_the_same_through_both_libraries(trained_model: Path) -> None:
    ours: Any = open_tokenizer(trained_model, config(kind="sentencepiece"))
    fast = ours.encode(LINES)
    assert ours._processor is not None
    ours._processor = None
    for line, (found, starts), right in zip(LINES, fast, ours.encode(LINES), strict=True):
        assert found.tolist() == right[0].tolist(), line
        assert starts.tolist() == right[1].tolist(), line
        assert (found.dtype, starts.dtype) == (right[0].dtype, right[1].dtype)


def test_sentencepiece_nothing_to_encode(trained_model: Path) -> None:
    ours: Any = open_tokenizer(trained_model, config(kind="sentencepiece"))
    for _ in range(2):
        assert ours.encode([]) == []
        assert ids(ours, ["", ""]) == [[], []]
        with pytest.raises(DataError, match="valid Unicode"):
            ours.encode(["\ud800"])
        ours._processor = None


def test_sentencepiece_offsets_count_characters(trained_model: Path) -> None:
    ours = open_tokenizer(trained_model, config(kind="sentencepiece"))
    for line, (found, starts) in zip(SAMPLE_LINES, ours.encode(SAMPLE_LINES), strict=True):
        ends = [*starts.tolist()[1:], len(line)]
        for i, begin, end in zip(found.tolist(), starts.tolist(), ends, strict=True):
            if i != ours.special_ids["unk"]:
                assert ours.decode_token(i).replace("\u2581", " ") == line[begin:end]


@pytest.mark.parametrize("rule", ["nmt_nfkc", "identity"])
@pytest.mark.parametrize("trim", [True, False])
def test_given_sentencepiece_models_of_other_makes(tmp_path: Path, rule: str, trim: bool) -> None:
    """With spaces in front, normalisation and names as in ALBERT's models."""
    path = tmp_path / "spiece.model"
    with path.open("wb") as file:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(SAMPLE_LINES),
            model_writer=file,
            vocab_size=4000,
            hard_vocab_limit=False,
            character_coverage=0.98,
            normalization_rule_name=rule,
            remove_extra_whitespaces=trim,
            pad_id=0,
            unk_id=1,
            bos_id=-1,
            eos_id=-1,
            control_symbols=["[CLS]", "[SEP]"],
            user_defined_symbols=["[MASK]"],
            num_threads=2,
            num_sub_iterations=1,
            minloglevel=2,
        )
    ours = open_tokenizer(tmp_path, config(kind="sentencepiece"))
    assert ours.decode_token(ours.special_ids["pad"]) == "<pad>"
    theirs = sentencepiece.SentencePieceProcessor(model_file=str(path))
    lines = [line for line in LINES if "[MASK]" not in line]
    right = theirs.encode(lines)
    different = [line for line, a, b in zip(lines, ids(ours, lines), right, strict=True) if a != b]
    assert different == []
    assert ours.special_ids["mask"] not in ids(ours, ["你[MASK]好"])[0]


def test_sentencepiece_models_that_cannot_be_used_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "spiece.model"

    def train(**keys: Any) -> None:
        with path.open("wb") as file:
            sentencepiece.SentencePieceTrainer.train(
                sentence_iterator=iter(SAMPLE_LINES[:100]),
                model_writer=file,
                vocab_size=4000,
                hard_vocab_limit=False,
                character_coverage=0.98,
                minloglevel=2,
                **keys,
            )

    train(pad_id=3)
    with pytest.raises(DataError, match=r"no entry \[MASK\]"):
        open_tokenizer(path, config(kind="sentencepiece"))
    train(byte_fallback=True)
    with pytest.raises(DataError, match="falls back to bytes"):
        open_tokenizer(path, config(kind="sentencepiece"))
    train(user_defined_symbols=["好"])
    with pytest.raises(DataError, match="user defined symbols"):
        open_tokenizer(path, config(kind="sentencepiece"))
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(DataError, match="not a SentencePiece model"):
        open_tokenizer(path, config(kind="sentencepiece"))
