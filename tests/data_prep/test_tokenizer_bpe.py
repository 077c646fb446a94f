"""Byte-level BPE: ids of `transformers`, starts from bytes, whole words of Dutch, English and Chinese text."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from configs.errors import DataError
from data_prep.tokenizer import open_tokenizer
from data_prep.tokenizer_base import Tokenizer
from data_prep.tokenizer_bpe import BPE_SPECIALS, BpeTokenizer
from tests.data_prep.awkward import LINES, ids
from tests.data_prep.latin import LETTERS, MIXED, bpe, bytes_of, shared

ANY_TEXT = st.text(max_size=40) | st.text(st.sampled_from("aé  你们好😀\u0301.\n'sĠ<mask>"), max_size=30)


@pytest.fixture(scope="module")
def trained() -> BpeTokenizer:
    return shared()


@pytest.fixture(scope="module")
def folder(trained: BpeTokenizer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("bpe") / "tokenizer"
    trained.save(path)
    return path


# ---------------------------------------------------------------- ids and starts


@settings(deadline=None, max_examples=200)
@given(st.lists(ANY_TEXT, max_size=4))
def test_pieces_join_back_to_the_text(texts: list[str]) -> None:
    tokenizer = shared()
    for text, (found, _) in zip(texts, tokenizer.encode(texts), strict=True):
        assert bytes_of(tokenizer, found) == text.encode()
        assert tokenizer.decode(found.tolist()) == text


def slow_starts(tokenizer: Tokenizer, text: str, found: Any) -> list[int]:
    """Where each piece begins, byte by byte: the rule of :class:`BpeTokenizer`, written again."""
    owner = [i for i, character in enumerate(text) for _ in character.encode()]
    first = [i == 0 or owner[i] != owner[i - 1] for i in range(len(owner))]
    at = len(owner) - sum(len(tokenizer.decode_token(int(i))) for i in found)  # -1 with a space put in front
    out: list[int] = []
    for i in found:
        place = max(at, 0)
        if not first[place]:
            out.append(out[-1])
        else:
            start = owner[place]
            while start < len(text) and text[start] == " ":
                start += 1
            out.append(start if start < len(text) else owner[place])
        at += len(tokenizer.decode_token(int(i)))
    return out


@settings(deadline=None, max_examples=200)
@given(st.lists(ANY_TEXT.filter(bool), max_size=4), st.booleans())
def test_starts_are_those_of_a_slow_reference(texts: list[str], prefix: bool) -> None:
    tokenizer = shared(prefix)
    for text, (found, starts) in zip(texts, tokenizer.encode(texts), strict=True):
        assert found.dtype == np.uint16
        assert starts.dtype == np.int64
        assert starts.tolist() == slow_starts(tokenizer, text, found)
        assert (np.diff(starts) >= 0).all()


@pytest.mark.parametrize("prefix", [False, True])
def test_starts_against_the_offsets_of_the_library(prefix: bool) -> None:
    tokenizer = shared(prefix)
    checked = 0
    for line, (found, starts) in zip(LINES, tokenizer.encode(LINES), strict=True):
        right = tokenizer._encoder.encode(line)
        assert found.tolist() == right.ids
        for start, piece, (begin, _) in zip(starts.tolist(), right.tokens, right.offsets, strict=True):
            if LETTERS[piece[0]] & 0xC0 != 0x80 and not piece.startswith("Ġ"):
                assert start == begin, (line, piece)
                checked += 1
    assert checked > 5000


def test_a_piece_with_a_space_begins_at_its_word(trained: BpeTokenizer) -> None:
    text = " de  fietser é "
    ((found, starts),) = trained.encode([text])
    pieces = [trained.decode_token(int(i)) for i in found]
    assert pieces[0] == "Ġde"
    assert starts[0] == text.index("d")
    assert all(text[start] != " " for start in starts[:-1])
    assert starts[-1] == len(text) - 1  # of a space at the end there is no word


def test_a_character_is_never_torn() -> None:
    """Two ideographs whose bytes are merged across their border: the second belongs to the word of the first."""
    letters = {byte: letter for letter, byte in LETTERS.items()}
    a = [letters[byte] for byte in "你".encode()]
    b = [letters[byte] for byte in "好".encode()]
    joined = a[2] + b[0]
    pieces = [*BPE_SPECIALS.values(), *LETTERS, joined]
    tokenizer = BpeTokenizer(pieces, [(a[2], b[0])], BPE_SPECIALS, "test")
    ((found, starts),) = tokenizer.encode(["你好你"])
    assert [tokenizer.decode_token(int(i)) for i in found] == [a[0], a[1], joined, b[1], b[2], *a]
    assert starts.tolist() == [0, 0, 0, 0, 0, 2, 2, 2]


def test_bytes_that_the_vocabulary_lacks_are_unknown(tmp_path: Path) -> None:
    pieces = [*BPE_SPECIALS.values(), *(letter for letter, byte in LETTERS.items() if byte < 0xE0)]
    BpeTokenizer(pieces, [], BPE_SPECIALS, "test").save(tmp_path)
    tokenizer = open_tokenizer(tmp_path, bpe())
    ((found, starts),) = tokenizer.encode(["a你b"])
    unknown = tokenizer.special_ids["unk"]
    assert [int(i) == unknown for i in found] == [False, True, False, False, False]
    assert starts.tolist() == [0, 1, 1, 1, 2]


def test_text_never_becomes_a_special_id(trained: BpeTokenizer) -> None:
    special = set(trained.special_ids.values())
    for found in ids(trained, [*BPE_SPECIALS.values(), "een <mask> hier", "<s></s>", *LINES]):
        assert special.isdisjoint(found)


def test_nothing_to_encode(trained: BpeTokenizer) -> None:
    assert trained.encode([]) == []
    assert ids(trained, ["", ""]) == [[], []]
    assert ids(shared(prefix=True), ["", "a", ""]) == [[], ids(shared(), [" a"])[0], []]
    with pytest.raises(DataError, match="valid Unicode"):
        trained.encode(["a", "\ud800"])


# ---------------------------------------------------------------- with transformers


def check_same(ours: Tokenizer, theirs: Any) -> None:
    assert type(theirs).__name__.startswith("Roberta")
    assert len(theirs) == ours.vocab_size
    assert {part: getattr(theirs, f"{part}_token_id") for part in BPE_SPECIALS} == ours.special_ids
    assert (theirs.bos_token, theirs.eos_token) == (theirs.cls_token, theirs.sep_token)
    lines = [line for line in [*MIXED, *LINES] if line and "<" not in line]
    cls, sep = ours.special_ids["cls"], ours.special_ids["sep"]
    assert theirs(lines)["input_ids"] == [[cls, *found, sep] for found in ids(ours, lines)]
    pair = theirs("de brug", "een fiets")["input_ids"]
    assert pair == [cls, *ids(ours, ["de brug"])[0], sep, sep, *ids(ours, ["een fiets"])[0], sep]
    masked = theirs("Zij is <mask>.", add_special_tokens=False)["input_ids"]
    mask = ours.special_ids["mask"]
    assert masked == [*ids(ours, ["Zij is"])[0], mask, *ids(ours, ["."])[0]]  # the mask takes the space before it


@pytest.mark.parametrize("prefix", [False, True])
def test_saved_tokenizer_loads_in_transformers(tmp_path: Path, prefix: bool) -> None:
    from transformers import AutoTokenizer

    ours = shared(prefix)
    ours.save(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "merges.txt", "tokenizer.json", "tokenizer_config.json", "vocab.json",
    ]  # fmt: skip
    check_same(ours, AutoTokenizer.from_pretrained(tmp_path))
    assert open_tokenizer(tmp_path, bpe()).hash == ours.hash


@pytest.mark.parametrize("prefix", [False, True])
@pytest.mark.parametrize("order", [("cls", "pad", "sep", "unk", "mask"), ("cls", "sep", "mask", "unk", "pad")])
def test_folder_written_by_transformers(tmp_path: Path, order: tuple[str, ...], prefix: bool) -> None:
    """Whatever the ids of the special tokens are, and with or without a space in front."""
    from transformers import AutoTokenizer, RobertaTokenizerFast

    source = shared()
    pieces = [BPE_SPECIALS[order[0]], *source.pieces[5:], *(BPE_SPECIALS[part] for part in order[1:])]
    vocab = {piece: i for i, piece in enumerate(pieces)}
    RobertaTokenizerFast(vocab=vocab, merges=source.merges, add_prefix_space=prefix).save_pretrained(tmp_path)
    ours = open_tokenizer(tmp_path, bpe())
    assert ours.special_ids == {part: vocab[entry] for part, entry in BPE_SPECIALS.items()}
    assert ours.settings["add_prefix_space"] is prefix
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    assert theirs(MIXED, add_special_tokens=False)["input_ids"] == ids(ours, MIXED)
    (tmp_path / "tokenizer_config.json").unlink()  # the same from tokenizer.json alone
    assert open_tokenizer(tmp_path / "tokenizer.json", bpe()).hash == ours.hash


def test_hash_and_pickle(trained: BpeTokenizer, folder: Path) -> None:
    assert trained.kind == "bpe"
    assert pickle.loads(pickle.dumps(trained)).hash == trained.hash == open_tokenizer(folder, bpe()).hash
    assert shared(prefix=True).hash != trained.hash
    fewer = BpeTokenizer(trained.pieces, trained.merges[:-1], trained.specials, "test")
    assert fewer.hash != trained.hash


def test_large_vocabulary_has_32_bit_ids() -> None:
    pieces = [*BPE_SPECIALS.values(), *LETTERS, *(f"w{i}" for i in range(65536 - 261))]
    assert BpeTokenizer(pieces, [], BPE_SPECIALS, "test").dtype == np.uint16
    tokenizer = BpeTokenizer([*pieces, "de"], [("d", "e")], BPE_SPECIALS, "test")
    assert tokenizer.dtype == np.uint32
    assert ids(tokenizer, ["de"]) == [[65536]]


# ---------------------------------------------------------------- what is given


def copy(folder: Path, to: Path, *names: str) -> Path:
    to.mkdir(exist_ok=True)
    for name in names:
        (to / name).write_bytes((folder / name).read_bytes())
    return to


def test_vocab_json_with_merges_txt(trained: BpeTokenizer, folder: Path, tmp_path: Path) -> None:
    pair = copy(folder, tmp_path / "pair", "vocab.json", "merges.txt")
    assert open_tokenizer(pair, bpe()).hash == trained.hash
    (pair / "merges.txt").write_bytes(b"".join((pair / "merges.txt").read_bytes().splitlines(keepends=True)[1:]))
    assert open_tokenizer(pair, bpe()).hash == trained.hash  # without the line of the version
    (pair / "tokenizer_config.json").write_text('{"add_prefix_space": true}')
    assert open_tokenizer(pair, bpe()).hash == shared(prefix=True).hash


def test_special_tokens_by_the_names_in_the_files(trained: BpeTokenizer, folder: Path, tmp_path: Path) -> None:
    pair = copy(folder, tmp_path / "pair", "vocab.json", "merges.txt")
    renamed = {"<s>": "[CLS]", "</s>": "[SEP]", "<mask>": "[MASK]"}
    vocab = {renamed.get(piece, piece): i for i, piece in enumerate(trained.pieces)}
    (pair / "vocab.json").write_text(json.dumps(vocab))
    with pytest.raises(DataError, match=r"no entry <s> and no </s> and no <mask>"):
        open_tokenizer(pair, bpe())
    named = {"bos_token": "[CLS]", "sep_token": {"content": "[SEP]", "lstrip": False}, "mask_token": "[MASK]"}
    (pair / "special_tokens_map.json").write_text(json.dumps(named))
    assert open_tokenizer(pair, bpe()).special_ids == trained.special_ids


def test_added_tokens_count_as_entries(trained: BpeTokenizer, folder: Path, tmp_path: Path) -> None:
    pair = copy(folder, tmp_path / "pair", "vocab.json", "merges.txt")
    (pair / "added_tokens.json").write_text(json.dumps({"<extra>": trained.vocab_size}))
    tokenizer = open_tokenizer(pair, bpe())
    assert tokenizer.vocab_size == trained.vocab_size + 1
    assert ids(tokenizer, ["<extra>"]) == ids(trained, ["<extra>"])


def changed(tree: Any, path: str, value: Any) -> Any:
    *parents, last = path.split(".")
    inner = tree
    for name in parents:
        inner = inner[name]
    inner[last] = value
    return tree


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("model.type", "WordPiece", "type WordPiece, not byte-level BPE"),
        ("model", None, "type None"),
        ("pre_tokenizer", {"type": "Whitespace"}, "pre_tokenizer"),
        ("pre_tokenizer", None, "pre_tokenizer"),
        ("normalizer", {"type": "Lowercase"}, "normalises"),
        ("model.dropout", 0.1, "dropout"),
        ("model.ignore_merges", True, "ignore_merges"),
        ("model.end_of_word_suffix", "</w>", "suffix"),
        ("model.merges", [["d"]], r"merge 1 is \('d',\)"),
        ("model.merges", [["d", "Ġqqq"]], "do not belong together"),
        ("model.merges", [["▁", "d"]], "not byte-level BPE: it merges '▁'"),
        ("model.vocab", {"a": 0, "b": 0}, "not 0 to"),
        ("model.vocab", [], "not 0 to|not a complete|entries"),
        ("added_tokens", [{"id": 3}], "not a complete"),
    ],
)
def test_tokenizer_json_that_cannot_be_used(folder: Path, tmp_path: Path, path: str, value: Any, message: str) -> None:
    tree = json.loads((folder / "tokenizer.json").read_text())
    (tmp_path / "tokenizer.json").write_text(json.dumps(changed(tree, path, value)))
    with pytest.raises(DataError, match=message) as caught:
        open_tokenizer(tmp_path, bpe())
    assert str(tmp_path) in str(caught.value)


def test_vocabulary_without_bytes(tmp_path: Path) -> None:
    pieces = [*BPE_SPECIALS.values(), *"abcdefghij"]
    (tmp_path / "vocab.json").write_text(json.dumps({piece: i for i, piece in enumerate(pieces)}))
    (tmp_path / "merges.txt").write_text("#version: 0.2\n")
    with pytest.raises(DataError, match="10 of the 256 bytes"):
        open_tokenizer(tmp_path, bpe())


def test_missing_and_broken_files_are_named(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="There is no vocabulary"):
        open_tokenizer(tmp_path / "nothing", bpe())
    with pytest.raises(DataError, match=r"no vocab\.json and no merges\.txt"):
        open_tokenizer(tmp_path, bpe())
    (tmp_path / "vocab.txt").write_text("x")
    with pytest.raises(DataError, match="kind=wordpiece"):
        open_tokenizer(tmp_path, bpe())
    copy(folder, tmp_path, "vocab.json")
    with pytest.raises(DataError, match=r"no merges\.txt: correct"):
        open_tokenizer(tmp_path, bpe())
    with pytest.raises(DataError, match="give their folder"):
        open_tokenizer(tmp_path / "vocab.json", bpe())
    (tmp_path / "merges.txt").write_bytes(b"\xff\xfe")
    with pytest.raises(DataError, match="not UTF-8"):
        open_tokenizer(tmp_path, bpe())
    (tmp_path / "merges.txt").write_text("#version: 0.2\na b c\n")
    with pytest.raises(DataError, match="merge 1 is"):
        open_tokenizer(tmp_path, bpe())
    (tmp_path / "vocab.json").write_text("{")
    with pytest.raises(DataError, match="not JSON"):
        open_tokenizer(tmp_path, bpe())
