"""SentencePiece: ids of `sentencepiece` and `transformers`, offsets into the input, refusals."""

from __future__ import annotations

import pickle
import random
import unicodedata
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sentencepiece
import tokenizers

from configs.errors import DataError
from data_prep.sentencepiece_model import GRID
from data_prep.tokenizer import open_tokenizer, train_tokenizer
from tests.data_prep.awkward import LINES, SAMPLE_LINES, check_auto_tokenizer, config, ids, without_specials


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


def test_sentencepiece_nothing_to_encode(trained_model: Path) -> None:
    ours = open_tokenizer(trained_model, config(kind="sentencepiece"))
    assert ours.encode([]) == []
    assert ids(ours, ["", ""]) == [[], []]
    with pytest.raises(DataError, match="valid Unicode"):
        ours.encode(["\ud800"])
    with pytest.raises(DataError, match="valid Unicode"):
        ours.encode_stream(np.array([0xD800], np.uint32), np.array([0, 1], np.int64))


def test_sentencepiece_offsets_count_characters(trained_model: Path) -> None:
    ours = open_tokenizer(trained_model, config(kind="sentencepiece"))
    for line, (found, starts) in zip(SAMPLE_LINES, ours.encode(SAMPLE_LINES), strict=True):
        ends = [*starts.tolist()[1:], len(line)]
        for i, begin, end in zip(found.tolist(), starts.tolist(), ends, strict=True):
            if i != ours.special_ids["unk"]:
                assert ours.decode_token(i).replace("\u2581", " ") == line[begin:end]


def train(path: Path, lines: list[str] = SAMPLE_LINES, **keys: Any) -> Any:
    """A model with spaces in front, normalisation and names as in ALBERT's models; returns `sentencepiece` with it."""
    defaults = {
        "vocab_size": 3000,
        "hard_vocab_limit": keys.get("model_type") == "bpe",
        "character_coverage": 0.98,
        "pad_id": 0,
        "unk_id": 1,
        "bos_id": -1,
        "eos_id": -1,
        "control_symbols": ["[CLS]", "[SEP]"],
        "user_defined_symbols": ["[MASK]"],
        "num_threads": 2,
        "num_sub_iterations": 1,
        "minloglevel": 2,
    }
    with path.open("wb") as file:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(lines), model_writer=file, **{**defaults, **keys}
        )
    return sentencepiece.SentencePieceProcessor(model_file=str(path))


@pytest.mark.parametrize("algorithm", ["unigram", "bpe"])
@pytest.mark.parametrize(
    ("rule", "trim"), [("nmt_nfkc", True), ("nfkc", False), ("identity", True), ("nmt_nfkc_cf", False)]
)
def test_given_models_are_the_same_in_all_libraries(tmp_path: Path, algorithm: str, rule: str, trim: bool) -> None:
    """Ours, `sentencepiece` with the saved spiece.model, and `transformers` with the saved folder."""
    from transformers import AutoTokenizer

    train(tmp_path / "spiece.model", model_type=algorithm, normalization_rule_name=rule, remove_extra_whitespaces=trim)
    ours = open_tokenizer(tmp_path, config(kind="sentencepiece"))
    assert ours.decode_token(ours.special_ids["pad"]) == "<pad>"
    assert ours.special_ids["mask"] not in ids(ours, ["你[MASK]好"])[0]
    ours.save(tmp_path / "saved")
    theirs = sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / "saved" / "spiece.model"))
    # In tokenizer.json full-width letters with accents stay two characters, see SentencePieceTokenizer.
    lines = [line for line in LINES if "[MASK]" not in line]
    plain = [line for line in without_specials(LINES) if not any(map(unicodedata.combining, line))]
    right = theirs.encode(lines)
    assert ids(ours, lines) == right
    hugging_face = AutoTokenizer.from_pretrained(tmp_path / "saved")
    assert hugging_face(plain, add_special_tokens=False)["input_ids"] == theirs.encode(plain)
    assert len(plain) > 700
    places = [[begin for begin, _ in found["offsets"]] for found in theirs.encode(lines, return_type="offset_mapping")]
    assert [starts.tolist() for _, starts in ours.encode(lines)] == places
    again = open_tokenizer(tmp_path / "saved", config(kind="sentencepiece"))
    assert again.hash == ours.hash == pickle.loads(pickle.dumps(ours)).hash


@pytest.mark.parametrize("kind", ["sentencepiece", "bpe"])
def test_streams_are_lines_one_after_another(tmp_path: Path, kind: Any) -> None:
    tokenizer = train_tokenizer(iter(SAMPLE_LINES), config(kind=kind, vocab_size=2000), tmp_path)
    units = np.append(0, np.cumsum([len(line) for line in LINES])).astype(np.int64)
    chars = np.frombuffer("".join(LINES).encode("utf-32-le"), np.uint32)
    found, places, counts = tokenizer.encode_stream(chars, units)
    right = tokenizer.encode(LINES)
    assert found.dtype == tokenizer.dtype and counts.tolist() == [len(ids) for ids, _ in right]
    assert found.tolist() == [i for ids, _ in right for i in ids.tolist()]
    assert (places - np.repeat(units[:-1], counts)).tolist() == [p for _, starts in right for p in starts.tolist()]


