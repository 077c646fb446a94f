"""Tokenizers: ids of `transformers` and `sentencepiece`, offsets into the input, no special ids from text."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from configs.errors import DataError, OutputError
from data_prep.tokenizer import open_tokenizer
from data_prep.tokenizer_base import SPECIALS, Tokenizer
from data_prep.tokenizer_wordpiece import WordPieceTokenizer
from tests.data_prep.awkward import AWKWARD, LINES, SAMPLE_LINES, check_auto_tokenizer, config, ids, without_specials


def write_vocab(path: Path, pieces: list[str]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes("".join(f"{piece}\n" for piece in pieces).encode("utf-8"))
    return path


def some_pieces() -> list[str]:
    """A vocabulary with gaps: some ideographs, punctuation, accents and word pieces, not all."""
    characters = sorted(set("".join(AWKWARD + SAMPLE_LINES)))
    singles = [c for i, c in enumerate(characters) if not c.isspace() and i % 7]
    inner = [f"##{c}" for c in singles if c.isalnum() and c < "\u3000"]
    jamo = [chr(c) for c in range(0x1100, 0x1200)]
    words = ["whole", "word", "mask", "##ing", "bert", "BERT", "cafe", "café", "##fe", "19", "##19", "[unused1]"]
    return [*SPECIALS.values(), *dict.fromkeys([*words, *singles, *inner, *jamo, *(f"##{c}" for c in jamo)])]


@pytest.fixture(scope="module")
def vocab(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_vocab(tmp_path_factory.mktemp("vocab") / "vocab.txt", some_pieces())


# ---------------------------------------------------------------- wordpiece


@pytest.mark.parametrize("lowercase", [True, False])
def test_wordpiece_ids_are_those_of_transformers(vocab: Path, lowercase: bool) -> None:
    from transformers import BertTokenizerFast

    ours = open_tokenizer(vocab, config(lowercase=lowercase))
    theirs = BertTokenizerFast(str(vocab), do_lower_case=lowercase)
    lines = without_specials(LINES)
    assert len(lines) > 900
    assert ids(ours, lines) == theirs(lines, add_special_tokens=False)["input_ids"]


@settings(deadline=None)
@given(st.lists(st.text(max_size=20) | st.text(st.sampled_from("a你é\u0301。 ≠각[##"), max_size=20), max_size=4))
def test_wordpiece_sentences_do_not_touch_each_other(lines: list[str]) -> None:
    ours: Any = shared()
    rights = ours._encoder.encode_batch(lines)
    for (found, starts), right in zip(ours.encode(lines), rights, strict=True):
        assert found.tolist() == right.ids
        assert starts.tolist() == [start for start, _ in right.offsets]


_SHARED: list[Tokenizer] = []


def shared() -> Tokenizer:
    if not _SHARED:
        _SHARED.append(WordPieceTokenizer(some_pieces(), "test"))
    return _SHARED[0]


def test_wordpiece_offsets_count_characters_of_the_input(vocab: Path) -> None:
    tokenizer = open_tokenizer(vocab, config())
    ((found, starts),) = tokenizer.encode(["\u3000你\u200b CAFÉ cafe\u0301  word。각😀x"])
    text = "\u3000你\u200b CAFÉ cafe\u0301  word。각😀x"
    assert found.dtype == np.uint16
    assert starts.dtype == np.int64
    assert starts.tolist()[:5] == [1, text.index("C"), text.index("c"), text.index("w"), text.index("。")]
    assert [tokenizer.decode_token(int(i)) for i in found[1:4]] == ["cafe", "cafe", "word"]


def test_text_never_becomes_a_special_id(vocab: Path) -> None:
    for lowercase in (True, False):
        tokenizer = open_tokenizer(vocab, config(lowercase=lowercase))
        special = {i for name, i in tokenizer.special_ids.items() if name != "unk"}
        for found in ids(tokenizer, [*SPECIALS.values(), "你[MASK]好", "[[CLS]]", *LINES]):
            assert special.isdisjoint(found)


def test_nothing_to_encode(vocab: Path) -> None:
    tokenizer = open_tokenizer(vocab, config())
    assert tokenizer.encode([]) == []
    assert ids(tokenizer, ["", " ", "\n", ""]) == [[], [], [], []]
    with pytest.raises(DataError, match="valid Unicode"):
        tokenizer.encode(["\ud800"])


def test_facts(vocab: Path) -> None:
    tokenizer = open_tokenizer(vocab, config())
    assert tokenizer.kind == "wordpiece"
    assert tokenizer.vocab_size == len(some_pieces())
    assert tokenizer.special_ids == {"pad": 0, "unk": 1, "cls": 2, "sep": 3, "mask": 4}
    assert tokenizer.decode_token(4) == "[MASK]"
    assert tokenizer.decode([*ids(tokenizer, ["masking"])[0], 4]) == "masking[MASK]"
    assert tokenizer.hash == open_tokenizer(vocab.parent, config()).hash
    assert tokenizer.hash != open_tokenizer(vocab, config(lowercase=False)).hash
    assert tokenizer.hash == pickle.loads(pickle.dumps(tokenizer)).hash


def test_large_vocabulary_has_32_bit_ids(tmp_path: Path) -> None:
    pieces = [*SPECIALS.values(), *(f"w{i}" for i in range(65536 - 5))]
    assert open_tokenizer(write_vocab(tmp_path / "a.txt", pieces), config()).dtype == np.uint16
    tokenizer = open_tokenizer(write_vocab(tmp_path / "b.txt", [*pieces, "你"]), config())
    assert tokenizer.dtype == np.uint32
    assert ids(tokenizer, ["你"]) == [[65536]]


# ---------------------------------------------------------------- saving and opening


@pytest.mark.parametrize("lowercase", [True, False])
def test_saved_wordpiece_loads_in_transformers(vocab: Path, tmp_path: Path, lowercase: bool) -> None:
    from transformers import AutoTokenizer

    ours = open_tokenizer(vocab, config(lowercase=lowercase))
    ours.save(tmp_path / "tokenizer")
    assert sorted(p.name for p in (tmp_path / "tokenizer").iterdir()) == [
        "tokenizer.json",
        "tokenizer_config.json",
        "vocab.txt",
    ]
    assert (tmp_path / "tokenizer" / "vocab.txt").read_bytes() == vocab.read_bytes()
    check_auto_tokenizer(ours, AutoTokenizer.from_pretrained(tmp_path / "tokenizer"))
    # what the folder says about lower case holds, whatever the configuration says
    again = open_tokenizer(tmp_path / "tokenizer", config(lowercase=not lowercase))
    assert again.hash == ours.hash


def test_folder_with_only_tokenizer_json(vocab: Path, tmp_path: Path) -> None:
    cased = open_tokenizer(vocab, config(lowercase=False))
    cased.save(tmp_path)
    (tmp_path / "vocab.txt").unlink()
    assert open_tokenizer(tmp_path, config()).hash == cased.hash
    (tmp_path / "tokenizer_config.json").unlink()
    assert open_tokenizer(tmp_path, config()).hash == cased.hash
    assert open_tokenizer(tmp_path / "tokenizer.json", config()).hash == cased.hash
    (tmp_path / "tokenizer_config.json").write_text('{"do_lower_case": true}')
    assert open_tokenizer(tmp_path, config(lowercase=False)).hash == open_tokenizer(vocab, config()).hash


def test_folder_written_by_transformers(vocab: Path, tmp_path: Path) -> None:
    from transformers import BertTokenizerFast

    BertTokenizerFast(str(vocab), do_lower_case=False).save_pretrained(tmp_path)
    ours = open_tokenizer(tmp_path, config())
    assert ours.hash == open_tokenizer(vocab, config(lowercase=False)).hash


def test_crlf_and_byte_order_mark_in_a_vocabulary(vocab: Path, tmp_path: Path) -> None:
    (tmp_path / "v.txt").write_bytes(b"\xef\xbb\xbf" + vocab.read_bytes().replace(b"\n", b"\r\n"))
    assert open_tokenizer(tmp_path / "v.txt", config()).hash == open_tokenizer(vocab, config()).hash


TWELVE = [*SPECIALS.values(), *"一二三四五六七"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("\n".join(p for p in TWELVE if p != "[MASK]").encode(), r"no entry \[MASK\]"),
        ("\n".join(p for p in TWELVE if p not in ("[CLS]", "[SEP]")).encode(), r"no \[SEP\]"),
        ("\n".join(TWELVE[:8]).encode(), "8 entries"),
        (b"", "0 entries"),
        ("\n".join([*TWELVE, "二"]).encode(), "'二' stands twice .entries 7 and 13"),
        ("\n".join(TWELVE).encode("gb18030"), "not UTF-8"),
        (b"\x0a\x0e\x0a\x05\xff\xfe", "sentencepiece"),
    ],
)
def test_vocabulary_that_cannot_be_used_is_refused(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "vocab.txt"
    path.write_bytes(content)
    with pytest.raises(DataError, match=message) as caught:
        open_tokenizer(path, config())
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        ({"model": {"type": "BPE", "vocab": {}}}, "type BPE"),
        ({}, "type None"),
        ([], "JSON object"),
        ({"model": {"type": "WordPiece", "vocab": dict.fromkeys(TWELVE, 0)}}, "not 0 to 11"),
        ({"model": {"type": "WordPiece", "vocab": {"a": []}}}, "not a complete"),
        ({"model": {"type": "WordPiece", "vocab": {}, "continuing_subword_prefix": "@@"}}, "@@"),
    ],
)
def test_tokenizer_json_that_cannot_be_used_is_refused(tmp_path: Path, tree: Any, message: str) -> None:
    (tmp_path / "tokenizer.json").write_text(json.dumps(tree))
    with pytest.raises(DataError, match=message):
        open_tokenizer(tmp_path, config())


def test_missing_vocabulary_is_named(tmp_path: Path, vocab: Path) -> None:
    with pytest.raises(DataError, match="There is no vocabulary"):
        open_tokenizer(tmp_path / "nothing", config())
    with pytest.raises(DataError, match="neither"):
        open_tokenizer(tmp_path, config())
    with pytest.raises(DataError, match="kind=wordpiece"):
        open_tokenizer(vocab.parent, config(kind="sentencepiece"))
    with pytest.raises(DataError, match="not a SentencePiece model"):
        open_tokenizer(vocab, config(kind="sentencepiece"))
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(DataError, match="not JSON"):
        open_tokenizer(tmp_path, config())


def test_folder_that_cannot_be_written(vocab: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(OutputError):
        open_tokenizer(vocab, config()).save(tmp_path / "file")