def test_equally_good_pieces_stand_in_the_same_order_everywhere(tmp_path: Path) -> None:
    """``!!!!!`` is ``!!!`` and ``!!`` in any order: rounded scores leave the choice to one rule, not to rounding."""
    from transformers import AutoTokenizer

    draw = random.Random(1)
    lines = [line + draw.choice("！~。哈") * draw.randint(1, 6) for line in SAMPLE_LINES for _ in range(2)]
    before = train(tmp_path / "spiece.model", lines, character_coverage=1.0, vocab_size=4000)
    ours = open_tokenizer(tmp_path, config(kind="sentencepiece"))
    ours.save(tmp_path / "saved")
    theirs = sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / "saved" / "spiece.model"))
    tails = [line[:20] + c * n + line[20:40] for line in SAMPLE_LINES[:200] for c in "！~。哈" for n in range(4, 12)]
    right = theirs.encode(tails)
    assert ids(ours, tails) == right
    assert AutoTokenizer.from_pretrained(tmp_path / "saved")(tails, add_special_tokens=False)["input_ids"] == right
    # Only the order is another one, where it is.
    different = [(a, b) for a, b in zip(before.encode(tails), right, strict=True) if a != b]
    assert all(sorted(a) == sorted(b) for a, b in different)
    size = before.get_piece_size()
    assert max(abs(before.get_score(i) - theirs.get_score(i)) for i in range(size)) <= 0.5 / GRID


@pytest.mark.parametrize("rule", ["nmt_nfkc", "nfkc", "identity"])
@pytest.mark.parametrize("algorithm", ["unigram", "bpe"])
def test_ids_of_20000_lines_are_those_of_sentencepiece(tmp_path: Path, rule: str, algorithm: str) -> None:
    """Lines of the sample put together anew, with marks behind anything, as the saved tokenizer.json has them."""
    train(tmp_path / "spiece.model", model_type=algorithm, normalization_rule_name=rule)
    open_tokenizer(tmp_path, config(kind="sentencepiece")).save(tmp_path / "saved")
    theirs = sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / "saved" / "spiece.model"))
    library = tokenizers.Tokenizer.from_file(str(tmp_path / "saved" / "tokenizer.json"))
    draw, lines = random.Random(5), ["你好，\u034c天气", "①\u0301 。", "A\u0308\u0301x", "，\u034c\u0301"]
    while len(lines) < 20_000:
        line = "".join(draw.choice(SAMPLE_LINES)[draw.randrange(8) :][: draw.randrange(24)] for _ in range(3))
        place = draw.randrange(len(line) + 1)
        lines.append(line[:place] + draw.choice(["", "", "\u034c", "①", "ﬁ", "㎡"]) + line[place:])
    found = [one.ids for one in library.encode_batch(lines, add_special_tokens=False)]
    different = [line for line, ours, right in zip(lines, found, theirs.encode(lines), strict=True) if ours != right]
    assert different == []


def test_a_normaliser_that_tokenizers_cannot_carry_out_is_refused(tmp_path: Path) -> None:
    rule = tmp_path / "rule.tsv"
    # x becomes z, but with an accent q: `tokenizers` always finds the shorter entry.
    rule.write_text("0078\t007A\n0078 0301\t0071\n", encoding="utf-8")
    train(tmp_path / "spiece.model", normalization_rule_tsv=str(rule))
    ours = open_tokenizer(tmp_path, config(kind="sentencepiece"))
    with pytest.raises(DataError, match=r"characters would become something else .U\+0301.*another"):
        ours.save(tmp_path / "saved")
    assert not (tmp_path / "saved").exists()
    rule.write_text("4F60\t60A8\n", encoding="utf-8")
    train(tmp_path / "spiece.model", normalization_rule_tsv=str(rule))
    ours = open_tokenizer(tmp_path, config(kind="sentencepiece"))
    ours.save(tmp_path / "saved")
    assert ids(ours, ["你好"]) == ids(ours, ["您好"])


def test_sentencepiece_models_that_cannot_be_used_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "spiece.model"

    few: dict[str, Any] = {"lines": SAMPLE_LINES[:100]}
    train(path, **few, user_defined_symbols=[])
    with pytest.raises(DataError, match=r"no entry \[MASK\]"):
        open_tokenizer(path, config(kind="sentencepiece"))
    train(path, **few, byte_fallback=True)
    with pytest.raises(DataError, match="falls back to bytes"):
        open_tokenizer(path, config(kind="sentencepiece"))
    train(path, **few, user_defined_symbols=["好"])
    with pytest.raises(DataError, match="user defined symbols"):
        open_tokenizer(path, config(kind="sentencepiece"))
    train(path, **few, model_type="char", vocab_size=4000)
    with pytest.raises(DataError, match="neither a unigram nor a BPE model"):
        open_tokenizer(path, config(kind="sentencepiece"))
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(DataError, match="not a SentencePiece model"):
        open_tokenizer(path, config(kind="sentencepiece"))
